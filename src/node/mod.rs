//! The node's side of the proxy: containerd's `hosts.toml`.
//!
//! containerd reads `certs.d/<registry>/hosts.toml` at each pull: the hosts to use for that registry's images, in
//! order. [`Mirror`] renders one (pure), [`Installed`] installs and removes it. [`config_path_use`] tells whether
//! containerd reads the directory (pure).
//!
//! ```text
//! /etc/containerd/certs.d/
//!   docker.io/
//!     hosts.toml                       ours, by its first line
//!     hosts.toml.transload-backup      the file before ours, by a hard link
//!     .hosts.toml.transload-<pid>      temporary; renamed to hosts.toml
//! ```
//!
//! It knows nothing about Kubernetes, and makes no requests.

mod containerd_config;
mod hosts;
mod install;
mod root_dir;

pub(crate) use containerd_config::{ConfigPathUse, config_path_use, registry_table};
pub(crate) use hosts::{Acr, Mirror};
pub(crate) use install::{InstallOutcome, Installed, RemoveOutcome};
pub(crate) use root_dir::RootDir;
