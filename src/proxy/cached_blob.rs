//! A cached blob as a stream that survives the loss of its file.
//!
//! A disk may fail to read a file, and a file may become short while it is read. The file is then removed from the cache, and
//! the blob is fetched again. The stream continues with that fetch at the same byte. So the rest is verified as in any other
//! fetch, and the client sees no error.

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::cache::StoredContent;
use super::events::Event;
use super::file_stream::FileReader;
use super::fill::ReadableBlob;
use super::upstreams::UpstreamRepository;
use super::{Inner, Origins};
use crate::body::Body;
use crate::error::{Error, Kind, Result};
use crate::pool::run_blocking;
use crate::server::FilePipe;

/// The bytes in `range` of a cached blob, to be sent on `pipe`'s connection if there is one.
pub(super) fn stream<O: Origins>(
    inner: Arc<Inner<O>>,
    repo: UpstreamRepository,
    stored: StoredContent,
    range: Range<u64>,
    pipe: Option<FilePipe>,
) -> Body {
    let reader = inner.readers.enter(pipe.clone());
    let cached = CachedBlob { inner, repo, source: BlobSource::File(stored, reader), pipe, rest: range, recoveries: 0 };
    stream::try_unfold(cached, CachedBlob::next).boxed()
}

struct CachedBlob<O: Origins> {
    inner: Arc<Inner<O>>,
    repo: UpstreamRepository,
    source: BlobSource,
    pipe: Option<FilePipe>,
    /// The range that is not sent yet.
    rest: Range<u64>,
    recoveries: u32,
}

enum BlobSource {
    File(StoredContent, FileReader),
    /// A new fetch of the blob.
    Fetch(Body),
}

impl<O: Origins> CachedBlob<O> {
    async fn next(mut self) -> Result<Option<(Bytes, Self)>> {
        if self.rest.is_empty() {
            return Ok(None);
        }
        let bytes = self.bytes().await?;
        self.rest.start += bytes.len() as u64;
        Ok(Some((bytes, self)))
    }

    async fn bytes(&mut self) -> Result<Bytes> {
        loop {
            let error = match &mut self.source {
                BlobSource::File(stored, reader) => match reader.some(&stored.file, self.rest.clone()).await {
                    Err(error) => error,
                    stream => return stream,
                },
                BlobSource::Fetch(body) => {
                    let next = body.try_next().await?;
                    return next.ok_or_else(|| Error::new(Kind::Network, "the upstream's body ended early"));
                }
            };
            self.recover(error).await?;
        }
    }

    /// Removes the file from the cache, and opens the blob again at the byte where the file failed.
    async fn recover(&mut self, why: Error) -> Result<()> {
        let BlobSource::File(stored, _) = &self.source else { return Err(why) };
        let digest = stored.digest;
        tracing::error!("{why}: cached blob {digest} is removed and fetched again");
        self.inner.observer.event(&Event::CacheReadFailed { digest: &digest });
        let (blobs, file) = (self.inner.cache.blobs.clone(), stored.file.clone());
        let size = stored.pin.size();
        run_blocking(move || Ok(blobs.discard_file(&digest, size, &file))).await?;
        self.recoveries += 1;
        if self.recoveries > MAX_RECOVERIES {
            return Err(why);
        }
        let found = self.inner.blob_silently(&self.repo, &digest).await.0?;
        let absent = || Error::new(Kind::NotFound, format!("no tier has blob {digest} any more"));
        let found = found.filter(|found| found.size() == size).ok_or_else(absent)?;
        self.source = match found {
            ReadableBlob::Hot(stored) => BlobSource::File(stored, self.inner.readers.enter(self.pipe.clone())),
            other => {
                let (rest, pipe) = (self.rest.clone(), self.pipe.clone());
                BlobSource::Fetch(Box::pin(self.inner.bytes(&self.repo, other, rest, pipe)).await?)
            }
        };
        Ok(())
    }
}

/// Files of the same blob that may fail during one answer. Each of them was stored after the one before had failed.
const MAX_RECOVERIES: u32 = 2;
