//! A Kubernetes node's side of the proxy: containerd's `hosts.toml`, and its place in the file system.
//!
//! containerd reads, at each pull, `certs.d/<registry>/hosts.toml`: which hosts to ask for that
//! registry's images, in order. [`Mirror`] renders one (pure), [`Installed`] puts it there and takes it
//! away again. [`reads`] says whether containerd looks there at all (pure).
//!
//! ```text
//! /etc/containerd/certs.d/
//!   docker.io/
//!     hosts.toml                       ours: its first line says so
//!     hosts.toml.transload-backup      what was there before: the very file, by a hard link
//!     .hosts.toml.transload-<pid>      being written; renamed over hosts.toml
//! ```
//!
//! Knows nothing of Kubernetes, and talks to nobody.

mod config;
mod hosts;
mod install;
mod place;

pub use config::{Reads, reads, table};
pub use hosts::{Acr, Mirror, directory_name};
pub use install::{Installed, Removed, Was};
pub use place::Place;
