//! Tokens: one for each scope, fetched once by whoever needs it first, renewed before it expires.
//!
//! Sources: distribution's token and OAuth2 specifications, Docker Hub's and ACR's documents
//! (`/oauth2/exchange` and `/oauth2/token`).

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use reqwest::Url;
use serde::Deserialize;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::azure::is_acr;
use super::challenge::{Challenge, realm_is_trusted};
use super::limits::retry_after;
use super::transport::{Payload, Registry, Response, read_small};
use crate::credentials::entra::Entra;
use crate::credentials::{Credential, Secret};
use crate::error::{Error, Kind, Result};
use crate::reference::Repository;
use crate::retry::Budget;

/// What a token is for. One token has few scopes: one that gathered every repository's made ACR
/// answer "Request Header Or Cookie Too Large" (regclient#797).
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Scope {
    repository: Repository,
    push: bool,
    /// A mount reads another repository too.
    from: Option<String>,
}

impl Scope {
    pub(super) fn pull(repository: &Repository) -> Self {
        Self { repository: repository.clone(), push: false, from: None }
    }

    pub(super) fn push(repository: &Repository) -> Self {
        Self { repository: repository.clone(), push: true, from: None }
    }

    /// For a mount from `from`: Docker Hub wants `pull` there too (rust-oci-client#235), as does ACR
    /// in ABAC mode.
    pub(super) fn mounting(&self, from: &Repository) -> Self {
        Self { from: Some(from.name.clone()), ..self.clone() }
    }

    pub(super) fn pushes(&self) -> bool {
        self.push
    }

    fn texts(&self) -> impl Iterator<Item = String> {
        let actions = if self.push { "pull,push" } else { "pull" };
        let own = (!self.repository.name.is_empty()).then(|| format!("repository:{}:{actions}", self.repository.name));
        own.into_iter().chain(self.from.iter().map(|from| format!("repository:{from}:pull")))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().collect::<Vec<_>>().join(" "))
    }
}

/// What one registry wants, and the tokens that it gave.
#[derive(Debug)]
pub(super) struct Auth {
    challenge: Mutex<Option<Challenge>>,
    tokens: Mutex<HashMap<Scope, Arc<tokio::sync::Mutex<Option<Token>>>>>,
    /// An ACR refresh token that was had for an Entra token.
    exchanged: tokio::sync::Mutex<Option<Token>>,
    /// Set up when it's first needed.
    entra: OnceCell<Option<Entra>>,
    /// There's no identity here: found out once.
    without_identity: AtomicBool,
    username: Mutex<Option<String>>,
}

#[derive(Clone)]
struct Token {
    value: Secret,
    renew: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

impl Auth {
    pub(super) fn new() -> Self {
        Self {
            challenge: Mutex::new(None),
            tokens: Mutex::default(),
            exchanged: tokio::sync::Mutex::new(None),
            entra: OnceCell::new(),
            without_identity: AtomicBool::new(false),
            username: Mutex::new(None),
        }
    }

    /// As whom we asked last, for messages. `None` while anonymous.
    pub(super) fn username(&self) -> Option<String> {
        self.username.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The `Authorization` for a request of `scope`; none before the registry asked for one.
    pub(super) async fn authorization(&self, registry: &Registry, scope: &Scope) -> Result<Option<HeaderValue>> {
        let challenge = self.challenge.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match challenge {
            None => Ok(None),
            Some(Challenge::Basic) => match self.credential(registry, scope).await? {
                Some(Credential::Basic { username, password }) => basic(&username, &password).map(Some),
                Some(Credential::Bearer(token)) => bearer(&token).map(Some),
                _ => Ok(None),
            },
            Some(Challenge::Bearer { realm, service, .. }) => {
                let slot = {
                    let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
                    tokens.entry(scope.clone()).or_default().clone()
                };
                // Whoever comes first fetches it; the others wait here and find it.
                let mut slot = slot.lock().await;
                let token = match slot.take().filter(|token| token.renew > Instant::now()) {
                    Some(token) => token,
                    None => self.fetch(registry, scope, &realm, service.as_deref()).await?,
                };
                let header = bearer(&token.value)?;
                *slot = Some(token);
                Ok(Some(header))
            }
        }
    }

    /// The name that the registry has for its token endpoint, once it was asked.
    pub(super) fn service(&self) -> Option<String> {
        match &*self.challenge.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(Challenge::Bearer { service, .. }) => service.clone(),
            _ => None,
        }
    }

