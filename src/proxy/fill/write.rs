//! The writer: from the upstream into a file, to the end or to an error that all readers hear of.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::store::Writer;
use super::{Begun, Fill, Progress, Stage, parallel};
use crate::content::{Body, Feed, Source};
use crate::descriptor::Descriptor;
use crate::error::{Error, Kind, Result};
use crate::panics;
use crate::pool::blocking;
use crate::proxy::cache::{Room, Temp};
use crate::proxy::events::Event;
use crate::proxy::{Inner, Origins};
use crate::verify::{Check, Verified};

/// Ends a fill, also when its task is dropped: its readers hear of it, and it leaves the list.
struct Ending<O: Origins> {
    inner: Arc<Inner<O>>,
    fill: Arc<Fill<O::Source>>,
}

impl<O: Origins> Drop for Ending<O> {
    fn drop(&mut self) {
        // Off the list first: who comes now begins anew.
        self.inner.fills.lock().remove(&self.fill.digest);
        let failed = self.fill.progress.send_if_modified(|progress| {
            let over = progress.stage != Stage::Whole;
            if over {
                progress.stage = Stage::Failed;
            }
            over
        });
        if matches!(self.fill.begun.get(), Some(Begun { to: Some(_), .. })) {
            let failed = failed.then(|| self.fill.why());
            let event = Event::FillEnded { digest: &self.fill.digest, failed: failed.as_ref() };
            self.inner.observer.event(&event);
        }
    }
}

impl<O: Origins> Inner<O> {
    /// Begins to fetch, in a task of the proxy's.
    pub(super) fn begin(self: &Arc<Self>, fill: Arc<Fill<O::Source>>) {
        let ending = Ending { inner: self.clone(), fill };
        self.tasks.spawn(async move {
            let Ending { inner, fill } = &ending;
            if let Err(error) = panics::caught(Box::pin(inner.fill(fill))).await {
                match error.kind() {
                    Kind::NotFound => {}
                    Kind::Local => inner.uncached(&error),
                    _ if error.is_reported() => tracing::debug!("{error}"),
                    _ => tracing::warn!("{error}"),
                }
                if fill.begun.get().is_some() {
                    // Perhaps it's the manifest's size that is wrong: the next time the upstream is asked.
                    inner.forget_size(&fill.spot, &fill.digest);
                }
                // Before the stage says so.
                let _ = fill.error.set(error);
            }
        });
    }

    async fn fill(self: &Arc<Self>, fill: &Arc<Fill<O::Source>>) -> Result<()> {
        let registry = |tier: usize| fill.spot.upstream.tiers[tier].registry.as_str();
        let Some(mut place) = self.fills.slots.take(registry(0), self.timeouts.fill_place).await else {
            return self.crowded(fill, registry(0)).await;
        };
        let told = self.told_size(&fill.spot, &fill.digest);
        let opened = match (told, self.open(fill, told).await) {
            (Some(told), Err(error)) if error.kind() == Kind::Mismatch => {
                tracing::warn!("{error}; a manifest said {told} bytes");
                self.forget_size(&fill.spot, &fill.digest);
                self.open(fill, None).await
            }
            (_, opened) => opened,
        };
        let Some((blob, temp, tier, source, first)) = opened? else { return Ok(()) };
        if tier > 0 {
            // A place is of the registry that is read from; not while it holds another one.
            drop(place);
            let Some(other) = self.fills.slots.take(registry(tier), self.timeouts.fill_place).await else {
                return self.crowded(fill, registry(tier)).await;
            };
            place = other;
        }
        let _place = place;
        let feed = self.feed(&fill.spot, tier, source.clone(), &blob);
        let room = temp.room()?;
        let (body, written_from) = self.body(fill, &feed, &source, first, &room)?;
        self.observer.event(&Event::FillBegan { digest: &fill.digest, size: blob.size });
        let _ = fill.begun.set(Begun { blob: blob.clone(), to: Some((temp.file(), feed)) });
        fill.enter(Stage::Running);
        let Some(Begun { to: Some((_, feed)), .. }) = fill.begun.get() else { return Ok(()) };
        let fetched = fill.run(feed, body, written_from, &room).await;
        self.learn_fetched(&fill.spot, tier, &fill.digest, &fetched);
        fetched?;
        // By its bytes, which are right: the repository holds it.
        self.admit(&fill.spot, &fill.digest, Some(blob.size));
        fill.enter(Stage::Whole);
        let (blobs, digest) = (self.cache.blobs.clone(), fill.digest);
        match blocking(move || blobs.commit(digest, temp)).await {
            Ok(pin) => drop(fill.pin.set(pin)),
            Err(error) => {
                // After a failed fsync the system may forget what was written: nobody may read the file any more.
                fill.progress.send_modify(|progress| *progress = Progress { stage: Stage::Failed, at: 0 });
                return Err(error);
            }
        }
        Ok(())
    }

