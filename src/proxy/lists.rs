//! Lists of tags and of referrers. They come from the upstream, or from memory if the upstream cannot be asked.
//!
//! Clients list tags and referrers to find new ones, so a list has no TTL. A list in memory is served only if the upstream is
//! down, silent or limited, and for the further pages of a list that a client reads by pages. Tags and referrers have a
//! limit of bytes each. A proxy that starts while its upstream is down has no lists.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::TryStreamExt as _;
use quick_cache::Weighter;
use quick_cache::sync::Cache as Memory;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::time::Instant;

use super::events::CacheOutcome;
use super::manifests::log_stale;
use super::tasks::SingleFlight;
use super::tiers::blame_upstream;
use super::upstreams::UpstreamRepository;
use super::{Inner, Origins};
use crate::content::Source as _;
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::memory::ListReservation;
use crate::reference::{RejectedTags, Tag};

/// Running requests for lists, and the latest lists.
#[derive(Debug)]
pub(super) struct State {
    tags: Lists<Tag>,
    referrers: Lists<Descriptor>,
}

#[derive(Debug)]
struct Lists<T> {
    asking: SingleFlight<Key, Option<Arc<Listed<T>>>>,
    kept: Memory<Key, CachedList, ByteWeigher>,
}

/// A list with its memory reservation, which is held until all waiting requests are answered.
#[derive(Debug)]
pub(in crate::proxy) struct Listed<T> {
    entries: Vec<T>,
    _reservation: ListReservation,
}

impl<T> Listed<T> {
    pub(super) fn into_entries(self) -> Vec<T> {
        self.entries
    }
}

impl<T> AsRef<[T]> for Listed<T> {
    fn as_ref(&self) -> &[T] {
        &self.entries
    }
}

impl<T> From<Vec<T>> for Listed<T> {
    /// A list from memory, for one answer.
    fn from(entries: Vec<T>) -> Self {
        Self { entries, _reservation: ListReservation::default() }
    }
}

/// The repository, and the subject of a list of referrers.
type Key = (UpstreamRepository, Option<Digest>);

#[derive(Clone, Debug)]
struct CachedList {
    /// As JSON, which is smaller than the parsed list, and whose length is its weight.
    list: Bytes,
    since: Instant,
}

#[derive(Clone, Debug)]
struct ByteWeigher;

impl Weighter<Key, CachedList> for ByteWeigher {
    fn weight(&self, (repo, _): &Key, kept: &CachedList) -> u64 {
        (kept.list.len() + repo.repository.len()) as u64 + ENTRY_OVERHEAD
    }
}

impl State {
    pub(super) fn new() -> Self {
        Self { tags: Lists::new(MAX_CACHED_BYTES), referrers: Lists::new(MAX_CACHED_BYTES) }
    }
}

impl<T: Serialize + DeserializeOwned> Lists<T> {
    fn new(bound: u64) -> Self {
        // With so few expected items the cache has one shard. Each of many shards would have a part of the limit, and a long
        // list would fit into none.
        let kept = Memory::with_weighter(32, bound, ByteWeigher);
        Self { asking: SingleFlight::default(), kept }
    }

    /// Keeps the upstream's answer. `None` removes an older list.
    fn keep(&self, key: Key, list: Option<&[T]>) {
        match list.and_then(|list| serde_json::to_vec(list).ok()) {
            Some(list) => self.kept.insert(key, CachedList { list: list.into(), since: Instant::now() }),
            None => drop(self.kept.remove(&key)),
        }
    }
}

impl<O: Origins> Inner<O> {
    /// All tags of the repository, sorted, possibly stale. For a `further` page it is the list of the first page, within the
    /// tag TTL: otherwise each page would read the whole list from the upstream.
    pub(super) async fn tags(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        further: bool,
    ) -> (Result<Option<Arc<Listed<Tag>>>>, CacheOutcome) {
        let key = (repo.clone(), None);
        let fresh = self.tag_ttl(repo);
        if let Some(kept) = self.lists.tags.kept.get(&key).filter(|kept| further && kept.since.elapsed() < fresh)
            && !self.is_backed_off(self.key(repo, &("list", &key.1)))
            && let Ok(list) = serde_json::from_slice::<Vec<Tag>>(&kept.list)
        {
            return (Ok(Some(Arc::new(list.into()))), CacheOutcome::Hit);
        }
        self.list(
            |state| &state.tags,
            key,
            |inner, (repo, _), patience| async move { inner.ask_tags(&repo, patience).await },
        )
        .await
    }

