//! Verification: the one place where bytes become trusted.
//!
//! [`Verified`] withholds the last frame of a blob until size and digest are verified. An HTTP/1.1 sender with a Content-Length
//! that has sent all its bytes does not poll the body again, so an error after the last byte would never reach the receiver.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

use crate::body::Body;
use crate::descriptor::{Descriptor, Digest, Hasher};
use crate::error::{Error, Kind, Result, Side};

/// A stream of a blob's bytes. It yields the last frame only if the whole blob matches its digest and size.
pub struct Verified {
    body: Body,
    check: ContentCheck,
    /// The first byte to yield. Bytes before it are only hashed.
    begin: u64,
    /// Frames that are hashed already, and were put back.
    pending: VecDeque<Bytes>,
}

/// Verifies the bytes of a blob. [`Verified::into_parts`] returns it for a caller that hashes elsewhere.
pub struct ContentCheck {
    digest: Digest,
    size: u64,
    /// The number of hashed bytes.
    read: u64,
    hasher: Option<Hasher>,
    checkpoints: HashCheckpoints,
}

impl Verified {
    /// Verifies a whole `body` against `blob`.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] for an empty blob whose digest is not that of zero bytes. Such a body is never polled, so it is
    /// checked here.
    pub fn new(body: Body, blob: &Descriptor) -> Result<Self> {
        Self::resumed(body, blob, 0, blob.digest.hasher(), 0, HashCheckpoints::default())
    }

    /// Continues with a `body` that starts at offset `from`, where the hash had the state `hasher`. Yields the bytes from
    /// offset `begin` on.
    pub fn resumed(
        body: Body,
        blob: &Descriptor,
        from: u64,
        hasher: Hasher,
        begin: u64,
        checkpoints: HashCheckpoints,
    ) -> Result<Self> {
        let mut check =
            ContentCheck { digest: blob.digest, size: blob.size, read: from, hasher: Some(hasher), checkpoints };
        check.finish()?;
        Ok(Self { body, check, begin, pending: VecDeque::new() })
    }

    /// The unverified body and its check, for a caller that receives and hashes on different threads. The stream must yield all
    /// bytes of its body.
    pub fn into_parts(self) -> (Body, ContentCheck) {
        debug_assert!(self.begin <= self.check.read && self.pending.is_empty());
        (self.body, self.check)
    }

    /// Puts back a frame, or the rest of one. It is the next one that the stream yields.
    pub fn unread(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.pending.push_front(bytes);
        }
    }

    fn take_in(&mut self, mut bytes: Bytes) -> Result<Bytes> {
        let skip = self.begin.saturating_sub(self.check.read).min(bytes.len() as u64);
        self.check.take_in(&bytes)?;
        // Fits into a usize: it is at most the frame's length.
        let _ = bytes.split_to(usize::try_from(skip).unwrap_or(usize::MAX));
        Ok(bytes)
    }
}

impl ContentCheck {
    /// Hashes the next bytes.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] if they exceed the blob's size, or are its last bytes and the digest does not match. The caller must
    /// not pass them on then.
    pub fn take_in(&mut self, bytes: &[u8]) -> Result<()> {
        let start = self.read;
        self.read += bytes.len() as u64;
        if self.read > self.size {
            return Err(
                self.wrong(format!("the source sent more than the {} bytes that the manifest states", self.size))
            );
        }
        if let Some(hasher) = &mut self.hasher {
            self.checkpoints.note(start, self.size, hasher);
            hasher.update(bytes);
        }
        self.finish()
    }

    fn finish(&mut self) -> Result<()> {
        if self.read < self.size {
            return Ok(());
        }
        match self.hasher.take().map(Hasher::finish) {
            Some(got) if got != self.digest => {
                let got = format!("its bytes have {got}");
                Err(self.wrong(got))
            }
            _ => Ok(()),
        }
    }

    fn wrong(&self, why: String) -> Error {
        Error::new(Kind::Mismatch, format!("blob {} is corrupt: {why}", self.digest))
            .on(Side::Source)
            .hint("nothing of it was stored; the registry, or a proxy on the way, has changed the content")
    }
}

impl Stream for Verified {
    type Item = Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.pending.pop_front() {
                return Poll::Ready(Some(Ok(bytes)));
            }
            if this.check.read >= this.check.size {
                return Poll::Ready(None);
            }
            let taken = match ready!(this.body.poll_next_unpin(cx)) {
                Some(Ok(bytes)) => this.take_in(bytes),
                Some(Err(error)) => Err(error),
                None => Err(this.check.wrong(format!("it ended at byte {} of {}", this.check.read, this.check.size))),
            };
            match taken {
                Ok(bytes) if bytes.is_empty() => {}
                other => return Poll::Ready(Some(other)),
            }
        }
    }
}

/// States of a blob's hash at several offsets, so that hashing can be resumed there.
#[derive(Clone, Default)]
pub struct HashCheckpoints(Arc<Mutex<Vec<(u64, Hasher)>>>);

impl HashCheckpoints {
    /// The last state at or before `offset`.
    pub fn before(&self, offset: u64) -> Option<(u64, Hasher)> {
        let checkpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        checkpoints.iter().rev().find(|(at, _)| *at <= offset).cloned()
    }

