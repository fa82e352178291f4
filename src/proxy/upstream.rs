//! The upstreams' registries: asked tier by tier, within a client's patience.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::breaker::Breaker;
use super::events::{Event, Observer};
use super::world::{Spot, World};
use crate::content::Source;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::reference::Repository;
use crate::retry::Budget;

/// Gives the repositories that are read from. All that the proxy knows of registries.
pub trait Origins: Send + Sync + 'static {
    /// One repository.
    type Source: Source;

    /// The repository of this name, to be read for the upstream `upstream`. Asks nobody yet.
    fn source(&self, upstream: &str, repository: &Repository) -> Result<Self::Source>;

    /// How large a blob is there, by `HEAD`; `None` if it isn't.
    fn size_of(&self, source: &Self::Source, digest: &Digest) -> impl Future<Output = Result<Option<u64>>> + Send;
}

/// All of them.
pub(super) struct Upstreams<O> {
    pub(super) origins: O,
    world: RwLock<Arc<World>>,
    /// Those of former worlds too: what is being fetched still asks them.
    breakers: RwLock<BTreeMap<String, Arc<Breaker>>>,
    observer: Arc<dyn Observer>,
}

/// What one tier had.
pub(super) struct Found<S, T> {
    /// The tier's number: past 0 only an original had it.
    pub(super) tier: usize,
    pub(super) source: S,
    pub(super) value: T,
}

impl<O: Origins> Upstreams<O> {
    pub(super) fn new(origins: O, world: World, observer: Arc<dyn Observer>) -> Self {
        let upstreams = Self { origins, world: RwLock::default(), breakers: RwLock::default(), observer };
        upstreams.set_world(world);
        upstreams
    }

    /// The world as it is now.
    pub(super) fn world(&self) -> Arc<World> {
        self.world.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests from now on are of this world.
    pub(super) fn set_world(&self, world: World) {
        let mut breakers = self.breakers.write().unwrap_or_else(PoisonError::into_inner);
        for registry in world.registries() {
            breakers.entry(registry.to_owned()).or_insert_with(|| Arc::new(Breaker::new(registry)));
        }
        drop(breakers);
        *self.world.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(world);
    }

    /// The registries, and whether they answer.
    pub(super) fn health(&self) -> Vec<(String, bool)> {
        let (world, breakers) = (self.world(), self.breakers.read().unwrap_or_else(PoisonError::into_inner));
        let well = |registry: &str| breakers.get(registry).is_none_or(|breaker| breaker.is_well());
        world.registries().into_iter().map(|registry| (registry.to_owned(), well(registry))).collect()
    }

    fn breaker(&self, registry: &str) -> Option<Arc<Breaker>> {
        self.breakers.read().unwrap_or_else(PoisonError::into_inner).get(registry).cloned()
    }

    /// Asks the tiers in turn, until one has it. A limit is waited out if that leaves time for an answer
    /// within `patience`: that of the client who waits for it.
    ///
    /// # Errors
    /// If no tier had it and one couldn't be asked, why.
    pub(super) async fn ask<T, F>(
        &self,
        spot: &Spot,
        patience: Duration,
        question: impl Fn(O::Source) -> F,
    ) -> Result<Option<Found<O::Source, T>>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let begun = Instant::now();
        loop {
            let error = match self.ask_once(spot, patience, &question).await {
                Err(error) if error.kind() == Kind::Limited => error,
                other => return other,
            };
            let left = patience.saturating_sub(begun.elapsed() + SPARE);
            match error.retry_after() {
                // A limit of no time at all is the breaker's to bound: it makes it a second.
                Some(wait) if wait <= left && !left.is_zero() => tokio::time::sleep(wait).await,
                _ => return Err(error),
            }
        }
    }

    async fn ask_once<T, F>(
        &self,
        spot: &Spot,
        patience: Duration,
        question: &impl Fn(O::Source) -> F,
    ) -> Result<Option<Found<O::Source, T>>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let mut failed = None;
        for (tier, base) in spot.upstream.tiers.iter().enumerate() {
            let source = self.origins.source(&spot.upstream.name, &base.repository(&spot.repository)?)?;
            match self.ask_tier(&base.registry, patience, || question(source.clone())).await {
                Ok(Some(value)) => return Ok(Some(Found { tier, source, value })),
                Ok(None) => {}
                // The first tier's trouble is what its owner has to know.
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    async fn ask_tier<T, F>(&self, registry: &str, patience: Duration, question: impl Fn() -> F) -> Result<Option<T>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let Some(breaker) = self.breaker(registry) else { return Ok(None) };
        breaker.check()?;
        let begun = Instant::now();
        let tries = async {
            let budget = Budget::new(RETRIES, patience.min(LIMIT));
            loop {
                match question().await {
                    Err(error) if error.kind() == Kind::NotFound => return Ok(None),
                    Err(error) => budget.retry(error).await?,
                    other => return other,
                }
            }
        };
        let silent = || Error::new(Kind::Timeout, format!("no answer from {registry} in {} s", ANSWER.as_secs()));
        let answer = match timeout(ANSWER, tries).await {
            Ok(answer) => answer,
            // The client below holds requests back where another one was answered 429: no fault of this one.
            Err(_) => Err(breaker.limit().err().unwrap_or_else(silent)),
        };
        breaker.learn(&answer);
        let failed = answer.as_ref().err().map(Error::kind);
        self.observer.event(&Event::Asked { registry, took: begun.elapsed(), failed });
        answer
    }
}

/// How long one registry may take for the head of its answer: two of them, within the 30 s that
/// containerd waits for ours.
const ANSWER: Duration = Duration::from_secs(12);
/// The longest limit (429) that is waited out before the next tier is asked: it leaves time for the answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Of a client's patience, what isn't spent on waiting for a limit's end: the answer takes some time too.
const SPARE: Duration = Duration::from_secs(1);
/// Faults that are forgiven to one question.
const RETRIES: u32 = 2;