    /// The referrers of `subject`, possibly stale.
    pub(super) async fn referrers(
        self: &Arc<Self>,
        repo: &UpstreamRepository,
        subject: &Digest,
    ) -> (Result<Option<Arc<Listed<Descriptor>>>>, CacheOutcome) {
        let (key, subject) = ((repo.clone(), Some(*subject)), *subject);
        let ask = move |inner: Arc<Self>, (repo, _), patience| async move {
            inner.ask_referrers(&repo, &subject, patience).await.map(Some)
        };
        self.list(|state| &state.referrers, key, ask).await
    }

    async fn list<T, F>(
        self: &Arc<Self>,
        which: fn(&State) -> &Lists<T>,
        key: Key,
        ask: impl FnOnce(Arc<Self>, Key, Duration) -> F,
    ) -> (Result<Option<Arc<Listed<T>>>>, CacheOutcome)
    where
        T: Serialize + DeserializeOwned + Send + Sync + 'static,
        F: Future<Output = Result<Option<Listed<T>>>> + Send + 'static,
    {
        let lists = which(&self.lists);
        let old = || {
            let kept = lists.kept.get(&key)?;
            Some((Listed::from(serde_json::from_slice::<Vec<T>>(&kept.list).ok()?), kept.since))
        };
        let rest = self.key(&key.0, &("list", &key.1));
        if self.is_backed_off(rest)
            && let Some((list, _)) = old()
        {
            return (Ok(Some(Arc::new(list))), CacheOutcome::Stale);
        }
        let patience = if lists.kept.contains_key(&key) { self.timeouts.stale } else { self.timeouts.request };
        // In a task: the request continues when the client stops waiting, and the registry's breaker records its result.
        let work = || {
            let (inner, key) = (self.clone(), key.clone());
            let asked = ask(inner.clone(), key.clone(), patience);
            async move {
                let found = asked.await?;
                which(&inner.lists).keep(key, found.as_ref().map(AsRef::as_ref));
                inner.end_back_off(rest);
                Ok(found.map(Arc::new))
            }
        };
        let flight = lists.asking.join(&self.tasks, key.clone(), work);
        match self.with_patience(patience, async { flight.await.0 }).await {
            Err(error) if error.kind() != Kind::Interrupted => match old() {
                Some((list, since)) => {
                    let (repository, age) = (&key.0.repository, since.elapsed().as_secs());
                    log_stale(&error, format_args!("a list of {repository} is served as it was {age} s ago"));
                    self.back_off(rest);
                    (Ok(Some(Arc::new(list))), CacheOutcome::Stale)
                }
                None => (Err(error), CacheOutcome::Failed),
            },
            answered => (answered, CacheOutcome::Passed),
        }
    }

    /// All tags of the repository from the upstream, sorted.
    pub(super) async fn ask_tags(&self, repo: &UpstreamRepository, patience: Duration) -> Result<Option<Listed<Tag>>> {
        let name = format!("{}/{}", repo.upstream.name, repo.repository);
        let name = &name;
        // Pages of all tiers and retries together.
        let read = AtomicUsize::new(0);
        let read = &read;
        let question = |source: O::Source| async move {
            let (mut tags, mut bytes) = (Vec::<Tag>::new(), 0_usize);
            let (mut pages, mut rejected) = (source.tags(), RejectedTags::default());
            let mut reservation = ListReservation::default();
            while let Some(page) = pages.try_next().await? {
                let more = page.tags.iter().map(|tag| tag.len()).sum::<usize>();
                reservation
                    .add((more + page.tags.len() * size_of::<Tag>()) as u64)
                    .map_err(|_| crowded("tags", name))?;
                bytes += more;
                tags.extend(page.tags);
                rejected.add(page.malformed);
                if bytes > MAX_TAGS_BYTES {
                    let what = format!("the list of tags of {name} has more than {MAX_TAGS_BYTES} bytes");
                    return Err(Error::new(Kind::Invalid, what));
                }
                if read.fetch_add(1, Ordering::Relaxed) >= MAX_PAGES {
                    let what = format!("the list of tags of {name} has more than {MAX_PAGES} pages");
                    return Err(Error::new(Kind::Invalid, what));
                }
            }
            if let Some(error) = rejected.error(name) {
                tracing::warn!("{error}");
            }
            // Registries use different orders.
            tags.sort_unstable();
            tags.dedup();
            Ok(Some(Listed { entries: tags, _reservation: reservation }))
        };
        let found = self.tiers.ask(repo, patience, question).await.map_err(blame_upstream)?;
        Ok(found.map(|found| found.value))
    }

