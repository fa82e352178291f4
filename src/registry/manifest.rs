//! Manifests: HEAD, GET, PUT.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use http::response::Parts;
use http::{HeaderValue, Method};
use serde::de::IgnoredAny;

use super::Repo;
use super::blob::length;
use super::token::Scope;
use super::transport::{Payload, Response};
use super::web_page;
use crate::content::Pushed;
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::error::{Error, Kind, Result};
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::memory;
use crate::reference::Target;

impl Repo {
    /// `HEAD` of a manifest: no pull for Docker Hub. `None` where it isn't.
    pub(super) async fn head_manifest(&self, target: &Target, scope: &Scope) -> Result<Option<Descriptor>> {
        let reference = self.repository.at(target.clone());
        let call = self.call(Method::HEAD, self.at_manifest(target), scope, format!("look for {reference}")).await?;
        let response = match self.registry.call(call.header(ACCEPT, MediaType::ACCEPT)).await {
            Ok(response) => response,
            Err(error) if error.kind() == Kind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        if let Some(page) = web_page::instead_of(&self.registry.name, &response) {
            return Err(page.doing(format!("look for {reference}")));
        }
        let headers = response.headers();
        if let (Some(digest), Some(size)) = (digest(headers).or_else(|| target.digest()), length(headers)) {
            return Ok(Some(Descriptor::new(content_type(headers).unwrap_or_default(), digest, size)));
        }
        // Docker-Content-Digest is a "should" only.
        match self.get_manifest(target, scope).await {
            Ok(manifest) => Ok(Some(manifest.descriptor().clone())),
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// `GET` of a manifest: a pull for Docker Hub.
    pub(super) async fn get_manifest(&self, target: &Target, scope: &Scope) -> Result<Manifest> {
        let reference = self.repository.at(target.clone());
        let doing = format!("read manifest {reference}");
        let call = self.call(Method::GET, self.at_manifest(target), scope, doing).await?;
        let parse = |head: &Parts, bytes: Bytes| {
            // By tag the header's digest is all there is to check the bytes by.
            let expected = target.digest().or(digest(&head.headers));
            // The answer holds the room for being read until it is parsed.
            let read = Manifest::read(memory::own(&bytes), content_type(&head.headers), expected);
            read.map_err(|error| match error.kind() {
                // Without a digest nobody says that these are the registry's bytes.
                Kind::Invalid if expected.is_none() && serde_json::from_slice::<IgnoredAny>(&bytes).is_err() => {
                    error.transient(None)
                }
                _ => error.transient_if_damaged(),
            })
        };
        self.registry.read(call.header(ACCEPT, MediaType::ACCEPT), MAX_MANIFEST, parse).await
    }

    /// `PUT` of a manifest's bytes.
    ///
    /// They were verified here: when the registry finds them wrong, they were damaged on their way, which costs one
    /// attempt.
    pub(super) async fn send_manifest(&self, manifest: &Manifest, at: &Target) -> Result<Pushed> {
        let reference = self.repository.at(at.clone());
        let doing = format!("write manifest {reference}");
        let call = self.call(Method::PUT, self.at_manifest(at), &self.push, doing.clone()).await?;
        let mut call = call.header(CONTENT_TYPE, manifest.descriptor().media_type.0.as_str());
        call.body = Payload::Bytes(manifest.bytes().clone());
        let mut invalid = false;
        let judge = |answered: Result<Response>| match answered {
            Ok(response) => {
                check_stored(&response, manifest.digest()).map(|()| response).map_err(|e| e.doing(doing.clone()))
            }
            // `MANIFEST_INVALID`: damage, or a kind of manifest that the registry never takes. So once more only.
            Err(error) if error.kind() == Kind::Invalid && !std::mem::replace(&mut invalid, true) => {
                Err(error.transient(None))
            }
            Err(error) => Err(error.transient_if_damaged()),
        };
        let response = self.registry.call_judged(&mut call, judge).await?;
        Ok(Pushed { lists_referrer: response.headers().contains_key("oci-subject") })
    }
}

/// The registry says which digest it stored, if it says so (distribution spec, "Pushing Manifests"). Another one
/// means that it got other bytes: below a tag they look right to it.
///
/// # Errors
/// [`Kind::Mismatch`], transient.
fn check_stored(response: &Response, sent: Digest) -> Result<()> {
    match digest(response.headers()) {
        Some(stored) if stored != sent => {
            let what = format!("the registry stored {stored}, where {sent} was sent");
            Err(Error::new(Kind::Mismatch, what).transient(None))
        }
        _ => Ok(()),
    }
}

fn digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE).map(HeaderValue::to_str)?.ok()
}
