//! Deletes: of a tag, as far as the registry can, and of a manifest.

use bytes::Bytes;
use http::Method;
use http::response::Parts;
use jiff::Timestamp;
use serde::Deserialize;

use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::reference::{Tag, Target};
use crate::registry::Repo;
use crate::registry::auth::scope::Scope;
use crate::registry::azure::is_acr;
use crate::registry::lookup::is_unsupported;
use crate::registry::urls::Endpoint;

/// What a registry says of a tag itself, which is more than of its image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TagState {
    /// When it was last written.
    pub written: Option<Timestamp>,
    /// Whether it's locked: it can't be deleted then.
    pub locked: bool,
}

#[derive(Deserialize)]
struct TagDocument {
    tag: TagAttributes,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TagAttributes {
    created_time: Option<Timestamp>,
    last_update_time: Option<Timestamp>,
    #[serde(default)]
    changeable_attributes: Changeable,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Changeable {
    delete_enabled: Option<bool>,
}

impl Repo {
    /// What the registry says of the tag: ACR only, `None` elsewhere.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there's no such tag.
    pub async fn tag_state(&self, tag: &Tag) -> Result<Option<TagState>> {
        if !is_acr(&self.registry.name) {
            return Ok(None);
        }
        let doing = format!("read when {}:{tag} was written", self.repository);
        let scope = Scope::delete(&self.repository);
        let call = self.call(Method::GET, self.acr_tag(tag), &scope, doing).await?;
        let parse = |_: &Parts, bytes: Bytes| {
            serde_json::from_slice(&bytes).map_err(|error| {
                let wrong = Error::new(Kind::Invalid, "the answer is not about a tag");
                wrong.quoting(format!(": {error}")).caused_by(error).transient(None)
            })
        };
        let read = self.registry.read(call, 1 << 20, parse).await;
        let document: TagDocument = read?;
        let TagAttributes { created_time, last_update_time, changeable_attributes } = document.tag;
        Ok(Some(TagState {
            written: last_update_time.or(created_time),
            locked: changeable_attributes.delete_enabled == Some(false),
        }))
    }

    /// Deletes the tag, and nothing else. `false` if the registry can't do that; a tag that is gone is no error.
    ///
    /// The distribution spec's way ("Deleting tags"), except at ACR, which would delete the manifest with all
    /// its tags: there its own. docker-registry 2 takes digests only (400 `DIGEST_INVALID`, or 405).
    ///
    /// # Errors
    /// [`Kind::Denied`] without the right to delete.
    pub async fn delete_tag(&self, tag: &Tag) -> Result<bool> {
        let target = Target::Tag(tag.clone());
        let at = if is_acr(&self.registry.name) { self.acr_tag(tag) } else { self.at_manifest(&target) };
        match self.delete(at, format!("delete tag {}:{tag}", self.repository)).await {
            // At ACR it says that this tag is locked.
            Err(error) if is_unable(&error) && !is_acr(&self.registry.name) => Ok(false),
            deleted => deleted.map(|()| true),
        }
    }

    /// Deletes the manifest and every tag that points to it. One that is gone is no error.
    ///
    /// # Errors
    /// [`Kind::Unsupported`] where the registry allows no deletes.
    pub async fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        let target = Target::Digest(*digest);
        let deleted =
            self.delete(self.at_manifest(&target), format!("delete manifest {}@{digest}", self.repository)).await;
        deleted.map_err(|error| match is_unable(&error) {
            true => Error::new(Kind::Unsupported, format!("{} allows no deletes ({error})", self.registry.name))
                .caused_by(error)
                .hint("docker-registry allows them by REGISTRY_STORAGE_DELETE_ENABLED=true"),
            false => error,
        })
    }

    async fn delete(&self, at: Endpoint<'_>, doing: String) -> Result<()> {
        let scope = Scope::delete(&self.repository);
        let call = self.call(Method::DELETE, at, &scope, doing).await?;
        match self.registry.call(call).await {
            Err(error) if error.kind() == Kind::NotFound => Ok(()),
            called => called.map(drop),
        }
    }

    fn acr_tag<'a>(&'a self, tag: &'a Tag) -> Endpoint<'a> {
        Endpoint::AcrTag(&self.repository.name, tag)
    }
}

/// Whether the registry says that it doesn't do such a thing at all.
fn is_unable(error: &Error) -> bool {
    match (error.kind(), error.status()) {
        // DIGEST_INVALID
        (Kind::Mismatch, status) => status == Some(400),
        (Kind::Registry, Some(400)) => error.code() == Some("UNSUPPORTED"),
        _ => is_unsupported(error),
    }
}
