//! A large blob by several requests at once, where one connection's speed is the limit.
//!
//! It begins with one request, for the first piece. While that brings bytes faster than we take them,
//! more of them would only cost more: each byte passes through memory, hashed on its way into the file. So a
//! second one is for all the rest. Once one is waited for, what is left is split among lanes. That needs a file that can
//! be written, so nothing is split before some bytes are in it:
//!
//! ```text
//! pieces   0        1        2        3        4        5 …
//! lanes    a ──▶    b ──▶    c ──▶    d ──▶    (who is done takes the next one)
//! file     ████████ ███      █████    █        written in place, each byte once
//! ordered  ───────▶                            read back from the file in order, hashed by who asked for it
//! ```

use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{RwLock, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::body::Body;
use crate::content::{Feed, Source, take_bytes};
use crate::descriptor::Descriptor;
use crate::error::{Error, Kind, Result};
use crate::panics;
use crate::pool::run_blocking;
use crate::proxy::cache::ReservedFile;
use crate::proxy::file_stream::{FileReaders, MEDIUM_READ};
use crate::retry::Budget;

/// How large the pieces of a blob are: several for each lane, so that all lanes end at about one
/// time; few, since each is a request, and the upstream counts those.
pub(super) fn piece(size: u64, connections: usize) -> u64 {
    (size / (4 * connections.max(1) as u64)).clamp(MIN_PIECE.min(size), MAX_PIECE)
}

/// The blob's bytes in order, and from which offset on they are in the file before they come out here: [`u64::MAX`] as
/// long as one request is enough, and again once the parts are given up for another tier, which is read from by one
/// request. `first` is the body of the first piece. Nothing is split among lanes before `is_written` says that the file has
/// some of the bytes.
///
/// Dropped, it ends its requests.
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
        replaceable: feed.has_fallback(),
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
    let whole = Whole { feed: feed.clone(), body, at: 0, written_from: written_from.clone(), writes };
    (stream::try_unfold(whole, Whole::next).boxed(), written_from)
}

/// The bytes in order, by one request from where the parts are given up. All of them are one stream, so that whoever
/// verifies it verifies exactly the bytes that are in the file.
struct Whole<S: Source> {
    feed: Feed<S>,
    body: Body,
    at: u64,
    written_from: Arc<AtomicU64>,
    /// Held by the lanes while they write.
    writes: Arc<RwLock<()>>,
}

impl<S: Source> Whole<S> {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        let next = match self.body.try_next().await {
            Err(error) if error.kind() == Kind::Unsupported => {
                tracing::info!("{error}: {} is fetched by one request", self.feed.blob().digest);
                // A write of a lane that has ended goes on: it must not come after those of the one request.
                drop(self.writes.write().await);
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

/// How fast a connection brings bytes while it's waited for.
#[derive(Default)]
struct PaceMeter {
    bytes: u64,
    waited: Duration,
}

impl PaceMeter {
    /// Notes what came. Whether the connection is the limit.
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

/// What all requests for the blob have in common.
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

/// That what came up to `at` is within what was asked for, up to `end`.
fn check_end(at: u64, end: u64) -> Result<()> {
    if at > end {
        return Err(Error::new(Kind::Mismatch, "the registry sent more than was asked for"));
    }
    Ok(())
}

/// A part of the blob that one request is for.
struct Piece {
    part: Range<u64>,
    /// Bytes of it that are in the file, from its beginning on.
    written: AtomicU64,
}

/// What the lanes share.
struct SharedPieces<S> {
    fetch: PieceFetcher<S>,
    pieces: Vec<Piece>,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    /// The body of the first piece, if it's open.
    first: Mutex<Option<Body>>,
    reserved: Arc<ReservedFile>,
    writes: Arc<RwLock<()>>,
    failed: OnceLock<Error>,
    /// Something was written, or failed.
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
                if let Err(error) = self.get_on(&mut body, piece, &mut at).await {
                    body = None;
                    self.fetch.budget.retry(error).await?;
                }
            }
        }
    }

