//! Fetches a large blob by several requests at once, if the speed of one connection is the limit.
//!
//! The first request is for the first piece. As long as it brings bytes faster than they are hashed and written, more
//! connections would not help, and the second request is for all the rest. When the proxy waits for a connection, the rest
//! is split among several tasks, the lanes. Lanes write to the file, so nothing is split before some bytes are written:
//!
//! ```text
//! pieces   0        1        2        3        4        5 …
//! lanes    a ──▶    b ──▶    c ──▶    d ──▶    (a lane that is done takes the next piece)
//! file     ████████ ███      █████    █        written in place, each byte once
//! ordered  ───────▶                            read back from the file in order, and hashed by the caller
//! ```

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{OwnedRwLockWriteGuard, RwLock, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::batch::{Batch, next_batch};
use crate::body::Body;
use crate::content::{Feed, Source, take_bytes};
use crate::descriptor::Descriptor;
use crate::error::{Error, Kind, Result};
use crate::panics;
use crate::pool::run_blocking;
use crate::proxy::cache::ReservedFile;
use crate::proxy::file_stream::{FileReaders, MEDIUM_READ};
use crate::retry::Budget;

/// The size of the pieces of a blob in bytes. There are several for each lane, so that all lanes end at about the same
/// time, but few, because each is a request and the upstream may limit requests.
pub(super) fn piece(size: u64, connections: usize) -> u64 {
    (size / (4 * connections.max(1) as u64)).clamp(MIN_PIECE.min(size), MAX_PIECE)
}

/// The blob's bytes in order, and the offset from which on they are in the file before this body yields them. The offset is
/// [`u64::MAX`] while there is one request, also after the lanes have failed and another tier continues with one request.
/// `first` is the body of the first piece. The rest is split only after `is_written` returns true.
///
/// Dropping the body ends the requests.
pub(super) fn ordered<S: Source>(
    feed: &Feed<S>,
    source: &S,
    first: Body,
    reserved: Arc<ReservedFile>,
    connections: usize,
    readers: FileReaders,
    is_written: impl Fn() -> bool + Send + 'static,
) -> (Body, Arc<AtomicU64>) {
    let blob = feed.blob().clone();
    let piece = piece(blob.size, connections);
    let (written_from, writes) = (Arc::new(AtomicU64::new(u64::MAX)), Arc::<RwLock<()>>::default());
    let ordered = OrderedReader {
        until: piece.min(blob.size),
        fetch: PieceFetcher { source: source.clone(), blob, budget: feed.budget().clone(), moved: feed.progress() },
        piece,
        connections,
        has_fallback: feed.has_fallback(),
        at: 0,
        reserved,
        readers,
        written_from: written_from.clone(),
        writes: writes.clone(),
        is_written: Box::new(is_written),
        body: Some(first),
        pace: PaceMeter::default(),
        split: None,
    };
    let body = stream::try_unfold(ordered, OrderedReader::next).boxed();
    let whole =
        WholeBody { feed: feed.clone(), body, at: 0, written_from: written_from.clone(), writes, stopped: None };
    (stream::try_unfold(whole, WholeBody::next).boxed(), written_from)
}

/// The bytes in order; after the lanes have failed, by one request. All bytes are one stream, so the caller verifies exactly
/// the bytes that are in the file.
struct WholeBody<S: Source> {
    feed: Feed<S>,
    body: Body,
    at: u64,
    written_from: Arc<AtomicU64>,
    /// Held by the lanes while they write.
    writes: Arc<RwLock<()>>,
    /// Once the lanes have ended: none of them can write any more.
    stopped: Option<OwnedRwLockWriteGuard<()>>,
}

impl<S: Source> WholeBody<S> {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        let next = match self.body.try_next().await {
            Err(error) if error.kind() == Kind::Unsupported => {
                tracing::info!("{error}: {} is fetched by one request", self.feed.blob().digest);
                // An aborted lane may still be in a write, or at the start of one, on another thread. It must not write
                // over the bytes of the one request.
                self.stopped = Some(self.writes.clone().write_owned().await);
                self.written_from.store(u64::MAX, Ordering::Release);
                self.body = self.feed.unverified(self.at).await?;
                self.body.try_next().await?
            }
            next => next?,
        };
        Ok(next.map(|bytes| {
            self.at += bytes.len() as u64;
            (bytes, self)
        }))
    }
}

/// Measures how fast a connection brings bytes while the proxy waits for it.
#[derive(Default)]
struct PaceMeter {
    bytes: u64,
    waited: Duration,
}

impl PaceMeter {
    /// Records received bytes. Returns whether the connection is the limit.
    fn is_slow(&mut self, bytes: u64, waited: Duration) -> bool {
        self.bytes += bytes;
        self.waited += waited;
        if self.waited < PACE_INTERVAL {
            return false;
        }
        let slow = (self.bytes as f64) < FAST_ENOUGH * self.waited.as_secs_f64();
        *self = Self::default();
        slow
    }
}

