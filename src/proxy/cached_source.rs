//! The proxy as a source for the copy engine. Content comes from the cache, or else as for a client. So a later tier gets each
//! request once, also if an image is pulled and copied at the same time.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::lists::Listed;
use super::tasks::as_write_back;
use super::upstreams::UpstreamRepository;
use super::{Inner, Origins, Proxy};
use crate::body::Body;
use crate::content::{Source, TagPage, TagPages};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::reference::{Repository, Target};

/// A repository of an upstream, read through the proxy. Reads are not counted as requests of clients.
pub(crate) struct CachedSource<O: Origins> {
    inner: Arc<Inner<O>>,
    repo: UpstreamRepository,
    moved: Arc<AtomicU64>,
}

impl<O: Origins> Proxy<O> {
    /// A repository as a source that adds the bytes that it yields to `moved`, and the repository of the first tier to copy
    /// into. `None` if the current upstreams have no write-back for it.
    pub(crate) fn cached_source(
        &self,
        upstream: &str,
        repository: &str,
        moved: Arc<AtomicU64>,
    ) -> Option<(CachedSource<O>, Repository)> {
        let repo = self.0.tiers.upstreams().repository(upstream, repository)?;
        let durable = match &repo.upstream.tiers[..] {
            [durable, _, ..] if repo.upstream.write_back => durable.repository(repository).ok()?,
            _ => return None,
        };
        Some((CachedSource { inner: self.0.clone(), repo, moved }, durable))
    }
}

impl<O: Origins> CachedSource<O> {
    fn moved(&self, bytes: usize) {
        self.moved.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl<O: Origins> Source for CachedSource<O> {
    async fn resolve(&self, target: &Target) -> Result<Option<Descriptor>> {
        as_write_back(Box::pin(self.inner.resolve_silently(&self.repo, target))).await.0
    }

    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        let found = as_write_back(Box::pin(self.inner.manifest_silently(&self.repo, target))).await.0?;
        let manifest = found.ok_or_else(|| Error::new(Kind::NotFound, format!("no tier has manifest {target}")))?;
        self.moved(manifest.bytes().len());
        Ok(manifest)
    }

    async fn blob(&self, blob: &Descriptor, from: u64) -> Result<Body> {
        let absent = || Error::new(Kind::NotFound, format!("no tier has blob {}", blob.digest));
        let found = self.inner.blob_silently(&self.repo, &blob.digest).await.0?.ok_or_else(absent)?;
        if found.size() != blob.size {
            let what = format!("blob {} has {} bytes, not {}", blob.digest, found.size(), blob.size);
            return Err(Error::new(Kind::Mismatch, what));
        }
        let (body, through) = (self.inner.bytes(&self.repo, found, from..blob.size, None).await?, self.clone());
        Ok(body.inspect_ok(move |bytes| through.moved(bytes.len())).boxed())
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let listed = self.inner.ask_referrers(&self.repo, subject, self.inner.timeouts.request).await?;
        Ok(listed.into_entries())
    }

    fn tags(&self) -> TagPages {
        let through = self.clone();
        let all = async move {
            let tags = through.inner.ask_tags(&through.repo, through.inner.timeouts.request).await?;
            Ok(TagPage {
                tags: tags.map(Listed::into_entries).unwrap_or_default(),
                is_last: true,
                ..TagPage::default()
            })
        };
        stream::once(all).boxed()
    }
}

impl<O: Origins> Clone for CachedSource<O> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), repo: self.repo.clone(), moved: self.moved.clone() }
    }
}
