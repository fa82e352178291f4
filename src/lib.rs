//! transload: images from registry to registry, streamed, verified, in one step.

pub mod cli;
pub mod content;
pub mod credentials;
pub mod descriptor;
pub mod error;
pub mod manifest;
pub mod reference;
pub mod retry;
pub mod verify;
