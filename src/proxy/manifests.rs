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

use super::cache::{Tag, TagName};
use super::events::{Event, How, What};
use super::membership::is_of;
use super::tasks::{Flights, is_write_back};
use super::world::Spot;
use super::{Inner, Origins};
use crate::content::Source as _;
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::memory;
use crate::reference::{self, Target};

/// What is known in memory besides the documents.
#[derive(Debug)]
pub(super) struct State {
    reading: Flights<(Spot, Target), Option<Manifest>>,
    looking: Flights<(Spot, Target), Option<Descriptor>>,
    /// By a hash of who and what: for how long it isn't asked for again. A collision costs one wrong
    /// answer for some seconds, and with a keyed hash of 64 bits there is none.
    absent: Memory<u64, Instant>,
    /// Tags and lists whose upstream couldn't be asked.
    resting: Memory<u64, Instant>,
    /// When the question was asked whose answer is the newest that is stored, by a hash of repository and target.
    noted: Memory<u64, Instant>,
    /// Answers are stored one at a time, by the same hash.
    noting: [tokio::sync::Mutex<()>; NOTING],
    hash: RandomState,
}

impl State {
    pub(super) fn new() -> Self {
        Self {
            reading: Flights::default(),
            looking: Flights::default(),
            absent: Memory::new(10_000),
            resting: Memory::new(10_000),
            noted: Memory::new(10_000),
            noting: std::array::from_fn(|_| tokio::sync::Mutex::default()),
            hash: RandomState::new(),
        }
    }

    fn rests(until: &Memory<u64, Instant>, key: u64) -> bool {
        until.get(&key).is_some_and(|until| until > Instant::now())
    }
}

impl<O: Origins> Inner<O> {
    /// What `target` is; fetches no manifest that isn't needed for that.
    pub(super) async fn resolve(self: &Arc<Self>, spot: &Spot, target: &Target) -> Result<Option<Descriptor>> {
        let (found, how) = self.known(spot, target).await;
        self.tell(spot, &found, how);
        found
    }

    /// The same, told to nobody.
    pub(super) async fn known(self: &Arc<Self>, spot: &Spot, target: &Target) -> (Result<Option<Descriptor>>, How) {
        match target {
            Target::Digest(digest) => {
                if self.is_recorded_member(spot, digest).await
                    && let Some(manifest) = self.cache.documents.manifest(digest).await
                {
                    return (Ok(Some(manifest.descriptor().clone())), How::Hit);
                }
                self.look(spot, target, self.timeouts.request).await
            }
            Target::Tag(tag) => self.tag(spot, tag).await,
            Target::Name(_) => (Ok(None), How::Absent),
        }
    }

    /// The manifest.
    pub(super) async fn manifest(self: &Arc<Self>, spot: &Spot, target: &Target) -> Result<Option<Manifest>> {
        let (found, how) = self.document(spot, target).await;
        self.tell(spot, &found, how);
        found
    }

    /// The same, told to nobody.
    pub(super) async fn document(self: &Arc<Self>, spot: &Spot, target: &Target) -> (Result<Option<Manifest>>, How) {
        match target {
            Target::Digest(digest) => self.by_digest(spot, digest).await,
            Target::Tag(tag) => self.by_tag(spot, tag).await,
            Target::Name(_) => (Ok(None), How::Absent),
        }
    }

    fn tell<T>(&self, spot: &Spot, found: &Result<Option<T>>, how: How) {
        let how = match found {
            Ok(Some(_)) => how,
            Ok(None) => How::Absent,
            Err(_) => How::Failed,
        };
        self.served(spot, What::Manifest, how);
    }

