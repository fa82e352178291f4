//! `transload k8s`: what a cluster needs to pull from a private registry, as text for `kubectl apply -f -`.
//!
//! Nothing here talks to a cluster.

mod name;
mod pod;
mod secret;
mod yaml;

use clap::{Args, Subcommand};
use serde_json::Value;

use super::global::{Format, Global};
use super::{node, output};
use crate::error::Result;

/// Print Kubernetes objects for pulling from a private registry, and containerd's hosts.toml
#[derive(Args, Clone, Debug)]
pub(super) struct Command {
    #[command(subcommand)]
    what: Object,
}

#[derive(Clone, Debug, Subcommand)]
enum Object {
    Secret(secret::Args),
    Pod(pod::Args),
    Hosts(node::MirrorArgs),
}

/// Prints it.
pub(super) async fn run(command: &Command, global: &Global) -> Result<u8> {
    match &command.what {
        Object::Secret(args) => print(&secret::document(args, global).await?, global)?,
        Object::Pod(args) => print(&pod::document(args)?, global)?,
        Object::Hosts(args) => {
            for mirror in args.mirrors()? {
                output::print(&mirror.render());
            }
        }
    }
    Ok(0)
}

/// kubectl takes both.
fn print(document: &Value, global: &Global) -> Result<()> {
    match global.output {
        // Exactly: a Secret is what was asked for.
        Format::Json => output::print_exact(&format!("{document:#}\n")),
        Format::Text => output::print_exact(&yaml::document(document)?),
    }
    Ok(())
}
