//! The proxy behind the server.

use std::ops::Range;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _};
use http::StatusCode;

use super::events::{Event, How, Observer, Tier, UNKNOWN, What};
use super::fill::Found;
use super::world::Spot;
use super::{Inner, Origins, Proxy};
use crate::content::Body;
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::reference::{RepositoryName, Tag, Target};
use crate::server::{Backend, Blob, FilePipe, Place, Referrers, Upload};

/// A blob that can be read.
pub struct Content<O: Origins> {
    inner: Arc<Inner<O>>,
    spot: Spot,
    found: Found<O::Source>,
}

/// There are none: the proxy takes no pushes.
#[derive(Debug)]
pub enum NoUpload {}

impl<O: Origins> Backend for Proxy<O> {
    type Blob = Content<O>;
    type Upload = NoUpload;

    fn is_writable(&self) -> bool {
        false
    }

    fn knows_namespaces(&self) -> bool {
        true
    }

    async fn resolve(&self, place: &Place, target: &Target) -> Result<Option<Descriptor>> {
        match self.find(place, What::Manifest) {
            Some(spot) => self.0.resolve(&spot, target).await,
            None => Ok(None),
        }
    }

    async fn manifest(&self, place: &Place, target: &Target) -> Result<Option<Manifest>> {
        match self.find(place, What::Manifest) {
            Some(spot) => self.0.manifest(&spot, target).await,
            None => Ok(None),
        }
    }

    async fn size_of(&self, place: &Place, digest: &Digest) -> Result<Option<u64>> {
        let Some(spot) = self.find(place, What::Head) else { return Ok(None) };
        let (found, how) = self.0.blob_size(&spot, digest).await;
        self.told(&spot, What::Head, found, how)
    }

    fn cache_status(&self, place: &Place, digest: &Digest) -> Option<&'static str> {
        // What is cached for others is nobody's business.
        if !self.0.upstreams.world().find(place).is_some_and(|spot| self.0.is_member(&spot, digest)) {
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

    async fn blob(&self, place: &Place, digest: &Digest) -> Result<Option<Content<O>>> {
        let Some(spot) = self.find(place, What::Blob) else { return Ok(None) };
        let found = self.0.blob(&spot, digest).await?;
        Ok(found.map(|found| Content { inner: self.0.clone(), spot, found }))
    }

    async fn tags(&self, place: &Place, after: Option<&str>, most: usize) -> Result<Option<Vec<Tag>>> {
        let Some(spot) = self.find(place, What::Tags) else { return Ok(None) };
        let (found, how) = self.0.tags(&spot, after.is_some()).await;
        let Some(tags) = self.told(&spot, What::Tags, found, how)? else { return Ok(None) };
        let behind = |tag: &&Tag| after.is_none_or(|after| tag.as_str() > after);
        Ok(Some((*tags).as_ref().iter().filter(behind).take(most).cloned().collect()))
    }

    /// None: what could be asked for isn't known.
    async fn repositories(&self, _: Option<&str>, _: usize) -> Result<Vec<RepositoryName>> {
        Ok(Vec::new())
    }

    async fn referrers(&self, place: &Place, subject: &Digest) -> Result<Arc<Referrers>> {
        let Some(spot) = self.find(place, What::Referrers) else { return Ok(Arc::new([])) };
        let (found, how) = self.0.referrers(&spot, subject).await;
        let none: Arc<Referrers> = Arc::new([]);
        Ok(self.told(&spot, What::Referrers, found, how)?.map_or(none, |listed| listed as Arc<Referrers>))
    }

    async fn begin(&self, _: &Place, _: Option<Digest>) -> Result<NoUpload> {
        Err(read_only())
    }

    async fn put_manifest(&self, _: &Place, _: &Manifest, _: &[Target]) -> Result<()> {
        Err(read_only())
    }
}

impl<O: Origins> Proxy<O> {
    /// A client was answered: counts it.
    pub fn answered(&self, status: StatusCode) {
        self.0.observer.event(&Event::Answered { status: status.as_u16() });
    }

    /// What is asked, if it's of this world.
    fn find(&self, place: &Place, what: What) -> Option<Spot> {
        let found = self.0.upstreams.world().find(place);
        if found.is_none() {
            // Without the name: clients make up as many as they like.
            let (upstream, repository, how) = (UNKNOWN, "", How::Absent);
            self.0.observer.event(&Event::Served { upstream, repository, what, how });
        }
        found
    }

    /// Says how what was asked for was answered.
    fn told<T>(&self, spot: &Spot, what: What, found: Result<Option<T>>, how: How) -> Result<Option<T>> {
        let how = match &found {
            Ok(Some(_)) => how,
            Ok(None) => How::Absent,
            Err(_) => How::Failed,
        };
        self.0.served(spot, what, how);
        found
    }
}

impl<O: Origins> Blob for Content<O> {
    fn size(&self) -> u64 {
        self.found.size()
    }

    async fn read(self, range: Range<u64>, pipe: Option<FilePipe>) -> Result<Body> {
        let from = match &self.found {
            Found::Hot(_) => Tier::Disk,
            Found::Filling(_) => Tier::Fill,
            Found::Passed(..) => Tier::Passed,
        };
        let mut sent = Sent { from, bytes: 0, observer: self.inner.observer.clone() };
        let body = self.inner.bytes(&self.spot, self.found, range, pipe).await?;
        Ok(body.inspect_ok(move |bytes| sent.add(bytes.len() as u64)).boxed())
    }
}

/// Counts what goes to a client, and tells it when that is much, or all.
struct Sent {
    from: Tier,
    bytes: u64,
    observer: Arc<dyn Observer>,
}

impl Sent {
    fn add(&mut self, bytes: u64) {
        self.bytes += bytes;
        if self.bytes >= MUCH {
            self.tell();
        }
    }

    fn tell(&mut self) {
        let (from, bytes) = (self.from, std::mem::take(&mut self.bytes));
        if bytes > 0 {
            self.observer.event(&Event::Sent { from, bytes });
        }
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        self.tell();
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
const MUCH: u64 = 16 << 20;