/// Requests pieces of the blob.
#[derive(Clone)]
struct PieceFetcher<S> {
    source: S,
    blob: Descriptor,
    budget: Budget,
    moved: Arc<dyn Fn(u64) + Send + Sync>,
}

impl<S: Source> PieceFetcher<S> {
    async fn open(&self, part: Range<u64>) -> Result<Body> {
        self.source.blob_range(&self.blob, part).await
    }

    fn got(&self, length: u64) {
        self.budget.progress(length);
        (self.moved)(length);
    }
}

fn ended_early(at: u64, end: u64) -> Error {
    Error::new(Kind::Network, format!("the body ended at byte {at} of {end}"))
}

/// Checks that bytes up to `at` are within the request, which ends at `end`.
fn check_end(at: u64, end: u64) -> Result<()> {
    if at > end {
        return Err(Error::new(Kind::Mismatch, "the registry sent more than was asked for"));
    }
    Ok(())
}

/// A part of the blob that one lane fetches.
struct Piece {
    part: Range<u64>,
    /// Bytes from the start of the part that are in the file.
    written: AtomicU64,
}

/// The state that all lanes share.
struct SharedPieces<S> {
    fetch: PieceFetcher<S>,
    pieces: Vec<Piece>,
    /// The next piece that no lane has taken.
    next: AtomicUsize,
    /// The body of the first piece, if it is open.
    first: Mutex<Option<Body>>,
    reserved: Arc<ReservedFile>,
    writes: Arc<RwLock<()>>,
    failed: OnceLock<Error>,
    /// Signals that bytes were written or a lane has failed.
    tick: watch::Sender<()>,
}

impl<S: Source> SharedPieces<S> {
    /// Fetches pieces until there are none left.
    async fn lane(&self) -> Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(piece) = self.pieces.get(number) else { return Ok(()) };
            let mut body = match number {
                0 => self.first.lock().unwrap_or_else(PoisonError::into_inner).take(),
                _ => None,
            };
            let mut at = piece.part.start;
            while at < piece.part.end {
                if let Err(error) = self.advance(&mut body, piece, &mut at).await {
                    body = None;
                    self.fetch.budget.retry(error).await?;
                }
            }
        }
    }

    /// One step: opens the body, or writes its next batch.
    async fn advance(&self, body: &mut Option<Body>, Piece { part, written }: &Piece, at: &mut u64) -> Result<()> {
        let Some(open) = body else {
            *body = Some(self.fetch.open(*at..part.end).await?);
            return Ok(());
        };
        let Batch { frames, length, error } = next_batch(open).await;
        if frames.is_empty() {
            return Err(error.unwrap_or_else(|| ended_early(*at, part.end)));
        }
        check_end(*at + length, part.end)?;
        let (reserved, offset, writing) = (self.reserved.clone(), *at, self.writes.clone().read_owned().await);
        let write = move || {
            let _writing = writing;
            write_all(&reserved, &frames, offset)
        };
        run_blocking(write).await?;
        *at += length;
        written.store(*at - part.start, Ordering::Release);
        self.tick.send_replace(());
        self.fetch.got(length);
        error.map_or(Ok(()), Err)
    }
}

struct OrderedReader<S> {
    fetch: PieceFetcher<S>,
    piece: u64,
    connections: usize,
    /// Another tier can continue.
    has_fallback: bool,
    at: u64,
    reserved: Arc<ReservedFile>,
    readers: FileReaders,
    written_from: Arc<AtomicU64>,
    writes: Arc<RwLock<()>>,
    is_written: Box<dyn Fn() -> bool + Send>,
    /// The only request, which ends at `until`, before the split.
    body: Option<Body>,
    until: u64,
    pace: PaceMeter,
    split: Option<RemainingPieces<S>>,
}

/// The rest of the blob, split among lanes.
struct RemainingPieces<S> {
    shared: Arc<SharedPieces<S>>,
    tick: watch::Receiver<()>,
    /// The piece that is being read back.
    number: usize,
    _tasks: JoinSet<()>,
}

