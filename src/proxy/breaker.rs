//! The circuit breaker of a registry. No I/O.
//!
//! ```text
//!     FAILURES_TO_OPEN failures in a row         the pause is over
//!   closed ───────────────────────────▶ open ───────────────────────▶ probing
//!     ▲                                  ▲                               │
//!     │                                  └── it fails: pause × 2 ────────┤
//!     └───────────────────────── it is answered ─────────────────────────┘
//! ```

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::error::{Error, Kind, Result};

/// The breaker of one registry, with its rate limit.
///
/// After [`FAILURES_TO_OPEN`] failures in a row the registry gets no requests for a pause of [`MIN_OPEN`]. Then one request
/// probes it, and the others wait for the result. Each failed probe doubles the pause, up to a maximum. So clients see the end
/// of a short outage soon, and a registry in trouble is not overloaded.
#[derive(Debug)]
pub(super) struct Breaker {
    registry: String,
    longest_pause: Duration,
    state: Mutex<State>,
    /// Signals that some breaker of the proxy has changed its state.
    changed: Arc<watch::Sender<()>>,
}

#[derive(Debug, Default)]
struct State {
    /// Failures in a row.
    failures: u32,
    open: Option<OpenCircuit>,
    /// When the wait after an answer 429 ends.
    limited_until: Option<Instant>,
}

/// The state of an open circuit.
#[derive(Debug)]
struct OpenCircuit {
    since: Instant,
    /// No requests before this time.
    until: Instant,
    pause: Duration,
    /// A probe is running.
    probing: bool,
    /// The error of the last probe, or of the request that opened the circuit.
    cause: String,
}

/// The permission for one request. If it is dropped without [`record`](Permit::record), nothing is learned about the registry.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    breaker: &'a Breaker,
    probe: bool,
}

/// Why the registry gets no request now.
#[derive(Debug)]
pub(super) struct NotAllowed {
    /// The error for a client that does not wait.
    pub(super) error: Error,
    /// When to try again. `None` while a probe is running, whose end is signalled.
    pub(super) again: Option<Duration>,
}

impl Breaker {
    /// A closed breaker of `registry`. It signals changes by `changed`, and no pause is longer than `longest_pause`.
    pub(super) fn new(registry: &str, changed: Arc<watch::Sender<()>>, longest_pause: Duration) -> Self {
        Self { registry: registry.to_owned(), longest_pause, state: Mutex::default(), changed }
    }

