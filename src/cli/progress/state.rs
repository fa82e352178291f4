//! What is known of the progress, by numbers. No terminal, no clock.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use super::lines::{BlobView, Images, View, Work};
use crate::cli::output::{count_noun, format_bytes};
use crate::copy::Outcome;
use crate::descriptor::{Descriptor, Digest};

/// The progress of a command.
#[derive(Debug)]
pub(super) struct State {
    images: Option<Images>,
    /// Bytes to be sent. What turns out to be at the destination isn't among them.
    planned: u64,
    /// Bytes of blobs that are sent.
    sent: u64,
    flights: HashMap<Digest, Flight>,
    next_flight: u64,
    /// When bytes last came.
    moved_at: Instant,
    /// All bytes that came, those of repeated attempts too.
    moved: u64,
    /// `moved` at some times, the oldest first.
    samples: VecDeque<(Instant, u64)>,
    kept_blobs: usize,
    kept_bytes: u64,
    /// Whether the destination keeps what it has of an unfinished blob.
    pub(super) keeps_partial: bool,
}

/// A blob on its way, to one or more destinations.
#[derive(Debug)]
struct Flight {
    number: u64,
    size: u64,
    transfers: u64,
    moved: u64,
    moved_at: Instant,
}

impl Flight {
    /// Bytes of all its transfers.
    fn expected(&self) -> u64 {
        self.size.saturating_mul(self.transfers)
    }

    fn arrived(&self) -> u64 {
        self.moved.min(self.expected())
    }
}

impl State {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            images: None,
            planned: 0,
            sent: 0,
            flights: HashMap::new(),
            next_flight: 0,
            moved_at: now,
            moved: 0,
            samples: VecDeque::from([(now, 0)]),
            kept_blobs: 0,
            kept_bytes: 0,
            keeps_partial: false,
        }
    }

    pub(super) fn expect_images(&mut self, more: isize) {
        let images = self.images.get_or_insert_default();
        images.total = images.total.saturating_add_signed(more);
    }

    pub(super) fn image_ended(&mut self, failed: bool) {
        let images = self.images.get_or_insert_default();
        images.ended += 1;
        images.failed += usize::from(failed);
        images.total = images.total.max(images.ended);
    }

    pub(super) fn planned(&mut self, bytes: u64) {
        self.planned = self.planned.saturating_add(bytes);
    }

    pub(super) fn unplanned(&mut self, bytes: u64) {
        self.planned = self.planned.saturating_sub(bytes);
    }

    pub(super) fn started(&mut self, blob: &Descriptor, now: Instant) {
        // A pause before it is no stall.
        if self.flights.is_empty() {
            self.moved_at = now;
        }
        self.next_flight += 1;
        let number = self.next_flight;
        let flight = self.flights.entry(blob.digest).or_insert(Flight {
            number,
            size: blob.size,
            transfers: 0,
            moved: 0,
            moved_at: now,
        });
        flight.transfers += 1;
    }

    pub(super) fn moved(&mut self, blob: &Digest, bytes: u64, now: Instant) {
        self.moved = self.moved.saturating_add(bytes);
        self.moved_at = now;
        if let Some(flight) = self.flights.get_mut(blob) {
            flight.moved = flight.moved.saturating_add(bytes);
            flight.moved_at = now;
        }
    }

    pub(super) fn finished(&mut self, blob: &Descriptor, outcome: &Outcome, now: Instant) {
        match outcome {
            Outcome::Uploaded { .. } => {
                self.end_flight(blob);
                self.moved_at = now;
                self.sent = self.sent.saturating_add(blob.size);
                self.keep(blob);
            }
            Outcome::Mounted { .. } => {
                self.unplanned(blob.size);
                self.keep(blob);
            }
            Outcome::Present => self.unplanned(blob.size),
        }
    }

    pub(super) fn abandoned(&mut self, blob: &Descriptor) {
        self.end_flight(blob);
    }

    /// One transfer of the blob is over.
    fn end_flight(&mut self, blob: &Descriptor) {
        let Some(flight) = self.flights.get_mut(&blob.digest) else { return };
        flight.transfers -= 1;
        flight.moved = flight.moved.saturating_sub(flight.size);
        if flight.transfers == 0 {
            self.flights.remove(&blob.digest);
        }
    }

    fn keep(&mut self, blob: &Descriptor) {
        self.kept_blobs += 1;
        self.kept_bytes = self.kept_bytes.saturating_add(blob.size);
    }

    /// What stays if the command ends now, and what doesn't.
    pub(super) fn kept(&self) -> String {
        let (blobs, bytes) = (self.kept_blobs, format_bytes(self.kept_bytes));
        let kept = match blobs {
            0 => "no blob was finished".to_owned(),
            1 => format!("1 blob ({bytes}) is finished and kept"),
            _ => format!("{blobs} blobs ({bytes}) are finished and kept"),
        };
        let unfinished = self.flights.values().map(|flight| flight.transfers).sum::<u64>();
        let arrived = format_bytes(self.flights.values().map(Flight::arrived).sum());
        let unfinished = usize::try_from(unfinished).unwrap_or(usize::MAX);
        let again = match (self.keeps_partial, unfinished) {
            (true, 1) => "is continued",
            (true, _) => "are continued",
            (false, 1) => "starts again",
            (false, _) => "start again",
        };
        match unfinished {
            0 => format!("{kept}; run the same command to go on"),
            _ => format!(
                "{kept}; {} ({arrived} read so far) {again}; run the same command to go on",
                count_noun(unfinished, "unfinished blob")
            ),
        }
    }

    /// What is to be shown now, with these waits.
    pub(super) fn view(&mut self, now: Instant, waits: Vec<(String, String)>) -> View {
        let rate = self.rate(now);
        let in_flight: u64 = self.flights.values().map(Flight::arrived).sum();
        let sent = self.sent.saturating_add(in_flight).min(self.planned);
        let work = match (self.planned, self.flights.is_empty()) {
            (0, true) => Work::Manifests("reading manifests"),
            (planned, true) if self.sent >= planned => Work::Manifests("writing manifests"),
            _ => Work::Blobs,
        };
        let incomplete = self.flights.values().any(|flight| flight.arrived() < flight.expected());
        let silent = now.saturating_duration_since(self.moved_at);
        let stalled = (waits.is_empty() && incomplete && silent >= STALL).then_some(silent.as_secs());
        let left = self.planned.saturating_sub(sent);
        let eta = (left > 0 && rate > 0 && silent < STALL && waits.is_empty()).then(|| left / rate);
        let (blobs, more_blobs) = self.blobs(now, stalled.is_some() || !waits.is_empty());
        View {
            images: self.images.clone(),
            work,
            planned: self.planned,
            sent,
            rate,
            eta,
            stalled,
            waits,
            blobs,
            more_blobs,
        }
    }

    /// The large blobs on their way, the oldest first, and how many more there are.
    fn blobs(&self, now: Instant, all_wait: bool) -> (Vec<BlobView>, usize) {
        let mut large: Vec<(&Digest, &Flight)> =
            self.flights.iter().filter(|(_, flight)| flight.size >= MIN_BYTES_FOR_BAR).collect();
        large.sort_by_key(|(_, flight)| flight.number);
        let more = large.len().saturating_sub(MAX_BLOBS);
        let view = |(digest, flight): &(&Digest, &Flight)| {
            let silent = now.saturating_duration_since(flight.moved_at);
            let complete = flight.arrived() == flight.expected();
            BlobView {
                digest: digest.short(),
                arrived: flight.arrived(),
                size: flight.expected(),
                storing: complete,
                stalled: (!complete && !all_wait && silent >= STALL).then_some(silent.as_secs()),
            }
        };
        (large.iter().take(MAX_BLOBS).map(view).collect(), more)
    }

    /// Bytes per second of late.
    fn rate(&mut self, now: Instant) -> u64 {
        self.samples.push_back((now, self.moved));
        // Two are needed, however old: a status line comes each half minute.
        while self.samples.len() > 2
            && self.samples.get(1).is_some_and(|(at, _)| now.saturating_duration_since(*at) >= RATE_WINDOW)
        {
            self.samples.pop_front();
        }
        let Some((since, before)) = self.samples.front() else { return 0 };
        let seconds = now.saturating_duration_since(*since).as_secs_f64();
        if seconds < 0.1 {
            return 0;
        }
        ((self.moved - before) as f64 / seconds) as u64
    }
}

