//! Tokens: one for each scope, fetched once by whoever needs it first, renewed before it expires.
//!
//! Sources: distribution's token and OAuth2 specifications, Docker Hub's and ACR's documents
//! (`/oauth2/exchange` and `/oauth2/token`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use reqwest::Url;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::azure::is_acr;
use super::challenge::{Challenge, realm_is_trusted};
use super::token::{Answer, FOREVER, Scope, Token, basic, bearer, encode, form, jwt_life, post, refresh, renewal};
use super::transport::{Payload, Registry};
use crate::credentials::entra::Entra;
use crate::credentials::{Credential, Secret};
use crate::error::{Error, Kind, Result};
use crate::retry::Budget;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_denied_scope_is_not_asked_twice() {
        let auth = Auth::new();
        let scope = Scope::push(&"r.io/a/b".parse().expect("a repository"));
        let bearer = |error: Option<&str>| {
            Some(Challenge::Bearer { realm: "https://t".into(), service: None, error: error.map(str::to_owned) })
        };
        let used = HeaderValue::from_static("Bearer x");
        assert!(auth.challenged(bearer(None), &scope, None).await);
        assert!(auth.challenged(bearer(Some("invalid_token")), &scope, Some(&used)).await);
        assert!(!auth.challenged(bearer(Some("insufficient_scope")), &scope, Some(&used)).await);
        assert!(!auth.challenged(None, &scope, None).await);
    }
}
