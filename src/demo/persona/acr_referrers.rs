//! The referrers API of Azure Container Registry, for a registry without one.
//!
//! It knows only manifests that were pushed through the look-alike.

use std::sync::{Mutex, MutexGuard, PoisonError};

use http::StatusCode;
use http::request::Parts;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::Answer;
use super::wire::{self, Form, set};

#[derive(Debug, Default)]
pub(super) struct Referrers {
    known: Mutex<Vec<Referrer>>,
}

/// A manifest with a subject.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Referrer {
    name: String,
    subject: String,
    descriptor: Value,
}

impl Referrer {
    /// Reads the subject of a manifest that is pushed to `name`, if it has one.
    pub(super) fn read(name: &str, manifest: &[u8]) -> Option<Self> {
        let parsed: Value = serde_json::from_slice(manifest).ok()?;
        let subject = parsed["subject"]["digest"].as_str()?.to_owned();
        let digest: String = Sha256::digest(manifest).iter().map(|byte| format!("{byte:02x}")).collect();
        // Without a type of its own, the config's type counts (distribution-spec, "Listing Referrers").
        let artifact_type = [&parsed["artifactType"], &parsed["config"]["mediaType"]];
        let artifact_type = artifact_type.into_iter().find(|value| value.is_string());
        let mut descriptor = json!({
            "mediaType": parsed["mediaType"],
            "digest": format!("sha256:{digest}"),
            "size": manifest.len(),
            "artifactType": artifact_type,
        });
        if parsed["annotations"].is_object() {
            descriptor["annotations"] = parsed["annotations"].clone();
        }
        Some(Self { name: name.to_owned(), subject, descriptor })
    }

    /// The subject's digest, for the `OCI-Subject` header.
    pub(super) fn subject(&self) -> &str {
        &self.subject
    }
}

impl Referrers {
    pub(super) fn add(&self, referrer: &Referrer) {
        let mut known = self.known();
        if !known.contains(referrer) {
            known.push(referrer.clone());
        }
    }

    pub(super) fn remove(&self, name: &str, digest: &str) {
        self.known().retain(|known| known.name != name || known.descriptor["digest"] != digest);
    }

    /// Always 200 with an index, which may be empty. Pages of `page` entries are chained by `Link`.
    pub(super) fn list(&self, head: &Parts, name: &str, subject: &str, page: Option<usize>) -> Answer {
        let query = Form::of_query(head);
        let wanted = query.first("artifactType");
        let known = self.known();
        let matching: Vec<&Value> = known
            .iter()
            .filter(|known| known.name == name && known.subject == subject)
            .map(|known| &known.descriptor)
            .filter(|descriptor| wanted.is_none_or(|wanted| descriptor["artifactType"] == wanted))
            .collect();
        let skip: usize = query.first("skip").and_then(|skip| skip.parse().ok()).unwrap_or_default();
        let taken = page.unwrap_or(usize::MAX);
        let media_type = "application/vnd.oci.image.index.v1+json";
        let manifests: Vec<&Value> = matching.iter().copied().skip(skip).take(taken).collect();
        let next = skip + manifests.len();
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": manifests});
        let mut answer = wire::text(StatusCode::OK, media_type, index.to_string());
        if wanted.is_some() {
            set(answer.headers_mut(), "oci-filters-applied", "artifactType");
        }
        if next < matching.len() {
            let filter = wanted.map(|wanted| format!("&artifactType={wanted}")).unwrap_or_default();
            let link = format!("<{}?skip={next}{filter}>; rel=\"next\"", head.uri.path());
            set(answer.headers_mut(), "link", &link);
        }
        answer
    }

    fn known(&self) -> MutexGuard<'_, Vec<Referrer>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
