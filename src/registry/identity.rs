//! The Entra identity as one who asks ACR: by `/oauth2/exchange` it has a refresh token of ACR's own.

use std::sync::atomic::Ordering;

use reqwest::Url;
use tokio::time::Instant;

use super::auth::Auth;
use super::endpoint::Endpoint;
use super::token::{Answer, Token, encode, jwt_life, post, renewal};
use super::transport::Registry;
use crate::credentials::Secret;
use crate::error::{Error, Kind, Result};

impl Auth {
    /// The Entra identity's refresh token; `None` where this machine has no identity, so that public
    /// images can be had without one.
    pub(super) async fn identity(
        &self,
        registry: &Registry,
        base: &Url,
        service: Option<&str>,
    ) -> Result<Option<Secret>> {
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
        let url = Endpoint::AcrExchange.url(base)?;
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
    pub(super) async fn forget_exchanged(&self, refused: &Secret) {
        let mut kept = self.exchanged.lock().await;
        if kept.as_ref().is_some_and(|token| token.value == *refused) {
            *kept = None;
        }
    }
}

/// The identity's name in messages.
const IDENTITY: &str = "the Entra identity";
