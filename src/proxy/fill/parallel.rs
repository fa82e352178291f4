//! A large blob by several requests at once, so that one connection's speed isn't the limit.
//!
//! ```text
//! pieces   0        1        2        3        4        5 …
//! lanes    a ──▶    b ──▶    c ──▶    d ──▶    (who is done takes the next one)
//! file     ████████ ███      █████    █        written in place, each byte once
//! ordered  ───────▶                            read back from the file in order, hashed by who asked for it
//! ```

use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::content::{Body, Feed, Source};
use crate::descriptor::Descriptor;
use crate::error::{Error, Kind, Result};
use crate::pool::blocking;
use crate::proxy::cache::write_at;
use crate::proxy::reading::{CHUNK, Readers};
use crate::retry::Budget;

/// How large the pieces of a blob are: several for each lane, so that all lanes end at about one
/// time; few, since each is a request, and the upstream counts those.
pub(super) fn piece(size: u64, lanes: usize) -> u64 {
    (size / (4 * lanes.max(1) as u64)).clamp(SMALLEST.min(size), LARGEST)
}

/// The blob's bytes in order, as they get into `file` in any order. `first` is the body of the first piece.
///
/// Dropped, it ends its requests.
pub(super) fn ordered<S: Source>(
    feed: &Feed<S>,
    source: &S,
    first: Body,
    file: Arc<File>,
    lanes: usize,
    readers: Readers,
) -> Body {
    let blob = feed.blob().clone();
    let piece = piece(blob.size, lanes);
    let count = usize::try_from(blob.size.div_ceil(piece)).unwrap_or(usize::MAX);
    let shared = Arc::new(Shared {
        written: (0..count).map(|_| AtomicU64::new(0)).collect(),
        piece,
        blob,
        next: AtomicUsize::new(0),
        first: Mutex::new(Some(first)),
        budget: feed.budget().clone(),
        moved: feed.moved(),
        file,
        failed: OnceLock::new(),
        tick: watch::Sender::new(()),
    });
    let mut tasks = JoinSet::new();
    for _ in 0..lanes.min(count) {
        let (shared, source) = (shared.clone(), source.clone());
        tasks.spawn(async move {
            if let Err(error) = shared.lane(&source).await {
                let _ = shared.failed.set(error);
                shared.tick.send_replace(());
            }
        });
    }
    let reading = Ordered { tick: shared.tick.subscribe(), shared, at: 0, readers, _tasks: tasks };
    stream::try_unfold(reading, Ordered::next).boxed()
}

struct Shared {
    blob: Descriptor,
    piece: u64,
    /// Bytes of each piece that are in the file, from its beginning on.
    written: Vec<AtomicU64>,
    /// The next piece that nobody has taken.
    next: AtomicUsize,
    first: Mutex<Option<Body>>,
    budget: Budget,
    moved: Arc<dyn Fn(u64) + Send + Sync>,
    file: Arc<File>,
    failed: OnceLock<Error>,
    /// Something was written, or failed.
    tick: watch::Sender<()>,
}

impl Shared {
    /// Fetches pieces until there are none left.
    async fn lane<S: Source>(&self, source: &S) -> Result<()> {
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed);
            if number >= self.written.len() {
                return Ok(());
            }
            let start = number as u64 * self.piece;
            let mut body = match number {
                0 => self.first.lock().unwrap_or_else(PoisonError::into_inner).take(),
                _ => None,
            };
            let part = start..self.blob.size.min(start + self.piece);
            let mut at = start;
            while at < part.end {
                if let Err(error) = self.get_on(source, &mut body, number, &mut at, &part).await {
                    body = None;
                    self.budget.retry(error).await?;
                }
            }
        }
    }

    /// One step: opens the body, or writes what comes of it.
    async fn get_on<S: Source>(
        &self,
        source: &S,
        body: &mut Option<Body>,
        number: usize,
        at: &mut u64,
        part: &Range<u64>,
    ) -> Result<()> {
        let Some(open) = body else {
            *body = Some(source.part(&self.blob, *at..part.end).await?);
            return Ok(());
        };
        let Some(first) = open.try_next().await? else {
            return Err(Error::new(Kind::Network, format!("the body ended at byte {at} of {}", part.end)));
        };
        let (mut frames, mut size) = (vec![first], 0);
        let mut broke = None;
        while size < GATHERED {
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
        if *at + length > part.end {
            return Err(Error::new(Kind::Mismatch, "the registry sent more than was asked for"));
        }
        let (file, offset) = (self.file.clone(), *at);
        blocking(move || {
            let mut at = offset;
            for frame in &frames {
                write_at(&file, frame, at)?;
                at += frame.len() as u64;
            }
            Ok(())
        })
        .await?;
        *at += length;
        self.written[number].store(*at - part.start, Ordering::Release);
        self.tick.send_replace(());
        self.budget.progress(length);
        (self.moved)(length);
        broke.map_or(Ok(()), Err)
    }
}

struct Ordered {
    shared: Arc<Shared>,
    tick: watch::Receiver<()>,
    at: u64,
    readers: Readers,
    _tasks: JoinSet<()>,
}

impl Ordered {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        let Shared { blob, piece, written, failed, file, .. } = &*self.shared;
        if self.at >= blob.size {
            return Ok(None);
        }
        let number = usize::try_from(self.at / piece).unwrap_or(usize::MAX);
        let there = loop {
            self.tick.mark_unchanged();
            let there = number as u64 * piece + written[number].load(Ordering::Acquire);
            if there > self.at {
                break there;
            }
            if let Some(error) = failed.get() {
                return Err(error.duplicate());
            }
            // Can't fail: the sender is in here.
            let _ = self.tick.changed().await;
        };
        let bytes = self.readers.read(file.clone(), self.at..there.min(self.at + CHUNK as u64)).await?;
        self.at += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }
}

const SMALLEST: u64 = 8 << 20;
const LARGEST: u64 = 64 << 20;
/// Written in one go on the blocking pool.
const GATHERED: usize = 256 << 10;
