//! What this process waits for, so that a progress display can say it.
//!
//! A wait is noted where it is made: by a pause that a registry asked for, by a retry. Nothing is kept until a display
//! asks for it with [`watch`], so a server that has none pays an atomic load for each wait.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::error::{Error, Kind};

/// One wait with a known end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wait {
    /// What is waited for and why, without the time, as in "waiting for docker.io (429)".
    pub(crate) text: String,
    /// What joins the text and the time: ", " or ": retrying in ".
    joint: &'static str,
    /// When it ends.
    pub(crate) until: Instant,
}

impl Wait {
    /// A pause that the registry asked for, or that is made for its sake. `reason` is a status, or a limit's name.
    pub(crate) fn pause(registry: &str, reason: &str, until: Instant) -> Self {
        Self { text: format!("waiting for {registry} ({reason})"), joint: ", ", until }
    }

    /// The wait before the attempt that follows `error`.
    pub(crate) fn before_retry(error: &Error, until: Instant) -> Self {
        let reason = reason(error);
        match (error.registry(), error.retry_after()) {
            (Some(registry), Some(_)) => Self::pause(registry, &reason, until),
            (Some(registry), None) => Self { text: format!("{registry}: {reason}"), joint: ", retrying in ", until },
            (None, _) => Self { text: reason, joint: ", retrying in ", until },
        }
    }

    /// The wait with the seconds that are left, as in "waiting for docker.io (429), 6 s".
    pub(crate) fn describe(&self, now: Instant) -> (String, String) {
        let left = self.until.saturating_duration_since(now).as_secs_f64().ceil().max(1.0);
        (self.text.clone(), format!("{}{}", self.joint, format_seconds(left as u64)))
    }
}

/// `6 s`, `2 min 5 s`, `3 h 20 min`.
pub(crate) fn format_seconds(seconds: u64) -> String {
    match seconds {
        0..100 => format!("{seconds} s"),
        100..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        _ => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
    }
}

/// An error's reason in a few words.
fn reason(error: &Error) -> String {
    if let Some(status) = error.status() {
        return status.to_string();
    }
    match error.kind() {
        Kind::Timeout => "no answer",
        Kind::Network => "connection lost",
        Kind::Mismatch => "damaged bytes",
        Kind::SessionLost => "upload session lost",
        Kind::Unauthorized => "new token",
        _ => "error",
    }
    .to_owned()
}

/// A wait that is under way. Dropped, it is over.
#[derive(Debug)]
#[must_use = "the wait ends when this is dropped"]
pub(crate) struct WaitGuard(Option<u64>);

/// Notes a wait, if a display shows them.
pub(crate) fn begin(make: impl FnOnce() -> Wait) -> WaitGuard {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if !WATCHED.load(Ordering::Relaxed) {
        return WaitGuard(None);
    }
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    waits().insert(number, make());
    WaitGuard(Some(number))
}

impl Drop for WaitGuard {
    fn drop(&mut self) {
        if let Some(number) = self.0 {
            waits().remove(&number);
        }
    }
}

/// From now on waits are noted.
pub(crate) fn watch() {
    WATCHED.store(true, Ordering::Relaxed);
}

/// The waits that are under way, the oldest first. Those with the same text are one, which ends with the last of them.
pub(crate) fn current() -> Vec<Wait> {
    merge(waits().values())
}

fn merge<'a>(waits: impl Iterator<Item = &'a Wait>) -> Vec<Wait> {
    let mut merged: Vec<Wait> = Vec::new();
    for wait in waits {
        if let Some(known) = merged.iter_mut().find(|known| known.text == wait.text) {
            known.until = known.until.max(wait.until);
        } else if merged.len() < MAX_TEXTS {
            merged.push(wait.clone());
        }
    }
    merged
}

fn waits() -> MutexGuard<'static, BTreeMap<u64, Wait>> {
    WAITS.lock().unwrap_or_else(PoisonError::into_inner)
}

static WATCHED: AtomicBool = AtomicBool::new(false);
static WAITS: Mutex<BTreeMap<u64, Wait>> = Mutex::new(BTreeMap::new());
/// Different texts that [`current`] gives at most.
const MAX_TEXTS: usize = 8;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn told(wait: &Wait, now: Instant) -> String {
        let (text, time) = wait.describe(now);
        text + &time
    }

    #[test]
    fn a_wait_names_the_registry_the_reason_and_the_seconds_left() {
        let now = Instant::now();
        let until = now + Duration::from_millis(5300);
        let limited = Error::new(Kind::Limited, "docker.io answered 429").answered(429, None).at_registry("docker.io");
        let asked = limited.duplicate().transient(Some(Duration::from_secs(5)));
        assert_eq!(told(&Wait::before_retry(&asked, until), now), "waiting for docker.io (429), 6 s");
        assert_eq!(told(&Wait::before_retry(&limited, until), now), "docker.io: 429, retrying in 6 s");
        let lost = Error::new(Kind::Network, "reset").at_registry("quay.io");
        assert_eq!(told(&Wait::before_retry(&lost, until), now), "quay.io: connection lost, retrying in 6 s");
        let silent = Error::new(Kind::Timeout, "nothing came");
        assert_eq!(told(&Wait::before_retry(&silent, until), now), "no answer, retrying in 6 s");
        assert_eq!(
            told(&Wait::pause("r.io", "900 writes a minute", now), now),
            "waiting for r.io (900 writes a minute), 1 s"
        );
    }

    #[test]
    fn equal_waits_are_one() {
        let now = Instant::now();
        let wait = |registry: &str, seconds| Wait::pause(registry, "429", now + Duration::from_secs(seconds));
        let merged = merge([wait("a.io", 3), wait("b.io", 9), wait("a.io", 5)].iter());
        assert_eq!(merged, [wait("a.io", 5), wait("b.io", 9)]);
    }

    #[test]
    fn seconds_for_people() {
        let told = [1, 99, 125, 3600, 12_000].map(format_seconds);
        assert_eq!(told, ["1 s", "99 s", "2 min 5 s", "1 h 0 min", "3 h 20 min"]);
    }
}