/// What comes later than this is worth a word.
const STALL: Duration = Duration::from_secs(3);
/// The time over which the rate is averaged.
const RATE_WINDOW: Duration = Duration::from_secs(5);
/// Smaller blobs come and go faster than one can read.
const MIN_BYTES_FOR_BAR: u64 = 1 << 20;
/// Blobs that have a line of their own.
const MAX_BLOBS: usize = 6;

#[cfg(test)]
mod tests {
    use super::super::lines::{lines, status};
    use super::*;

    const MIB: u64 = 1 << 20;

    fn blob(name: &str, size: u64) -> Descriptor {
        Descriptor { size, ..Descriptor::new("application/octet-stream", Digest::of(name.as_bytes()), size) }
    }

    fn sent(blob: &Descriptor) -> Outcome {
        Outcome::Uploaded { bytes: blob.size, attempts: 1 }
    }

    fn at(start: Instant, seconds: u64) -> Instant {
        start + Duration::from_secs(seconds)
    }

    /// Nothing is known before the plan: there is no bar that would be full at 0 B.
    #[test]
    fn before_and_after_the_blobs_no_bar_is_full() {
        let start = Instant::now();
        let mut state = State::new(start);
        assert_eq!(lines(&state.view(at(start, 1), vec![]), 80), ["reading manifests"]);
        let one = blob("one", 2 * MIB);
        state.planned(one.size);
        state.started(&one, at(start, 1));
        state.moved(&one.digest, one.size, at(start, 2));
        let shown = lines(&state.view(at(start, 3), vec![]), 80).join("\n");
        assert!(shown.contains("storing") && !shown.contains("left"), "{shown}");
        state.finished(&one, &sent(&one), at(start, 4));
        assert_eq!(lines(&state.view(at(start, 5), vec![]), 80), ["writing manifests"]);
    }

