//! Refusals that only Azure Container Registry has, each with a hint.
//!
//! Sources: Microsoft Learn, "Lock a container image", "Configure rules to access an Azure container registry behind a
//! firewall", "Artifact cache", "Microsoft Entra attribute-based access control for repository permissions". The texts
//! are from Azure/acr issues 84 (locked), 772 and 845 (cache rules), and docker/build-push-action issue 1214
//! (firewall). ACR's response to a push to a cache rule's target is not published; it is recognised by its words.

use std::net::IpAddr;

use http::StatusCode;

use crate::error::Kind;

pub(super) struct Refusal<'a> {
    pub(super) registry: &'a str,
    pub(super) repository: &'a str,
    pub(super) status: StatusCode,
    /// The request was a write.
    pub(super) write: bool,
    /// The message of the error document.
    pub(super) message: &'a str,
}

impl Refusal<'_> {
    /// The kind of error, and a hint. `None` for refusals that other registries have too.
    pub(super) fn explain(&self) -> Option<(Kind, String)> {
        let Self { registry, repository, .. } = self;
        let name = resource(registry);
        let message = self.message.to_ascii_lowercase();
        if self.status == StatusCode::FORBIDDEN && message.contains("is not allowed access") {
            let address = address(self.message).map_or_else(|| "ADDRESS".to_owned(), |ip| ip.to_string());
            let hint = format!(
                "the registry's firewall does not allow this machine's address: az acr network-rule add --name {name} \
                 --ip-address {address}, or use the registry's private endpoint"
            );
            return Some((Kind::Denied, hint));
        }
        if message.contains("cache rule") && self.status.is_client_error() {
            let hint = if self.write {
                format!(
                    "{repository} is the target of a cache rule, which takes no pushes: choose another repository, or \
                     remove the rule (az acr cache list --registry {name})"
                )
            } else {
                format!(
                    "the cache rule for {repository} cannot read its upstream: check the rule and its credentials (az \
                     acr cache list --registry {name})"
                )
            };
            return Some((Kind::Denied, hint));
        }
        let disallowed = message.contains("operation is disallowed") && self.status.is_client_error();
        if self.write && (self.status == StatusCode::METHOD_NOT_ALLOWED || disallowed) {
            let hint = format!(
                "the image or its repository is locked: az acr repository show --name {name} --image {repository}:TAG \
                 shows it, and az acr repository update --name {name} --image {repository}:TAG --write-enabled true \
                 --delete-enabled true unlocks it"
            );
            return Some((Kind::Denied, hint));
        }
        None
    }
}

/// Added to the hint of a 401: valid credentials may have stopped working.
pub(super) fn abac_hint(registry: &str) -> String {
    format!(
        "if the registry was switched to ABAC mode (repository permissions) since the login, log in again, by az acr \
         login --name {} or transload login {registry}",
        resource(registry)
    )
}

/// The name of the Azure resource: the host's first label, without the hash of a DNL name (`name-a1b2.azurecr.io`;
/// a registry's own name has no hyphen).
fn resource(registry: &str) -> &str {
    let label = registry.split('.').next().unwrap_or(registry);
    label.split('-').next().unwrap_or(label)
}

/// The address in "client with IP '20.1.2.3' is not allowed access".
fn address(message: &str) -> Option<IpAddr> {
    let (_, rest) = message.split_once("client with IP ")?;
    rest.trim_start_matches(['\'', '"']).split(['\'', '"', ' ']).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn explained(status: u16, write: bool, message: &str) -> Option<String> {
        let status = StatusCode::from_u16(status).expect("a status");
        let refusal = Refusal { registry: "corp-a1b2.azurecr.io", repository: "team/app", status, write, message };
        refusal.explain().map(|(_, hint)| hint)
    }

    #[test]
    fn each_refusal_is_known_by_its_status_or_words() {
        let firewall =
            "client with IP '20.1.2.3' is not allowed access. Refer https://aka.ms/acr/firewall to grant access";
        let disallowed = "The operation is disallowed on this registry, repository or image";
        let cached = "pushing to 'team/app' is not allowed since it is the target of cache rule 'hub'";
        let upstream =
            "requested access to pull from source 'docker.io/library/x' for cache rule 'hub' has been denied";
        for (status, write, message, part) in [
            (403, true, firewall, "network-rule add --name corp --ip-address 20.1.2.3"),
            (403, false, "client with IP '2603:1::1' is not allowed access", "--ip-address 2603:1::1"),
            (403, false, "client with IP '$(reboot)' is not allowed access", "--ip-address ADDRESS"),
            (405, true, disallowed, "--image team/app:TAG --write-enabled true"),
            (405, true, "", "is locked"),
            (403, true, disallowed, "is locked"),
            (403, true, cached, "takes no pushes"),
            (405, true, cached, "takes no pushes"),
            (403, false, upstream, "cannot read its upstream"),
        ] {
            let hint = explained(status, write, message).expect(message);
            assert!(hint.contains(part), "{message}: {hint}");
        }
        for (status, write, message) in [
            (403, true, "requested access to the resource is denied"),
            (405, false, disallowed),
            (500, true, disallowed),
            (404, true, "manifest unknown"),
        ] {
            assert_eq!(explained(status, write, message), None, "{status} {message}");
        }
    }
}
