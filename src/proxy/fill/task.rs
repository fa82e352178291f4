//! The task of a fill: it reads the blob from the upstream and writes it into a file. All readers see its error.

use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::future::{Either, select};
use futures_util::{StreamExt as _, stream};

use super::batch::{Batch, next_batch};
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

/// Ends a fill, also when its task is dropped: removes it from the list and wakes its readers.
struct FillGuard<O: Origins> {
    inner: Arc<Inner<O>>,
    fill: Arc<Fill<O::Source>>,
}

impl<O: Origins> Drop for FillGuard<O> {
    fn drop(&mut self) {
        // Off the list first: a client that comes now starts a new fill.
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
    /// Starts the fill as a task of the proxy.
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
                    // The manifest may state a wrong size. The next fill asks the upstream for it.
                    inner.forget_size(&fill.repo, &fill.digest);
                }
                // Set before the stage changes: readers look for it then.
                let _ = fill.error.set(error);
            }
        });
    }

    async fn fill(self: &Arc<Self>, fill: &Arc<Fill<O::Source>>) -> Result<()> {
        let registry = |tier: usize| fill.repo.upstream.tiers[tier].registry.as_str();
        let Some(mut permit) = self.fills.slots.acquire(registry(0), self.timeouts.fill_permit).await else {
            log_crowded(fill, registry(0));
            let size = self.ask_size(&fill.repo, &fill.digest).await?.ok_or_else(absent)?;
            pass_uncached(fill, Descriptor::new(OCTET_STREAM, fill.digest, size));
            return Ok(());
        };
        let stated = self.stated_size(&fill.repo, &fill.digest);
        let opened = match (stated, self.open(fill, stated).await) {
            (Some(stated), Err(error)) if error.kind() == Kind::Mismatch => {
                tracing::warn!("{error}; a manifest states {stated} bytes");
                self.forget_size(&fill.repo, &fill.digest);
                self.open(fill, None).await
            }
            (_, opened) => opened,
        };
        let Some((blob, temp, tier, source, first)) = opened? else { return Ok(()) };
        if tier > 0 {
            // The permit must be of the registry that is read from. The first one is released before: otherwise two
            // fills could wait for each other.
            drop(permit);
            let Some(other) = self.fills.slots.acquire(registry(tier), self.timeouts.fill_permit).await else {
                log_crowded(fill, registry(tier));
                pass_uncached(fill, blob);
                return Ok(());
            };
            permit = other;
        }
        let _permit = permit;
        let feed = self.feed(&fill.repo, tier, source.clone(), &blob);
        let reserved = temp.reserved()?;
        let (body, written_from) = self.body(fill, &feed, &source, first, &reserved)?;
        self.observer.event(&Event::FillBegan { digest: &fill.digest, size: blob.size });
        let _ = fill.begun.set(FillStart { blob: blob.clone(), to: Some((temp.file(), feed)) });
        fill.set_stage(FillStage::Running);
        let Some(FillStart { to: Some((_, feed)), .. }) = fill.begun.get() else { return Ok(()) };
        let fetched = fill.run(feed, body, written_from, &reserved).await;
        self.learn_fetched(&fill.repo, tier, feed, &fetched);
        fetched?;
        // The repository has sent the right bytes, so the blob belongs to it.
        self.admit(&fill.repo, &fill.digest, Some(blob.size));
        fill.set_stage(FillStage::Whole);
        let (blobs, digest) = (self.cache.blobs.clone(), fill.digest);
        match run_blocking(move || blobs.commit(digest, temp)).await {
            Ok(pin) => drop(fill.pin.set(pin)),
            Err(error) => {
                // After a failed fsync the kernel may drop written pages: nobody may read the file any more.
                fill.progress.send_modify(|progress| *progress = Progress { stage: FillStage::Failed, at: 0 });
                return Err(error);
            }
        }
        Ok(())
    }

    /// Opens a file and the first body. Space is reserved as bytes arrive, so a false size in a manifest or an answer evicts
    /// nothing. `None` if the blob cannot be cached; then `fill` is open without a file.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if no tier has the blob; [`Kind::Mismatch`] if its size is not `stated`.
    async fn open(
        &self,
        fill: &Fill<O::Source>,
        stated: Option<u64>,
    ) -> Result<Option<(Descriptor, TempFile, usize, O::Source, Body)>> {
        let size = match stated {
            Some(size) => size,
            None => self.ask_size(&fill.repo, &fill.digest).await?.ok_or_else(absent)?,
        };
        let blob = Descriptor::new(OCTET_STREAM, fill.digest, size);
        let store = self.cache.blobs.clone();
        let temp = match run_blocking(move || store.prepare(size)).await {
            Ok(temp) => temp,
            Err(error) => {
                if stated.is_some() && self.ask_size(&fill.repo, &fill.digest).await?.ok_or_else(absent)? != size {
                    return Err(Error::new(Kind::Mismatch, format!("blob {} has not {size} bytes", fill.digest)));
                }
                self.warn_uncached(&error);
                pass_uncached(fill, blob);
                return Ok(None);
            }
        };
        let part = if self.is_parallel(size) { 0..parallel::piece(size, self.settings.parallel) } else { 0..size };
        let (source, tier, first) = self.open_part(&fill.repo, &blob, part).await?.ok_or_else(absent)?;
        Ok(Some((blob, temp, tier, source, first)))
    }

    fn is_parallel(&self, size: u64) -> bool {
        self.settings.parallel > 1 && size >= self.settings.parallel_from
    }

    /// The body to verify. For a blob that is fetched in parts, also the offset from which on bytes are in the file before the body
    /// yields them.
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

    /// Logs that the cache cannot be used: the first time as an error.
    fn warn_uncached(&self, error: &Error) {
        if self.fills.warned.swap(true, Ordering::Relaxed) {
            tracing::debug!("{error}");
        } else {
            tracing::error!("{error}: cache unavailable; streaming without caching");
        }
    }
}