    async fn by_digest(self: &Arc<Self>, spot: &Spot, digest: &Digest) -> (Result<Option<Manifest>>, How) {
        let target = Target::Digest(*digest);
        if !self.is_recorded_member(spot, digest).await && self.cache.documents.has(digest) {
            // Another repository's, as far as is known. It's not fetched again if this one holds it too.
            match self.look(spot, &target, self.timeouts.request).await {
                (Ok(Some(found)), _) if found.digest == *digest => {}
                (Ok(_), _) => return (Ok(None), How::Absent),
                (Err(error), _) => return (Err(error), How::Failed),
            }
        }
        match self.cache.documents.manifest(digest).await {
            Some(manifest) => {
                self.learn_cached(spot, &manifest).await;
                (Ok(Some(manifest)), How::Hit)
            }
            None => self.read(spot, &target).await,
        }
    }

    async fn by_tag(self: &Arc<Self>, spot: &Spot, tag: &reference::Tag) -> (Result<Option<Manifest>>, How) {
        let Some(known) = self.last_known(spot, tag).await else {
            return self.read(spot, &Target::Tag(tag.clone())).await;
        };
        let (found, how) = self.tag(spot, tag).await;
        let current = match found {
            Ok(Some(descriptor)) => descriptor.digest,
            Ok(None) => return (Ok(None), How::Absent),
            Err(error) => return (Err(error), How::Failed),
        };
        let moved = current != known.digest();
        let old = if moved { self.cache.documents.manifest(&known.digest()).await } else { None };
        let reading = self.by_digest(spot, &current);
        let (found, read) = if old.is_some() {
            let read = timeout(self.timeouts.stale, reading).await;
            let late = || Error::new(Kind::Timeout, format!("{current} did not come in time"));
            read.unwrap_or_else(|_| (Err(late()), How::Failed))
        } else {
            reading.await
        };
        match (found, old) {
            // The tag has moved to what can't be read now.
            (Err(_), Some(old)) => (Ok(Some(old)), How::Stale),
            (Err(error), None) if moved => (Err(error), How::Failed),
            (found, _) => (found, if how == How::Hit { read } else { how }),
        }
    }

    /// What a tag is: what is known while it's fresh, else the upstream's answer, else what was known.
    async fn tag(self: &Arc<Self>, spot: &Spot, tag: &reference::Tag) -> (Result<Option<Descriptor>>, How) {
        let known = self.last_known(spot, tag).await;
        if let Some(known) =
            known.as_ref().filter(|known| age(known) < spot.upstream.tag_ttl.unwrap_or(self.settings.tag_ttl))
        {
            return (Ok(Some(known.descriptor())), How::Hit);
        }
        let target = Target::Tag(tag.clone());
        let Some(known) = known else { return self.look(spot, &target, self.timeouts.request).await };
        let key = self.key(spot, &target);
        if self.rests(key) {
            return (Ok(Some(known.descriptor())), How::Stale);
        }
        let patience = self.timeouts.stale;
        match self.patiently(patience, async { self.look(spot, &target, patience).await.0 }).await {
            Err(error) if error.kind() != Kind::Interrupted => {
                if error.is_reported() {
                    tracing::info!("{error}: {tag} is served as it was {} s ago", age(&known).as_secs());
                } else {
                    tracing::warn!("{error}: {tag} is served as it was {} s ago", age(&known).as_secs());
                }
                self.rest(key);
                (Ok(Some(known.descriptor())), How::Stale)
            }
            // It was checked, and not read: a hit, if the content is here.
            answered => (answered, How::Hit),
        }
    }

    /// What the tag was when the upstream was asked last. Whatever it was belongs to the repository.
    async fn last_known(&self, spot: &Spot, tag: &reference::Tag) -> Option<Tag> {
        let known = self.cache.documents.tag(&self.tag_name(spot, tag)).await?;
        if !is_of(&known, spot) {
            return None;
        }
        if !self.is_member(spot, &known.digest()) {
            self.admit(spot, &known.digest(), Some(known.descriptor().size));
        }
        Some(known)
    }

