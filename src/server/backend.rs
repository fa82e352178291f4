//! What the front asks of whatever holds the content.

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

/// A list of referrers: however it is kept, answering from it takes no copy.
pub type Referrers = dyn AsRef<[Descriptor]> + Send + Sync;

/// Content behind the distribution API: a directory, or a proxy's cache with its upstreams.
///
/// An error is answered by its kind: see [`Refusal`](super::Refusal).
pub trait Backend: Send + Sync + 'static {
    /// A blob that can be read.
    type Blob: Blob;
    /// An upload that was begun.
    type Upload: Upload;

    /// Whether pushes are taken. If not, the methods for it are never called.
    fn is_writable(&self) -> bool;

    /// Whether `?ns=` decides what is served here: then the answer repeats it (distribution spec,
    /// "Registry Proxying").
    fn knows_namespaces(&self) -> bool {
        false
    }

    /// What `target` is, for `HEAD`; `None` if it isn't there.
    fn resolve(
        &self,
        repository: &RepositoryPath,
        target: &Target,
    ) -> impl Future<Output = Reply<Option<Descriptor>>> + Send;

    /// The manifest; `None` if it isn't there.
    fn manifest(
        &self,
        repository: &RepositoryPath,
        target: &Target,
    ) -> impl Future<Output = Reply<Option<Manifest>>> + Send;

    /// How large the blob is, for `HEAD`; `None` if it isn't there. Never fetches it.
    fn size_of(&self, repository: &RepositoryPath, digest: &Digest) -> impl Future<Output = Reply<Option<u64>>> + Send {
        async move { self.blob(repository, digest).await.map(|found| found.map(|blob| blob.size())) }
    }

    /// What the answer to a `HEAD` of a blob says as `Cache-Status` (RFC 9211), where this is a cache. Asked for a blob
    /// that [`size_of`](Self::size_of) has found there.
    fn cache_status(&self, _repository: &RepositoryPath, _digest: &Digest) -> Option<&'static str> {
        None
    }

    /// The blob, to be read; `None` if it isn't there.
    fn blob(
        &self,
        repository: &RepositoryPath,
        digest: &Digest,
    ) -> impl Future<Output = Reply<Option<Self::Blob>>> + Send;

    /// Up to `most` tags behind `after`, in the order of their bytes; `None` if there is no such
    /// repository.
    fn tags(
        &self,
        repository: &RepositoryPath,
        after: Option<&str>,
        most: usize,
    ) -> impl Future<Output = Reply<Option<Vec<Tag>>>> + Send;

    /// Up to `most` repositories behind `after`, in the order of their bytes.
    fn repositories(
        &self,
        after: Option<&str>,
        most: usize,
    ) -> impl Future<Output = Result<Vec<RepositoryName>>> + Send;

    /// The manifests that are about `subject`.
    fn referrers(
        &self,
        repository: &RepositoryPath,
        subject: &Digest,
    ) -> impl Future<Output = Reply<Arc<Referrers>>> + Send;

    /// Begins an upload. `like` is of the algorithm that the client said its digest will have, if
    /// it said so.
    fn start_upload(
        &self,
        repository: &RepositoryPath,
        like: Option<Digest>,
    ) -> impl Future<Output = Result<Self::Upload>> + Send;

    /// Takes a blob over from the repository `from` (distribution spec, "Mounting a blob from another repository").
    /// Whether the blob is in `repository` now: that needs no `from` if it is there already, and a `from` that has the
    /// blob if it isn't.
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

    /// Stores a manifest, whose blobs were checked to be there, under all of `targets`, and lists it where it is about
    /// another. On return it's durable; after an error it is under none of the targets.
    fn put_manifest(
        &self,
        repository: &RepositoryPath,
        manifest: &Manifest,
        targets: &[Target],
    ) -> impl Future<Output = Result<()>> + Send;
}

/// A blob that is there.
pub trait Blob: Send + 'static {
    /// How large it is.
    fn size(&self) -> u64;

    /// The bytes in `range`, which is within the size. Where there's a `pipe`, they may be parts of files
    /// that are sent on it, as long as the body goes to that connection and nowhere else.
    fn read(self, range: Range<u64>, pipe: Option<FilePipe>) -> impl Future<Output = Result<Body>> + Send;
}

/// An upload that was begun. Dropped, it leaves nothing behind.
///
/// When a future of its methods is dropped, as it is when a client hangs up, the upload stays
/// usable: [`size`](Self::size) says how far it came.
pub trait Upload: Send + 'static {
    /// How many bytes are stored.
    fn size(&mut self) -> impl Future<Output = Result<u64>> + Send;

    /// Stores `body` behind what is there. What comes before an error of the body is kept.
    fn append(&mut self, body: &mut Body) -> impl Future<Output = Result<()>> + Send;

    /// Ends it. On return the blob is durable.
    ///
    /// # Errors
    /// [`Kind::Mismatch`](crate::error::Kind::Mismatch) if the bytes don't have the digest.
    fn commit(self, digest: Digest) -> impl Future<Output = Result<()>> + Send;
}
