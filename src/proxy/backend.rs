//! The proxy behind the server.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;

use super::events::{BytesOrigin, CacheOutcome, Event, Observer, RequestKind, UNKNOWN_UPSTREAM};
use super::fill::ReadableBlob;
use super::upstreams::UpstreamRepository;
use super::{Inner, Origins, Proxy};
use crate::body::Body;
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::reference::{RepositoryName, Tag, Target};
use crate::server::{Backend, Blob, FilePipe, Referrers, Reply, RepositoryPath, Upload};

/// A blob that can be read.
pub struct BlobContent<O: Origins> {
    inner: Arc<Inner<O>>,
    repo: UpstreamRepository,
    found: ReadableBlob<O::Source>,
}

/// There are none: the proxy takes no pushes.
#[derive(Debug)]
pub enum NoUpload {}

impl<O: Origins> Backend for Proxy<O> {
    type Blob = BlobContent<O>;
    type Upload = NoUpload;

    fn is_writable(&self) -> bool {
        false
    }

    fn knows_namespaces(&self) -> bool {
        true
    }

    async fn resolve(&self, repository: &RepositoryPath, target: &Target) -> Reply<Option<Descriptor>> {
        match self.upstream_repository(repository, RequestKind::Manifest) {
            Some(repo) => self.0.resolve(&repo, target).await,
            None => Ok(None).into(),
        }
    }

    async fn manifest(&self, repository: &RepositoryPath, target: &Target) -> Reply<Option<Manifest>> {
        match self.upstream_repository(repository, RequestKind::Manifest) {
            Some(repo) => self.0.manifest(&repo, target).await,
            None => Ok(None).into(),
        }
    }

    async fn size_of(&self, repository: &RepositoryPath, digest: &Digest) -> Reply<Option<u64>> {
        let Some(repo) = self.upstream_repository(repository, RequestKind::Head) else { return Ok(None).into() };
        let (found, how) = self.0.blob_size(&repo, digest).await;
        self.0.report_served(&repo, RequestKind::Head, found, how)
    }

    fn cache_status(&self, repository: &RepositoryPath, digest: &Digest) -> Option<&'static str> {
        // What is cached for others is nobody's business.
        if !self.0.tiers.upstreams().find(repository).is_some_and(|repo| self.0.is_member(&repo, digest)) {
            return Some("transload; fwd=miss");
        }
        // In this order: a fill leaves its list only after its blob is in the cache.
        Some(if self.0.fills.holds(digest) {
            // Whoever asks for it joins the one fetch.
            "transload; fwd=miss; collapsed"
        } else if self.0.cache.blobs.size_of(digest).is_some() {
            "transload; hit"
        } else {
            "transload; fwd=miss"
        })
    }

    async fn blob(&self, repository: &RepositoryPath, digest: &Digest) -> Reply<Option<BlobContent<O>>> {
        let Some(repo) = self.upstream_repository(repository, RequestKind::Blob) else { return Ok(None).into() };
        let reply = self.0.blob(&repo, digest).await;
        reply.map(|found| found.map(|found| BlobContent { inner: self.0.clone(), repo, found }))
    }

    async fn tags(&self, repository: &RepositoryPath, after: Option<&str>, most: usize) -> Reply<Option<Vec<Tag>>> {
        let Some(repo) = self.upstream_repository(repository, RequestKind::Tags) else { return Ok(None).into() };
        let (found, how) = self.0.tags(&repo, after.is_some()).await;
        let behind = |tag: &&Tag| after.is_none_or(|after| tag.as_str() > after);
        self.0.report_served(&repo, RequestKind::Tags, found, how).map(|tags| {
            let tags = tags?;
            Some((*tags).as_ref().iter().filter(behind).take(most).cloned().collect())
        })
    }

    /// None: what could be asked for isn't known.
    async fn repositories(&self, _: Option<&str>, _: usize) -> Result<Vec<RepositoryName>> {
        Ok(Vec::new())
    }

    async fn referrers(&self, repository: &RepositoryPath, subject: &Digest) -> Reply<Arc<Referrers>> {
        let none: Arc<Referrers> = Arc::new([]);
        let Some(repo) = self.upstream_repository(repository, RequestKind::Referrers) else { return Ok(none).into() };
        let (found, how) = self.0.referrers(&repo, subject).await;
        let reply = self.0.report_served(&repo, RequestKind::Referrers, found, how);
        reply.map(|listed| listed.map_or(none, |listed| listed as Arc<Referrers>))
    }

    async fn start_upload(&self, _: &RepositoryPath, _: Option<Digest>) -> Result<NoUpload> {
        Err(read_only())
    }

    async fn put_manifest(&self, _: &RepositoryPath, _: &Manifest, _: &[Target]) -> Result<()> {
        Err(read_only())
    }
}

impl<O: Origins> Proxy<O> {
    /// A client was answered: counts it.
    pub fn report_status(&self, status: StatusCode) {
        self.0.observer.event(&Event::Answered { status: status.as_u16() });
    }

    /// What is asked, if it's of this world.
    fn upstream_repository(&self, repository: &RepositoryPath, what: RequestKind) -> Option<UpstreamRepository> {
        let found = self.0.tiers.upstreams().find(repository);
        if found.is_none() {
            // Without the name: clients make up as many as they like.
            let (upstream, repository, how) = (UNKNOWN_UPSTREAM, "", CacheOutcome::Absent);
            self.0.observer.event(&Event::Served { upstream, repository, what, how });
        }
        found
    }
}

impl<O: Origins> Blob for BlobContent<O> {
    fn size(&self) -> u64 {
        self.found.size()
    }

    async fn read(self, range: Range<u64>, pipe: Option<FilePipe>) -> Result<Body> {
        let from = match &self.found {
            ReadableBlob::Hot(_) => BytesOrigin::Disk,
            ReadableBlob::Filling(_) => BytesOrigin::Fill,
            ReadableBlob::Passed(..) => BytesOrigin::Passed,
        };
        let mut sent = SentCounter { from, bytes: 0, observer: self.inner.observer.clone() };
        let body = self.inner.bytes(&self.repo, self.found, range, pipe).await?;
        Ok(body.inspect_ok(move |bytes| sent.add(bytes.len() as u64)).boxed())
    }
}

/// Counts what goes to a client, and tells it when that is much, or all.
struct SentCounter {
    from: BytesOrigin,
    bytes: u64,
    observer: Arc<dyn Observer>,
}

impl SentCounter {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= COUNT_INTERVAL {
            self.report();
        }
    }

    fn report(&mut self) {
        let (from, bytes) = (self.from, std::mem::take(&mut self.bytes));
        if bytes > 0 {
            self.observer.event(&Event::Sent { from, bytes });
        }
    }
}

impl Drop for SentCounter {
    fn drop(&mut self) {
        self.report();
    }
}

impl Upload for NoUpload {
    async fn size(&mut self) -> Result<u64> {
        match *self {}
    }

    async fn append(&mut self, _: &mut Body) -> Result<()> {
        match *self {}
    }

    async fn commit(self, _: Digest) -> Result<()> {
        match self {}
    }
}

fn read_only() -> Error {
    Error::new(Kind::Unsupported, "the proxy takes no pushes")
}

/// Sent to one client before it's counted: so that a long pull shows while it goes on.
const COUNT_INTERVAL: u64 = 16 << 20;
