//! The writer: from the upstream into a file, to the end or to an error that all readers hear of.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::writer::FillWriter;
use super::{Fill, FillStage, FillStart, Progress, parallel};
use crate::body::Body;
use crate::content::{Feed, Source};
use crate::descriptor::Descriptor;
use crate::error::{Error, Kind, Result};
use crate::panics;
use crate::pool::run_blocking;
use crate::proxy::cache::{ReservedFile, TempFile};
use crate::proxy::events::Event;
use crate::proxy::{Inner, Origins};
use crate::verify::{ContentCheck, Verified};

/// Ends a fill, also when its task is dropped: its readers hear of it, and it leaves the list.
struct FillGuard<O: Origins> {
    inner: Arc<Inner<O>>,
    fill: Arc<Fill<O::Source>>,
}

impl<O: Origins> Drop for FillGuard<O> {
    fn drop(&mut self) {
        // Off the list first: who comes now begins anew.
        self.inner.fills.lock().remove(&self.fill.digest);
        let failed = self.fill.progress.send_if_modified(|progress| {
            let over = progress.stage != FillStage::Whole;
            if over {
                progress.stage = FillStage::Failed;
            }
            over
        });
        if matches!(self.fill.begun.get(), Some(FillStart { to: Some(_), .. })) {
            let failed = failed.then(|| self.fill.failure());
            let event = Event::FillEnded { digest: &self.fill.digest, failed: failed.as_ref() };
            self.inner.observer.event(&event);
        }
    }
}

impl<O: Origins> Inner<O> {
    /// Begins to fetch, in a task of the proxy's.
    pub(super) fn spawn_fill(self: &Arc<Self>, fill: Arc<Fill<O::Source>>) {
        let ending = FillGuard { inner: self.clone(), fill };
        self.tasks.spawn(async move {
            let FillGuard { inner, fill } = &ending;
            if let Err(error) = panics::catch_panic(Box::pin(inner.fill(fill))).await {
                match error.kind() {
                    Kind::NotFound => {}
                    Kind::Local => inner.warn_uncached(&error),
                    _ if error.is_reported() => tracing::debug!("{error}"),
                    _ => tracing::warn!("{error}"),
                }
                if fill.begun.get().is_some() {
                    // Perhaps it's the manifest's size that is wrong: the next time the upstream is asked.
                    inner.forget_size(&fill.repo, &fill.digest);
                }
                // Before the stage says so.
                let _ = fill.error.set(error);
            }
        });
    }

