//! Scopes, tokens, and the requests that get them.
//!
//! Sources: distribution's token and OAuth2 specifications, ACR's documents on `/oauth2/token`.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use tokio::time::Instant;

use super::answer::login_first;
use super::azure::is_acr;
use super::limits::retry_after;
use super::transport::{Payload, Registry, Response, read_small};
use crate::credentials::Secret;
use crate::error::{Error, Kind, Result};
use crate::reference::Repository;

/// What a token is for. One token has few scopes: one that gathered every repository's made ACR
/// answer "Request Header Or Cookie Too Large" (regclient#797).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Scope {
    pub(super) repository: Repository,
    pub(super) access: Access,
    /// A mount reads other repositories too.
    from: Vec<String>,
}

/// What is to be done in a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Access {
    Pull,
    Push,
    Delete,
}

impl Scope {
    pub(super) fn pull(repository: &Repository) -> Self {
        Self { repository: repository.clone(), access: Access::Pull, from: Vec::new() }
    }

    pub(super) fn push(repository: &Repository) -> Self {
        Self { access: Access::Push, ..Self::pull(repository) }
    }

    /// For deletes; at ACR also to read when a tag was written.
    pub(super) fn delete(repository: &Repository) -> Self {
        Self { access: Access::Delete, ..Self::pull(repository) }
    }

    /// For a mount from `from`: Docker Hub wants `pull` there too (rust-oci-client#235), as does ACR
    /// in ABAC mode.
    pub(super) fn mounting(&self, from: &Repository) -> Self {
        Self { from: vec![from.name.clone()], ..self.clone() }
    }

    pub(super) fn pushes(&self) -> bool {
        self.access == Access::Push
    }

    /// The other repositories that a mount reads.
    pub(super) fn from(&self) -> &[String] {
        &self.from
    }

    /// The same with more repositories to mount from, the first ones if that's too many for one token.
    pub(super) fn with<'a>(&self, more: impl IntoIterator<Item = &'a String>) -> Self {
        let mut wide = self.clone();
        for name in more {
            if wide.from.len() < MOST_MOUNTED && *name != wide.repository.name && !wide.from.contains(name) {
                wide.from.push(name.clone());
            }
        }
        wide
    }

    pub(super) fn texts(&self) -> impl Iterator<Item = String> {
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
            Access::Delete if is_acr(&self.repository.registry) => "pull,delete,metadata_read",
            Access::Delete => "pull,delete",
        };
        let own = (!self.repository.name.is_empty()).then(|| format!("repository:{}:{actions}", self.repository.name));
        own.into_iter().chain(self.from.iter().map(|from| format!("repository:{from}:pull")))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().collect::<Vec<_>>().join(" "))
    }
}

#[derive(Clone)]
pub(super) struct Token {
    pub(super) value: Secret,
    pub(super) renew: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// A token endpoint's answer. `token` and `access_token` are the same thing by two names.
#[derive(Default, Deserialize)]
pub(super) struct Answer {
    pub(super) token: Option<String>,
    pub(super) access_token: Option<String>,
    pub(super) refresh_token: Option<String>,
    pub(super) expires_in: Option<u64>,
}

impl Answer {
    pub(super) async fn read(response: Response, registry: &Registry, user: Option<&str>) -> Result<Self> {
        let status = response.status();
        let wait = retry_after(response.headers());
        let body = read_small(response, 1 << 20).await?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                // What stands between is more likely to say this than the registry.
                .map_err(|_| Error::new(Kind::Registry, "the token endpoint's answer is not JSON").transient(None));
        }
        let what = format!("the token endpoint answered {}", status.as_u16());
        Err(match status {
            StatusCode::TOO_MANY_REQUESTS => Error::new(Kind::Limited, what).transient(wait),
            _ if status.is_server_error() => Error::new(Kind::Registry, what).transient(wait),
            // ACR and Harbor say 400 or 403 to a wrong secret, the others 401.
            _ => match user {
                Some(user) => Error::new(Kind::Unauthorized, what).hint(format!(
                    "the password or token of '{user}' is not taken, or has expired: log in again by transload login {}",
                    registry.name
                )),
                None => Error::new(Kind::Unauthorized, what).hint(login_first(&registry.name)),
            },
        })
    }

    pub(super) fn token(self) -> Result<Token> {
        let value = self
            .token
            .or(self.access_token)
            .filter(|token| !token.is_empty())
            .ok_or_else(|| Error::new(Kind::Registry, "the token endpoint gave no token"))?;
        // 60 s where nothing is said (distribution's token specification); ACR says it in the token only.
        let life = self.expires_in.or_else(|| jwt_life(&value)).unwrap_or(60);
        Ok(Token { renew: renewal(life), value: Secret::new(value) })
    }
}