    /// Asks the upstream what `target` is, for a client of this patience.
    async fn look(
        self: &Arc<Self>,
        spot: &Spot,
        target: &Target,
        patience: Duration,
    ) -> (Result<Option<Descriptor>>, How) {
        let key = self.key(spot, target);
        if State::rests(&self.manifests.absent, key) {
            return (Ok(None), How::Absent);
        }
        let work = || {
            let (inner, spot, target) = (self.clone(), spot.clone(), target.clone());
            async move { inner.look_up(&spot, &target, patience).await }
        };
        let flight = self.manifests.looking.join(&self.tasks, (spot.clone(), target.clone()), work);
        // Boxed: an answer from the cache does not carry the state of a fetch.
        Box::pin(self.landed(flight)).await
    }

    async fn look_up(&self, spot: &Spot, target: &Target, patience: Duration) -> Result<Option<Descriptor>> {
        let asked = Asked::default();
        let question = |source: O::Source| {
            asked.now();
            let target = target.clone();
            async move { source.resolve(&target).await }
        };
        let found = self.upstreams.ask(spot, patience, question).await.map_err(upstreams_fault)?.map(|found| {
            // A client that asks by HEAD for the tag reads by digest: the tag is to be copied too.
            self.only_original(spot, target, found.tier);
            found.value
        });
        self.note(spot, target, found.as_ref(), asked.last()).await;
        if let Some(found) = &found {
            self.record(spot, &found.digest).await;
        }
        Ok(found)
    }

    /// Reads the manifest from the upstream.
    async fn read(self: &Arc<Self>, spot: &Spot, target: &Target) -> (Result<Option<Manifest>>, How) {
        if State::rests(&self.manifests.absent, self.key(spot, target)) {
            return (Ok(None), How::Absent);
        }
        let work = || {
            let (inner, spot, target) = (self.clone(), spot.clone(), target.clone());
            async move { inner.fetch(&spot, &target).await }
        };
        let flight = self.manifests.reading.join(&self.tasks, (spot.clone(), target.clone()), work);
        // Boxed: an answer from the cache does not carry the state of a fetch.
        Box::pin(self.landed(flight)).await
    }

    async fn fetch(&self, spot: &Spot, target: &Target) -> Result<Option<Manifest>> {
        let asked = Asked::default();
        let question = |source: O::Source| {
            asked.now();
            let target = target.clone();
            async move { source.manifest(&target).await.map(Some) }
        };
        let found = self.upstreams.ask(spot, self.timeouts.request, question).await.map_err(upstreams_fault)?;
        let Some(found) = found else {
            self.note(spot, target, None, asked.last()).await;
            return Ok(None);
        };
        let _room = memory::caching(found.value.descriptor().size).map_err(|_| busy())?;
        self.cache.documents.put(&found.value).await;
        self.note(spot, target, Some(found.value.descriptor()), asked.last()).await;
        self.learn(spot, &found.value);
        self.write_record(spot, &found.value.digest()).await;
        self.only_original(spot, target, found.tier);
        Ok(Some(found.value))
    }

    fn only_original(&self, spot: &Spot, target: &Target, tier: usize) {
        if tier > 0 && spot.upstream.write_back && !is_write_back() {
            let (upstream, repository) = (&*spot.upstream.name, &*spot.repository);
            self.observer.event(&Event::OnlyOriginal { upstream, repository, target });
        }
    }

    async fn landed<T>(&self, flight: impl Future<Output = (Result<T>, bool)>) -> (Result<T>, How) {
        let mut joined = false;
        let flown = async {
            let (result, with) = flight.await;
            joined = with;
            result
        };
        let result = self.patiently(self.timeouts.request, flown).await;
        (result, if joined { How::Coalesced } else { How::Miss })
    }