    /// A file for it, and its first bytes. Room is taken as they arrive: a manifest and an upstream can announce what they
    /// will, and nothing has to go for that. `None` if it can only be passed on, which `fill` then says.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no tier has it; [`Kind::Mismatch`] if it's of another size than `told`.
    async fn open(
        &self,
        fill: &Fill<O::Source>,
        told: Option<u64>,
    ) -> Result<Option<(Descriptor, Temp, usize, O::Source, Body)>> {
        let absent = || Error::new(Kind::NotFound, "no tier has the blob");
        let size = match told {
            Some(size) => size,
            None => self.ask_size(&fill.spot, &fill.digest).await?.ok_or_else(absent)?,
        };
        let blob = Descriptor::new(OCTETS, fill.digest, size);
        let shelf = self.cache.blobs.clone();
        let temp = match blocking(move || shelf.prepare(size)).await {
            Ok(temp) => temp,
            Err(error) => {
                if told.is_some() && self.ask_size(&fill.spot, &fill.digest).await?.ok_or_else(absent)? != size {
                    return Err(Error::new(Kind::Mismatch, format!("blob {} has not {size} bytes", fill.digest)));
                }
                return Ok(self.pass_on(fill, blob, &error));
            }
        };
        let part = if self.is_parallel(size) { 0..parallel::piece(size, self.settings.parallel) } else { 0..size };
        let (source, tier, first) = self.open_part(&fill.spot, &blob, part).await?.ok_or_else(absent)?;
        Ok(Some((blob, temp, tier, source, first)))
    }

    /// Too much is being fetched from the registry: who wants this blob reads it past the cache.
    async fn crowded(&self, fill: &Fill<O::Source>, registry: &str) -> Result<()> {
        let absent = || Error::new(Kind::NotFound, "no tier has the blob");
        let size = self.ask_size(&fill.spot, &fill.digest).await?.ok_or_else(absent)?;
        tracing::info!("{}: no place among the fills from {registry}; streaming without caching", fill.digest);
        let _ = fill.begun.set(Begun { blob: Descriptor::new(OCTETS, fill.digest, size), to: None });
        fill.enter(Stage::Running);
        Ok(())
    }

    /// Each reads it for himself, since it can't be cached.
    fn pass_on<T>(&self, fill: &Fill<O::Source>, blob: Descriptor, why: &Error) -> Option<T> {
        self.uncached(why);
        let _ = fill.begun.set(Begun { blob, to: None });
        fill.enter(Stage::Running);
        None
    }

    fn is_parallel(&self, size: u64) -> bool {
        self.settings.parallel > 1 && size >= self.settings.parallel_from
    }

    /// The bytes to verify, and from where on they are in the file already when they come, if they are fetched in parts.
    fn body(
        &self,
        fill: &Fill<O::Source>,
        feed: &Feed<O::Source>,
        source: &O::Source,
        first: Body,
        room: &Arc<Room>,
    ) -> Result<(Verified, Option<Arc<AtomicU64>>)> {
        if self.is_parallel(feed.blob().size) {
            let lanes = self.settings.parallel;
            let (readers, progress) = (self.readers.clone(), fill.progress.subscribe());
            let is_written = move || progress.borrow().at > 0;
            let (body, from) = parallel::ordered(feed, source, first, room.clone(), lanes, readers, is_written);
            return Ok((feed.verified(body)?, Some(from)));
        }
        Ok((feed.begun(first)?, None))
    }

    /// Says that the cache can't be used, once.
    fn uncached(&self, error: &Error) {
        if self.fills.told.swap(true, Ordering::Relaxed) {
            tracing::debug!("{error}");
        } else {
            tracing::error!("{error}: what can't be cached is passed on uncached");
        }
    }
}

impl<S: Source> Fill<S> {
    async fn run(
        self: &Arc<Self>,
        feed: &Feed<S>,
        body: Verified,
        written_from: Option<Arc<AtomicU64>>,
        room: &Arc<Room>,
    ) -> Result<()> {
        let (body, check) = body.apart();
        let in_parts = written_from.is_some();
        let mut received = Received { body, early: Vec::new(), in_parts, ended: false };
        let done = self.store(feed, &mut received, check, written_from, room).await;
        if done.as_ref().is_err_and(|error| error.kind() == Kind::Local) {
            self.hand_over(feed, received);
        }
        done
    }