/// When a token of `life` seconds is renewed: a while before its end, so that a request which
/// starts with it also ends with it.
pub(super) fn renewal(life: u64) -> Instant {
    Instant::now() + Duration::from_secs(life - (life / 10).min(30))
}

/// Seconds until a JWT's `exp`, by its own `iat` where it has one (clocks differ).
pub(super) fn jwt_life(token: &str) -> Option<u64> {
    #[derive(Deserialize)]
    struct Claims {
        exp: u64,
        iat: Option<u64>,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let now = u64::try_from(jiff::Timestamp::now().as_second()).ok()?;
    Some(claims.exp.saturating_sub(claims.iat.unwrap_or(now).min(claims.exp)))
}

/// The form of a token request. ACR takes `scope` repeated, distribution's OAuth2 page says one
/// with spaces.
pub(super) fn form(scope: &Scope, service: &str, grant: &[(&str, &str)], repeat: bool) -> String {
    let texts: Vec<String> = if repeat { scope.texts().collect() } else { vec![scope.to_string()] };
    let mut pairs = vec![("service", service), ("client_id", "transload")];
    pairs.extend(grant);
    pairs.extend(texts.iter().map(|text| ("scope", text.as_str())));
    encode(&pairs)
}

pub(super) fn encode(pairs: &[(&str, &str)]) -> String {
    // A URL's query has the very encoding of a form (WHATWG URL, "application/x-www-form-urlencoded").
    let mut url = Url::parse("form:/").unwrap_or_else(|_| unreachable!("a constant URL"));
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

pub(super) async fn refresh(
    registry: &Registry,
    scope: &Scope,
    realm: &Url,
    service: &str,
    token: &Secret,
) -> Result<Response> {
    let grant = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
    post(registry, realm.clone(), form(scope, service, &grant, is_acr(&registry.name))).await
}

pub(super) async fn post(registry: &Registry, url: Url, form: String) -> Result<Response> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))]);
    registry.ask_token(Method::POST, url, headers, Payload::Bytes(Bytes::from(form))).await
}

pub(super) fn basic(username: &str, password: &Secret) -> Result<HeaderValue> {
    sensitive(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.reveal()))))
}

pub(super) fn bearer(token: &Secret) -> Result<HeaderValue> {
    sensitive(format!("Bearer {}", token.reveal()))
}

/// Marked so that the HTTP library neither logs nor indexes it.
pub(super) fn sensitive(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Error::new(Kind::Unauthorized, "the stored credential has characters that HTTP does not allow"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// The most repositories that one token lets us mount from. With names of a hundred characters it still
/// has but 2 KiB; from some 8 KiB on, ACR refuses the header.
pub(super) const MOST_MOUNTED: usize = 8;

/// A token that the user stored says nothing of its end; a 401 will.
pub(super) const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

#[cfg(test)]
mod tests {
    use super::*;

    fn scope() -> Scope {
        Scope::push(&"r.io/a/b".parse().expect("a repository"))
    }

    #[test]
    fn scopes_are_few_and_exact() {
        assert_eq!(scope().to_string(), "repository:a/b:pull,push");
        let mount = scope().mounting(&"r.io/c".parse().expect("a repository"));
        assert_eq!(mount.to_string(), "repository:a/b:pull,push repository:c:pull");
        let acr = form(&mount, "r.io", &[("grant_type", "refresh_token")], true);
        assert_eq!(acr.matches("scope=").count(), 2, "{acr}");
        assert!(acr.contains("scope=repository%3Aa%2Fb%3Apull%2Cpush"), "{acr}");
    }

    #[test]
    fn a_token_mounts_from_a_few() {
        let names: Vec<String> = (0..20).map(|n| format!("r{n}")).chain(["a/b".to_owned()]).collect();
        let wide =
            scope().mounting(&"r.io/c".parse().expect("a repository")).with(&names).with(["c".to_owned()].iter());
        assert_eq!(wide.from().len(), MOST_MOUNTED);
        assert_eq!((wide.from()[0].as_str(), wide.from()[1].as_str()), ("c", "r0"), "what is needed comes first");
        assert_eq!(scope().with(["a/b".to_owned()].iter()), scope(), "never from itself");
    }

    #[test]
    fn a_jwt_says_its_own_life() {
        let token = format!("x.{}.y", URL_SAFE_NO_PAD.encode(br#"{"iat":1000,"exp":5500}"#));
        assert_eq!(jwt_life(&token), Some(4500));
        assert_eq!(jwt_life("opaque"), None);
    }
}