    /// The registry answered 401 to a request signed with `used`. Says whether to ask again: yes
    /// if there's a new challenge to answer, or a token to renew.
    pub(super) async fn challenged(
        &self,
        challenge: Option<Challenge>,
        scope: &Scope,
        used: Option<&HeaderValue>,
    ) -> bool {
        let Some(challenge) = challenge else { return false };
        let denied = matches!(&challenge, Challenge::Bearer { error: Some(error), .. } if error == "insufficient_scope" || error == "denied");
        let is_bearer = matches!(challenge, Challenge::Bearer { .. });
        let first = self.challenge.lock().unwrap_or_else(PoisonError::into_inner).replace(challenge).is_none();
        if !is_bearer {
            return first || used.is_none();
        }
        let slot = self.tokens.lock().unwrap_or_else(PoisonError::into_inner).get(scope).cloned();
        if let Some(slot) = slot {
            // Only the token that failed: another task may have renewed it already.
            let mut token = slot.lock().await;
            let failed = token.as_ref().and_then(|token| bearer(&token.value).ok());
            if failed.as_ref() == used {
                *token = None;
            }
        }
        used.is_none() || !denied
    }

    async fn credential(&self, registry: &Registry, scope: &Scope) -> Result<Option<Credential>> {
        let found = registry.options.credentials.find(&scope.repository).await?;
        let name = match &found {
            Some(Credential::Basic { username, .. }) => Some(username.clone()),
            Some(_) => Some("the stored token".to_owned()),
            None => None,
        };
        self.asked_as(name);
        Ok(found)
    }

    fn asked_as(&self, name: Option<String>) {
        *self.username.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    async fn fetch(&self, registry: &Registry, scope: &Scope, realm: &str, service: Option<&str>) -> Result<Token> {
        let doing = match scope.to_string().as_str() {
            // Only the credentials are tried.
            "" => format!("get a token of {}", registry.name),
            scope => format!("get a token for {scope} of {}", registry.name),
        };
        let budget = Budget::new(4, Duration::from_secs(120));
        loop {
            let fetched = self.fetch_once(registry, scope, realm, service).await;
            match fetched.map_err(|error| error.doing(doing.clone())) {
                Ok(token) => return Ok(token),
                Err(error) => budget.retry(error).await?,
            }
        }
    }

    async fn fetch_once(
        &self,
        registry: &Registry,
        scope: &Scope,
        realm: &str,
        service: Option<&str>,
    ) -> Result<Token> {
        let base = registry.base().await?.clone();
        let mut realm = base.join(realm).map_err(|_| Error::new(Kind::Registry, "its token realm is not a URL"))?;
        registry.policy().await?.check(&base, &realm)?;
        let mut credential = self.credential(registry, scope).await?;
        if credential.is_none() && is_acr(&registry.name) && realm_is_trusted(&base, &realm, &[]) {
            credential = self.identity(registry, &base, service).await?.map(Credential::RefreshToken);
        }
        if credential.is_some() && !realm_is_trusted(&base, &realm, &registry.options.realms) {
            let host = realm.host_str().unwrap_or_default();
            return Err(Error::new(
                Kind::Refused,
                format!("{} wants its credentials given to {host}, which is another site", registry.name),
            )
            .hint(format!("if that is right, allow it by --allow-realm {host}")));
        }
        let service = service.unwrap_or_default();
        let response = match credential {
            Some(Credential::Bearer(token)) => return Ok(Token { value: token, renew: Instant::now() + FOREVER }),
            Some(Credential::RefreshToken(token)) => {
                let response = refresh(registry, scope, &realm, service, &token).await?;
                let refused = matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED);
                // A login by `az acr login` or `--azure` lasts three hours; the identity itself goes on. What
                // was had for it may have ended too: earlier than it said, or by somebody's hand.
                let identity = if refused && is_acr(&registry.name) {
                    self.forget_exchanged(&token).await;
                    self.identity(registry, &base, Some(service)).await?
                } else {
                    None
                };
                match identity.filter(|identity| *identity != token) {
                    Some(identity) => refresh(registry, scope, &realm, service, &identity).await?,
                    None => response,
                }
            }
            other => {
                let basic_header = match &other {
                    Some(Credential::Basic { username, password }) => Some(basic(username, password)?),
                    _ => None,
                };
                let password_realm = realm.clone();
                {
                    let mut query = realm.query_pairs_mut();
                    if !service.is_empty() {
                        query.append_pair("service", service);
                    }
                    scope.texts().for_each(|text| {
                        query.append_pair("scope", &text);
                    });
                }
                let headers =
                    basic_header.map(|value| HeaderMap::from_iter([(AUTHORIZATION, value)])).unwrap_or_default();
                let response = registry.raw(Method::GET, realm, headers, Payload::Empty).await?;
                match (&other, response.status()) {
                    // A server that knows OAuth2's form only (distribution's "oauth2" page).
                    (
                        Some(Credential::Basic { username, password }),
                        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED,
                    ) => {
                        let grant =
                            [("grant_type", "password"), ("username", username), ("password", password.reveal())];
                        post(registry, password_realm, form(scope, service, &grant, is_acr(&registry.name))).await?
                    }
                    _ => response,
                }
            }
        };
        Answer::read(response, registry, self.username().as_deref()).await?.token()
    }

