//! transload: images from registry to registry, streamed, verified, in one step.

pub mod cli;
pub mod content;
pub mod copy;
pub mod credentials;
pub mod demo;
pub mod descriptor;
pub mod error;
pub mod layout;
pub mod manifest;
pub mod reference;
pub mod registry;
pub mod retry;
pub mod server;
pub mod verify;
