//! A layout directory behind the server.
//!
//! It's here, since `layout` and `server` don't know each other: the one also works without HTTP,
//! the other also without a directory.

use std::ops::Range;
use std::sync::Arc;

use crate::body::Body;
use crate::content::Source as _;
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Kind, Result};
use crate::layout::{BlobUpload, Store, StoredBlob};
use crate::manifest::Manifest;
use crate::reference::{RepositoryName, Tag, Target, without_https_port};
use crate::server::{Backend, Blob, FilePipe, Referrers, Reply, RepositoryPath, Upload};

/// The backend of `transload serve`.
#[derive(Debug)]
pub struct LayoutBackend {
    store: Store,
    writable: bool,
}

impl LayoutBackend {
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

    async fn find_manifest(&self, repository: &RepositoryPath, target: &Target) -> Result<Option<Manifest>> {
        for name in name_candidates(repository) {
            if let Some(found) = self.manifest_in(&name, target).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn find_blob(&self, repository: &RepositoryPath, digest: &Digest) -> Result<Option<StoredBlob>> {
        for name in name_candidates(repository) {
            if let Some(found) = self.store.repository(&name).open_blob(digest).await? {
                return Ok(Some(found));
            }
        }
        Ok(None)
    }

    async fn list_tags(
        &self,
        repository: &RepositoryPath,
        after: Option<&str>,
        most: usize,
    ) -> Result<Option<Vec<Tag>>> {
        let repository = self.store.repository(&repository.name);
        let tags = repository.tags_page(after, most).await?;
        let known = !tags.is_empty() || !repository.tags_page(None, 1).await?.is_empty();
        Ok(known.then_some(tags))
    }

    async fn list_referrers(&self, repository: &RepositoryPath, subject: &Digest) -> Result<Arc<Referrers>> {
        let mut all: Vec<Descriptor> = Vec::new();
        for name in name_candidates(repository) {
            let found = self.store.repository(&name).referrers(subject).await?;
            all.extend(
                found.into_iter().filter(|new| all.iter().all(|old| old.digest != new.digest)).collect::<Vec<_>>(),
            );
        }
        Ok(Arc::new(all))
    }
}

impl Backend for LayoutBackend {
    type Blob = StoredBlob;
    type Upload = BlobUpload;

    fn is_writable(&self) -> bool {
        self.writable
    }

    async fn resolve(&self, repository: &RepositoryPath, target: &Target) -> Reply<Option<Descriptor>> {
        self.manifest(repository, target).await.map(|found| found.map(|manifest| manifest.descriptor().clone()))
    }

    async fn manifest(&self, repository: &RepositoryPath, target: &Target) -> Reply<Option<Manifest>> {
        self.find_manifest(repository, target).await.into()
    }

    async fn blob(&self, repository: &RepositoryPath, digest: &Digest) -> Reply<Option<StoredBlob>> {
        self.find_blob(repository, digest).await.into()
    }

    async fn tags(&self, repository: &RepositoryPath, after: Option<&str>, most: usize) -> Reply<Option<Vec<Tag>>> {
        self.list_tags(repository, after, most).await.into()
    }

    async fn repositories(&self, after: Option<&str>, most: usize) -> Result<Vec<RepositoryName>> {
        let all = self.store.repositories().await?.into_iter();
        Ok(all.filter(|name| after.is_none_or(|after| name.as_str() > after)).take(most).collect())
    }

    async fn referrers(&self, repository: &RepositoryPath, subject: &Digest) -> Reply<Arc<Referrers>> {
        self.list_referrers(repository, subject).await.into()
    }

    async fn start_upload(&self, repository: &RepositoryPath, like: Option<Digest>) -> Result<BlobUpload> {
        self.store.repository(&repository.name).create_upload(like.unwrap_or(Digest::Sha256([0; 32]))).await
    }

    async fn mount(&self, repository: &RepositoryPath, digest: &Digest, from: Option<&RepositoryName>) -> Result<bool> {
        let repository = self.store.repository(&repository.name);
        if repository.open_blob(digest).await?.is_some() {
            return Ok(true);
        }
        match from {
            Some(from) => repository.mount(digest, from).await,
            None => Ok(false),
        }
    }

    async fn put_manifest(&self, repository: &RepositoryPath, manifest: &Manifest, targets: &[Target]) -> Result<()> {
        self.store.repository(&repository.name).put_as(manifest, targets).await
    }
}

/// The repositories of the directory that `repository` may mean, the best first: it may hold both docker.io/a/b and
/// ghcr.io/a/b, and a mirror be asked for the `a/b` of one of them.
fn name_candidates(repository: &RepositoryPath) -> Vec<RepositoryName> {
    let whole = repository.ns.as_ref().and_then(|ns| repository.name.below(without_https_port(ns)).ok());
    whole.into_iter().chain([repository.name.clone()]).collect()
}

impl Blob for StoredBlob {
    fn size(&self) -> u64 {
        StoredBlob::size(self)
    }

    async fn read(self, range: Range<u64>, _: Option<FilePipe>) -> Result<Body> {
        Ok(StoredBlob::read(self, range))
    }
}

impl Upload for BlobUpload {
    async fn size(&mut self) -> Result<u64> {
        BlobUpload::size(self).await
    }

    async fn append(&mut self, body: &mut Body) -> Result<()> {
        BlobUpload::append(self, body).await
    }

    async fn commit(self, digest: Digest) -> Result<()> {
        BlobUpload::commit(self, digest).await
    }
}
