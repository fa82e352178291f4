//! Membership: which content belongs to which repository. This is the access rule of the cache.
//!
//! The cache stores content by its digest, whichever repository it came from. A digest is not a secret: logs, lock files and
//! manifests contain it. So content is served under a repository only if it belongs to that repository, which is a name at an
//! upstream with certain tiers ([`UpstreamRepository`]). Content belongs to a repository if
//!
//! - it is a manifest to which a tag of the repository pointed,
//! - a manifest or a list of referrers of the repository names it,
//! - or the upstream confirmed it: it sent the content, or answered a `HEAD`.
//!
//! ```text
//! request ─▶ known member? ─▶ yes: serve
//!                │ no
//!            record of the repository read recently? ─▶ no: read it, and the manifests that it lists ─▶ known? serve
//!                │ still unknown
//!            HEAD to the upstream, one for all waiting requests ─▶ exists: serve from the cache │ else: 404 │ error: error
//! ```
//!
//! The known members are in memory, bounded. The record of a repository's manifests is on disk ([`super::cache`]), so that
//! a warm cache works after a restart without its upstream. Rules come first: a denied repository has no
//! [`UpstreamRepository`].
//!
//! A manifest's `subject` and its foreign layers (a media type that is not distributed, or `urls`) are no evidence.
//! Registries accept both without having the content, so a user with push access could name any digest there.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache as Memory;
use tokio::time::Instant;

use super::cache::{self, CachedTag};
use super::tasks::SingleFlight;
use super::tiers::blame_upstream;
use super::upstreams::{UpstreamRepository, Upstreams};
use super::{Inner, Origins};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::pool::run_blocking;

/// The known members of repositories.
#[derive(Debug)]
pub(super) struct State {
    /// By a keyed hash of repository and digest. It has 64 bits and a secret key, so a client cannot construct a collision.
    known: Memory<u64, KnownContent>,
    /// When a repository's record was read, by the hash of the repository.
    loaded: Memory<u64, Instant>,
    loading: SingleFlight<UpstreamRepository, ()>,
    confirming: SingleFlight<(UpstreamRepository, Digest), Option<u64>>,
    hash: RandomState,
}

/// Content of a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KnownContent {
    /// In bytes, if a descriptor or the upstream has stated it.
    size: Option<u64>,
    /// The content is a manifest in the repository's record.
    recorded: bool,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            known: Memory::new(MAX_KNOWN),
            loaded: Memory::new(MAX_LOADED),
            loading: SingleFlight::default(),
            confirming: SingleFlight::default(),
            hash: RandomState::new(),
        }
    }

    fn repository(&self, repo: &UpstreamRepository) -> u64 {
        self.hash.hash_one(repo)
    }

    fn key(&self, repository: u64, digest: &Digest) -> u64 {
        self.hash.hash_one((repository, digest))
    }

    fn known(&self, repo: &UpstreamRepository, digest: &Digest) -> Option<KnownContent> {
        self.known.get(&self.key(self.repository(repo), digest))
    }

    /// Adds a member, or changes its size.
    fn add(&self, key: u64, size: Option<u64>) {
        let known = self.known.get(&key);
        let next = KnownContent { size, recorded: known.is_some_and(|known| known.recorded) };
        if known != Some(next) {
            self.known.insert(key, next);
        }
    }

    fn mark_recorded(&self, key: u64) {
        let size = self.known.get(&key).and_then(|known| known.size);
        self.known.insert(key, KnownContent { size, recorded: true });
    }
}

impl<O: Origins> Inner<O> {
    /// Whether the content is known to belong to the repository. Looks in memory only.
    pub(super) fn is_member(&self, repo: &UpstreamRepository, digest: &Digest) -> bool {
        self.membership.known(repo, digest).is_some()
    }

    /// Like [`is_member`](Self::is_member), but reads the repository's record if it was not read recently. Asks no upstream.
    pub(super) async fn is_recorded_member(self: &Arc<Self>, repo: &UpstreamRepository, digest: &Digest) -> bool {
        if self.is_member(repo, digest) {
            return true;
        }
        self.load(repo).await;
        self.is_member(repo, digest)
    }

