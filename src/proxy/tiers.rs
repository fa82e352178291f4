//! Requests to the tiers of an upstream, in order, within the time that a client waits.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, timeout};

use super::breaker::{Breaker, NotAllowed};
use super::events::{Event, Observer};
use super::refusals::Refusals;
use super::timeouts::Timeouts;
use super::upstreams::{UpstreamRepository, Upstreams};
use crate::content::Source;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::reference::Repository;
use crate::retry::{Budget, jitter};

/// Gives access to repositories. This is the proxy's only interface to registries.
pub(crate) trait Origins: Send + Sync + 'static {
    /// One repository.
    type Source: Source;

    /// A repository, to be read for the upstream `upstream`. Sends no request.
    fn source(&self, upstream: &str, repository: &Repository) -> Result<Self::Source>;

    /// The size of a blob in bytes, by `HEAD`; `None` if the repository does not have it.
    fn size_of(&self, source: &Self::Source, digest: &Digest) -> impl Future<Output = Result<Option<u64>>> + Send;
}

pub(super) struct Tiers<O> {
    pub(super) origins: O,
    configured: RwLock<Arc<Upstreams>>,
    /// Includes registries of earlier configurations: running fetches still use them.
    registries: RwLock<BTreeMap<String, Arc<Registry>>>,
    /// Signals that some circuit breaker has changed its state.
    changed: Arc<watch::Sender<()>>,
    timeouts: Timeouts,
    observer: Arc<dyn Observer>,
}

/// The state of one registry.
struct Registry {
    name: String,
    breaker: Breaker,
    refusals: Refusals,
    timeouts: Timeouts,
}

/// The health of a registry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Health {
    pub(crate) registry: String,
    /// Whether it gets requests now: its circuit is closed, and no rate limit is running.
    pub(crate) well: bool,
    /// The reasons of current refusals, each with the number of its repositories.
    pub(crate) refusals: BTreeMap<&'static str, usize>,
}

/// The answer of the tier that had the content.
pub(super) struct TierAnswer<S, T> {
    /// The tier's number, from 0.
    pub(super) tier: usize,
    pub(super) source: S,
    pub(super) value: T,
}

/// The result of asking one tier.
enum TierOutcome<T> {
    Found(T),
    Absent,
    /// An error that a retry would not change.
    Failed(Error),
    /// An error that may pass. Retry after this time, or when a breaker changes its state.
    Later(Error, Option<Duration>),
}

impl<O: Origins> Tiers<O> {
    pub(super) fn new(origins: O, configured: Upstreams, observer: Arc<dyn Observer>, timeouts: Timeouts) -> Self {
        let upstreams = Self {
            origins,
            configured: RwLock::default(),
            registries: RwLock::default(),
            changed: Arc::default(),
            timeouts,
            observer,
        };
        upstreams.set_upstreams(configured);
        upstreams
    }

    /// The current upstreams.
    pub(super) fn upstreams(&self) -> Arc<Upstreams> {
        self.configured.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces the upstreams for new requests.
    pub(super) fn set_upstreams(&self, configured: Upstreams) {
        let mut registries = self.registries.write().unwrap_or_else(PoisonError::into_inner);
        for name in configured.registries() {
            let new = || Registry {
                name: name.to_owned(),
                breaker: Breaker::new(name, self.changed.clone(), self.timeouts.longest_pause),
                refusals: Refusals::new(name),
                timeouts: self.timeouts,
            };
            registries.entry(name.to_owned()).or_insert_with(|| Arc::new(new()));
        }
        drop(registries);
        *self.configured.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(configured);
    }

    /// The health of the registries of the current upstreams.
    pub(super) fn health(&self) -> Vec<Health> {
        let (configured, known) = (self.upstreams(), self.registries.read().unwrap_or_else(PoisonError::into_inner));
        let health = |name: &str| Health {
            registry: name.to_owned(),
            well: known.get(name).is_none_or(|registry| registry.breaker.is_healthy()),
            refusals: known.get(name).map(|registry| registry.refusals.reasons()).unwrap_or_default(),
        };
        configured.registries().into_iter().map(health).collect()
    }

    fn registry(&self, name: &str) -> Option<Arc<Registry>> {
        self.registries.read().unwrap_or_else(PoisonError::into_inner).get(name).cloned()
    }

    /// Like [`Self::ask_where`], without a condition on the tiers.
    pub(super) async fn ask<T, F>(
        &self,
        repo: &UpstreamRepository,
        patience: Duration,
        question: impl Fn(O::Source) -> F,
    ) -> Result<Option<TierAnswer<O::Source, T>>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        self.ask_where(repo, patience, |_| Ok(()), question).await
    }