    /// The referrers of `subject` from the upstream.
    pub(super) async fn ask_referrers(
        &self,
        repo: &UpstreamRepository,
        subject: &Digest,
        patience: Duration,
    ) -> Result<Listed<Descriptor>> {
        let question = |source: O::Source| async move { source.referrers(subject).await.map(Some) };
        let found = self.tiers.ask(repo, patience, question).await.map_err(blame_upstream)?;
        let (entries, mut reservation) = (found.map_or_else(Vec::new, |found| found.value), ListReservation::default());
        let weight = entries.iter().map(Descriptor::weight).sum();
        reservation
            .add(weight)
            .map_err(|_| crowded("referrers", &format!("{}/{}", repo.upstream.name, repo.repository)))?;
        self.learn_listed(repo, &entries);
        Ok(Listed { entries, _reservation: reservation })
    }
}

/// The error of a list for which there is no memory. Not [`Kind::Limited`]: that would open the upstream's breaker.
fn crowded(entries: &str, name: &str) -> Error {
    let what = format!("the list of {entries} of {name} is long, and too many long lists are being read");
    Error::new(Kind::Invalid, what).hint("try again later")
}

/// Pages of tags that are read for one client request: 100,000 tags of a registry with full pages. A longer list is an error,
/// because a client could not see that a shortened list is incomplete.
const MAX_PAGES: usize = 100;
/// Bytes of tags that are read for one client request: 100,000 tags of 128 characters.
const MAX_TAGS_BYTES: usize = 13 << 20;
/// Bytes of lists that are kept in memory, for tags and for referrers each.
const MAX_CACHED_BYTES: u64 = 4 << 20;
/// Bytes of an entry besides its list and its name, roughly.
const ENTRY_OVERHEAD: u64 = 160;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proxy::upstreams::UpstreamConfig;

    fn key(repository: &str) -> Key {
        let upstream: Arc<UpstreamConfig> = Arc::new("docker.io".parse().expect("a spec"));
        (UpstreamRepository { upstream, repository: repository.into() }, None)
    }

    fn tags(bytes: usize) -> Vec<String> {
        // As JSON each has two quotes and a comma.
        vec!["x".repeat(97); bytes / 100]
    }

    #[test]
    fn lists_are_bounded_by_their_bytes() {
        let lists = Lists::<String>::new(1 << 20);
        for nth in 0..500 {
            lists.keep(key(&format!("app{nth}")), Some(&tags(10_000)));
        }
        let (count, weight) = (lists.kept.len(), lists.kept.weight());
        assert!((80..=104).contains(&count) && weight <= 1 << 20, "{count} lists, {weight} bytes");
        // One that has nearly all of the space is kept, one that has more is not, nor is what it was before.
        lists.keep(key("large"), Some(&tags(1_000_000)));
        assert_eq!(lists.kept.get(&key("large")).map(|kept| kept.list.len()), Some(1_000_001));
        lists.keep(key("large"), Some(&tags(1_100_000)));
        assert!(lists.kept.get(&key("large")).is_none() && lists.kept.weight() <= 1 << 20);
        // What is gone is gone.
        lists.keep(key("small"), Some(&tags(100)));
        assert!(lists.kept.get(&key("small")).is_some());
        lists.keep(key("small"), None);
        assert!(lists.kept.get(&key("small")).is_none());
    }
}
