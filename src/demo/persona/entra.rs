//! A look-alike of Entra ID: client credentials, and the metadata service of Azure's machines.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::request::Parts;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::Answer;
use super::config::EntraConfig;
use super::mint::Mint;
use super::wire::{self, Base, Form};

/// Entra ID, as described in docs/protocol.md, section 2.
#[derive(Debug)]
pub struct Entra {
    config: EntraConfig,
    authority: Base,
    metadata: Base,
    mint: Mint,
    assertion: Mutex<String>,
}

impl Entra {
    /// An Entra ID with one tenant and one application.
    #[must_use]
    pub fn new(config: EntraConfig) -> Self {
        Self {
            authority: Base::new(&config.authority),
            metadata: Base::new(&config.metadata),
            mint: Mint::new(),
            assertion: Mutex::new(config.assertion.clone()),
            config,
        }
    }

    /// Accepts only this federated token from now on, as after the kubelet has rotated the file.
    pub fn rotate(&self, assertion: &str) {
        assertion.clone_into(&mut self.expected());
    }

    /// How many tokens were issued.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.mint.issued()
    }

    /// The owner of a valid token for a container registry.
    pub(super) fn owner(&self, token: &str) -> Option<String> {
        let claims = self.mint.open(token)?;
        let audience = claims["aud"].as_str()?.trim_end_matches('/');
        // Tokens for ARM's audience are accepted while "authentication-as-arm" is on, which is the default.
        let taken = ["https://containerregistry.azure.net", "https://management.azure.com"];
        let owner = claims["appid"].as_str()?;
        taken.contains(&audience).then(|| owner.to_owned())
    }

    pub(super) fn wants_form(&self, head: &Parts) -> bool {
        head.method == Method::POST && self.authority.serves(head).is_some()
    }

    pub(super) fn answer(&self, head: &Parts, form: &[u8]) -> Option<Answer> {
        if let Some("/metadata/identity/oauth2/token") = self.metadata.serves(head) {
            return Some(self.managed_identity(head));
        }
        let path = self.authority.serves(head)?;
        let tenant = path.trim_start_matches('/').strip_suffix("/oauth2/v2.0/token");
        Some(match tenant {
            Some(tenant) if head.method == Method::POST => {
                self.client_credentials(tenant, &Form::parse(&String::from_utf8_lossy(form)))
            }
            _ => wire::text(StatusCode::NOT_FOUND, "text/plain", "not found"),
        })
    }

    fn client_credentials(&self, tenant: &str, form: &Form) -> Answer {
        const ASSERTION: &str = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        if tenant != self.config.tenant {
            return refuse(StatusCode::BAD_REQUEST, "invalid_request", "AADSTS90002: Tenant not found.");
        }
        if form.first("grant_type") != Some("client_credentials") {
            return refuse(StatusCode::BAD_REQUEST, "unsupported_grant_type", "AADSTS70003: Unsupported grant.");
        }
        if form.first("client_id") != Some(&self.config.client) {
            return refuse(StatusCode::BAD_REQUEST, "unauthorized_client", "AADSTS700016: Unknown application.");
        }
        match (form.first("client_secret"), form.first("client_assertion")) {
            (Some(secret), None) if secret == self.config.secret => {}
            (None, Some(assertion))
                if assertion == self.expected().as_str() && form.first("client_assertion_type") == Some(ASSERTION) => {}
            (None, Some(_)) => {
                let text = "AADSTS700024: Client assertion is not within its valid time range.";
                return refuse(StatusCode::UNAUTHORIZED, "invalid_client", text);
            }
            _ => {
                let text = "AADSTS7000215: Invalid client secret provided.";
                return refuse(StatusCode::UNAUTHORIZED, "invalid_client", text);
            }
        }
        let Some(audience) = form.first("scope").and_then(|scope| scope.strip_suffix("/.default")) else {
            return refuse(StatusCode::BAD_REQUEST, "invalid_scope", "AADSTS1002012: The scope is not valid.");
        };
        let life = self.config.token_seconds;
        let body = json!({
            "token_type": "Bearer",
            "expires_in": life,
            "ext_expires_in": life,
            "access_token": self.issue(audience),
        });
        wire::json(StatusCode::OK, &body)
    }

    /// The header protects against server-side request forgery. Numbers are strings in the answer.
    fn managed_identity(&self, head: &Parts) -> Answer {
        let query = Form::of_query(head);
        if wire::header(head, "metadata") != Some("true") {
            let text = "Required metadata header not specified";
            return refuse(StatusCode::BAD_REQUEST, "invalid_request", text);
        }
        if query.first("client_id").is_some_and(|client| client != self.config.client) {
            return refuse(StatusCode::BAD_REQUEST, "invalid_request", "Identity not found");
        }
        let Some(resource) = query.first("resource") else {
            return refuse(StatusCode::BAD_REQUEST, "invalid_request", "Required audience parameter not specified");
        };
        let now = self.mint.now();
        let body = json!({
            "access_token": self.issue(resource),
            "client_id": self.config.client,
            "expires_in": self.config.token_seconds.to_string(),
            "expires_on": (now + self.config.token_seconds).to_string(),
            "ext_expires_in": self.config.token_seconds.to_string(),
            "not_before": now.to_string(),
            "resource": resource,
            "token_type": "Bearer",
        });
        wire::json(StatusCode::OK, &body)
    }

    fn issue(&self, audience: &str) -> String {
        let mut claims = json!({"aud": audience, "appid": self.config.client, "tid": self.config.tenant});
        if self.config.groups > 0 {
            let group = |nth| format!("{nth:08x}-0000-4000-8000-000000000000");
            claims["groups"] = (0..self.config.groups).map(group).collect();
        }
        self.mint.seal(claims, self.config.token_seconds)
    }

    fn expected(&self) -> MutexGuard<'_, String> {
        self.assertion.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn refuse(status: StatusCode, error: &str, description: &str) -> Answer {
    let body: Value = json!({"error": error, "error_description": description});
    wire::json(status, &body)
}
