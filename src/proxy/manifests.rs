//! Manifests and tags: from memory, from disk, from the upstream; and what to do when that can't be asked.
//!
//! - A **digest** never changes: what is cached is the answer, for repositories that [hold](super::membership) it.
//! - A **tag** is believed for its TTL. Then the upstream is asked by `HEAD` (which Docker Hub doesn't
//!   count as a pull), once for all who wait. If it can't be asked, or doesn't answer in time, the old
//!   answer is given; that it answers "there is no such tag" is news, and believed.
//! - What **isn't there** is remembered for a short time, in memory.
//!
//! All asking is done by tasks of the proxy's own: a client that leaves changes nothing.

use std::future::Future;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache as Memory;
use tokio::time::{Instant, timeout};

use super::cache::{CachedTag, TagName};
use super::events::{CacheOutcome, Event, RequestKind};
use super::membership::is_tag_of;
use super::tasks::{SingleFlight, is_write_back};
use super::tiers::blame_upstream;
use super::upstreams::UpstreamRepository;
use super::{Inner, Origins};
use crate::content::Source as _;
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::memory;
use crate::reference::{self, Target};
use crate::server::Reply;

/// What is known in memory besides the documents.
#[derive(Debug)]
pub(super) struct State {
    reading: SingleFlight<(UpstreamRepository, Target), Option<Manifest>>,
    looking: SingleFlight<(UpstreamRepository, Target), Option<Descriptor>>,
    /// By a hash of who and what: for how long it isn't asked for again. A collision costs one wrong
    /// answer for some seconds, and with a keyed hash of 64 bits there is none.
    absent: Memory<u64, Instant>,
    /// Tags and lists whose upstream couldn't be asked.
    resting: Memory<u64, Instant>,
    /// When the question was asked whose answer is the newest that is stored, by a hash of repository and target.
    noted: Memory<u64, Instant>,
    /// Answers are stored one at a time, by the same hash.
    noting: [tokio::sync::Mutex<()>; CONCURRENT_TAG_WRITES],
    hash: RandomState,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            reading: SingleFlight::default(),
            looking: SingleFlight::default(),
            absent: Memory::new(10_000),
            resting: Memory::new(10_000),
            noted: Memory::new(10_000),
            noting: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            hash: RandomState::new(),
        }
    }

    /// Whether the deadline of `key` has not passed.
    fn is_running(until: &Memory<u64, Instant>, key: u64) -> bool {
        until.get(&key).is_some_and(|until| until > Instant::now())
    }
}

impl<O: Origins> Inner<O> {
    /// What `target` is; fetches no manifest that isn't needed for that.
    pub(super) async fn resolve(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        target: &Target,
    ) -> Reply<Option<Descriptor>> {
        let (found, how) = self.resolve_silently(repo, target).await;
        self.report_served(repo, RequestKind::Manifest, found, how)
    }

    /// The same, told to nobody.
    pub(super) async fn resolve_silently(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        target: &Target,
    ) -> (Result<Option<Descriptor>>, CacheOutcome) {
        match target {
            Target::Digest(digest) => {
                if self.is_recorded_member(repo, digest).await
                    && let Some(manifest) = self.cache.manifest_store.manifest(digest).await
                {
                    return (Ok(Some(manifest.descriptor().clone())), CacheOutcome::Hit);
                }
                self.resolve_upstream(repo, target, self.timeouts.request).await
            }
            Target::Tag(tag) => self.resolve_tag(repo, tag, self.stale_tag(repo, tag).await).await,
            Target::Name(_) => (Ok(None), CacheOutcome::Absent),
        }
    }

    /// The manifest.
    pub(super) async fn manifest(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        target: &Target,
    ) -> Reply<Option<Manifest>> {
        let (found, how) = self.manifest_silently(repo, target).await;
        self.report_served(repo, RequestKind::Manifest, found, how)
    }

    /// The same, told to nobody.
    pub(super) async fn manifest_silently(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        target: &Target,
    ) -> (Result<Option<Manifest>>, CacheOutcome) {
        match target {
            Target::Digest(digest) => self.manifest_by_digest(repo, digest).await,
            Target::Tag(tag) => self.manifest_by_tag(repo, tag).await,
            Target::Name(_) => (Ok(None), CacheOutcome::Absent),
        }
    }

