//! The catalogue of attacks: one file for each kind of hostile input. Each test states the attack, then what
//! transload does instead. `SECURITY.md` states the promises that these tests keep.

mod addresses;
mod client_heads;
mod connections;
mod credentials;
mod entra;
mod images_of_others;
mod images_of_others_serve;
mod layout_limits;
mod layout_links;
mod lists;
mod memory;
mod names;
mod numbers;
mod open_door;
mod panics;
mod push_quota;
mod secrets;
mod special_files;
mod terminal;