    /// Asks the tiers in order until one has the content. Tiers that fail are asked again as long as an answer is possible
    /// within `patience`, the time that the client waits. Rate limits and pauses of a circuit breaker are waited out within the
    /// same time. Tiers that `may_ask` refuses are skipped.
    ///
    /// # Errors
    /// If no tier had the content, the error of the first tier that failed.
    pub(super) async fn ask_where<T, F>(
        &self,
        repo: &UpstreamRepository,
        patience: Duration,
        may_ask: impl Fn(&Repository) -> Result<()>,
        question: impl Fn(O::Source) -> F,
    ) -> Result<Option<TierAnswer<O::Source, T>>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let (begun, mut changed) = (Instant::now(), self.changed.subscribe());
        let Timeouts { registry: answer, reserve, .. } = self.timeouts;
        let mut left: Vec<usize> = (0..repo.upstream.tiers.len()).collect();
        // By tier: the error of the first tier is returned, because that is the one to repair.
        let mut errors = BTreeMap::new();
        for round in 0.. {
            changed.mark_unchanged();
            let (mut wait, mut probed) = (None, false);
            for tier in std::mem::take(&mut left) {
                let base = &repo.upstream.tiers[tier].repository(&repo.repository)?;
                if let Err(error) = may_ask(base) {
                    errors.insert(tier, error);
                    continue;
                }
                let source = self.origins.source(&repo.upstream.name, base)?;
                // A retry must end while the client still waits. Otherwise a rate limit would look like a timeout.
                let rest = patience.saturating_sub(begun.elapsed() + reserve);
                let within = if round == 0 { answer } else { answer.min(rest) };
                if within.is_zero() {
                    left.push(tier);
                    continue;
                }
                let before = errors.remove(&tier);
                match self.ask_tier(base, patience, within, round, || question(source.clone())).await {
                    TierOutcome::Found(value) => return Ok(Some(TierAnswer { tier, source, value })),
                    TierOutcome::Absent => {}
                    TierOutcome::Failed(error) => drop(errors.insert(tier, error)),
                    TierOutcome::Later(error, again) => {
                        // The timeout of a shortened retry says less than the error before.
                        let cut = error.kind() == Kind::Timeout && within < answer;
                        errors.insert(tier, before.filter(|_| cut).unwrap_or(error));
                        left.push(tier);
                        probed |= again.is_none();
                        wait = [wait, again].into_iter().flatten().min();
                    }
                }
            }
            let rest = patience.saturating_sub(begun.elapsed() + reserve);
            if left.is_empty() || rest.is_zero() || (!probed && wait.is_some_and(|wait| wait > rest)) {
                break;
            }
            let _ = timeout(wait.unwrap_or(rest).min(rest), changed.changed()).await;
        }
        errors.into_values().next().map_or(Ok(None), Err)
    }

    async fn ask_tier<T, F>(
        &self,
        repository: &Repository,
        patience: Duration,
        within: Duration,
        round: u32,
        question: impl Fn() -> F,
    ) -> TierOutcome<T>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let Some(registry) = self.registry(&repository.registry) else { return TierOutcome::Absent };
        let permit = match registry.breaker.permit() {
            Ok(permit) => permit,
            Err(NotAllowed { error, again }) => return TierOutcome::Later(error, again),
        };
        let begun = Instant::now();
        let answer = registry.answer(patience, within, question).await;
        permit.record(&answer);
        let refused = registry.refusals.record(&repository.name, &answer);
        let (name, took) = (&*registry.name, begun.elapsed());
        let failed = answer.as_ref().err().map(Error::kind);
        self.observer.event(&Event::Asked { registry: name, took, failed });
        if let Some(reason) = refused {
            self.observer.event(&Event::Refused { registry: name, reason });
        }
        match answer {
            Ok(Some(value)) => TierOutcome::Found(value),
            Ok(None) => TierOutcome::Absent,
            // The caller has retried damaged content already.
            Err(error) if !error.is_transient() || matches!(error.kind(), Kind::Mismatch | Kind::Invalid) => {
                TierOutcome::Failed(if refused.is_some() { error.reported() } else { error })
            }
            Err(error) => {
                let again = error.retry_after().unwrap_or_default().max(self.backoff(round));
                // The log has a line about a registry whose circuit is open.
                TierOutcome::Later(if registry.breaker.is_open() { error.reported() } else { error }, Some(again))
            }
        }
    }
}

impl<O> Tiers<O> {
    /// How long to wait after a failed round of requests.
    fn backoff(&self, round: u32) -> Duration {
        let Timeouts { first_backoff, longest_backoff, .. } = self.timeouts;
        let most = longest_backoff.min(first_backoff * 2_u32.pow(round.min(6)));
        most / 2 + jitter(most / 2)
    }
}

impl Registry {
    /// Sends a request, with a few immediate retries, because a connection that was reset is no outage. Ends within `within`.
    async fn answer<T, F>(&self, patience: Duration, within: Duration, question: impl Fn() -> F) -> Result<Option<T>>
    where
        F: Future<Output = Result<Option<T>>>,
    {
        let limited = std::sync::Mutex::new(None);
        let tries = async {
            let budget = Budget::new(RETRIES, patience.min(self.timeouts.limit));
            loop {
                match question().await {
                    Err(error) if error.kind() == Kind::NotFound => return Ok(None),
                    Err(error) => {
                        let is_limit = error.kind() == Kind::Limited;
                        *limited.lock().unwrap_or_else(PoisonError::into_inner) = is_limit.then(|| error.duplicate());
                        budget.retry_quietly(error).await?;
                    }
                    other => return other,
                }
            }
        };
        let silent = || Error::new(Kind::Timeout, format!("no answer from {} in {} s", self.name, within.as_secs()));
        match timeout(within, tries).await {
            Ok(answer) => answer,
            // After an answer 429 the registry client delays requests: the error is the rate limit then, not a timeout.
            Err(_) => {
                let limited = limited.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(limited.or(self.breaker.limit().err()).unwrap_or_else(silent))
            }
        }
    }
}

/// Retries of one request before the next tier is asked. They take about half a second.
const RETRIES: u32 = 2;

/// Turns an error of the upstream's content or redirects into [`Kind::Registry`], so that the server answers 502 and blames
/// neither the request nor the proxy's storage.
pub(super) fn blame_upstream(error: Error) -> Error {
    match error.kind() {
        Kind::Mismatch | Kind::Invalid | Kind::Unsupported | Kind::Refused | Kind::SessionLost | Kind::TooLarge => {
            let made = Error::new(Kind::Registry, error.to_string());
            if error.is_reported() { made.reported() } else { made }
        }
        _ => error,
    }
}