fn absent() -> Error {
    Error::new(Kind::NotFound, "no tier has the blob")
}

fn log_crowded<S>(fill: &Fill<S>, registry: &str) {
    tracing::info!("{}: no place among the fills from {registry}; streaming without caching", fill.digest);
}

/// Opens the fill without a file: each reader requests the blob on its own.
fn pass_uncached<S: Source>(fill: &Fill<S>, blob: Descriptor) {
    let _ = fill.begun.set(FillStart { blob, to: None });
    fill.set_stage(FillStage::Running);
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

    /// If nothing could be written, the first reader takes over the open body, so that the blob is not requested twice.
    fn hand_over(&self, feed: &Feed<S>, received: ReceivedFrames) {
        let ReceivedFrames { body, early, ended } = received;
        if ended || self.progress.borrow().at > 0 {
            return;
        }
        // The body is still one request: parts are requested only after bytes are written.
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
            // Before the next read: otherwise received bytes would queue in memory.
            writing.wait_for_space().await?;
            let batch = match select(pin!(next_batch(&mut received.body)), pin!(writing.failure())).await {
                Either::Left((batch, _)) => batch,
                Either::Right((error, _)) => return Err(error),
            };
            let Batch { frames, length, error } = batch;
            // The frames before an error are not written: no reader gets bytes after the fill has failed.
            let error = error.or_else(|| frames.is_empty().then(|| Error::new(Kind::Network, "the body ended early")));
            if let Some(error) = error {
                received.ended = true;
                // An error of the bytes before it comes first.
                writing.wait_until_idle().await?;
                return Err(error);
            }
            at += length;
            received.keep(&frames, self.progress.borrow().at);
            writing.push(frames);
        }
        // An empty blob was verified when it was opened.
        writing.wait_until_idle().await
    }

    /// Publishes that all bytes before `at` are hashed and in the file.
    fn set_progress(&self, at: u64) {
        self.progress.send_if_modified(|progress| {
            // The writer's thread may report after the fill has ended.
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

/// The body from the upstream, and its first frames.
struct ReceivedFrames {
    body: Body,
    /// The first frames, until the writer has written some.
    early: Vec<Bytes>,
    /// The body has failed.
    ended: bool,
}

impl ReceivedFrames {
    /// Keeps frames as long as nothing is `written`. The writer's queue bounds them.
    fn keep(&mut self, frames: &[Bytes], written: u64) {
        if written == 0 {
            self.early.extend_from_slice(frames);
        } else {
            self.early = Vec::new();
        }
    }
}

const OCTET_STREAM: &str = "application/octet-stream";