    /// The Entra identity's refresh token; `None` where this machine has no identity, so that public
    /// images can be had without one.
    async fn identity(&self, registry: &Registry, base: &Url, service: Option<&str>) -> Result<Option<Secret>> {
        match self.exchange(registry, base, service).await {
            Err(error) if error.kind() == Kind::Unauthorized && !registry.options.has_identity() => {
                tracing::info!("{}: going on anonymously: {error}", registry.name);
                self.without_identity.store(true, Ordering::Relaxed);
                Ok(None)
            }
            other => other,
        }
    }

    /// ACR's own refresh token for an Entra access token, which lasts three hours.
    pub(super) async fn exchange(
        &self,
        registry: &Registry,
        base: &Url,
        service: Option<&str>,
    ) -> Result<Option<Secret>> {
        if self.without_identity.load(Ordering::Relaxed) {
            return Ok(None);
        }
        let entra = self.entra.get_or_try_init(|| async { registry.options.entra() }).await?;
        let Some(entra) = entra else { return Ok(None) };
        let mut kept = self.exchanged.lock().await;
        if let Some(token) = kept.as_ref().filter(|token| token.renew > Instant::now()) {
            self.asked_as(Some(IDENTITY.to_owned()));
            return Ok(Some(token.value.clone()));
        }
        let access = entra.token().await?;
        let url = base.join("/oauth2/exchange").map_err(|_| Error::new(Kind::Registry, "its address is malformed"))?;
        let service = service.unwrap_or(&registry.name);
        // In the body: as a Basic password, a token with many groups is too long for ACR's header (acr#797).
        let form = encode(&[("grant_type", "access_token"), ("service", service), ("access_token", access.reveal())]);
        let response = post(registry, url, form).await?;
        let answer = Answer::read(response, registry, Some(IDENTITY)).await?;
        let value =
            answer.refresh_token.ok_or_else(|| Error::new(Kind::Registry, "the exchange gave no refresh_token"))?;
        let token = Token { renew: renewal(jwt_life(&value).unwrap_or(3 * 3600)), value: Secret::new(value) };
        self.asked_as(Some(IDENTITY.to_owned()));
        Ok(Some(kept.insert(token).value.clone()))
    }