    /// A permit for one request to the registry.
    ///
    /// # Errors
    /// If the circuit is open, or the registry has set a rate limit.
    pub(super) fn permit(&self) -> Result<Permit<'_>, NotAllowed> {
        self.limit().map_err(|error| NotAllowed { again: error.retry_after(), error })?;
        let now = Instant::now();
        let mut state = self.lock();
        let Some(open) = &mut state.open else { return Ok(Permit { breaker: self, probe: false }) };
        let rest = open.until.saturating_duration_since(now);
        if !open.probing && rest.is_zero() {
            open.probing = true;
            return Ok(Permit { breaker: self, probe: true });
        }
        let again = (!open.probing).then_some(rest);
        let next = again.map_or("now".to_owned(), |rest| format!("in {:.1} s", rest.as_secs_f64()));
        let what = format!("{} (circuit open for {}, next try {next})", open.cause, self.registry);
        let error = Error::new(Kind::Network, what).transient(Some(rest.max(MIN_RATE_LIMIT_PAUSE))).reported();
        Err(NotAllowed { error, again })
    }

    /// Whether the registry gets requests now.
    pub(super) fn is_healthy(&self) -> bool {
        let now = Instant::now();
        let state = self.lock();
        let paused = state.open.as_ref().is_some_and(|open| open.probing || open.until > now);
        !paused && state.limited_until.is_none_or(|until| until <= now)
    }

    /// Whether the circuit is open. The log has a line about it, so further failures need none.
    pub(super) fn is_open(&self) -> bool {
        self.lock().open.is_some()
    }

    /// Checks the registry's rate limit.
    ///
    /// # Errors
    /// [`Kind::Limited`], with the time to wait.
    pub(super) fn limit(&self) -> Result<()> {
        let now = Instant::now();
        match self.lock().limited_until.filter(|until| *until > now) {
            Some(until) => {
                let wait = until - now;
                let what = format!("rate limited by {}, next try in {:.0} s", self.registry, wait.as_secs_f64().ceil());
                Err(Error::new(Kind::Limited, what).transient(Some(wait)))
            }
            None => Ok(()),
        }
    }

    fn failed(&self, state: &mut State, error: &Error, probe: bool) {
        let now = Instant::now();
        state.failures += 1;
        match &mut state.open {
            Some(open) if probe => {
                open.pause = (open.pause * 2).min(self.longest_pause);
                open.until = now + open.pause;
                open.probing = false;
                open.cause = error.to_string();
            }
            // The request was running when the circuit opened.
            Some(_) => {}
            None if state.failures >= FAILURES_TO_OPEN => {
                tracing::error!("{error}; circuit open for {}: it gets fewer requests until it answers", self.registry);
                let pause = MIN_OPEN.min(self.longest_pause);
                let (until, cause) = (now + pause, error.to_string());
                state.open = Some(OpenCircuit { since: now, until, pause, probing: false, cause });
            }
            None => {}
        }
    }

    fn answered(&self, state: &mut State) {
        state.failures = 0;
        if let Some(open) = state.open.take() {
            let down = open.since.elapsed().as_secs();
            tracing::warn!("circuit closed for {}: it answers again after {down} s", self.registry);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Permit<'_> {
    /// Records the result of the request.
    pub(super) fn record<T>(mut self, asked: &Result<T>) {
        let breaker = self.breaker;
        let mut state = breaker.lock();
        match asked.as_ref().map_err(|error| (error.kind(), error)) {
            Err((Kind::Limited, error)) => {
                breaker.answered(&mut state);
                let wait = error
                    .retry_after()
                    .unwrap_or(MIN_RATE_LIMIT_PAUSE)
                    .clamp(MIN_RATE_LIMIT_PAUSE, MAX_RATE_LIMIT_PAUSE);
                state.limited_until = Some(Instant::now() + wait);
            }
            Err((Kind::Network | Kind::Timeout | Kind::Registry, error)) if error.is_transient() => {
                breaker.failed(&mut state, error, self.probe);
            }
            // Any other answer shows that the registry works.
            _ => {
                breaker.answered(&mut state);
                state.limited_until = None;
            }
        }
        drop(state);
        if std::mem::take(&mut self.probe) {
            breaker.changed.send_replace(());
        }
    }
}

impl Drop for Permit<'_> {
    /// After an abandoned probe another request may probe.
    fn drop(&mut self) {
        if self.probe {
            if let Some(open) = &mut self.breaker.lock().open {
                open.probing = false;
            }
            self.breaker.changed.send_replace(());
        }
    }
}

