//! `transload demo`: look-alikes of Docker Hub and Azure Container Registry in the process.

pub mod persona;
