//! When to leave an upstream alone. No I/O.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::error::{Error, Kind, Result};

/// One registry's state: whether it's down, and whether it asked to be left alone.
///
/// After [`FAULTS`] failures in a row nobody asks it for [`PAUSE`]; then one does, and the others go on
/// when that went well. So a dead upstream costs its clients no waiting, and a sick one isn't killed.
#[derive(Debug)]
pub(super) struct Breaker {
    registry: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    faults: u32,
    /// Nobody asks before this.
    apart_until: Option<Instant>,
    /// It answered 429, with this as the end of the wait.
    limited_until: Option<Instant>,
}

impl Breaker {
    pub(super) fn new(registry: &str) -> Self {
        Self { registry: registry.to_owned(), state: Mutex::default() }
    }

    /// Whether it may be asked now.
    ///
    /// # Errors
    /// [`Kind::Limited`] or [`Kind::Network`], with the time to wait.
    pub(super) fn check(&self) -> Result<()> {
        self.limit()?;
        let now = Instant::now();
        let mut state = self.lock();
        match state.apart_until {
            Some(until) if until > now => {
                let what = format!("{} does not answer: it is not asked again so soon", self.registry);
                Err(Error::new(Kind::Network, what).transient(Some(until - now)))
            }
            Some(_) => {
                // This one tries; the others wait for how it ends.
                state.apart_until = Some(now + PAUSE);
                Ok(())
            }
            None => Ok(()),
        }
    }

    /// Learns how asking it ended.
    pub(super) fn learn<T>(&self, asked: &Result<T>) {
        let mut state = self.lock();
        let Err(error) = asked else {
            *state = State::default();
            return;
        };
        match error.kind() {
            Kind::Limited => {
                let wait = error.retry_after().unwrap_or(SHORT).clamp(SHORT, LONGEST);
                state.limited_until = Some(Instant::now() + wait);
            }
            Kind::Network | Kind::Timeout | Kind::Registry if error.is_transient() => {
                state.faults += 1;
                if state.faults >= FAULTS {
                    if state.apart_until.is_none() {
                        tracing::error!("{error}; {} is left alone for a while", self.registry);
                    }
                    state.apart_until = Some(Instant::now() + PAUSE);
                }
            }
            // It answered, though not with what was wanted.
            _ => *state = State::default(),
        }
    }

    /// Whether it's asked at all now.
    pub(super) fn is_well(&self) -> bool {
        let now = Instant::now();
        let state = self.lock();
        ![state.apart_until, state.limited_until].into_iter().flatten().any(|until| until > now)
    }

    /// Whether it asked to be left alone.
    ///
    /// # Errors
    /// [`Kind::Limited`], with the time to wait.
    pub(super) fn limit(&self) -> Result<()> {
        let now = Instant::now();
        match self.lock().limited_until.filter(|until| *until > now) {
            Some(until) => {
                let what = format!("{} wants to be asked less", self.registry);
                Err(Error::new(Kind::Limited, what).transient(Some(until - now)))
            }
            None => Ok(()),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

const FAULTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(10);
/// For how long a registry that answers 429 is left alone: by default and at least, and at most.
const SHORT: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);

#[cfg(test)]
mod tests {
    use super::*;

    fn down() -> Result<()> {
        Err(Error::new(Kind::Network, "refused"))
    }

    #[tokio::test(start_paused = true)]
    async fn one_at_a_time_tries_what_is_down() {
        let breaker = Breaker::new("r.io");
        for _ in 0..FAULTS {
            breaker.check().expect("is asked");
            breaker.learn(&down());
        }
        assert_eq!(breaker.check().expect_err("left alone").kind(), Kind::Network);
        tokio::time::sleep(PAUSE + SHORT).await;
        breaker.check().expect("one tries");
        breaker.check().expect_err("the others wait");
        breaker.learn(&Ok(()));
        breaker.check().expect("it is back");
        breaker.check().expect("for all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_limit_is_waited_out() {
        let breaker = Breaker::new("r.io");
        let limited = Error::new(Kind::Limited, "429").transient(Some(Duration::from_secs(60)));
        breaker.learn::<()>(&Err(limited));
        tokio::time::sleep(Duration::from_secs(20)).await;
        let error = breaker.check().expect_err("limited");
        assert_eq!((error.kind(), error.retry_after()), (Kind::Limited, Some(Duration::from_secs(40))));
        assert!(!breaker.is_well());
        tokio::time::sleep(Duration::from_secs(41)).await;
        breaker.check().expect("over");
    }

    /// Whatever a registry says: it's asked again the same hour.
    #[tokio::test(start_paused = true)]
    async fn no_registry_is_left_alone_for_ever() {
        let breaker = Breaker::new("r.io");
        let limited = Error::new(Kind::Limited, "429").transient(Some(Duration::from_secs(u64::MAX / 2)));
        breaker.learn::<()>(&Err(limited));
        breaker.check().expect_err("limited");
        tokio::time::sleep(LONGEST + SHORT).await;
        breaker.check().expect("asked again");
    }

    /// Nor what will be the same whoever asks how often; and faults count in a row only.
    #[test]
    fn what_is_not_there_is_no_fault() {
        let breaker = Breaker::new("r.io");
        for error in [Error::new(Kind::NotFound, "no"), Error::new(Kind::Registry, "nonsense").permanent()] {
            let answered: Result<()> = Err(error);
            (0..20).for_each(|_| breaker.learn(&answered));
            assert!(breaker.is_well());
        }
        for _ in 0..5 {
            (1..FAULTS).for_each(|_| breaker.learn(&down()));
            breaker.learn(&Ok(()));
        }
        assert!(breaker.is_well());
    }
}
