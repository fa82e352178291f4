//! What is there: by HEAD, or by GET at registries that do not support HEAD.
//!
//! GitHub Enterprise Server, Nexus and others answer HEAD with 405 or 501. That is remembered for each registry, so it
//! costs one request more: a manifest is read then, and of a blob one byte is asked for.

use std::sync::atomic::{AtomicBool, Ordering};

use http::header::{ACCEPT, RANGE};
use http::{Method, StatusCode};

use super::Repo;
use super::auth::scope::Scope;
use super::azure::is_acr;
use super::client::Response;
use super::client::length;
use super::endpoints::blob::{Cached, content_range};
use super::endpoints::manifest::{content_type, digest};
use super::urls::Endpoint;
use super::web_page;
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::error::{Error, Kind, Result};
use crate::reference::Target;

/// Learned of one registry: for what it does not support HEAD.
#[derive(Debug, Default)]
pub(super) struct WithoutHead {
    manifests: AtomicBool,
    blobs: AtomicBool,
}

/// Whether the registry says that it does not support the request's method here.
pub(super) fn is_unsupported(error: &Error) -> bool {
    matches!(error.status(), Some(405 | 501)) && !error.is_transient()
}

/// A blob that was looked for.
enum Found {
    /// It is there. Its size in bytes, if the registry says it.
    There(Option<u64>),
    Absent,
    /// The registry supports neither HEAD nor GET here.
    Unknown(Error),
}

