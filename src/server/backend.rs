//! The interface between the server and the content that it serves.

use std::future::Future;
use std::ops::Range;
use std::sync::Arc;

use super::route::RepositoryPath;
use super::sendfile::FilePipe;
use super::served::Reply;
use crate::body::Body;
use crate::descriptor::{Descriptor, Digest};
use crate::error::Result;
use crate::manifest::Manifest;
use crate::reference::{RepositoryName, Tag, Target};

/// A list of referrers. It is a trait object, so that an answer needs no copy.
pub(crate) type Referrers = dyn AsRef<[Descriptor]> + Send + Sync;

/// Content behind the distribution API: a directory, or a proxy's cache with its upstreams.
///
/// The kind of an error determines the response: see [`Refusal`](super::Refusal).
pub(crate) trait Backend: Send + Sync + 'static {
    /// A blob that can be read.
    type Blob: Blob;
    /// An upload session.
    type Upload: Upload;

    /// Whether pushes are accepted. If not, the methods for pushes are never called.
    fn is_writable(&self) -> bool;

    /// Whether `?ns=` selects the registry. Responses then contain it (distribution spec, "Registry Proxying").
    fn knows_namespaces(&self) -> bool {
        false
    }

    /// The descriptor of `target`, for `HEAD`; `None` if it does not exist.
    fn resolve(
        &self,
        repository: &RepositoryPath,
        target: &Target,
    ) -> impl Future<Output = Reply<Option<Descriptor>>> + Send;

    /// The manifest; `None` if it does not exist.
    fn manifest(
        &self,
        repository: &RepositoryPath,
        target: &Target,
    ) -> impl Future<Output = Reply<Option<Manifest>>> + Send;

    /// The size of the blob in bytes, for `HEAD`; `None` if it does not exist. Never fetches the blob.
    fn size_of(&self, repository: &RepositoryPath, digest: &Digest) -> impl Future<Output = Reply<Option<u64>>> + Send {
        async move { self.blob(repository, digest).await.map(|found| found.map(|blob| blob.size())) }
    }

    /// The `Cache-Status` (RFC 9211) in the response to `HEAD` of a blob, if this is a cache. Called for a blob that
    /// [`size_of`](Self::size_of) has found.
    fn cache_status(&self, _repository: &RepositoryPath, _digest: &Digest) -> Option<&'static str> {
        None
    }

    /// The blob; `None` if it does not exist.
    fn blob(
        &self,
        repository: &RepositoryPath,
        digest: &Digest,
    ) -> impl Future<Output = Reply<Option<Self::Blob>>> + Send;

    /// Up to `most` tags after `after`, sorted by bytes; `None` if the repository does not exist.
    fn tags(
        &self,
        repository: &RepositoryPath,
        after: Option<&str>,
        most: usize,
    ) -> impl Future<Output = Reply<Option<Vec<Tag>>>> + Send;

    /// Up to `most` repositories after `after`, sorted by bytes.
    fn repositories(
        &self,
        after: Option<&str>,
        most: usize,
    ) -> impl Future<Output = Result<Vec<RepositoryName>>> + Send;

    /// The referrers of `subject`.
    fn referrers(
        &self,
        repository: &RepositoryPath,
        subject: &Digest,
    ) -> impl Future<Output = Reply<Arc<Referrers>>> + Send;

    /// Starts an upload session. `like` has the digest algorithm that the client has announced, if it has.
    fn start_upload(
        &self,
        repository: &RepositoryPath,
        like: Option<Digest>,
    ) -> impl Future<Output = Result<Self::Upload>> + Send;

    /// Mounts a blob from the repository `from` (distribution spec, "Mounting a blob from another repository"). Returns
    /// whether the blob is in `repository` now. That needs no `from` if the blob was there before.
    fn mount(
        &self,
        repository: &RepositoryPath,
        digest: &Digest,
        from: Option<&RepositoryName>,
    ) -> impl Future<Output = Result<bool>> + Send {
        async move {
            if self.blob(repository, digest).await.found?.is_some() {
                return Ok(true);
            }
            let Some(from) = from else { return Ok(false) };
            let from = RepositoryPath { name: from.clone(), ns: repository.ns.clone() };
            Ok(self.blob(&from, digest).await.found?.is_some())
        }
    }

    /// Stores a manifest under all of `targets`, and adds it to the referrers of its subject. The caller has checked that its
    /// blobs exist. On return the manifest is durable; after an error it is under none of the targets.
    fn put_manifest(
        &self,
        repository: &RepositoryPath,
        manifest: &Manifest,
        targets: &[Target],
    ) -> impl Future<Output = Result<()>> + Send;
}

pub(crate) trait Blob: Send + 'static {
    /// The size in bytes.
    fn size(&self) -> u64;

    /// The bytes in `range`, which is within the size. With a `pipe` the body may contain placeholders for parts of files, and
    /// must be sent on that connection only.
    fn read(self, range: Range<u64>, pipe: Option<FilePipe>) -> impl Future<Output = Result<Body>> + Send;
}

/// An upload session. Dropping it removes what was uploaded.
///
/// When a future of its methods is dropped, because the client has closed the connection, the session stays usable:
/// [`size`](Self::size) returns the bytes that were stored.
pub(crate) trait Upload: Send + 'static {
    /// The number of stored bytes.
    fn size(&mut self) -> impl Future<Output = Result<u64>> + Send;

    /// Appends `body`. Bytes before an error of the body are kept.
    fn append(&mut self, body: &mut Body) -> impl Future<Output = Result<()>> + Send;

    /// Completes the upload. On return the blob is durable.
    ///
    /// # Errors
    /// [`Kind::Mismatch`](crate::error::Kind::Mismatch) if the bytes do not match the digest.
    fn commit(self, digest: Digest) -> impl Future<Output = Result<()>> + Send;
}
