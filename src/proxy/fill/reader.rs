//! The readers of a fill.

use std::ops::Range;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use tokio::sync::{OwnedSemaphorePermit, watch};

use super::{ALONE_PATIENCE, Fill, FillStage, FillStart, Progress, ReadableBlob, damage, with_permit};
use crate::body::Body;
use crate::content::take_bytes;
use crate::descriptor::Hasher;
use crate::error::{Error, Kind, Result};
use crate::file_access::OpenFile;
use crate::proxy::events::Event;
use crate::proxy::file_stream::{FileReader, FileReaders, MEDIUM_READ};
use crate::proxy::{Inner, Origins, cached_blob};
use crate::retry::Budget;
use crate::server::FilePipe;
use crate::verify::{HashCheckpoints, Verified};

/// The bytes in `range`, as soon as they are in the file. A reader that is slow or stops early does not slow the writer down.
pub(super) fn read_along<O: Origins>(
    inner: Arc<Inner<O>>,
    fill: Arc<Fill<O::Source>>,
    range: Range<u64>,
    pipe: Option<FilePipe>,
) -> Body {
    let tiers = u32::try_from(fill.repo.upstream.tiers.len()).unwrap_or(1);
    let follow = FillReader {
        reader: inner.readers.enter(pipe),
        progress: fill.progress.subscribe(),
        start: range.start,
        at: range.start,
        end: range.end,
        aside: None,
        looked_aside: false,
        served_aside: None,
        alone: None,
        budget: Budget::new(damage::MAX_FAILURES * tiers - 1, MAX_RETRY_WAIT),
        inner,
        fill,
    };
    stream::try_unfold(follow, FillReader::next).boxed()
}

struct FillReader<O: Origins> {
    inner: Arc<Inner<O>>,
    fill: Arc<Fill<O::Source>>,
    progress: watch::Receiver<Progress>,
    reader: FileReader,
    start: u64,
    at: u64,
    end: u64,
    /// A ranged request to the upstream, for bytes that are far ahead of the writer. It never contains the blob's last
    /// byte: that comes from the file, after the whole is verified.
    aside: Option<(Body, OwnedSemaphorePermit)>,
    looked_aside: bool,
    /// The bytes that came by ranged requests. They are compared with the file before the last byte of the blob is sent.
    served_aside: Option<ServedAside>,
    /// For new fills after damaged ones.
    budget: Budget,
    /// The rest of the answer from elsewhere, after the fill has failed.
    alone: Option<Body>,
}