    /// One step: opens the body, or writes what comes of it.
    async fn get_on(&self, body: &mut Option<Body>, Piece { part, written }: &Piece, at: &mut u64) -> Result<()> {
        let Some(open) = body else {
            *body = Some(self.fetch.open(*at..part.end).await?);
            return Ok(());
        };
        let Some(first) = open.try_next().await? else {
            return Err(ended_early(*at, part.end));
        };
        let (mut frames, mut size) = (vec![first], 0);
        let mut broke = None;
        while size < WRITE_BATCH {
            size = frames.iter().map(Bytes::len).sum();
            match open.try_next().now_or_never() {
                Some(Ok(Some(frame))) => frames.push(frame),
                Some(Err(error)) => {
                    broke = Some(error);
                    break;
                }
                Some(Ok(None)) | None => break,
            }
        }
        let length: u64 = frames.iter().map(|frame| frame.len() as u64).sum();
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
        broke.map_or(Ok(()), Err)
    }
}

struct OrderedReader<S> {
    fetch: PieceFetcher<S>,
    piece: u64,
    connections: usize,
    /// There is another one to read from.
    replaceable: bool,
    at: u64,
    reserved: Arc<ReservedFile>,
    readers: FileReaders,
    written_from: Arc<AtomicU64>,
    writes: Arc<RwLock<()>>,
    is_written: Box<dyn Fn() -> bool + Send>,
    /// The only request, as long as there is one: to `until`.
    body: Option<Body>,
    until: u64,
    pace: PaceMeter,
    split: Option<RemainingPieces<S>>,
}

/// What is left when one request isn't enough.
struct RemainingPieces<S> {
    shared: Arc<SharedPieces<S>>,
    tick: watch::Receiver<()>,
    /// The piece that is read.
    number: usize,
    _tasks: JoinSet<()>,
}

impl<S: Source> OrderedReader<S> {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at >= self.fetch.blob.size {
            return Ok(None);
        }
        let bytes = self.bytes().await.map_err(|error| self.given_up(error))?;
        self.at += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }

    async fn bytes(&mut self) -> Result<Bytes> {
        loop {
            if let Some(split) = &mut self.split {
                let range = split.there(self.at).await?;
                return self.readers.read(self.reserved.file().clone(), range).await;
            }
            match self.alone().await {
                Ok(Some(bytes)) => return Ok(bytes),
                Ok(None) => {}
                Err(error) => {
                    self.body = None;
                    self.fetch.budget.retry(error).await?;
                }
            }
        }
    }

    /// Why it can't be gone on by parts: where another has the blob, because he is read from by one request.
    fn given_up(&self, error: Error) -> Error {
        if self.replaceable && error.kind() != Kind::Local {
            return Error::new(Kind::Unsupported, error.to_string());
        }
        error
    }

    /// One step of the only request: opens it, or gives what comes of it.
    async fn alone(&mut self) -> Result<Option<Bytes>> {
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

    /// Splits what comes from `from` on among lanes; the request that is under way is the first one's.
    fn split(&mut self, from: u64) -> RemainingPieces<S> {
        self.written_from.store(from, Ordering::Release);
        let mut pieces = Vec::new();
        let (mut start, mut end) = (from, self.until.min(from + self.piece));
        // Where that request is for all the rest, it ends with its connection.
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
    /// Waits until the byte at `at` is in the file. What may be read in one go from there.
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
            // Can't fail: the sender is in here.
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

/// After so much waiting it's looked at how fast the connection was meanwhile.
const PACE_INTERVAL: Duration = Duration::from_millis(50);
/// In bytes a second: what a core about hashes and stores. More connections can't bring more than that.
const FAST_ENOUGH: f64 = (256 << 20) as f64;
const MIN_PIECE: u64 = 8 << 20;
const MAX_PIECE: u64 = 64 << 20;
/// Written in one go on the blocking pool.
const WRITE_BATCH: usize = 256 << 10;

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
