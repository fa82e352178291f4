//! `transload k8s pod`: a Pod that pulls with a Secret.

use clap::ValueEnum;
use serde_json::{Value, json};

use super::name;
use crate::error::{Error, Kind, Result, Side};
use crate::reference::Reference;

/// Print a Pod that runs an image, pulled with a secret
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Args {
    /// The image, such as myregistry.azurecr.io/library/hello-world
    image: Reference,

    /// Name of the Secret with the credentials, as `k8s secret` prints it (repeatable)
    #[arg(long, value_name = "NAME", value_parser = name::subdomain)]
    secret: Vec<String>,

    /// Name of the Pod [default: from the image]
    #[arg(long, value_parser = name::subdomain)]
    name: Option<String>,

    /// Namespace of the Pod and the Secret [default: that of kubectl]
    #[arg(long, short, value_parser = name::label)]
    namespace: Option<String>,

    /// When the container is started again after it ended
    #[arg(long, value_enum, default_value_t = Restart::Always)]
    restart: Restart,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Restart {
    Always,
    OnFailure,
    Never,
}

/// The Pod object.
pub(super) fn document(args: &Args) -> Result<Value> {
    let image = &args.image;
    let last = image.repository.name.rsplit('/').next().unwrap_or_default();
    let container = name::sanitized(last).ok_or_else(|| {
        Error::new(Kind::Usage, format!("no name can be made of {last:?}")).on(Side::Local).hint("give one with --name")
    })?;
    let mut metadata = json!({ "name": args.name.as_ref().unwrap_or(&container) });
    if let Some(namespace) = &args.namespace {
        metadata["namespace"] = json!(namespace);
    }
    let mut spec = json!({
        "containers": [{
            "name": container,
            "image": image.to_string(),
            "securityContext": { "allowPrivilegeEscalation": false },
        }],
        "restartPolicy": match args.restart {
            Restart::Always => "Always",
            Restart::OnFailure => "OnFailure",
            Restart::Never => "Never",
        },
        // The image needs no access to the cluster's API.
        "automountServiceAccountToken": false,
    });
    if !args.secret.is_empty() {
        let secrets: Vec<Value> = args.secret.iter().map(|name| json!({ "name": name })).collect();
        spec["imagePullSecrets"] = json!(secrets);
    }
    Ok(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec }))
}