    /// Begins with this state at `offset`.
    pub(crate) fn resume_at(&self, offset: u64, hasher: Hasher) {
        let mut checkpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *checkpoints = vec![(offset, hasher)];
    }

    /// Forgets all of them: some of the bytes before them were wrong.
    pub fn clear(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Keeps the state at `offset`, if the last one is at least 16 MiB before it, or a 256th of a blob that is larger than
    /// 4 GiB.
    fn note(&self, offset: u64, size: u64, hasher: &Hasher) {
        let step = (size / 256).max(16 << 20);
        if offset == 0 {
            return;
        }
        let mut checkpoints = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if offset >= checkpoints.last().map_or(0, |(at, _)| *at) + step {
            checkpoints.push((offset, hasher.clone()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{TryStreamExt as _, stream};
    use proptest::prelude::*;

    fn body(frames: &[&[u8]]) -> Body {
        let frames: Vec<_> = frames.iter().map(|frame| Ok(Bytes::copy_from_slice(frame))).collect();
        stream::iter(frames).boxed()
    }

    fn blob(content: &[u8]) -> Descriptor {
        Descriptor::new("x", Digest::of(content), content.len() as u64)
    }

    /// What came out before the end or the first error.
    async fn drain(mut verified: Verified) -> (Vec<u8>, Option<Error>) {
        let mut out = Vec::new();
        loop {
            match verified.try_next().await {
                Ok(Some(bytes)) => out.extend_from_slice(&bytes),
                Ok(None) => return (out, None),
                Err(error) => return (out, Some(error)),
            }
        }
    }

    #[tokio::test]
    async fn a_flipped_byte_keeps_the_last_frame_back() {
        let (out, error) =
            drain(Verified::new(body(&[b"hello ", b"wOrld"]), &blob(b"hello world")).expect("opens")).await;
        assert_eq!(out, b"hello ");
        assert_eq!(error.map(|e| e.kind()), Some(Kind::Mismatch));
    }

    #[tokio::test]
    async fn short_and_long_bodies_are_mismatches() {
        let cases: [&[&[u8]]; 4] = [&[b"hello"], &[b"hello ", b"world!!"], &[b"hello ", b"world", b""], &[]];
        for frames in cases {
            let (out, error) = drain(Verified::new(body(frames), &blob(b"hello world?")).expect("opens")).await;
            assert!(out.len() < 12);
            assert_eq!(error.map(|e| e.kind()), Some(Kind::Mismatch), "{frames:?}");
        }
    }

    #[test]
    fn an_empty_blob_is_checked_at_once() {
        assert!(Verified::new(body(&[]), &blob(b"")).is_ok());
        let wrong = Descriptor::new("x", Digest::of(b"something"), 0);
        assert_eq!(Verified::new(body(&[]), &wrong).err().map(|e| e.kind()), Some(Kind::Mismatch));
    }

    #[tokio::test]
    async fn a_large_blob_can_be_resumed_near_where_it_broke() {
        const MIB: usize = 1 << 20;
        let content = vec![7; 40 * MIB];
        let blob = blob(&content);
        let frames: Vec<&[u8]> = content.chunks(MIB).collect();
        let checkpoints = HashCheckpoints::default();
        let hasher = blob.digest.hasher();
        let whole = Verified::resumed(body(&frames), &blob, 0, hasher, 0, checkpoints.clone()).expect("opens");
        assert!(drain(whole).await.1.is_none());
        let at = |offset: usize| checkpoints.before(offset as u64).map(|(at, _)| at as usize / MIB);
        assert_eq!(
            [1, 16 * MIB - 1, 16 * MIB, 32 * MIB - 1, 40 * MIB].map(at),
            [None, None, Some(16), Some(16), Some(32)]
        );
        // The state is that of the bytes before it.
        let (from, hasher) = checkpoints.before(40 * MIB as u64).expect("a mark");
        let rest = Verified::resumed(body(&frames[32..]), &blob, from, hasher, from, HashCheckpoints::default())
            .expect("opens");
        let (out, error) = drain(rest).await;
        assert!(out.len() == 8 * MIB && error.is_none(), "{error:?}");
    }

    proptest! {
        /// Whatever the frames, and wherever one resumes, the rest comes out and the whole is checked.
        #[test]
        fn resumes_anywhere(content in prop::collection::vec(any::<u8>(), 1..200), cut in 0_usize..200, at in 0_usize..200, size in 1_usize..40) {
            let at = at % content.len();
            let from = cut % (at + 1);
            let blob = blob(&content);
            let mut hasher = blob.digest.hasher();
            hasher.update(&content[..from]);
            let frames: Vec<&[u8]> = content[from..].chunks(size).collect();
            let verified = Verified::resumed(body(&frames), &blob, from as u64, hasher, at as u64, HashCheckpoints::default()).expect("opens");
            let (out, error) = futures_util::FutureExt::now_or_never(drain(verified)).expect("is ready");
            prop_assert!(error.is_none());
            prop_assert_eq!(&out[..], &content[at..]);
        }
    }
}
