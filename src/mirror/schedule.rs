//! Runs over and over: at an interval, and at once when the list changes.
//!
//! ```text
//! read ── run ── wait: due? ────────────────┐
//!          ▲       │ the list changed? ── read it: good? run at once; bad? say so, keep the old one
//!          │       │ SIGHUP? ────────────── likewise, changed or not
//!          └───────┴ stop? ── end
//! ```
//! Two runs never overlap: the next one is due an interval after the start of the last, or at its end if
//! that took longer. The list is read every few seconds rather than watched: a Kubernetes ConfigMap is a
//! symbolic link to a directory that is swapped, which watchers of the file itself don't see.

use std::future::Future;
use std::path::PathBuf;
use std::pin::pin;
use std::time::Duration;

use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::List;
use crate::change_detector::ChangeDetector;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result, Side};
use crate::regular_file::{self, Links};
use crate::retry::jitter;

/// When runs begin.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Schedule {
    /// From the start of a run to that of the next; a few percent more or less, so that many mirrors don't
    /// ask all at once.
    pub(crate) every: Duration,
    /// How often the list is looked at.
    pub(crate) poll: Duration,
}

impl Schedule {
    /// Every so often.
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, poll: POLL_INTERVAL }
    }

    /// The time to the next run: within 3 % of the interval.
    fn spread(&self) -> Duration {
        self.every.mul_f64(1.0 - JITTER_SHARE) + jitter(self.every.mul_f64(2.0 * JITTER_SHARE))
    }
}

/// What a list is read from.
pub(crate) trait ListOrigin: Send + Sync {
    /// Its bytes as they are now.
    fn read(&self) -> impl Future<Output = Result<Vec<u8>>> + Send;
}

/// A file with a list.
#[derive(Clone, Debug)]
pub(crate) struct ListFile(pub(crate) PathBuf);

impl ListOrigin for ListFile {
    async fn read(&self) -> Result<Vec<u8>> {
        let failed = |error| Error::unreadable(format!("read {}", self.0.display()), &error);
        // Read again and again, so it can't be a pipe: unlike the list of a single run.
        let path = self.0.clone();
        let opened = tokio::task::spawn_blocking(move || regular_file::open(&path, Links::Follow)).await;
        let opened = opened.unwrap_or_else(|error| Err(std::io::Error::other(error)));
        let (file, _) = opened.map_err(failed)?;
        let file = tokio::fs::File::from_std(file);
        let mut bytes = Vec::new();
        file.take(List::MAX_BYTES + 1).read_to_end(&mut bytes).await.map_err(failed)?;
        if bytes.len() as u64 > List::MAX_BYTES {
            let what = format!("{} has more than {} bytes", self.0.display(), List::MAX_BYTES);
            return Err(Error::new(Kind::Usage, what).on(Side::Local));
        }
        Ok(bytes)
    }
}

/// What happens, for logs and metrics.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A list was read, and is good: the first, another one, or the old one again after a bad one.
    Loaded,
    /// The list as it is now can't be used; the last good one is kept.
    Rejected(&'a Error),
    /// A run begins.
    Begun,
    /// It ended, however.
    Ended,
    /// The next one is due in so long.
    Next(Duration),
}