    /// Remembers what the upstream said to a question that was asked at `asked`. An answer to an older question
    /// replaces no newer one: a tag may have moved between them.
    pub(super) async fn note(&self, spot: &Spot, target: &Target, found: Option<&Descriptor>, asked: Instant) {
        let key = self.key(spot, target);
        self.rested(key);
        if let Some(found) = found {
            self.admit(spot, &found.digest, Some(found.size));
        }
        // Held until the answer is stored, so that an older one cannot be stored after it.
        let _turn = self.manifests.noting[usize::try_from(key).unwrap_or(0) % NOTING].lock().await;
        if self.manifests.noted.get(&key).is_some_and(|newest| newest > asked) {
            return;
        }
        self.manifests.noted.insert(key, asked);
        match found {
            Some(_) => drop(self.manifests.absent.remove(&key)),
            None => self.manifests.absent.insert(key, Instant::now() + self.negative_ttl(spot)),
        }
        let Target::Tag(tag) = target else { return };
        let name = self.tag_name(spot, tag);
        match found {
            Some(descriptor) => {
                let tag = Tag::new(&name, descriptor, now()).read_from(&spot.upstream.tiers_text());
                self.cache.documents.put_tag(&name, tag).await;
            }
            None => self.cache.documents.forget_tag(&name).await,
        }
    }

    fn tag_name(&self, spot: &Spot, tag: &str) -> TagName {
        TagName::new(&spot.upstream.name, &spot.repository, tag)
    }

    /// Whether what is known of `key` is served without asking.
    pub(super) fn rests(&self, key: u64) -> bool {
        State::rests(&self.manifests.resting, key)
    }

    /// The upstream couldn't be asked: it's not for a while.
    pub(super) fn rest(&self, key: u64) {
        self.manifests.resting.insert(key, Instant::now() + REST);
    }

    /// It has answered.
    pub(super) fn rested(&self, key: u64) {
        self.manifests.resting.remove(&key);
    }

    pub(super) fn key<T: std::hash::Hash>(&self, spot: &Spot, what: &T) -> u64 {
        self.manifests.hash.hash_one((spot, what))
    }

    /// Whether it's known that a blob isn't there.
    pub(super) fn is_absent(&self, spot: &Spot, digest: &Digest) -> bool {
        State::rests(&self.manifests.absent, self.key(spot, &("blob", digest)))
    }

    fn negative_ttl(&self, spot: &Spot) -> Duration {
        spot.upstream.negative_ttl.unwrap_or(self.settings.negative_ttl).min(LONGEST_TTL)
    }

    pub(super) fn note_absent(&self, spot: &Spot, digest: &Digest) {
        let until = Instant::now() + self.negative_ttl(spot);
        self.manifests.absent.insert(self.key(spot, &("blob", digest)), until);
    }
}

/// What came from the upstream and makes no sense, or leads where we don't go, is the upstream's fault, not our
/// storage's.
pub(super) fn upstreams_fault(error: Error) -> Error {
    match error.kind() {
        Kind::Mismatch | Kind::Invalid | Kind::Unsupported | Kind::Refused | Kind::SessionLost | Kind::TooLarge => {
            let made = Error::new(Kind::Registry, error.to_string());
            if error.is_reported() { made.reported() } else { made }
        }
        _ => error,
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
fn age(tag: &Tag) -> Duration {
    now().checked_sub(tag.checked).map_or(Duration::MAX, Duration::from_secs)
}

/// A moment so far away can still be computed.
const LONGEST_TTL: Duration = Duration::from_secs(365 * 24 * 3600);
/// When a question was asked last: it may be asked of several tiers, and again after a fault.
struct Asked(std::sync::Mutex<Instant>);

impl Default for Asked {
    fn default() -> Self {
        Self(std::sync::Mutex::new(Instant::now()))
    }
}

impl Asked {
    fn now(&self) {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Instant::now();
    }

    fn last(&self) -> Instant {
        *self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Answers about tags that are stored at once.
const NOTING: usize = 64;
/// For how long a tag or a list whose upstream couldn't be asked is served without asking.
const REST: Duration = Duration::from_secs(5);
