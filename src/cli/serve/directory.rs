//! A layout directory behind the server.
//!
//! It's here, since `layout` and `server` don't know each other: the one also works without HTTP,
//! the other also without a directory.

use std::ops::Range;
use std::sync::Arc;

use crate::content::{Body, Source as _};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Kind, Result};
use crate::layout::{Partial, Store, Stored};
use crate::manifest::Manifest;
use crate::reference::{RepositoryName, Tag, Target, without_https_port};
use crate::server::{Backend, Blob, FilePipe, Place, Referrers, Upload};

/// The backend of `transload serve`.
#[derive(Debug)]
pub struct Directory {
    store: Store,
    writable: bool,
}

impl Directory {
    /// Serves what `store` holds; takes pushes if `writable`.
    pub fn new(store: Store, writable: bool) -> Self {
        Self { store, writable }
    }

    async fn manifest_in(&self, name: &RepositoryName, target: &Target) -> Result<Option<Manifest>> {
        match self.store.repository(name).lookup(target).await {
            // A layer can't be asked for as a manifest.
            Err(error) if error.kind() == Kind::Invalid && target.digest().is_some() => Ok(None),
            found => found,
        }
    }
}

impl Backend for Directory {
    type Blob = Stored;
    type Upload = Partial;

    fn is_writable(&self) -> bool {
        self.writable
    }

    async fn resolve(&self, place: &Place, target: &Target) -> Result<Option<Descriptor>> {
        Ok(self.manifest(place, target).await?.map(|manifest| manifest.descriptor().clone()))
    }

    async fn manifest(&self, place: &Place, target: &Target) -> Result<Option<Manifest>> {
        for name in names(place) {
            if let Some(found) = self.manifest_in(&name, target).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn blob(&self, place: &Place, digest: &Digest) -> Result<Option<Stored>> {
        for name in names(place) {
            if let Some(found) = self.store.repository(&name).stored(digest).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn tags(&self, place: &Place, after: Option<&str>, most: usize) -> Result<Option<Vec<Tag>>> {
        let repository = self.store.repository(&place.name);
        let tags = repository.tags_page(after, most).await?;
        let known = !tags.is_empty() || !repository.tags_page(None, 1).await?.is_empty();
        Ok(known.then_some(tags))
    }

    async fn repositories(&self, after: Option<&str>, most: usize) -> Result<Vec<RepositoryName>> {
        let all = self.store.repositories().await?.into_iter();
        Ok(all.filter(|name| after.is_none_or(|after| name.as_str() > after)).take(most).collect())
    }

    async fn referrers(&self, place: &Place, subject: &Digest) -> Result<Arc<Referrers>> {
        let mut all: Vec<Descriptor> = Vec::new();
        for name in names(place) {
            let found = self.store.repository(&name).referrers(subject).await?;
            all.extend(
                found.into_iter().filter(|new| all.iter().all(|old| old.digest != new.digest)).collect::<Vec<_>>(),
            );
        }
        Ok(Arc::new(all))
    }

    async fn begin(&self, place: &Place, like: Option<Digest>) -> Result<Partial> {
        self.store.repository(&place.name).begin(like.unwrap_or(Digest::Sha256([0; 32]))).await
    }

    async fn mount(&self, place: &Place, digest: &Digest, from: Option<&RepositoryName>) -> Result<bool> {
        let repository = self.store.repository(&place.name);
        if repository.stored(digest).await?.is_some() {
            return Ok(true);
        }
        match from {
            Some(from) => repository.mount(digest, from).await,
            None => Ok(false),
        }
    }

    async fn put_manifest(&self, place: &Place, manifest: &Manifest, targets: &[Target]) -> Result<()> {
        self.store.repository(&place.name).put_as(manifest, targets).await
    }
}

/// The repositories of the directory that `place` may mean, the best first: it may hold both docker.io/a/b and
/// ghcr.io/a/b, and a mirror be asked for the `a/b` of one of them.
fn names(place: &Place) -> Vec<RepositoryName> {
    let whole = place.ns.as_ref().and_then(|ns| place.name.below(without_https_port(ns)).ok());
    whole.into_iter().chain([place.name.clone()]).collect()
}

impl Blob for Stored {
    fn size(&self) -> u64 {
        Stored::size(self)
    }

    async fn read(self, range: Range<u64>, _: Option<FilePipe>) -> Result<Body> {
        Ok(Stored::read(self, range))
    }
}

impl Upload for Partial {
    async fn size(&mut self) -> Result<u64> {
        Partial::size(self).await
    }

    async fn append(&mut self, body: &mut Body) -> Result<()> {
        Partial::append(self, body).await
    }

    async fn commit(self, digest: Digest) -> Result<()> {
        Partial::commit(self, digest).await
    }
}