impl<S: Source> OrderedReader<S> {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at >= self.fetch.blob.size {
            return Ok(None);
        }
        let bytes = self.bytes().await.map_err(|error| self.final_error(error))?;
        self.at += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }

    async fn bytes(&mut self) -> Result<Bytes> {
        loop {
            if let Some(split) = &mut self.split {
                let range = split.there(self.at).await?;
                return self.readers.read(self.reserved.file().clone(), range).await;
            }
            match self.advance().await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {}
                Err(error) => {
                    self.body = None;
                    self.fetch.budget.retry(error).await?;
                }
            }
        }
    }

    /// The error to end with. If a fallback exists, it is [`Kind::Unsupported`]: the caller then continues with one request.
    fn final_error(&self, error: Error) -> Error {
        if self.has_fallback && error.kind() != Kind::Local {
            return Error::new(Kind::Unsupported, error.to_string());
        }
        error
    }

    /// One step of the only request: opens it, or returns its next frame.
    async fn advance(&mut self) -> Result<Option<Bytes>> {
        if self.at == self.until {
            self.body = None;
            self.until = self.fetch.blob.size;
        }
        let Some(open) = &mut self.body else {
            self.body = Some(self.fetch.open(self.at..self.until).await?);
            return Ok(None);
        };
        let mut waited = Duration::ZERO;
        let next = match open.try_next().now_or_never() {
            Some(next) => next,
            None => {
                let begun = Instant::now();
                let next = open.try_next().await;
                waited = begun.elapsed();
                next
            }
        };
        let bytes = next?.ok_or_else(|| ended_early(self.at, self.until))?;
        let length = bytes.len() as u64;
        let end = self.at + length;
        check_end(end, self.until)?;
        self.fetch.got(length);
        if self.pace.is_slow(length, waited) && end < self.fetch.blob.size && (self.is_written)() {
            self.split = Some(self.split(end));
        }
        Ok(Some(bytes))
    }

    /// Splits the blob from `from` on among lanes. The first lane takes over the open request.
    fn split(&mut self, from: u64) -> RemainingPieces<S> {
        self.written_from.store(from, Ordering::Release);
        let mut pieces = Vec::new();
        let (mut start, mut end) = (from, self.until.min(from + self.piece));
        // If the request is for all the rest, its connection is closed at the end of the piece.
        let first = self.body.take().filter(|_| start < end).map(|body| take_bytes(body, end - start));
        while start < self.fetch.blob.size {
            if start < end {
                pieces.push(Piece { part: start..end, written: AtomicU64::new(0) });
            }
            (start, end) = (end, self.fetch.blob.size.min(end + self.piece));
        }
        let shared = Arc::new(SharedPieces {
            fetch: self.fetch.clone(),
            next: AtomicUsize::new(0),
            first: Mutex::new(first),
            reserved: self.reserved.clone(),
            writes: self.writes.clone(),
            failed: OnceLock::new(),
            tick: watch::Sender::new(()),
            pieces,
        });
        let mut tasks = JoinSet::new();
        for _ in 0..self.connections.min(shared.pieces.len()) {
            let shared = shared.clone();
            tasks.spawn(async move {
                if let Err(error) = panics::catch_panic(shared.lane()).await {
                    let _ = shared.failed.set(error);
                    shared.tick.send_replace(());
                }
            });
        }
        RemainingPieces { tick: shared.tick.subscribe(), shared, number: 0, _tasks: tasks }
    }
}

impl<S> RemainingPieces<S> {
    /// Waits until the byte at `at` is in the file. Returns the range that can be read at once from there.
    async fn there(&mut self, at: u64) -> Result<Range<u64>> {
        let SharedPieces { pieces, failed, .. } = &*self.shared;
        let piece = loop {
            match pieces.get(self.number) {
                Some(piece) if at < piece.part.end => break piece,
                Some(_) => self.number += 1,
                None => return Err(Error::new(Kind::Local, "read past the blob's end")),
            }
        };
        loop {
            self.tick.mark_unchanged();
            let there = piece.part.start + piece.written.load(Ordering::Acquire);
            if there > at {
                return Ok(at..there.min(at + MEDIUM_READ as u64));
            }
            if let Some(error) = failed.get() {
                return Err(error.duplicate());
            }
            // Cannot fail: `self` holds the sender.
            let _ = self.tick.changed().await;
        }
    }
}

/// Writes frames that begin at `at`.
fn write_all(reserved: &ReservedFile, frames: &[Bytes], mut at: u64) -> Result<()> {
    for frame in frames {
        reserved.write(frame, at)?;
        at += frame.len() as u64;
    }
    Ok(())
}

/// The waiting time after which the speed of the connection is computed.
const PACE_INTERVAL: Duration = Duration::from_millis(50);
/// In bytes per second: about what one core hashes and writes. More connections do not help beyond that.
const FAST_ENOUGH: f64 = (256 << 20) as f64;
const MIN_PIECE: u64 = 8 << 20;
const MAX_PIECE: u64 = 64 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_connection_is_slow_only_when_it_is_waited_for() {
        let ms = Duration::from_millis;
        let mut pace = PaceMeter::default();
        assert!(!pace.is_slow(1, ms(49)), "too early to say");
        assert!(pace.is_slow(1, ms(1)));
        // What came is forgotten with each look.
        assert!(!pace.is_slow(1 << 30, ms(60)));
        assert!(pace.is_slow(1 << 20, ms(60)));
        for _ in 0..1000 {
            assert!(!pace.is_slow(1 << 10, Duration::ZERO), "we are the limit");
        }
    }
}