impl<O: Origins> FillReader<O> {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.at >= self.end {
            return Ok(None);
        }
        let bytes = self.bytes().await?;
        self.at += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }

    async fn bytes(&mut self) -> Result<Bytes> {
        loop {
            if let Some(alone) = &mut self.alone {
                let next = alone.try_next().await?;
                return next.ok_or_else(|| Error::new(Kind::Network, "the upstream's body ended early"));
            }
            // Marks the value as seen: `changed` waits for the next one.
            let Progress { stage, at } = *self.progress.borrow_and_update();
            let there = at.min(self.end);
            // The damaged bytes may be anywhere in the file.
            let damaged = stage == FillStage::Failed && self.fill.failure().kind() == Kind::Mismatch;
            if self.at < there && !damaged {
                self.aside = None;
                match self.read(there).await {
                    // The file cannot be read back.
                    Err(error) if error.kind() == Kind::Local => {
                        self.report_unreadable(&error);
                        let why = Error::new(Kind::Local, "the file of the cache cannot be read");
                        self.leave_fill(why).await?;
                        continue;
                    }
                    Ok(bytes) => {
                        self.check_served_aside(self.at + bytes.len() as u64).await?;
                        return Ok(bytes);
                    }
                    Err(error) => return Err(error),
                }
            }
            if stage == FillStage::Failed {
                let why = self.fill.failure();
                match why.kind() {
                    Kind::Local => self.leave_fill(why).await?,
                    Kind::Mismatch => self.retry_with_another_fill(why).await?,
                    _ => return Err(why),
                }
                continue;
            }
            if !self.looked_aside && self.at - at > MAX_LEAD {
                self.looked_aside = true;
                let (mut progress, at) = (self.progress.clone(), self.at);
                // The writer may arrive here before the request is answered.
                tokio::select! {
                    () = self.look_aside() => {}
                    _ = progress.wait_for(|now| now.at > at || now.stage == FillStage::Failed) => {}
                }
                continue;
            }
            let Some((aside, _)) = &mut self.aside else {
                // Cannot fail: the fill holds the sender.
                let _ = self.progress.changed().await;
                continue;
            };
            tokio::select! {
                next = aside.try_next() => match next {
                    Ok(Some(bytes)) => {
                        let served = || ServedAside { part: self.at..self.at, hasher: self.fill.digest.hasher() };
                        self.served_aside.get_or_insert_with(served).add(&bytes);
                        return Ok(bytes);
                    }
                    // After its end, or an error, the reader waits for the writer.
                    Ok(None) => self.aside = None,
                    Err(error) => {
                        tracing::info!("{error}: waiting for the fill instead");
                        self.aside = None;
                    }
                },
                // The writer may have caught up.
                _ = self.progress.changed() => {}
            }
        }
    }

    /// Called before bytes up to `end` of a verified file are sent. If they contain the blob's last byte, compares the bytes
    /// that came by ranged requests with the file.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] if they differ.
    async fn check_served_aside(&mut self, end: u64) -> Result<()> {
        let Some(FillStart { blob, to: Some((file, _)) }) = self.fill.begun.get() else { return Ok(()) };
        let Some(ServedAside { part, hasher }) = self.served_aside.take_if(|_| end == blob.size) else { return Ok(()) };
        let mut right = self.fill.digest.hasher();
        let mut bytes = file_bytes(self.inner.readers.clone(), file.clone(), part);
        while let Some(bytes) = bytes.try_next().await? {
            right.update(&bytes);
        }
        if hasher.finish() == right.finish() {
            return Ok(());
        }
        Err(Error::new(Kind::Mismatch, format!("a part of blob {} was damaged on the way", self.fill.digest)))
    }

    async fn read(&mut self, end: u64) -> Result<Bytes> {
        match self.fill.begun.get() {
            Some(FillStart { to: Some((file, _)), .. }) => self.reader.some(file, self.at..end).await,
            _ => Err(Error::new(Kind::Local, "the fill has no file")),
        }
    }

    fn report_unreadable(&self, error: &Error) {
        tracing::error!("{error}: the rest of blob {} is read from the upstream", self.fill.digest);
        self.inner.observer.event(&Event::CacheReadFailed { digest: &self.fill.digest });
    }

    /// After a failure of the disk: reads the rest from the upstream. The whole blob is still verified. The bytes that this
    /// reader has sent are hashed as they are in the file, since they may be damaged.
    ///
    /// # Errors
    /// `why`, if bytes were sent that are not in the file: they cannot be verified.
    async fn leave_fill(&mut self, why: Error) -> Result<()> {
        let Some(FillStart { blob, to: Some((file, feed)) }) = self.fill.begun.get() else { return Err(why) };
        if self.served_aside.is_some() {
            return Err(why);
        }
        let pass = self.inner.uncached_permit(&self.fill.repo, 0, ALONE_PATIENCE).await?;
        let unwritten = if self.at == 0 { self.take_unwritten() } else { None };
        let rest = match unwritten {
            Some(whole) => whole,
            None if self.at == self.start => feed.open(self.at).await?.boxed(),
            None => {
                let passed_on = file_bytes(self.inner.readers.clone(), file.clone(), 0..self.at);
                let whole = passed_on.chain(feed.unverified(self.at).await?).boxed();
                Verified::resumed(whole, blob, 0, blob.digest.hasher(), self.at, HashCheckpoints::default())?.boxed()
            }
        };
        self.alone = Some(with_permit(take_bytes(rest, self.end - self.at), pass));
        Ok(())
    }

    fn take_unwritten(&self) -> Option<Body> {
        self.fill.unwritten.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// After damage: continues with another fill, once it has come as far and has the same bytes as this reader has sent.
    /// The other fill is verified before its end, so these bytes are right then. If they differ, the answer is cut.
    async fn retry_with_another_fill(&mut self, why: Error) -> Result<()> {
        let Some(FillStart { blob, to: Some((old, _)) }) = self.fill.begun.get() else { return Err(why) };
        let (repo, digest, size, old) = (self.fill.repo.clone(), self.fill.digest, blob.size, old.clone());
        let (inner, served) = (self.inner.clone(), self.start..self.at);
        let mut why = why;
        loop {
            if self.served_aside.is_some() {
                return Err(why);
            }
            let wrong = why.duplicate();
            self.budget.retry_quietly(why.transient_if_damaged()).await?;
            let found = inner.blob_silently(&repo, &digest).await.0?;
            match found.filter(|found| found.size() == size) {
                Some(ReadableBlob::Hot(stored)) => {
                    if !same_bytes(&inner.readers, served, &old, &stored.file).await? {
                        return Err(wrong);
                    }
                    self.alone = Some(cached_blob::stream(inner, repo, stored, self.at..self.end, None));
                    return Ok(());
                }
                Some(ReadableBlob::Filling(fill)) => {
                    let mut progress = fill.progress.subscribe();
                    let there = |now: &Progress| now.at >= served.end || now.stage == FillStage::Failed;
                    // Cannot fail: the fill holds the sender.
                    let failed = progress.wait_for(there).await.is_ok_and(|now| now.stage == FillStage::Failed);
                    if failed && fill.failure().kind() == Kind::Mismatch {
                        why = fill.failure();
                        continue;
                    }
                    let Some(FillStart { to: Some((file, _)), .. }) = fill.begun.get() else { return Err(wrong) };
                    if failed {
                        return Err(fill.failure());
                    }
                    if !same_bytes(&inner.readers, served, &old, file).await? {
                        return Err(wrong);
                    }
                    (self.progress, self.fill, self.aside) = (progress, fill, None);
                    return Ok(());
                }
                _ => return Err(wrong),
            }
        }
    }

    /// Requests the bytes from here on from the upstream, if a permit is free. On an error the reader waits for the writer.
    async fn look_aside(&mut self) {
        let Some(FillStart { blob, .. }) = self.fill.begun.get() else { return };
        let part = self.at..self.end.min(blob.size.saturating_sub(1));
        if part.is_empty() {
            return;
        }
        let Ok(permit) = self.inner.fills.sides.clone().try_acquire_owned() else { return };
        match self.inner.open_part(&self.fill.repo, blob, part).await {
            Ok(Some((_, tier, body))) => {
                let body = self.inner.count_bytes(&self.fill.repo, tier, body);
                self.aside = Some((body, permit));
            }
            Ok(None) => {}
            Err(error) => tracing::info!("{error}: waiting for the fill"),
        }
    }
}