    /// Asks the upstream for a blob's size, with one request for all waiting callers. `None` if the repository does not have the
    /// blob.
    ///
    /// # Errors
    /// Why the upstream could not be asked. [`Kind::Registry`] if it states another size than that of the cached blob: such
    /// an answer confirms nothing.
    pub(super) async fn confirm_blob(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        digest: &Digest,
    ) -> Result<Option<u64>> {
        if self.is_absent(repo, digest) {
            return Ok(None);
        }
        let work = || {
            let (inner, repo, digest) = (self.clone(), repo.clone(), *digest);
            async move { inner.ask_whether_there(&repo, &digest).await }
        };
        self.membership.confirming.join(&self.tasks, (repo.clone(), *digest), work).await.0
    }

    async fn ask_whether_there(&self, repo: &UpstreamRepository, digest: &Digest) -> Result<Option<u64>> {
        let Some(size) = self.ask_size(repo, digest).await.map_err(blame_upstream)? else {
            self.note_absent(repo, digest);
            return Ok(None);
        };
        if let Some(cached) = self.cache.blobs.size_of(digest).filter(|cached| *cached != size) {
            let what = format!("the upstream states {size} bytes for blob {digest}, which has {cached}");
            return Err(Error::new(Kind::Registry, what));
        }
        self.admit(repo, digest, Some(size));
        Ok(Some(size))
    }

    /// Records that the content belongs to the repository.
    pub(super) fn admit(&self, repo: &UpstreamRepository, digest: &Digest, size: Option<u64>) {
        let membership = &self.membership;
        membership.add(membership.key(membership.repository(repo), digest), size);
    }

    /// Records that a manifest and the content that it names belong to the repository.
    pub(super) fn learn(&self, repo: &UpstreamRepository, manifest: &Manifest) {
        let (membership, contents) = (&self.membership, manifest.contents());
        let repository = membership.repository(repo);
        let own = std::iter::once(manifest.descriptor());
        for named in own.chain(&contents.manifests).chain(contents.blobs.iter().filter(|blob| is_evidence(blob))) {
            membership.add(membership.key(repository, &named.digest), Some(named.size));
        }
    }

    /// Like [`learn`](Self::learn) for a manifest from the cache, and adds it to the record on disk. A manifest that is in the
    /// record already costs two lookups: itself, and the last content that it names, because memory may have dropped that.
    pub(super) async fn learn_cached(&self, repo: &UpstreamRepository, manifest: &Manifest) {
        let (membership, contents) = (&self.membership, manifest.contents());
        let repository = membership.repository(repo);
        let known = |digest: &Digest| membership.known.get(&membership.key(repository, digest));
        let recorded = known(&manifest.descriptor().digest).is_some_and(|known| known.recorded);
        let mut named = contents.blobs.iter().filter(|blob| is_evidence(blob)).chain(&contents.manifests);
        if recorded && named.next_back().is_none_or(|last| known(&last.digest).is_some()) {
            return;
        }
        self.learn(repo, manifest);
        self.record(repo, &manifest.descriptor().digest).await;
    }

    /// Records that the manifests of a list of the repository belong to it.
    pub(super) fn learn_listed(&self, repo: &UpstreamRepository, listed: &[Descriptor]) {
        let membership = &self.membership;
        let repository = membership.repository(repo);
        // A longer list would displace the members of other repositories.
        for named in listed.iter().take(MAX_LISTED) {
            membership.add(membership.key(repository, &named.digest), Some(named.size));
        }
    }

    /// Adds a manifest to the repository's record on disk, unless it is there.
    pub(super) async fn record(&self, repo: &UpstreamRepository, digest: &Digest) {
        let key = self.membership.key(self.membership.repository(repo), digest);
        if self.membership.known.get(&key).is_some_and(|known| known.recorded) {
            return;
        }
        self.write_record(repo, digest).await;
    }

    /// Like [`record`](Self::record), but always writes: the record of a manifest that was just fetched may have been removed
    /// with an earlier copy of it.
    pub(super) async fn write_record(&self, repo: &UpstreamRepository, digest: &Digest) {
        self.membership.mark_recorded(self.membership.key(self.membership.repository(repo), digest));
        let (manifest_store, name, digest) = (self.cache.manifest_store.clone(), repo.record_name(), *digest);
        let recorded = run_blocking(move || {
            manifest_store.record(&name, &[digest]);
            Ok(())
        });
        // A failure is logged. After a restart the upstream is asked instead.
        let _ = recorded.await;
    }

    /// The size of a blob as a manifest of its repository states it. A false size affects this repository only.
    pub(super) fn stated_size(&self, repo: &UpstreamRepository, digest: &Digest) -> Option<u64> {
        self.membership.known(repo, digest)?.size
    }