    /// The registry doesn't take this one: the next is exchanged anew.
    async fn forget_exchanged(&self, refused: &Secret) {
        let mut kept = self.exchanged.lock().await;
        if kept.as_ref().is_some_and(|token| token.value == *refused) {
            *kept = None;
        }
    }
}

/// The identity's name in messages.
const IDENTITY: &str = "the Entra identity";

/// A token endpoint's answer. `token` and `access_token` are the same thing by two names.
#[derive(Default, Deserialize)]
struct Answer {
    token: Option<String>,
    access_token: Option<String>,
    refresh_token: Option<String>,
    expires_in: Option<u64>,
}

impl Answer {
    async fn read(response: Response, registry: &Registry, user: Option<&str>) -> Result<Self> {
        let status = response.status();
        let wait = retry_after(response.headers());
        let body = read_small(response, 1 << 20).await?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .map_err(|_| Error::new(Kind::Registry, "the token endpoint's answer is not JSON"));
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
                None => Error::new(Kind::Unauthorized, what).hint(format!("log in by transload login {}", registry.name)),
            },
        })
    }

    fn token(self) -> Result<Token> {
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
fn renewal(life: u64) -> Instant {
    Instant::now() + Duration::from_secs(life - (life / 10).min(30))
}

/// Seconds until a JWT's `exp`, by its own `iat` where it has one (clocks differ).
fn jwt_life(token: &str) -> Option<u64> {
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
fn form(scope: &Scope, service: &str, grant: &[(&str, &str)], repeat: bool) -> String {
    let texts: Vec<String> = if repeat { scope.texts().collect() } else { vec![scope.to_string()] };
    let mut pairs = vec![("service", service), ("client_id", "transload")];
    pairs.extend(grant);
    pairs.extend(texts.iter().map(|text| ("scope", text.as_str())));
    encode(&pairs)
}

fn encode(pairs: &[(&str, &str)]) -> String {
    // A URL's query has the very encoding of a form (WHATWG URL, "application/x-www-form-urlencoded").
    let mut url = Url::parse("form:/").unwrap_or_else(|_| unreachable!("a constant URL"));
    url.query_pairs_mut().extend_pairs(pairs);
    url.query().unwrap_or_default().to_owned()
}

async fn refresh(registry: &Registry, scope: &Scope, realm: &Url, service: &str, token: &Secret) -> Result<Response> {
    let grant = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
    post(registry, realm.clone(), form(scope, service, &grant, is_acr(&registry.name))).await
}

async fn post(registry: &Registry, url: Url, form: String) -> Result<Response> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))]);
    registry.raw(Method::POST, url, headers, Payload::Bytes(Bytes::from(form))).await
}

fn basic(username: &str, password: &Secret) -> Result<HeaderValue> {
    sensitive(format!("Basic {}", STANDARD.encode(format!("{username}:{}", password.reveal()))))
}

fn bearer(token: &Secret) -> Result<HeaderValue> {
    sensitive(format!("Bearer {}", token.reveal()))
}

/// Marked so that the HTTP library neither logs nor indexes it.
fn sensitive(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Error::new(Kind::Unauthorized, "the stored credential has characters that HTTP does not allow"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A token that the user stored says nothing of its end; a 401 will.
const FOREVER: Duration = Duration::from_secs(365 * 24 * 3600);

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
    fn a_jwt_says_its_own_life() {
        let token = format!("x.{}.y", URL_SAFE_NO_PAD.encode(br#"{"iat":1000,"exp":5500}"#));
        assert_eq!(jwt_life(&token), Some(4500));
        assert_eq!(jwt_life("opaque"), None);
    }

    #[tokio::test]
    async fn a_denied_scope_is_not_asked_twice() {
        let auth = Auth::new();
        let bearer = |error: Option<&str>| {
            Some(Challenge::Bearer { realm: "https://t".into(), service: None, error: error.map(str::to_owned) })
        };
        let used = HeaderValue::from_static("Bearer x");
        assert!(auth.challenged(bearer(None), &scope(), None).await);
        assert!(auth.challenged(bearer(Some("invalid_token")), &scope(), Some(&used)).await);
        assert!(!auth.challenged(bearer(Some("insufficient_scope")), &scope(), Some(&used)).await);
        assert!(!auth.challenged(None, &scope(), None).await);
    }
}
