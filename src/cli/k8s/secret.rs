//! `transload k8s secret`: a Secret with a registry's credentials, for the kubelet.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};

use super::super::global::Global;
use super::super::login::{Console, prompted_credential};
use super::super::output;
use super::name;
use crate::credentials::{Credential, Credentials, Secret, pull_secret};
use crate::error::{Error, Kind, Result, Side};
use crate::reference::{DOCKER_HUB, Repository, registry_as_written, registry_name};
use crate::registry::azure::is_acr;

/// Print a Secret with a registry's credentials, for imagePullSecrets
///
/// Uses the credentials of `transload login`, or those given here, and does not try them. A password is read from stdin or
/// the terminal, never from an argument. The output holds the password: pipe it to `kubectl apply -f -`.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Args {
    /// The registry, such as myregistry.azurecr.io
    #[arg(long)]
    registry: String,

    /// Name of the Secret
    #[arg(long, value_parser = name::subdomain)]
    name: String,

    /// Namespace [default: that of kubectl]
    #[arg(long, short, value_parser = name::label)]
    namespace: Option<String>,

    /// User name [default: the stored login]
    #[arg(long, short, value_name = "USER")]
    username: Option<String>,

    /// Read the password from stdin
    #[arg(long, requires = "username")]
    password_stdin: bool,
}

/// The Secret object.
pub(super) async fn document(args: &Args, global: &Global) -> Result<Value> {
    let registry = registry_name(&args.registry)?;
    let credential = match &args.username {
        Some(user) => prompted_credential(Some(user), args.password_stdin, &mut Console)?,
        None => stored_credential(&registry, global).await?,
    };
    let (username, password) = kubelet_credential(&registry, credential)?;
    // The kubelet compares the host and port of an image's reference with the key.
    let key = if registry == DOCKER_HUB { registry } else { registry_as_written(&args.registry)? };
    let config = pull_secret(&key, &username, &password);
    let mut metadata = json!({ "name": args.name });
    if let Some(namespace) = &args.namespace {
        metadata["namespace"] = json!(namespace);
    }
    Ok(json!({
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "type": "kubernetes.io/dockerconfigjson",
        "data": { ".dockerconfigjson": BASE64.encode(config) },
    }))
}

/// The credentials for the whole registry, of a login or another source.
async fn stored_credential(registry: &str, global: &Global) -> Result<Credential> {
    let credentials = Credentials::load(&global.settings()?)?;
    // Any repository. Credentials of a single repository are too narrow for a cluster.
    let name = if registry == DOCKER_HUB { "library/transload" } else { "transload" };
    let repository = Repository { registry: registry.parse()?, name: name.parse()? };
    credentials.find(&repository).await?.ok_or_else(|| {
        let mut hint = format!("run transload login {registry} first, or pass --username USER --password-stdin");
        if is_acr(registry) {
            hint.push_str("; AKS needs no secret where the identity of its kubelets may pull");
        }
        Error::new(Kind::NotFound, format!("there are no credentials of {registry}")).on(Side::Local).hint(hint)
    })
}

/// The kubelet needs a user and a password. ACR accepts a token as password.
fn kubelet_credential(registry: &str, credential: Credential) -> Result<(String, Secret)> {
    const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";
    match credential {
        Credential::Basic { username, password } => {
            if username == TOKEN_USER {
                warn_of_expiry(&password);
            }
            Ok((username, password))
        }
        Credential::RefreshToken(token) if is_acr(registry) => {
            warn_of_expiry(&token);
            Ok((TOKEN_USER.to_owned(), token))
        }
        Credential::RefreshToken(_) | Credential::Bearer(_) => Err(Error::new(
            Kind::Unsupported,
            format!("the stored login of {registry} is a token, and the kubelet needs a password"),
        )
        .on(Side::Local)
        .hint("pass --username USER --password-stdin with a password or an access token")),
    }
}

fn warn_of_expiry(token: &Secret) {
    let until = token
        .expires()
        .and_then(|time| jiff::Timestamp::try_from(time).ok())
        .map_or_else(|| "three hours after its login".to_owned(), |time| format!("at {time}"));
    output::note(&format!("warning: this token of an Azure login expires {until}; pulls fail after that"));
    output::note("for longer, use a service principal that may pull, or let the identity of AKS's kubelets pull");
}
