//! For `transload demo`: look-alikes of Docker Hub and Azure Container Registry, and their images. `cli::demo` is the
//! command.

pub mod fixtures;
pub mod persona;