impl Repo {
    /// What a manifest is; `None` where it isn't there. By `HEAD`, which is no pull for Docker Hub.
    pub(super) async fn head_manifest(&self, target: &Target, scope: &Scope) -> Result<Option<Descriptor>> {
        let without = &self.registry.without_head.manifests;
        if without.load(Ordering::Relaxed) {
            return self.read_descriptor(target, scope).await;
        }
        let reference = self.repository.at(target.clone());
        let call = self.call(Method::HEAD, self.at_manifest(target), scope, format!("look for {reference}")).await?;
        let response = match self.registry.call(call.header(ACCEPT, MediaType::ACCEPT)).await {
            Ok(response) => response,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) if is_unsupported(&error) => {
                tracing::debug!("{}: manifests are read by GET: {error}", self.registry.name);
                without.store(true, Ordering::Relaxed);
                return self.read_descriptor(target, scope).await;
            }
            Err(error) => return Err(self.with_reason(error, self.at_manifest(target), scope).await),
        };
        let headers = response.headers();
        let found = (digest(headers).or_else(|| target.digest()), length(headers), web_page::media_type(headers));
        if let (Some(digest), Some(size), None) = found {
            return Ok(Some(Descriptor::new(content_type(headers).unwrap_or_default(), digest, size)));
        }
        // Docker-Content-Digest is a "should" only; and a web page may be gone by the next request.
        self.read_descriptor(target, scope).await
    }

    async fn read_descriptor(&self, target: &Target, scope: &Scope) -> Result<Option<Descriptor>> {
        match self.get_manifest(target, scope).await {
            Ok(manifest) => Ok(Some(manifest.descriptor().clone())),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Whether a blob is at the destination. One that cannot be looked up is not, so it is sent.
    pub(super) async fn head_blob(&self, blob: &Descriptor) -> Result<bool> {
        Ok(match self.look_for_blob(&blob.digest, &self.push, Some(blob.size)).await? {
            // A blob of another size can't have this digest: what is there is broken, so it's sent again.
            Found::There(size) => size.is_none_or(|size| size == blob.size),
            Found::Absent => false,
            Found::Unknown(error) => {
                tracing::debug!("{}: {} is sent without a look: {error}", self.registry.name, blob.digest);
                false
            }
        })
    }

    /// A blob's size in bytes, as who pulls; `None` where it isn't there.
    ///
    /// # Errors
    /// [`Kind::Registry`] if the registry doesn't say how large the blob is.
    pub async fn size_of(&self, digest: &Digest) -> Result<Option<u64>> {
        match self.look_for_blob(digest, &self.pull, None).await? {
            Found::There(Some(size)) => Ok(Some(size)),
            Found::There(None) => {
                let error = Error::new(Kind::Registry, "the registry does not say how large the blob is");
                Err(error.doing(format!("look for blob {digest}")))
            }
            Found::Absent => Ok(None),
            Found::Unknown(error) => Err(error),
        }
    }

    /// `size` is that of the blob, in bytes, if it is known: an answer with it is no web page.
    async fn look_for_blob(&self, digest: &Digest, scope: &Scope, size: Option<u64>) -> Result<Found> {
        let without = &self.registry.without_head.blobs;
        if without.load(Ordering::Relaxed) {
            return self.ask_for_a_byte(digest, scope, size).await;
        }
        let doing = format!("look for blob {digest}");
        let call = self.call(Method::HEAD, self.at_blob(digest), scope, doing.clone()).await?;
        match self.registry.call(call).await {
            Ok(response) => self.found(&response, size).map_err(|error| error.doing(doing)),
            Err(error) if error.kind() == Kind::NotFound => Ok(Found::Absent),
            Err(error) if is_unsupported(&error) => {
                tracing::debug!("{}: blobs are looked for by GET: {error}", self.registry.name);
                without.store(true, Ordering::Relaxed);
                self.ask_for_a_byte(digest, scope, size).await
            }
            Err(error) => Err(self.with_reason(error, self.at_blob(digest), scope).await),
        }
    }

    /// The error of a `HEAD` that ACR answered with 403, with the reason, such as its firewall's: the answer to a HEAD has
    /// no body, that to a GET has.
    async fn with_reason(&self, error: Error, at: Endpoint<'_>, scope: &Scope) -> Error {
        if error.status() != Some(403) || !is_acr(&self.registry.name) {
            return error;
        }
        let asked = async { self.registry.call_once(self.call(Method::GET, at, scope, "").await?).await };
        match asked.await {
            // What is not refused any more, or in another way, says nothing of this refusal.
            Err(explained) if explained.status() == Some(403) => error.explained_by(explained),
            _ => error,
        }
    }

    /// `GET` of a blob's first byte. The whole blob, which is sent where ranges are not supported, is not read.
    async fn ask_for_a_byte(&self, digest: &Digest, scope: &Scope, size: Option<u64>) -> Result<Found> {
        let doing = format!("look for blob {digest}");
        let call = self.call(Method::GET, self.at_blob(digest), scope, doing.clone()).await?;
        match self.registry.call(call.header(RANGE, "bytes=0-0")).await {
            Ok(response) => self.found(&response, size).map_err(|error| error.doing(doing)),
            Err(error) if error.kind() == Kind::NotFound => Ok(Found::Absent),
            // An empty blob has no first byte (RFC 9110 §15.5.17).
            Err(error) if error.status() == Some(416) => Ok(Found::There(Some(0))),
            Err(error) if is_unsupported(&error) => Ok(Found::Unknown(error)),
            Err(error) => Err(error),
        }
    }

    /// The blob that a response is about, unless it is a web page.
    fn found(&self, response: &Response, size: Option<u64>) -> Result<Found> {
        if size.is_some() {
            self.refuse_page(response, size)?;
        }
        Ok(Found::There(size_in(response)))
    }

    /// How a cache says that it has a blob, as who pulls (RFC 9211). By `HEAD` only, which fetches nothing.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if it isn't there.
    pub async fn cached(&self, digest: &Digest) -> Result<Cached> {
        let doing = format!("look for blob {digest}");
        let call = self.call(Method::HEAD, self.at_blob(digest), &self.pull, doing).await?;
        let response = self.registry.call(call).await?;
        Ok(Cached::from_headers(response.headers()))
    }
}

/// The size in bytes of the blob of which this answer has a byte, or all.
fn size_in(response: &Response) -> Option<u64> {
    match response.status() {
        StatusCode::PARTIAL_CONTENT => content_range(response.headers()).and_then(|(_, total)| total),
        _ => length(response.headers()),
    }
}
