//! The upstreams' registries: asked tier by tier, within a client's patience.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;
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

    /// The repository of this name. Asks nobody yet.
    fn source(&self, repository: &Repository) -> Result<Self::Source>;

    /// How large a blob is there, by `HEAD`; `None` if it isn't.
    fn size_of(&self, source: &Self::Source, digest: &Digest) -> impl Future<Output = Result<Option<u64>>> + Send;
}

/// All of them.
pub(super) struct Upstreams<O> {
    pub(super) origins: O,
    pub(super) world: World,
    breakers: BTreeMap<String, Breaker>,
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
        let registries = world.specs().iter().flat_map(|spec| &spec.tiers).map(|base| base.registry.clone());
        let breakers = registries.map(|registry| (registry.clone(), Breaker::new(&registry))).collect();
        Self { origins, world, breakers, observer }
    }

    /// The upstream's name.
    pub(super) fn name(&self, spot: &Spot) -> &str {
        &self.world.specs()[spot.upstream].name
    }

    /// The registry of a tier.
    pub(super) fn registry(&self, spot: &Spot, tier: usize) -> &str {
        &self.world.specs()[spot.upstream].tiers[tier].registry
    }

    /// The registries, and whether they answer.
    pub(super) fn health(&self) -> impl Iterator<Item = (&str, bool)> {
        self.breakers.iter().map(|(registry, breaker)| (registry.as_str(), breaker.is_well()))
    }

    /// Asks the tiers in turn, until one has it. A limit that ends soon is waited out.
    ///
    /// # Errors
    /// If no tier had it and one couldn't be asked, why.
    pub(super) async fn ask<T, F>(
        &self,
        spot: &Spot,
        question: impl Fn(O::Source) -> F,
    ) -> Result<Option<Found<O::Source, T>>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        match self.ask_once(spot, &question).await {
            Err(error) if error.kind() == Kind::Limited => match error.retry_after() {
                Some(wait) if wait <= LIMIT_PATIENCE => {
                    tokio::time::sleep(wait).await;
                    self.ask_once(spot, &question).await
                }
                _ => Err(error),
            },
            other => other,
        }
    }

    async fn ask_once<T, F>(
        &self,
        spot: &Spot,
        question: &impl Fn(O::Source) -> F,
    ) -> Result<Option<Found<O::Source, T>>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let mut failed = None;
        for (tier, base) in self.world.specs()[spot.upstream].tiers.iter().enumerate() {
            let source = self.origins.source(&base.repository(&spot.repository))?;
            match self.ask_tier(&base.registry, || question(source.clone())).await {
                Ok(Some(value)) => return Ok(Some(Found { tier, source, value })),
                Ok(None) => {}
                // The first tier's trouble is what its owner has to know.
                Err(error) => drop(failed.get_or_insert(error)),
            }
        }
        failed.map_or(Ok(None), Err)
    }

    async fn ask_tier<T, F>(&self, registry: &str, question: impl Fn() -> F) -> Result<Option<T>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let Some(breaker) = self.breakers.get(registry) else { return Ok(None) };
        breaker.check()?;
        let begun = Instant::now();
        let tries = async {
            let budget = Budget::new(RETRIES, ANSWER);
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
/// The longest limit (429) that is waited out.
const LIMIT_PATIENCE: Duration = Duration::from_secs(10);
/// Faults that are forgiven to one question.
const RETRIES: u32 = 2;