    /// Where nothing could be written, the first reader takes the open body, so that it is not requested twice.
    fn hand_over(&self, feed: &Feed<S>, received: Received) {
        let Received { body, early, in_parts, ended } = received;
        if ended || self.progress.borrow().at > 0 {
            return;
        }
        let mut whole = stream::iter(early.into_iter().map(Ok)).chain(body).boxed();
        if in_parts {
            // It is one request still: nothing is split before bytes are written.
            whole = parallel::or_by_one_request(feed.clone(), whole);
        }
        if let Ok(whole) = feed.verified(whole) {
            *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole.boxed());
        }
    }

    async fn store(
        self: &Arc<Self>,
        feed: &Feed<S>,
        received: &mut Received,
        check: Check,
        written_from: Option<Arc<AtomicU64>>,
        room: &Arc<Room>,
    ) -> Result<()> {
        let writer = |at, check, written_from| {
            let fill = self.clone();
            Writer::new(room.clone(), at, check, written_from, move |at| fill.reached(at))
        };
        let mut writing = writer(0, Some(check), written_from);
        let mut at = 0;
        while at < feed.blob().size {
            // Room first: what is received waits in the connection else.
            writing.room().await?;
            let gathered = match select(pin!(gather(&mut received.body)), pin!(writing.failed())).await {
                Either::Left((gathered, _)) => gathered,
                Either::Right((error, _)) => return Err(error),
            };
            match gathered {
                Ok(frames) => {
                    at += frames.iter().map(|frame| frame.len() as u64).sum::<u64>();
                    received.keep(&frames, self.progress.borrow().at);
                    writing.push(frames);
                }
                Err(error) => {
                    received.ended = true;
                    // What came before it is good, if that isn't worse.
                    writing.idle().await?;
                    if !received.in_parts || error.kind() != Kind::Unsupported {
                        return Err(error);
                    }
                    tracing::info!("{error}: {} is fetched by one request", self.digest);
                    (received.in_parts, received.ended) = (false, false);
                    received.early.clear();
                    received.body = feed.open(at).await?.boxed();
                    writing = writer(at, None, None);
                }
            }
        }
        // The end is asked for, though it's known: an empty blob was checked when it was opened.
        writing.idle().await
    }

    /// So much is right, and in the file: readers may have it.
    fn reached(&self, at: u64) {
        self.progress.send_if_modified(|progress| {
            // A thread may come to it after all has ended.
            let is_on = progress.stage == Stage::Running;
            if is_on {
                progress.at = at;
            }
            is_on
        });
    }

    fn enter(&self, stage: Stage) {
        self.progress.send_modify(|progress| progress.stage = stage);
    }
}

/// What comes from the upstream.
struct Received {
    body: Body,
    /// The first frames, until the writer has written some.
    early: Vec<Bytes>,
    in_parts: bool,
    /// The body has failed.
    ended: bool,
}

impl Received {
    /// Keeps frames as long as nothing is `written`: at most those that the writer lets wait.
    fn keep(&mut self, frames: &[Bytes], written: u64) {
        if written == 0 {
            self.early.extend_from_slice(frames);
        } else {
            self.early = Vec::new();
        }
    }
}

/// The next frame, and those that are there already: at least one.
async fn gather(body: &mut Body) -> Result<Vec<Bytes>> {
    let mut size = 0;
    let mut frames = Vec::new();
    loop {
        let next = if frames.is_empty() {
            body.next().await
        } else {
            // Asked without a waker: it's asked again, with one, before anybody waits for it.
            match body.next().now_or_never() {
                Some(next) => next,
                None => return Ok(frames),
            }
        };
        match next {
            Some(Ok(frame)) => {
                size += frame.len();
                frames.push(frame);
            }
            // What came before it is lost with it: no reader may have it after that.
            Some(Err(error)) => return Err(error),
            None if frames.is_empty() => return Err(Error::new(Kind::Network, "the body ended early")),
            None => return Ok(frames),
        }
        if size >= GATHERED {
            return Ok(frames);
        }
    }
}

/// Written in one go on the blocking pool.
const GATHERED: usize = 256 << 10;
const OCTETS: &str = "application/octet-stream";