/// Failures in a row after which the circuit opens.
const FAILURES_TO_OPEN: u32 = 5;
/// The first pause of an open circuit.
const MIN_OPEN: Duration = Duration::from_secs(1);
/// The default and shortest pause after an answer 429.
const MIN_RATE_LIMIT_PAUSE: Duration = Duration::from_secs(1);
/// The longest pause after an answer 429.
const MAX_RATE_LIMIT_PAUSE: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    const LONGEST_PAUSE: Duration = Duration::from_secs(10);

    fn breaker() -> Breaker {
        Breaker::new("r.io", Arc::new(watch::Sender::new(())), LONGEST_PAUSE)
    }

    fn down() -> Result<()> {
        Err(Error::new(Kind::Network, "refused"))
    }

    fn ask(breaker: &Breaker, answer: &Result<()>) {
        breaker.permit().expect("may be asked").record(answer);
    }

    fn opened() -> Breaker {
        let breaker = breaker();
        (0..FAILURES_TO_OPEN).for_each(|_| ask(&breaker, &down()));
        breaker
    }

    /// How long nobody may ask.
    fn rest(breaker: &Breaker) -> Option<Duration> {
        breaker.permit().err().and_then(|withheld| withheld.again)
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_pause_is_a_second_and_each_failed_probe_doubles_it() {
        let breaker = opened();
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert_eq!(rest(&breaker), Some(Duration::from_secs(seconds)));
            tokio::time::sleep(Duration::from_secs(seconds)).await;
            ask(&breaker, &down());
        }
        tokio::time::sleep(LONGEST_PAUSE).await;
        ask(&breaker, &Ok(()));
        assert!(breaker.permit().is_ok() && !breaker.is_open(), "it is back");
        (1..FAILURES_TO_OPEN).for_each(|_| ask(&breaker, &down()));
        assert!(!breaker.is_open(), "faults are counted anew");
        ask(&breaker, &down());
        assert_eq!(rest(&breaker), Some(MIN_OPEN), "and pauses too");
    }

    #[tokio::test(start_paused = true)]
    async fn one_question_probes_and_the_others_wait_for_its_end() {
        let breaker = opened();
        tokio::time::sleep(MIN_OPEN).await;
        let mut changed = breaker.changed.subscribe();
        let probe = breaker.permit().expect("the probe");
        for _ in 0..10 {
            assert!(breaker.permit().is_err_and(|withheld| withheld.again.is_none()), "one at a time");
        }
        // A client that leaves in the middle of it leaves its turn to the next one.
        drop(probe);
        assert!(changed.has_changed().expect("a sender"));
        changed.mark_unchanged();
        breaker.permit().expect("the next probe").record(&Ok(()));
        assert!(changed.has_changed().expect("a sender"));
        assert!((0..10).all(|_| breaker.permit().is_ok()), "all go on");
    }

    /// Thousands of questions may be on their way when a registry goes down: their ends are one event.
    #[tokio::test(start_paused = true)]
    async fn what_was_on_its_way_does_not_make_the_pause_longer() {
        let breaker = breaker();
        let permits: Vec<_> = (0..1000).map(|_| breaker.permit().expect("closed")).collect();
        permits.into_iter().for_each(|permit| permit.record(&down()));
        assert_eq!(rest(&breaker), Some(MIN_OPEN));
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_waited_out() {
        let breaker = breaker();
        ask(&breaker, &Err(Error::new(Kind::Limited, "429").transient(Some(Duration::from_secs(60)))));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let error = breaker.permit().expect_err("limited").error;
        assert_eq!((error.kind(), error.retry_after()), (Kind::Limited, Some(Duration::from_secs(40))));
        assert!(!breaker.is_healthy());
        tokio::time::sleep(Duration::from_secs(41)).await;
        assert!(breaker.permit().is_ok(), "over");
    }

    /// Whatever a registry says: it is asked again the same hour.
    #[tokio::test(start_paused = true)]
    async fn no_registry_is_left_alone_for_ever() {
        let breaker = breaker();
        ask(&breaker, &Err(Error::new(Kind::Limited, "429").transient(Some(Duration::from_secs(u64::MAX / 2)))));
        assert!(breaker.permit().is_err(), "limited");
        tokio::time::sleep(MAX_RATE_LIMIT_PAUSE + MIN_RATE_LIMIT_PAUSE).await;
        assert!(breaker.permit().is_ok(), "asked again");
    }

    /// Nor is one that answers, whatever it answers; and faults count in a row only.
    #[test]
    fn what_is_not_there_is_no_fault() {
        let breaker = breaker();
        for error in [Error::new(Kind::NotFound, "no"), Error::new(Kind::Registry, "nonsense").permanent()] {
            let answered: Result<()> = Err(error);
            (0..20).for_each(|_| ask(&breaker, &answered));
            assert!(breaker.is_healthy());
        }
        for _ in 0..5 {
            (1..FAILURES_TO_OPEN).for_each(|_| ask(&breaker, &down()));
            ask(&breaker, &Ok(()));
        }
        assert!(breaker.is_healthy());
    }
}