    #[test]
    fn what_is_present_is_no_throughput() {
        let start = Instant::now();
        let mut state = State::new(start);
        let (there, new) = (blob("there", 90 * MIB), blob("new", 10 * MIB));
        state.planned(100 * MIB);
        state.finished(&there, &Outcome::Present, at(start, 1));
        state.started(&new, at(start, 1));
        state.moved(&new.digest, 2 * MIB, at(start, 2));
        let view = state.view(at(start, 2), vec![]);
        assert_eq!((view.planned, view.sent, view.rate), (10 * MIB, 2 * MIB, MIB));
        assert_eq!(view.eta, Some(8));
    }

    #[test]
    fn a_stall_is_told_with_its_seconds_unless_a_wait_explains_it() {
        let start = Instant::now();
        let mut state = State::new(start);
        let one = blob("one", 2 * MIB);
        state.planned(one.size);
        state.started(&one, start);
        state.moved(&one.digest, MIB, start);
        assert_eq!(state.view(at(start, 2), vec![]).stalled, None);
        assert_eq!(state.view(at(start, 12), vec![]).stalled, Some(12));
        let wait = ("waiting for docker.io (429)".to_owned(), ", 6 s".to_owned());
        let view = state.view(at(start, 12), vec![wait]);
        assert_eq!((view.stalled, view.eta), (None, None));
        assert!(status(&view).ends_with("; waiting for docker.io (429), 6 s"), "{}", status(&view));
    }

    #[test]
    fn one_blob_that_stalls_among_others_says_so() {
        let start = Instant::now();
        let mut state = State::new(start);
        let (slow, quick) = (blob("slow", 2 * MIB), blob("quick", 200 * MIB));
        state.planned(202 * MIB);
        state.started(&slow, start);
        state.started(&quick, start);
        state.moved(&quick.digest, MIB, at(start, 9));
        let view = state.view(at(start, 10), vec![]);
        assert_eq!(view.stalled, None);
        assert_eq!(view.blobs.iter().map(|blob| blob.stalled).collect::<Vec<_>>(), [Some(10), None]);
    }

    /// Bytes that come twice don't make the bar run over, and a copy that fails takes its bytes with it.
    #[test]
    fn repeated_and_abandoned_bytes() {
        let start = Instant::now();
        let mut state = State::new(start);
        let one = blob("one", 2 * MIB);
        state.planned(one.size);
        state.started(&one, start);
        state.moved(&one.digest, 3 * MIB, start);
        let view = state.view(at(start, 1), vec![]);
        assert_eq!((view.sent, view.planned), (2 * MIB, 2 * MIB));
        state.abandoned(&one);
        state.unplanned(one.size);
        let view = state.view(at(start, 2), vec![]);
        assert_eq!((view.sent, view.planned, view.blobs.len()), (0, 0, 0));
    }

    /// One blob goes to two destinations at once.
    #[test]
    fn two_transfers_of_one_blob() {
        let start = Instant::now();
        let mut state = State::new(start);
        let one = blob("one", 2 * MIB);
        state.planned(2 * one.size);
        state.started(&one, start);
        state.started(&one, start);
        state.moved(&one.digest, 3 * MIB, start);
        state.finished(&one, &sent(&one), start);
        let view = state.view(at(start, 1), vec![]);
        assert_eq!((view.sent, view.planned, view.blobs.len()), (3 * MIB, 4 * MIB, 1));
        state.finished(&one, &sent(&one), start);
        let view = state.view(at(start, 1), vec![]);
        assert_eq!((view.sent, view.planned, view.blobs.len()), (4 * MIB, 4 * MIB, 0));
    }

    #[test]
    fn what_an_interrupt_keeps() {
        let start = Instant::now();
        let mut state = State::new(start);
        assert_eq!(state.kept(), "no blob was finished; run the same command to go on");
        let (one, two) = (blob("one", 2 * MIB), blob("two", 4 * MIB));
        state.planned(6 * MIB);
        state.started(&one, start);
        state.finished(&one, &sent(&one), start);
        state.started(&two, start);
        state.moved(&two.digest, MIB, start);
        assert_eq!(
            state.kept(),
            "1 blob (2.0 MiB) is finished and kept; 1 unfinished blob (1.0 MiB read so far) starts again; run the same \
             command to go on"
        );
        state.keeps_partial = true;
        assert!(
            state.kept().contains("; 1 unfinished blob (1.0 MiB read so far) is continued; run"),
            "{}",
            state.kept()
        );
    }

    #[test]
    fn images_are_counted_with_those_that_failed() {
        let start = Instant::now();
        let mut state = State::new(start);
        state.expect_images(21);
        state.expect_images(-1);
        for nth in 0..6 {
            state.image_ended(nth == 3);
        }
        let view = state.view(at(start, 1), vec![]);
        assert_eq!(lines(&view, 80), ["image 7 of 20, 1 failed", "reading manifests"]);
        assert_eq!(status(&view), "status: image 7 of 20, 1 failed; reading manifests");
    }
}
