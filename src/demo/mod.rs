//! `transload demo`: look-alikes of Docker Hub and Azure Container Registry, and the images that
//! they hold. The command itself, which wires them up, is in `cli::demo`.

pub mod fixtures;
pub mod persona;
