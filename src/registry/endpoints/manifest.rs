//! Reads and writes manifests.

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, HeaderMap};
use http::response::Parts;
use http::{HeaderValue, Method};
use serde::de::IgnoredAny;

use crate::content::PushReceipt;
use crate::descriptor::{Digest, MediaType};
use crate::error::{Error, Kind, Result};
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::memory;
use crate::reference::Target;
use crate::registry::Repo;
use crate::registry::auth::scope::Scope;
use crate::registry::call::Payload;
use crate::registry::client::Response;

impl Repo {
    /// `GET` of a manifest, which Docker Hub counts as a pull.
    pub(in crate::registry) async fn get_manifest(&self, target: &Target, scope: &Scope) -> Result<Manifest> {
        let reference = self.repository.at(target.clone());
        let doing = format!("read manifest {reference}");
        let call = self.call(Method::GET, self.at_manifest(target), scope, doing).await?;
        let parse = |head: &Parts, bytes: Bytes| {
            // For a tag, the header's digest is the only check of the bytes.
            let expected = target.digest().or(digest(&head.headers));
            // The response keeps its memory reservation until it is parsed.
            let read = Manifest::read(memory::copy_if_shared(&bytes), content_type(&head.headers), expected);
            read.map_err(|error| match error.kind() {
                // Without a digest it is unknown whether these are the registry's bytes.
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
    /// The bytes were verified here. If the registry finds them wrong, they were damaged on the way, which costs one
    /// retry.
    pub(in crate::registry) async fn send_manifest(&self, manifest: &Manifest, at: &Target) -> Result<PushReceipt> {
        let reference = self.repository.at(at.clone());
        let doing = format!("write manifest {reference}");
        let call = self.call(Method::PUT, self.at_manifest(at), &self.push, doing.clone()).await?;
        let mut call = call.header(CONTENT_TYPE, manifest.descriptor().media_type.0.as_str());
        call.body = Payload::Bytes(manifest.bytes().clone());
        let mut invalid = false;
        let far = names_addresses(manifest);
        let judge = |answered: Result<Response>| match answered {
            Ok(response) => {
                check_stored(&response, manifest.digest()).map(|()| response).map_err(|e| e.doing(doing.clone()))
            }
            // docker-registry always answers layers with `urls` with 500 `UNKNOWN`.
            Err(error) if far && is_about_content(&error) => {
                let error = error.hint(FOREIGN_HINT);
                if std::mem::replace(&mut invalid, true) { Err(error.permanent()) } else { Err(error.transient(None)) }
            }
            // `MANIFEST_INVALID`: the bytes were damaged, or the registry never accepts this kind of manifest. So one
            // retry only.
            Err(error) if error.kind() == Kind::Invalid && !std::mem::replace(&mut invalid, true) => {
                Err(error.transient(None))
            }
            Err(error) => Err(error.transient_if_damaged()),
        };
        let response = self.registry.call_judged(&mut call, judge).await?;
        Ok(PushReceipt { lists_referrer: response.headers().contains_key("oci-subject") })
    }
}

/// Whether the manifest has foreign layers, with `urls`.
fn names_addresses(manifest: &Manifest) -> bool {
    manifest.contents().blobs.iter().any(|blob| !blob.urls.is_empty())
}

/// Whether a registry may have refused the manifest's content, rather than have failed. docker-registry answers with
/// 500 and the errors that it found.
fn is_about_content(error: &Error) -> bool {
    let found = matches!(error.code(), Some("UNKNOWN" | "MANIFEST_BLOB_UNKNOWN" | "MANIFEST_INVALID"));
    error.kind() == Kind::Invalid || (found && matches!(error.status(), Some(400 | 404 | 500)))
}

const FOREIGN_HINT: &str = "the image has foreign layers, which name addresses (urls): docker-registry takes them only if \
                            its configuration allows these, by validation.manifests.urls.allow";

/// Checks the digest that the registry stored, if the response has it (distribution spec, "Pushing Manifests"). Another
/// digest means that it received other bytes: under a tag they are valid.
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

pub(in crate::registry) fn digest(headers: &HeaderMap) -> Option<Digest> {
    headers.get("docker-content-digest")?.to_str().ok()?.trim().parse().ok()
}

pub(in crate::registry) fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE).map(HeaderValue::to_str)?.ok()
}
