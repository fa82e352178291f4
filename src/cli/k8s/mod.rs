//! `transload k8s`: prints Kubernetes objects for pulling from a private registry, as input for `kubectl apply -f -`.
//!
//! It makes no requests to a cluster.

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

/// Prints an object.
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

/// Prints the document as JSON or YAML; kubectl reads both.
fn print(document: &Value, global: &Global) -> Result<()> {
    match global.output {
        // Without redaction: the user asked for a Secret.
        Format::Json => output::print_exact(&format!("{document:#}\n")),
        Format::Text => output::print_exact(&yaml::document(document)?),
    }
    Ok(())
}