/// Calls `run` with the list of `origin` at once, and then on `schedule`, until `shutdown` is ready: what
/// runs then is dropped. A notice by `hangup` (SIGHUP), also one from during a run, means to read the list
/// and to run at once.
///
/// # Errors
/// If the list can't be read or parsed in the beginning. Later the last good one is kept, and `tell` hears
/// of it.
pub(crate) async fn run_every<L, O: ListOrigin>(
    schedule: &Schedule,
    origin: &O,
    parse: impl Fn(&[u8]) -> Result<L>,
    mut run: impl AsyncFnMut(&L),
    hangup: &Notify,
    shutdown: impl Future<Output = ()>,
    tell: impl Fn(Event<'_>),
) -> Result<()> {
    let bytes = origin.read().await?;
    let mut list = parse(&bytes)?;
    let current = Digest::of(&bytes);
    let mut watch = ListWatcher { origin, parse, tell: &tell, current, changes: ChangeDetector::starting_at(current) };
    tell(Event::Loaded);
    let mut shutdown = pin!(shutdown);
    loop {
        let started = Instant::now();
        tell(Event::Begun);
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            () = run(&list) => {}
        }
        tell(Event::Ended);
        let due = (started + schedule.spread()).max(Instant::now());
        tell(Event::Next(due.duration_since(Instant::now())));
        let changed = tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            changed = watch.wait(due, schedule.poll, hangup) => changed,
        };
        if let Some(new) = changed {
            list = new;
        }
    }
}

/// The list as it was seen.
struct ListWatcher<'a, O, P, T> {
    origin: &'a O,
    parse: P,
    tell: &'a T,
    /// That of the list in use.
    current: Digest,
    /// What was taken or rejected last, and what is new.
    changes: ChangeDetector<Digest>,
}

impl<L, O: ListOrigin, P: Fn(&[u8]) -> Result<L>, T: Fn(Event<'_>)> ListWatcher<'_, O, P, T> {
    /// Waits until a run is due: by the time, a new list or a notice. Returns the list if there's another one.
    async fn wait(&mut self, due: Instant, poll: Duration, hangup: &Notify) -> Option<L> {
        let mut ticks = interval(poll);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                () = hangup.notified() => {
                    if let Ok(list) = self.check_list(true).await {
                        return list;
                    }
                }
                () = sleep_until(due) => return None,
                _ = ticks.tick() => {
                    if let Ok(Some(list)) = self.check_list(false).await {
                        return Some(list);
                    }
                }
            }
        }
    }

    /// Looks at the list: a new one, if it's another than that in use. What is new must look the same twice,
    /// unless the user says that it's `ready`: half of a list that is being written would be one too.
    ///
    /// # Errors
    /// Told already, when it's first seen.
    async fn check_list(&mut self, ready: bool) -> Result<Option<L>, ReportedError> {
        let bytes = match self.origin.read().await {
            Ok(bytes) => bytes,
            Err(error) => {
                if self.changes.observe_missing() || ready {
                    (self.tell)(Event::Rejected(&error));
                }
                return Err(ReportedError);
            }
        };
        let digest = Digest::of(&bytes);
        if !self.changes.observe(digest, ready) {
            return Ok(None);
        }
        match (self.parse)(&bytes) {
            Ok(list) => {
                (self.tell)(Event::Loaded);
                let same = std::mem::replace(&mut self.current, digest) == digest;
                Ok((!same).then_some(list))
            }
            Err(error) => {
                (self.tell)(Event::Rejected(&error));
                Err(ReportedError)
            }
        }
    }
}

/// An error that was told.
struct ReportedError;

/// A duration as users write it: `90s`, `6h`, `1h30m`, `7d`, `2 weeks`; also ISO 8601.
///
/// # Errors
/// [`Kind::Usage`] for anything else, also for months, whose length isn't known, and for less than nothing.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    let wrong = |why: String| {
        Error::new(Kind::Usage, format!("{text:?} is not a duration: {why}"))
            .hint("write it such as 90s, 15m, 6h or 7d")
    };
    let days = jiff::SpanRelativeTo::days_are_24_hours();
    let span: jiff::Span = text.parse().map_err(|error: jiff::Error| wrong(error.to_string()))?;
    let signed = span.to_duration(days).map_err(|error| wrong(error.to_string()))?;
    Duration::try_from(signed).map_err(|_| wrong("it is less than nothing".into()))
}

const POLL_INTERVAL: Duration = Duration::from_secs(5);
const JITTER_SHARE: f64 = 0.03;

#[cfg(test)]
mod tests;
