//! The upstreams' registries: asked tier by tier, within a client's patience.

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
pub(super) struct Tiers<O> {
    pub(super) origins: O,
    configured: RwLock<Arc<Upstreams>>,
    /// Those of former worlds too: what is being fetched still asks them.
    registries: RwLock<BTreeMap<String, Arc<Registry>>>,
    /// Some circuit breaker changed its state.
    changed: Arc<watch::Sender<()>>,
    timeouts: Timeouts,
    observer: Arc<dyn Observer>,
}

/// What is known of one registry.
struct Registry {
    name: String,
    breaker: Breaker,
    refusals: Refusals,
    timeouts: Timeouts,
}

/// How a registry does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Health {
    /// The registry.
    pub registry: String,
    /// Whether it is asked now: it answers, and has set no limit that lasts.
    pub well: bool,
    /// Why it refuses the proxy, and for how many repositories, where it does.
    pub refusals: BTreeMap<&'static str, usize>,
}

/// What one tier had.
pub(super) struct TierAnswer<S, T> {
    /// The tier's number, from 0.
    pub(super) tier: usize,
    pub(super) source: S,
    pub(super) value: T,
}

/// A tier's answer to a question.
enum TierOutcome<T> {
    Found(T),
    Absent,
    /// No answer that another try would better.
    Failed(Error),
    /// Another try may go better: after this time, or when a breaker changes its state.
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

    /// The world as it is now.
    pub(super) fn upstreams(&self) -> Arc<Upstreams> {
        self.configured.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Requests from now on are of this world.
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

    /// How the registries do.
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

    /// [`Self::ask_where`] for what every tier may be asked.
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

    /// Asks the tiers in turn, until one has it. Those that fail are asked again, as long as that leaves time for an
    /// answer within `patience`: that of the client who waits for it. A limit, or a pause of the circuit breaker, is
    /// waited out within the same time. A repository that `may_ask` refuses is passed over.
    ///
    /// # Errors
    /// If no tier had it and one couldn't be asked, why.
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
        // By tier: the first one's trouble is what its owner has to know.
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
                // Asked again, it must answer while the client still waits: else a limit would look like silence.
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
                        // An answer that was cut short says less than the one before.
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
            // What is damaged was asked for again already.
            Err(error) if !error.is_transient() || matches!(error.kind(), Kind::Mismatch | Kind::Invalid) => {
                TierOutcome::Failed(if refused.is_some() { error.reported() } else { error })
            }
            Err(error) => {
                let again = error.retry_after().unwrap_or_default().max(self.backoff(round));
                // Of a registry that is known to be down the log has a line.
                TierOutcome::Later(if registry.breaker.is_open() { error.reported() } else { error }, Some(again))
            }
        }
    }
}

impl<O> Tiers<O> {
    /// How long to wait after this round of questions failed.
    fn backoff(&self, round: u32) -> Duration {
        let Timeouts { first_backoff, longest_backoff, .. } = self.timeouts;
        let most = longest_backoff.min(first_backoff * 2_u32.pow(round.min(6)));
        most / 2 + jitter(most / 2)
    }
}

impl Registry {
    /// Asks a question, a few times at once: a connection that was reset is no outage. Ends `within` this time.
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
            // The client below holds requests back where this or another one was answered 429: that is no silence.
            Err(_) => {
                let limited = limited.lock().unwrap_or_else(PoisonError::into_inner).take();
                Err(limited.or(self.breaker.limit().err()).unwrap_or_else(silent))
            }
        }
    }
}

/// Faults that are forgiven to one question before the next tier is asked: within half a second or so.
const RETRIES: u32 = 2;

/// What came from the upstream and makes no sense, or leads where we don't go, is the upstream's fault, not our
/// storage's.
pub(super) fn blame_upstream(error: Error) -> Error {
    match error.kind() {
        Kind::Mismatch | Kind::Invalid | Kind::Unsupported | Kind::Refused | Kind::SessionLost | Kind::TooLarge => {
            let made = Error::new(Kind::Registry, error.to_string());
            if error.is_reported() { made.reported() } else { made }
        }
        _ => error,
    }
}
