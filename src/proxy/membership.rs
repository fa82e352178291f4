//! Which repository holds which content: the access rule of the cache.
//!
//! The cache stores content by its digest, whoever brought it. A digest is no password: it stands in logs, lock files
//! and manifests. So content is served under a repository only if it belongs to that repository, which is an upstream
//! (its name, and the registries behind it) and a name there ([`UpstreamRepository`]). It belongs there if
//!
//! - a tag of the repository was this manifest,
//! - a manifest or a list of referrers of the repository names it,
//! - or the upstream confirmed it there: by an answer with the content, or to a `HEAD`.
//!
//! ```text
//! asked for ─▶ known here? ─▶ yes: serve
//!                  │ no
//!              the repository's record was read lately? ─▶ no: read it, and the manifests that it lists ─▶ known? serve
//!                  │ still unknown
//!              HEAD at the upstream, once for all who wait ─▶ there: serve from the cache │ not there: 404 │ error: error
//! ```
//!
//! All of it is in memory, bounded; the record of a repository's manifests is on the disk
//! ([`super::cache`]), so that a warm cache works after a restart without its upstream. Rules decide before
//! any of this: what is denied has no [`UpstreamRepository`].
//!
//! Not evidence: a manifest's `subject`, and a foreign layer (a media type that is not distributed, or `urls`).
//! Registries accept both without having the content, so anybody who may push could name any digest there.

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

/// What is known of repositories' content.
#[derive(Debug)]
pub(super) struct State {
    /// By a keyed hash of repository and digest. With 64 bits that nobody outside can compute, a collision would have
    /// to be met by chance.
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
    /// In bytes, if somebody said so.
    size: Option<u64>,
    /// It's a manifest in the repository's record.
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

    /// Adds content, or changes its size.
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
    /// Whether the content is known to belong to the repository. Looks into memory only.
    pub(super) fn is_member(&self, repo: &UpstreamRepository, digest: &Digest) -> bool {
        self.membership.known(repo, digest).is_some()
    }

    /// The same; reads the repository's record first, if that was not done lately. Asks no upstream.
    pub(super) async fn is_recorded_member(self: &Arc<Self>, repo: &UpstreamRepository, digest: &Digest) -> bool {
        if self.is_member(repo, digest) {
            return true;
        }
        self.load(repo).await;
        self.is_member(repo, digest)
    }

    /// How large a blob is, if the repository holds it: the upstream is asked, once for all who wait.
    ///
    /// # Errors
    /// Why the upstream could not be asked; [`Kind::Registry`] if it has the blob in another size than the cache, which
    /// is no confirmation.
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
            let what = format!("the upstream says that blob {digest} has {size} bytes: it has {cached}");
            return Err(Error::new(Kind::Registry, what));
        }
        self.admit(repo, digest, Some(size));
        Ok(Some(size))
    }

    /// The content belongs to the repository.
    pub(super) fn admit(&self, repo: &UpstreamRepository, digest: &Digest, size: Option<u64>) {
        let membership = &self.membership;
        membership.add(membership.key(membership.repository(repo), digest), size);
    }

    /// A manifest belongs to the repository, and so does what it names.
    pub(super) fn learn(&self, repo: &UpstreamRepository, manifest: &Manifest) {
        let (membership, contents) = (&self.membership, manifest.contents());
        let repository = membership.repository(repo);
        let own = std::iter::once(manifest.descriptor());
        for named in own.chain(&contents.manifests).chain(contents.blobs.iter().filter(|blob| is_evidence(blob))) {
            membership.add(membership.key(repository, &named.digest), Some(named.size));
        }
    }

    /// The same for a manifest that is read from the cache, and has the disk remember it. A manifest that was recorded
    /// before costs two lookups: one for itself, and one for the last content that it names, because memory drops what is
    /// used least.
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

    /// A list of the repository names these manifests.
    pub(super) fn learn_listed(&self, repo: &UpstreamRepository, listed: &[Descriptor]) {
        let membership = &self.membership;
        let repository = membership.repository(repo);
        // A list that is longer would only drive out what others need.
        for named in listed.iter().take(MAX_LISTED) {
            membership.add(membership.key(repository, &named.digest), Some(named.size));
        }
    }

    /// Has the disk remember that a manifest belongs to the repository, if it does not yet.
    pub(super) async fn record(&self, repo: &UpstreamRepository, digest: &Digest) {
        let key = self.membership.key(self.membership.repository(repo), digest);
        if self.membership.known.get(&key).is_some_and(|known| known.recorded) {
            return;
        }
        self.write_record(repo, digest).await;
    }

    /// The same for a manifest that was just fetched: its record may have gone with the manifest before.
    pub(super) async fn write_record(&self, repo: &UpstreamRepository, digest: &Digest) {
        self.membership.mark_recorded(self.membership.key(self.membership.repository(repo), digest));
        let (manifest_store, name, digest) = (self.cache.manifest_store.clone(), repo.record_name(), *digest);
        let recorded = run_blocking(move || {
            manifest_store.record(&name, &[digest]);
            Ok(())
        });
        // A failure was logged; the upstream is asked after a restart.
        let _ = recorded.await;
    }

    /// How large a blob is by a manifest of its repository. That may be a lie, for this repository alone.
    pub(super) fn told_size(&self, repo: &UpstreamRepository, digest: &Digest) -> Option<u64> {
        self.membership.known(repo, digest)?.size
    }

    /// The size was wrong. The blob still belongs to the repository.
    pub(super) fn forget_size(&self, repo: &UpstreamRepository, digest: &Digest) {
        let key = self.membership.key(self.membership.repository(repo), digest);
        if self.membership.known.get(&key).is_some() {
            self.membership.add(key, None);
        }
    }

    /// Reads the repository's record and the manifests that it lists, unless that was done lately.
    async fn load(self: &Arc<Self>, repo: &UpstreamRepository) {
        let repository = self.membership.repository(repo);
        let is_late = |loaded: Instant| loaded.elapsed() < RELOAD_AFTER;
        if self.membership.loaded.get(&repository).is_some_and(is_late) {
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
        // An error means that the proxy is ending: then nothing is known of the repository.
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
            // The latest first: they are what is pulled. Then what they name, which another repository may have brought.
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

    /// Makes the records of a cache that has none, from its tags: a former version kept no records.
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
            tracing::warn!("{error}: the upstreams are asked which repository holds what");
        }
    }
}

/// Whether the tag was read from the registries that are behind the upstream's name now.
pub(super) fn is_tag_of(tag: &CachedTag, repo: &UpstreamRepository) -> bool {
    tag.tiers().is_none_or(|tiers| repo.upstream.is_read_from(tiers))
}

/// Whether a manifest that names this blob shows that its repository holds it. Registries take a manifest with a
/// foreign layer without having the layer (OCI image spec, "Non-Distributable Layers"; distribution checks only `urls`).
fn is_evidence(blob: &Descriptor) -> bool {
    blob.urls.is_empty() && !blob.media_type.is_foreign_layer()
}

/// Content that is known in memory: some 5 MiB.
const MAX_KNOWN: usize = 100_000;
/// Repositories whose record was read.
const MAX_LOADED: usize = 10_000;
/// After this time a record is read again for content that is unknown: what was learned from it may have been dropped.
/// Until then the upstream is asked, so that asking for made-up digests costs no work on the disk.
const RELOAD_AFTER: Duration = Duration::from_secs(600);
/// Manifests of a record that are read at once, and their bytes.
const MAX_READ: usize = 1000;
const MAX_READ_BYTES: usize = 64 << 20;
/// Entries of one list that are remembered.
const MAX_LISTED: usize = 1000;