/// The bytes that a reader got by ranged requests.
struct ServedAside {
    part: Range<u64>,
    hasher: Hasher,
}

impl ServedAside {
    fn add(&mut self, bytes: &[u8]) {
        self.part.end += bytes.len() as u64;
        self.hasher.update(bytes);
    }
}

/// The bytes of a part of a file.
fn file_bytes(readers: FileReaders, file: OpenFile, part: Range<u64>) -> Body {
    stream::try_unfold((readers, file, part), |(readers, file, part)| async move {
        if part.is_empty() {
            return Ok(None);
        }
        let bytes = readers.read(file.clone(), part.start..part.end.min(part.start + MEDIUM_READ as u64)).await?;
        let rest = part.start + bytes.len() as u64..part.end;
        Ok(Some((bytes, (readers, file, rest))))
    })
    .boxed()
}

/// Whether two files have the same bytes in `part`.
async fn same_bytes(readers: &FileReaders, part: Range<u64>, one: &OpenFile, other: &OpenFile) -> Result<bool> {
    let mut at = part.start;
    while at < part.end {
        let end = part.end.min(at + MEDIUM_READ as u64);
        if readers.read(one.clone(), at..end).await? != readers.read(other.clone(), at..end).await? {
            return Ok(false);
        }
        at = end;
    }
    Ok(true)
}

/// How long a reader waits in total between fills of a blob that comes damaged.
const MAX_RETRY_WAIT: Duration = Duration::from_secs(60);
/// How many bytes ahead of the writer a reader waits without a request of its own.
const MAX_LEAD: u64 = 8 << 20;