    /// Forgets a wrong size. The blob still belongs to the repository.
    pub(super) fn forget_size(&self, repo: &UpstreamRepository, digest: &Digest) {
        let key = self.membership.key(self.membership.repository(repo), digest);
        if self.membership.known.get(&key).is_some() {
            self.membership.add(key, None);
        }
    }

    /// Reads the repository's record and the manifests that it lists, unless they were read recently.
    async fn load(self: &Arc<Self>, repo: &UpstreamRepository) {
        let repository = self.membership.repository(repo);
        let is_recent = |loaded: Instant| loaded.elapsed() < RELOAD_AFTER;
        if self.membership.loaded.get(&repository).is_some_and(is_recent) {
            return;
        }
        let work = || {
            let (inner, repo) = (self.clone(), repo.clone());
            async move {
                inner.read_record(&repo).await;
                inner.membership.loaded.insert(repository, Instant::now());
                Ok(())
            }
        };
        // An error means that the proxy is ending.
        let _ = self.membership.loading.join(&self.tasks, repo.clone(), work).await;
    }

    async fn read_record(self: &Arc<Self>, repo: &UpstreamRepository) {
        let (inner, repo) = (self.clone(), repo.clone());
        let read = run_blocking(move || {
            let membership = &inner.membership;
            let repository = membership.repository(&repo);
            let recorded = inner.cache.manifest_store.recorded(&repo.record_name());
            for digest in &recorded {
                membership.mark_recorded(membership.key(repository, digest));
            }
            // The latest first: they are pulled most. Then their children, which another repository may have fetched.
            let mut left: VecDeque<Digest> = recorded.into_iter().rev().take(MAX_READ).collect();
            let mut seen: HashSet<Digest> = left.iter().copied().collect();
            let mut bytes = 0;
            while let Some(digest) = left.pop_front().filter(|_| bytes < MAX_READ_BYTES) {
                let Some(manifest) = inner.cache.manifest_store.look_through(&digest) else { continue };
                inner.learn(&repo, &manifest);
                bytes += manifest.bytes().len();
                let room = MAX_READ.saturating_sub(seen.len());
                let children = manifest.contents().manifests.iter().map(|child| child.digest);
                left.extend(children.take(room).filter(|child| seen.insert(*child)));
            }
            Ok(())
        });
        let _ = read.await;
    }

    /// Makes the records of a cache without records from its tags: older versions wrote no records.
    pub(super) async fn make_records(self: &Arc<Self>, upstreams: Arc<Upstreams>) {
        let inner = self.clone();
        let made = run_blocking(move || {
            let mut found: BTreeMap<String, Vec<Digest>> = BTreeMap::new();
            for part in 0..256 {
                for tag in cache::offline::tag_files(inner.cache.dir().path(), part)? {
                    let repo = tag
                        .upstream_and_repository()
                        .and_then(|(upstream, repository)| upstreams.repository_unchecked(upstream, repository));
                    if let Some(repo) = repo.filter(|repo| is_tag_of(&tag, repo)) {
                        found.entry(repo.record_name()).or_default().push(tag.digest());
                    }
                }
            }
            found.iter().for_each(|(name, manifests)| inner.cache.manifest_store.record(name, manifests));
            Ok(())
        });
        if let Err(error) = made.await {
            tracing::warn!("{error}: the upstreams are asked which content belongs to which repository");
        }
    }
}

/// Whether the tag was read from the upstream's current tiers.
pub(super) fn is_tag_of(tag: &CachedTag, repo: &UpstreamRepository) -> bool {
    tag.tiers().is_none_or(|tiers| repo.upstream.is_read_from(tiers))
}

/// Whether a manifest that names this blob is evidence that its repository has it. Registries accept a manifest without
/// having its foreign layers (OCI image spec, "Non-Distributable Layers"; distribution checks only `urls`).
fn is_evidence(blob: &Descriptor) -> bool {
    blob.urls.is_empty() && !blob.media_type.is_foreign_layer()
}

/// Members in memory: about 5 MiB.
const MAX_KNOWN: usize = 100_000;
/// Repositories for which the time of the last read is kept.
const MAX_LOADED: usize = 10_000;
/// After this time a record is read again when content is unknown, because memory may have dropped members. Until then the
/// upstream is asked, so that requests for invented digests cause no disk reads.
const RELOAD_AFTER: Duration = Duration::from_secs(600);
/// Manifests of a record that are read.
const MAX_READ: usize = 1000;
/// Bytes of manifests after which no more of a record are read.
const MAX_READ_BYTES: usize = 64 << 20;
/// Entries of one list that become members.
const MAX_LISTED: usize = 1000;
