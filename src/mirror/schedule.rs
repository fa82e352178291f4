//! Repeats runs: at an interval, and at once when the list changes.
//!
//! ```text
//! read ── run ── wait: due? ────────────────┐
//!          ▲       │ the list changed? ── valid: run at once; invalid: report it, keep the old one
//!          │       │ SIGHUP? ────────────── the same, changed or not
//!          └───────┴ stop? ── end
//! ```
//! Runs never overlap: the next one is due an interval after the start of the last one, or at its end if it took
//! longer. The list is read every few seconds instead of being watched: a Kubernetes ConfigMap is a symbolic link to
//! a directory that is replaced, which a watch of the file does not see.

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
    /// The time from the start of a run to the next one. It varies by a few percent, so that many mirrors do not
    /// start together.
    pub(crate) every: Duration,
    /// How often the list is read.
    pub(crate) poll: Duration,
}

impl Schedule {
    /// A schedule with this interval.
    pub(crate) fn new(every: Duration) -> Self {
        Self { every, poll: POLL_INTERVAL }
    }

    /// The time to the next run: the interval, plus or minus 3 %.
    fn spread(&self) -> Duration {
        self.every.mul_f64(1.0 - JITTER_SHARE) + jitter(self.every.mul_f64(2.0 * JITTER_SHARE))
    }
}

/// A source of list bytes.
pub(crate) trait ListOrigin: Send + Sync {
    /// The current bytes.
    fn read(&self) -> impl Future<Output = Result<Vec<u8>>> + Send;
}

/// A file with a list.
#[derive(Clone, Debug)]
pub(crate) struct ListFile(pub(crate) PathBuf);

impl ListOrigin for ListFile {
    async fn read(&self) -> Result<Vec<u8>> {
        let failed = |error| Error::unreadable(format!("read {}", self.0.display()), &error);
        // The file is read repeatedly, so it cannot be a pipe, unlike the list of a single run.
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

/// Events for logs and metrics.
#[derive(Debug)]
pub(crate) enum Event<'a> {
    /// A valid list was loaded: the first one, a new one, or the old one after an invalid one.
    Loaded,
    /// The current list is invalid; the last valid one is kept.
    Rejected(&'a Error),
    /// A run began.
    Begun,
    /// A run ended, with any result.
    Ended,
    /// The next run is due after this time.
    Next(Duration),
}

/// Calls `run` with the list of `origin` at once, and then on `schedule`, until `shutdown` is ready, which drops the
/// current run. After a notice by `hangup` (SIGHUP) the list is read, and a run begins at once; a notice during a run
/// takes effect at its end.
///
/// # Errors
/// If the list is unreadable or invalid at the start. Later the last valid one is kept, and the error is passed to
/// `report`.
pub(crate) async fn run_every<L, O: ListOrigin>(
    schedule: &Schedule,
    origin: &O,
    parse: impl Fn(&[u8]) -> Result<L>,
    mut run: impl AsyncFnMut(&L),
    hangup: &Notify,
    shutdown: impl Future<Output = ()>,
    report: impl Fn(Event<'_>),
) -> Result<()> {
    let bytes = origin.read().await?;
    let mut list = parse(&bytes)?;
    let current = Digest::of(&bytes);
    let mut watch =
        ListWatcher { origin, parse, report: &report, current, changes: ChangeDetector::starting_at(current) };
    report(Event::Loaded);
    let mut shutdown = pin!(shutdown);
    loop {
        let started = Instant::now();
        report(Event::Begun);
        tokio::select! {
            biased;
            () = &mut shutdown => return Ok(()),
            () = run(&list) => {}
        }
        report(Event::Ended);
        let due = (started + schedule.spread()).max(Instant::now());
        report(Event::Next(due.duration_since(Instant::now())));
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

/// Watches the list.
struct ListWatcher<'a, O, P, T> {
    origin: &'a O,
    parse: P,
    report: &'a T,
    /// The digest of the list in use.
    current: Digest,
    /// The digest that was accepted or rejected last, and a new one.
    changes: ChangeDetector<Digest>,
}

impl<L, O: ListOrigin, P: Fn(&[u8]) -> Result<L>, T: Fn(Event<'_>)> ListWatcher<'_, O, P, T> {
    /// Waits until a run is due, by the time, a new list or a notice. Returns a new list.
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

    /// Reads the list; returns it if it is not the one in use. A new list must be read twice without a change, in
    /// case it is still being written, unless the user says that it is `ready`.
    ///
    /// # Errors
    /// Reported when the list is first seen.
    async fn check_list(&mut self, ready: bool) -> Result<Option<L>, ReportedError> {
        let bytes = match self.origin.read().await {
            Ok(bytes) => bytes,
            Err(error) => {
                if self.changes.observe_missing() || ready {
                    (self.report)(Event::Rejected(&error));
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
                (self.report)(Event::Loaded);
                let same = std::mem::replace(&mut self.current, digest) == digest;
                Ok((!same).then_some(list))
            }
            Err(error) => {
                (self.report)(Event::Rejected(&error));
                Err(ReportedError)
            }
        }
    }
}

/// An error that was reported.
struct ReportedError;

/// Parses a duration: `90s`, `6h`, `1h30m`, `7d`, `2 weeks`, or ISO 8601.
///
/// # Errors
/// [`Kind::Usage`] for other texts, for months, whose length varies, and for negative durations.
pub(crate) fn parse_duration(text: &str) -> Result<Duration> {
    let wrong = |why: String| {
        Error::new(Kind::Usage, format!("{text:?} is not a duration: {why}"))
            .hint("write it such as 90s, 15m, 6h or 7d")
    };
    let days = jiff::SpanRelativeTo::days_are_24_hours();
    let span: jiff::Span = text.parse().map_err(|error: jiff::Error| wrong(error.to_string()))?;
    let signed = span.to_duration(days).map_err(|error| wrong(error.to_string()))?;
    Duration::try_from(signed).map_err(|_| wrong("it is negative".into()))
}

const POLL_INTERVAL: Duration = Duration::from_secs(5);
const JITTER_SHARE: f64 = 0.03;

#[cfg(test)]
mod tests;