    async fn manifest_by_digest(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        digest: &Digest,
    ) -> (Result<Option<Manifest>>, CacheOutcome) {
        let target = Target::Digest(*digest);
        if !self.is_recorded_member(repo, digest).await && self.cache.manifest_store.has(digest) {
            // Another repository's, as far as is known. It's not fetched again if this one holds it too.
            match self.resolve_upstream(repo, &target, self.timeouts.request).await {
                (Ok(Some(found)), _) if found.digest == *digest => {}
                (Ok(_), _) => return (Ok(None), CacheOutcome::Absent),
                (Err(error), _) => return (Err(error), CacheOutcome::Failed),
            }
        }
        match self.cache.manifest_store.manifest(digest).await {
            Some(manifest) => {
                self.learn_cached(repo, &manifest).await;
                (Ok(Some(manifest)), CacheOutcome::Hit)
            }
            None => self.fetch_upstream(repo, &target).await,
        }
    }

    async fn manifest_by_tag(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        tag: &reference::Tag,
    ) -> (Result<Option<Manifest>>, CacheOutcome) {
        let Some(known) = self.stale_tag(repo, tag).await else {
            return self.fetch_upstream(repo, &Target::Tag(tag.clone())).await;
        };
        let known_digest = known.digest();
        let (found, how) = self.resolve_tag(repo, tag, Some(known)).await;
        let current = match found {
            Ok(Some(descriptor)) => descriptor.digest,
            Ok(None) => return (Ok(None), CacheOutcome::Absent),
            Err(error) => return (Err(error), CacheOutcome::Failed),
        };
        let moved = current != known_digest;
        let old = if moved { self.cache.manifest_store.manifest(&known_digest).await } else { None };
        let reading = self.manifest_by_digest(repo, &current);
        let (found, read) = if old.is_some() {
            let read = timeout(self.timeouts.stale, reading).await;
            let late = || Error::new(Kind::Timeout, format!("{current} did not come in time"));
            read.unwrap_or_else(|_| (Err(late()), CacheOutcome::Failed))
        } else {
            reading.await
        };
        match (found, old) {
            // The tag has moved to what can't be read now.
            (Err(_), Some(old)) => (Ok(Some(old)), CacheOutcome::Stale),
            (Err(error), None) if moved => (Err(error), CacheOutcome::Failed),
            (found, _) => (found, if how == CacheOutcome::Hit { read } else { how }),
        }
    }

    /// The tag's descriptor: the cached one, `known`, while it is fresh, else the upstream's answer, else the cached one.
    async fn resolve_tag(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        tag: &reference::Tag,
        known: Option<CachedTag>,
    ) -> (Result<Option<Descriptor>>, CacheOutcome) {
        if let Some(known) = known.as_ref().filter(|known| tag_age(known) < self.tag_ttl(repo)) {
            return (Ok(Some(known.descriptor())), CacheOutcome::Hit);
        }
        let target = Target::Tag(tag.clone());
        let Some(known) = known else { return self.resolve_upstream(repo, &target, self.timeouts.request).await };
        let key = self.key(repo, &target);
        if self.is_backed_off(key) {
            return (Ok(Some(known.descriptor())), CacheOutcome::Stale);
        }
        let patience = self.timeouts.stale;
        match self.with_patience(patience, async { self.resolve_upstream(repo, &target, patience).await.0 }).await {
            Err(error) if error.kind() != Kind::Interrupted => {
                log_stale(&error, format_args!("{tag} is served as it was {} s ago", tag_age(&known).as_secs()));
                self.back_off(key);
                (Ok(Some(known.descriptor())), CacheOutcome::Stale)
            }
            // It was checked, and not read: a hit, if the content is here.
            answered => (answered, CacheOutcome::Hit),
        }
    }

    /// What the tag was when the upstream was asked last. Whatever it was belongs to the repository.
    async fn stale_tag(&self, repo: &UpstreamRepository, tag: &reference::Tag) -> Option<CachedTag> {
        let known = self.cache.manifest_store.tag(&self.tag_name(repo, tag)).await?;
        if !is_tag_of(&known, repo) {
            return None;
        }
        if !self.is_member(repo, &known.digest()) {
            self.admit(repo, &known.digest(), Some(known.descriptor().size));
        }
        Some(known)
    }

