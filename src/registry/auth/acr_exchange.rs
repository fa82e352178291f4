//! The Entra identity as one who asks ACR: by `/oauth2/exchange` it has a refresh token of ACR's own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use reqwest::Url;
use tokio::time::Instant;

use super::Auth;
use super::token::{Answer, Token, jwt_life, post, renewal};
use crate::credentials::{Credential, Secret, encode_form};
use crate::error::{Error, Kind, Result};
use crate::registry::client::Registry;
use crate::registry::urls::Endpoint;

impl Registry {
    /// Refuses to send what stands for an identity, unless it reaches this registry and nobody else: by TLS with a
    /// verified certificate, or on this machine.
    ///
    /// Whoever is between can block port 443, and so force plain http on a registry that is called insecure. A
    /// password that the user stored for it is sent all the same, as docker and skopeo do: the user allowed that for
    /// this registry. A token of an identity is worth more than one registry, and nobody allowed it there.
    ///
    /// # Errors
    /// [`Kind::Refused`].
    pub(in crate::registry) async fn guard_identity(&self) -> Result<()> {
        if self.is_confidential().await? {
            return Ok(());
        }
        let what = format!(
            "the identity is not sent to {}: --insecure-registry allows plain http and unverified certificates for it",
            self.name
        );
        Err(Error::new(Kind::Refused, what).hint(NO_TLS_HINT))
    }

    /// The same for a credential that is stored: tokens are identities, and so is the password of ACR's token user.
    pub(in crate::registry) async fn guard_credential(&self, credential: &Credential) -> Result<()> {
        match credential {
            Credential::Basic { username, .. } if username != TOKEN_USER => Ok(()),
            _ => self.guard_identity().await,
        }
    }
}

impl Auth {
    /// The Entra identity's refresh token; `None` where this machine has no identity, so that public
    /// images can be had without one.
    pub(in crate::registry) async fn identity(
        &self,
        registry: &Registry,
        base: &Url,
        service: Option<&str>,
    ) -> Result<Option<Secret>> {
        let error = match self.exchange(registry, base, service).await {
            Err(error) if !registry.options.has_identity() => error,
            other => return other,
        };
        match error.kind() {
            Kind::Refused => tracing::warn!("{}: continuing anonymously: {error}", registry.name),
            Kind::Unauthorized => tracing::info!("{}: continuing anonymously: {error}", registry.name),
            _ => return Err(error),
        }
        self.without_identity.store(true, Ordering::Relaxed);
        Ok(None)
    }

    /// ACR's own refresh token for an Entra access token, which lasts three hours.
    pub(in crate::registry) async fn exchange(
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
        registry.guard_identity().await?;
        let mut kept = self.exchanged.lock().await;
        if let Some(token) = kept.as_ref().filter(|token| token.renew > Instant::now()) {
            self.set_username(Some(IDENTITY_NAME.to_owned()));
            return Ok(Some(token.value.clone()));
        }
        let access = entra.token().await?;
        let url = Endpoint::AcrExchange.url(base)?;
        let service = service.unwrap_or(&registry.name);
        // In the body: as a Basic password, a token with many groups is too long for ACR's header (acr#797).
        let form =
            encode_form(&[("grant_type", "access_token"), ("service", service), ("access_token", access.reveal())]);
        let response = post(registry, url, form).await?;
        let answer = Answer::read(response, registry, Some(IDENTITY_NAME)).await?;
        let value =
            answer.refresh_token.ok_or_else(|| Error::new(Kind::Registry, "the exchange gave no refresh_token"))?;
        let token =
            Token { renew: renewal(jwt_life(&value).unwrap_or(DEFAULT_REFRESH_LIFETIME)), value: Secret::new(value) };
        self.set_username(Some(IDENTITY_NAME.to_owned()));
        Ok(Some(kept.insert(token).value.clone()))
    }

    /// The registry doesn't take this one: the next is exchanged anew.
    pub(in crate::registry) async fn forget_exchanged(&self, refused: &Secret) {
        let mut kept = self.exchanged.lock().await;
        if kept.as_ref().is_some_and(|token| token.value == *refused) {
            *kept = None;
        }
    }
}

/// The life of ACR's refresh tokens, where they don't say it.
const DEFAULT_REFRESH_LIFETIME: Duration = Duration::from_secs(3 * 3600);
/// Under this name ACR takes a refresh token as the password ("az acr login --expose-token").
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";
const NO_TLS_HINT: &str = "leave out --insecure-registry, and give the certificate's issuer by --ca-file where it is \
                           not a public one; or log in with a user name and a password by transload login";
/// The identity's name in messages.
pub(in crate::registry) const IDENTITY_NAME: &str = "the Entra identity";
