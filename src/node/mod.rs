//! A Kubernetes node's side of the proxy: containerd's `hosts.toml`, and its place in the file system.
//!
//! containerd reads, at each pull, `certs.d/<registry>/hosts.toml`: which hosts to ask for that
//! registry's images, in order. [`Mirror`] renders one (pure), [`Installed`] puts it there and takes it
//! away again. [`config_path_use`] says whether containerd looks there at all (pure).
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

mod containerd_config;
mod hosts;
mod install;
mod root_dir;

pub(crate) use containerd_config::{ConfigPathUse, config_path_use, registry_table};
pub(crate) use hosts::{Acr, Mirror};
pub(crate) use install::{InstallOutcome, Installed, RemoveOutcome};
pub(crate) use root_dir::RootDir;