    /// Asks the upstream what `target` is, for a client of this patience.
    async fn resolve_upstream(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        target: &Target,
        patience: Duration,
    ) -> (Result<Option<Descriptor>>, CacheOutcome) {
        let key = self.key(repo, target);
        if State::is_running(&self.manifests.absent, key) {
            return (Ok(None), CacheOutcome::Absent);
        }
        let work = || {
            let (inner, repo, target) = (self.clone(), repo.clone(), target.clone());
            async move { inner.ask_resolve(&repo, &target, patience).await }
        };
        let flight = self.manifests.looking.join(&self.tasks, (repo.clone(), target.clone()), work);
        // Boxed: an answer from the cache does not carry the state of a fetch.
        Box::pin(self.join_flight(flight)).await
    }

    async fn ask_resolve(
        &self,
        repo: &UpstreamRepository,
        target: &Target,
        patience: Duration,
    ) -> Result<Option<Descriptor>> {
        let asked = LastQuestion::default();
        let question = |source: O::Source| {
            asked.now();
            let target = target.clone();
            async move { source.resolve(&target).await }
        };
        let found = self.tiers.ask(repo, patience, question).await.map_err(blame_upstream)?.map(|found| {
            // A client that asks by HEAD for the tag reads by digest: the tag is to be copied too.
            self.report_later_tier(repo, target, found.tier);
            found.value
        });
        self.remember_answer(repo, target, found.as_ref(), asked.at()).await;
        if let Some(found) = &found {
            self.record(repo, &found.digest).await;
        }
        Ok(found)
    }

    /// Reads the manifest from the upstream.
    async fn fetch_upstream(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        target: &Target,
    ) -> (Result<Option<Manifest>>, CacheOutcome) {
        if State::is_running(&self.manifests.absent, self.key(repo, target)) {
            return (Ok(None), CacheOutcome::Absent);
        }
        let work = || {
            let (inner, repo, target) = (self.clone(), repo.clone(), target.clone());
            async move { inner.ask_manifest(&repo, &target).await }
        };
        let flight = self.manifests.reading.join(&self.tasks, (repo.clone(), target.clone()), work);
        // Boxed: an answer from the cache does not carry the state of a fetch.
        Box::pin(self.join_flight(flight)).await
    }

    async fn ask_manifest(&self, repo: &UpstreamRepository, target: &Target) -> Result<Option<Manifest>> {
        let asked = LastQuestion::default();
        let question = |source: O::Source| {
            asked.now();
            let target = target.clone();
            async move { source.manifest(&target).await.map(Some) }
        };
        let found = self.tiers.ask(repo, self.timeouts.request, question).await.map_err(blame_upstream)?;
        let Some(found) = found else {
            self.remember_answer(repo, target, None, asked.at()).await;
            return Ok(None);
        };
        let _room = memory::reserve_for_cache(found.value.descriptor().size).map_err(|_| busy())?;
        self.cache.manifest_store.put(&found.value).await;
        self.remember_answer(repo, target, Some(found.value.descriptor()), asked.at()).await;
        self.learn(repo, &found.value);
        self.write_record(repo, &found.value.digest()).await;
        self.report_later_tier(repo, target, found.tier);
        Ok(Some(found.value))
    }

    fn report_later_tier(&self, repo: &UpstreamRepository, target: &Target, tier: usize) {
        if tier > 0 && repo.upstream.write_back && !is_write_back() {
            let (upstream, repository) = (&*repo.upstream.name, &*repo.repository);
            self.observer.event(&Event::OnlyOriginal { upstream, repository, target });
        }
    }

    async fn join_flight<T>(&self, flight: impl Future<Output = (Result<T>, bool)>) -> (Result<T>, CacheOutcome) {
        let mut joined = false;
        let flown = async {
            let (result, with) = flight.await;
            joined = with;
            result
        };
        let result = self.with_patience(self.timeouts.request, flown).await;
        (result, if joined { CacheOutcome::Coalesced } else { CacheOutcome::Miss })
    }