    async fn fill(self: &Arc<Self>, fill: &Arc<Fill<O::Source>>) -> Result<()> {
        let registry = |tier: usize| fill.repo.upstream.tiers[tier].registry.as_str();
        let Some(mut place) = self.fills.slots.acquire(registry(0), self.timeouts.fill_place).await else {
            return self.crowded(fill, registry(0)).await;
        };
        let told = self.told_size(&fill.repo, &fill.digest);
        let opened = match (told, self.open(fill, told).await) {
            (Some(told), Err(error)) if error.kind() == Kind::Mismatch => {
                tracing::warn!("{error}; a manifest said {told} bytes");
                self.forget_size(&fill.repo, &fill.digest);
                self.open(fill, None).await
            }
            (_, opened) => opened,
        };
        let Some((blob, temp, tier, source, first)) = opened? else { return Ok(()) };
        if tier > 0 {
            // A place is of the registry that is read from; not while it holds another one.
            drop(place);
            let Some(other) = self.fills.slots.acquire(registry(tier), self.timeouts.fill_place).await else {
                return self.crowded(fill, registry(tier)).await;
            };
            place = other;
        }
        let _place = place;
        let feed = self.feed(&fill.repo, tier, source.clone(), &blob);
        let reserved = temp.room()?;
        let (body, written_from) = self.body(fill, &feed, &source, first, &reserved)?;
        self.observer.event(&Event::FillBegan { digest: &fill.digest, size: blob.size });
        let _ = fill.begun.set(FillStart { blob: blob.clone(), to: Some((temp.file(), feed)) });
        fill.set_stage(FillStage::Running);
        let Some(FillStart { to: Some((_, feed)), .. }) = fill.begun.get() else { return Ok(()) };
        let fetched = fill.run(feed, body, written_from, &reserved).await;
        self.learn_fetched(&fill.repo, tier, &fill.digest, &fetched);
        fetched?;
        // By its bytes, which are right: the repository holds it.
        self.admit(&fill.repo, &fill.digest, Some(blob.size));
        fill.set_stage(FillStage::Whole);
        let (blobs, digest) = (self.cache.blobs.clone(), fill.digest);
        match run_blocking(move || blobs.commit(digest, temp)).await {
            Ok(pin) => drop(fill.pin.set(pin)),
            Err(error) => {
                // After a failed fsync the system may forget what was written: nobody may read the file any more.
                fill.progress.send_modify(|progress| *progress = Progress { stage: FillStage::Failed, at: 0 });
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
    ) -> Result<Option<(Descriptor, TempFile, usize, O::Source, Body)>> {
        let absent = || Error::new(Kind::NotFound, "no tier has the blob");
        let size = match told {
            Some(size) => size,
            None => self.ask_size(&fill.repo, &fill.digest).await?.ok_or_else(absent)?,
        };
        let blob = Descriptor::new(OCTET_STREAM, fill.digest, size);
        let store = self.cache.blobs.clone();
        let temp = match run_blocking(move || store.prepare(size)).await {
            Ok(temp) => temp,
            Err(error) => {
                if told.is_some() && self.ask_size(&fill.repo, &fill.digest).await?.ok_or_else(absent)? != size {
                    return Err(Error::new(Kind::Mismatch, format!("blob {} has not {size} bytes", fill.digest)));
                }
                return Ok(self.pass_on(fill, blob, &error));
            }
        };
        let part = if self.is_parallel(size) { 0..parallel::piece(size, self.settings.parallel) } else { 0..size };
        let (source, tier, first) = self.open_part(&fill.repo, &blob, part).await?.ok_or_else(absent)?;
        Ok(Some((blob, temp, tier, source, first)))
    }

    /// Too much is being fetched from the registry: who wants this blob reads it past the cache.
    async fn crowded(&self, fill: &Fill<O::Source>, registry: &str) -> Result<()> {
        let absent = || Error::new(Kind::NotFound, "no tier has the blob");
        let size = self.ask_size(&fill.repo, &fill.digest).await?.ok_or_else(absent)?;
        tracing::info!("{}: no place among the fills from {registry}; streaming without caching", fill.digest);
        let _ = fill.begun.set(FillStart { blob: Descriptor::new(OCTET_STREAM, fill.digest, size), to: None });
        fill.set_stage(FillStage::Running);
        Ok(())
    }

    /// Each reads it for himself, since it can't be cached.
    fn pass_on<T>(&self, fill: &Fill<O::Source>, blob: Descriptor, why: &Error) -> Option<T> {
        self.warn_uncached(why);
        let _ = fill.begun.set(FillStart { blob, to: None });
        fill.set_stage(FillStage::Running);
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
        reserved: &Arc<ReservedFile>,
    ) -> Result<(Verified, Option<Arc<AtomicU64>>)> {
        if self.is_parallel(feed.blob().size) {
            let connections = self.settings.parallel;
            let (readers, progress) = (self.readers.clone(), fill.progress.subscribe());
            let is_written = move || progress.borrow().at > 0;
            let (body, from) =
                parallel::ordered(feed, source, first, reserved.clone(), connections, readers, is_written);
            return Ok((feed.verified(body)?, Some(from)));
        }
        Ok((feed.verify_first(first, 0)?, None))
    }

    /// Says that the cache can't be used, once.
    fn warn_uncached(&self, error: &Error) {
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
        reserved: &Arc<ReservedFile>,
    ) -> Result<()> {
        let (body, check) = body.into_parts();
        let mut received = ReceivedFrames { body, early: Vec::new(), ended: false };
        let done = self.store(feed.blob().size, &mut received, check, written_from, reserved).await;
        if done.as_ref().is_err_and(|error| error.kind() == Kind::Local) {
            self.hand_over(feed, received);
        }
        done
    }

    /// Where nothing could be written, the first reader takes the open body, so that it is not requested twice.
    fn hand_over(&self, feed: &Feed<S>, received: ReceivedFrames) {
        let ReceivedFrames { body, early, ended } = received;
        if ended || self.progress.borrow().at > 0 {
            return;
        }
        // It is one request still: nothing is split among lanes before bytes are written.
        let whole = stream::iter(early.into_iter().map(Ok)).chain(body).boxed();
        if let Ok(whole) = feed.verified(whole) {
            *self.unwritten.lock().unwrap_or_else(PoisonError::into_inner) = Some(whole.boxed());
        }
    }

    async fn store(
        self: &Arc<Self>,
        size: u64,
        received: &mut ReceivedFrames,
        check: ContentCheck,
        written_from: Option<Arc<AtomicU64>>,
        reserved: &Arc<ReservedFile>,
    ) -> Result<()> {
        let fill = self.clone();
        let writing = FillWriter::new(reserved.clone(), check, written_from, move |at| fill.set_progress(at));
        let mut at = 0;
        while at < size {
            // Room first: what is received waits in the connection else.
            writing.wait_for_space().await?;
            let gathered = match select(pin!(next_batch(&mut received.body)), pin!(writing.failure())).await {
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
                    writing.wait_until_idle().await?;
                    return Err(error);
                }
            }
        }
        // The end is asked for, though it's known: an empty blob was checked when it was opened.
        writing.wait_until_idle().await
    }

    /// So much is right, and in the file: readers may have it.
    fn set_progress(&self, at: u64) {
        self.progress.send_if_modified(|progress| {
            // A thread may come to it after all has ended.
            let is_on = progress.stage == FillStage::Running;
            if is_on {
                progress.at = at;
            }
            is_on
        });
    }

    fn set_stage(&self, stage: FillStage) {
        self.progress.send_modify(|progress| progress.stage = stage);
    }
}

/// What comes from the upstream.
struct ReceivedFrames {
    body: Body,
    /// The first frames, until the writer has written some.
    early: Vec<Bytes>,
    /// The body has failed.
    ended: bool,
}

impl ReceivedFrames {
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
async fn next_batch(body: &mut Body) -> Result<Vec<Bytes>> {
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
        if size >= WRITE_BATCH {
            return Ok(frames);
        }
    }
}

/// Written in one go on the blocking pool.
const WRITE_BATCH: usize = 256 << 10;
const OCTET_STREAM: &str = "application/octet-stream";