    /// Remembers what the upstream said to a question that was asked at `asked`. An answer to an older question
    /// replaces no newer one: a tag may have moved between them.
    pub(super) async fn remember_answer(
        &self,
        repo: &UpstreamRepository,
        target: &Target,
        found: Option<&Descriptor>,
        asked: Instant,
    ) {
        let key = self.key(repo, target);
        self.end_back_off(key);
        if let Some(found) = found {
            self.admit(repo, &found.digest, Some(found.size));
        }
        // Held until the answer is stored, so that an older one cannot be stored after it.
        let _turn = self.manifests.noting[usize::try_from(key).unwrap_or(0) % CONCURRENT_TAG_WRITES].lock().await;
        if self.manifests.noted.get(&key).is_some_and(|newest| newest > asked) {
            return;
        }
        self.manifests.noted.insert(key, asked);
        match found {
            Some(_) => drop(self.manifests.absent.remove(&key)),
            None => self.manifests.absent.insert(key, Instant::now() + self.negative_ttl(repo)),
        }
        let Target::Tag(tag) = target else { return };
        let name = self.tag_name(repo, tag);
        match found {
            Some(descriptor) => {
                let tag = CachedTag::new(&name, descriptor, now()).with_tiers(&repo.upstream.tiers_text());
                self.cache.manifest_store.put_tag(&name, tag).await;
            }
            None => self.cache.manifest_store.forget_tag(&name).await,
        }
    }

    fn tag_name(&self, repo: &UpstreamRepository, tag: &str) -> TagName {
        TagName::new(&repo.upstream.name, &repo.repository, tag)
    }

    /// Whether what is known of `key` is served without asking.
    pub(super) fn is_backed_off(&self, key: u64) -> bool {
        State::is_running(&self.manifests.resting, key)
    }

    /// The upstream couldn't be asked: it's not for a while.
    pub(super) fn back_off(&self, key: u64) {
        self.manifests.resting.insert(key, Instant::now() + RETRY_DELAY);
    }

    /// It has answered.
    pub(super) fn end_back_off(&self, key: u64) {
        self.manifests.resting.remove(&key);
    }

    pub(super) fn key<T: std::hash::Hash>(&self, repo: &UpstreamRepository, what: &T) -> u64 {
        self.manifests.hash.hash_one((repo, what))
    }

    /// Whether it's known that a blob isn't there.
    pub(super) fn is_absent(&self, repo: &UpstreamRepository, digest: &Digest) -> bool {
        State::is_running(&self.manifests.absent, self.key(repo, &("blob", digest)))
    }

    /// How long a cached tag of the repository stays fresh.
    pub(super) fn tag_ttl(&self, repo: &UpstreamRepository) -> Duration {
        repo.upstream.tag_ttl.unwrap_or(self.settings.tag_ttl)
    }

    /// How long an answer "not found" of the repository is remembered.
    pub(super) fn negative_ttl(&self, repo: &UpstreamRepository) -> Duration {
        repo.upstream.negative_ttl.unwrap_or(self.settings.negative_ttl).min(MAX_TTL)
    }

    pub(super) fn note_absent(&self, repo: &UpstreamRepository, digest: &Digest) {
        let until = Instant::now() + self.negative_ttl(repo);
        self.manifests.absent.insert(self.key(repo, &("blob", digest)), until);
    }
}

/// Logs that stale content is served because of `error`. An error that the log has already is no warning again.
pub(super) fn log_stale(error: &Error, served: std::fmt::Arguments<'_>) {
    if error.is_reported() {
        tracing::info!("{error}: {served}");
    } else {
        tracing::warn!("{error}: {served}");
    }
}

fn busy() -> Error {
    Error::new(Kind::Limited, "too many large manifests are being fetched at once")
        .transient(Some(Duration::from_secs(1)))
}

fn now() -> u64 {
    crate::clock::unix_seconds()
}

/// How long ago a tag was checked. A clock that was set back makes it old, not young for ever.
fn tag_age(tag: &CachedTag) -> Duration {
    now().checked_sub(tag.checked).map_or(Duration::MAX, Duration::from_secs)
}

/// When an upstream was asked last: one request may ask several tiers, and each again after a fault.
struct LastQuestion(std::sync::Mutex<Instant>);

impl Default for LastQuestion {
    fn default() -> Self {
        Self(std::sync::Mutex::new(Instant::now()))
    }
}

impl LastQuestion {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }

    fn at(&self) -> Instant {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The longest TTL that is used: `Instant::now() + MAX_TTL` does not overflow.
const MAX_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// Answers about tags that are stored at once.
const CONCURRENT_TAG_WRITES: usize = 64;
/// For how long a tag or a list whose upstream couldn't be asked is served without asking.
const RETRY_DELAY: Duration = Duration::from_secs(5);
