//! Limits the memory of large responses in the whole process.
//!
//! Manifests and lists of ordinary images are small and do not wait. Larger ones, up to the limits of their readers, are
//! read a few at a time: a registry can send thousands of manifests of 4 MiB, and each takes several times its size while
//! it is parsed.

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};

/// The memory for large responses that are being read. One permit is 1 KiB.
static READ_PERMITS: Semaphore = Semaphore::const_new(READING_KIB as usize);
/// The memory for manifests that clients push. It is separate, so that a slow client does not block responses.
static PUSH_PERMITS: Semaphore = Semaphore::const_new(READING_KIB as usize);
/// The memory for large manifests on their way from an upstream into the proxy's cache.
static CACHE_PERMITS: Semaphore = Semaphore::const_new(2 * READING_KIB as usize);
/// The memory for long lists of tags and referrers that the proxy reads for its clients.
static LIST_PERMITS: Semaphore = Semaphore::const_new(LISTS_KIB as usize);

/// The number of manifests that are read from disk at once. More would not be faster.
static DISK_PERMITS: Semaphore = Semaphore::const_new(8);

/// A response body that is being collected, frame by frame.
///
/// A body that has its memory waits only for its own bytes, with a time limit. So there is no deadlock.
///
/// Beyond [`SMALL_ANSWER`] bytes it holds memory of the process-wide limit. The finished [`Bytes`] keep it until their last
/// part is dropped, so that parsing counts too. Code that keeps the content longer makes a copy ([`copy_if_shared`]).
pub(crate) struct CollectedBody {
    bytes: Vec<u8>,
    limit: u64,
    rooms: &'static Semaphore,
    room: Option<SemaphorePermit<'static>>,
}

impl CollectedBody {
    /// An empty body for at most `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self { bytes: Vec::new(), limit, rooms: &READ_PERMITS, room: None }
    }

    /// An empty body for bytes that a client sends.
    pub(crate) fn for_push(limit: u64) -> Self {
        Self { rooms: &PUSH_PERMITS, ..Self::new(limit) }
    }

    /// Whether `frame` still fits into the limit.
    pub(crate) fn fits(&self, frame: &[u8]) -> bool {
        (self.bytes.len() + frame.len()) as u64 <= self.limit
    }

    /// Whether [`Self::wait`] must be called before `frame` is added.
    pub(crate) fn must_wait(&self, frame: &[u8]) -> bool {
        self.room.is_none() && self.bytes.len() + frame.len() > SMALL_ANSWER
    }

    /// Waits for the memory of a body of `expected` bytes, or of the limit.
    pub(crate) async fn wait(&mut self, expected: Option<u64>) {
        let expected = expected.unwrap_or(self.limit).min(self.limit);
        // The semaphore is never closed.
        self.room = self.rooms.acquire_many(kib(expected).min(READING_KIB)).await.ok();
        self.bytes.reserve_exact(usize::try_from(expected).unwrap_or(0).saturating_sub(self.bytes.len()));
    }

    pub(crate) fn add(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
    }

    pub(crate) fn finish(self) -> Bytes {
        // Copied to an exact size: a growing buffer would keep its spare capacity.
        let bytes = self.bytes.into_boxed_slice();
        match self.room {
            None => Bytes::from(bytes),
            Some(room) => Bytes::from_owner(BytesWithPermit { bytes, _room: room }),
        }
    }
}

/// The memory for a manifest of this size on its way into the cache, if it needs any.
///
/// # Errors
/// If there is none left. It does not wait, since waiting manifests would take memory too.
pub(crate) fn reserve_for_cache(bytes: u64) -> Result<Option<SemaphorePermit<'static>>, TryAcquireError> {
    if bytes <= SMALL_ANSWER as u64 { Ok(None) } else { CACHE_PERMITS.try_acquire_many(kib(bytes)).map(Some) }
}

/// The memory of a list while it is collected page by page, until this is dropped. Up to [`SMALL_ANSWER`] bytes are free.
#[derive(Debug, Default)]
pub(crate) struct ListReservation {
    bytes: u64,
    room: Option<SemaphorePermit<'static>>,
}

impl ListReservation {
    /// Adds the entries of a page, in bytes.
    ///
    /// # Errors
    /// If there is no memory left. It does not wait, since the collected part would stay in memory meanwhile.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), TryAcquireError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes <= SMALL_ANSWER as u64 {
            return Ok(());
        }
        let held = self.room.as_ref().map_or(0, |room| u32::try_from(room.num_permits()).unwrap_or(u32::MAX));
        // A list that needs more than the whole limit takes all of it. Its reader has a limit of its own.
        let more = LIST_PERMITS.try_acquire_many(kib(self.bytes).min(LISTS_KIB).saturating_sub(held))?;
        match &mut self.room {
            Some(room) => room.merge(more),
            None => self.room = Some(more),
        }
        Ok(())
    }
}

fn kib(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX)
}

/// Waits until a manifest may be read from disk.
pub(crate) async fn disk_read_permit() -> Option<SemaphorePermit<'static>> {
    DISK_PERMITS.acquire().await.ok()
}

/// The same bytes, without the memory that [`CollectedBody`] holds.
pub(crate) fn copy_if_shared(bytes: &Bytes) -> Bytes {
    if bytes.len() > SMALL_ANSWER { Bytes::copy_from_slice(bytes) } else { bytes.clone() }
}

struct BytesWithPermit {
    bytes: Box<[u8]>,
    _room: SemaphorePermit<'static>,
}

impl AsRef<[u8]> for BytesWithPermit {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

/// Responses up to this size in bytes do not wait. Manifests of images have a few KiB, indexes a few tens of KiB.
pub(crate) const SMALL_ANSWER: usize = 128 << 10;
/// The memory for large responses: four manifests of 4 MiB at once.
const READING_KIB: u32 = 16 << 10;
const LISTS_KIB: u32 = 2 * READING_KIB;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// One test: the room is the process's.
    #[tokio::test]
    async fn large_responses_wait_for_each_other_and_small_ones_do_not_wait() {
        let large = async || {
            let mut large = CollectedBody::new(8 << 20);
            assert!(!large.must_wait(&[0; SMALL_ANSWER]) && large.must_wait(&[0; SMALL_ANSWER + 1]));
            large.wait(None).await;
            assert!(!large.must_wait(&[0; SMALL_ANSWER + 1]));
            large.add(&[7; SMALL_ANSWER + 1]);
            large.finish()
        };
        let (one, two) = (large().await, large().await);
        assert!(large().now_or_never().is_none(), "both halves are taken");
        let (part, copy) = (one.slice(1..2), copy_if_shared(&two));
        drop((one, two));
        assert_eq!((part[0], copy.len()), (7, SMALL_ANSWER + 1));
        assert!(large().now_or_never().is_some(), "a copy holds no room");
        let _third = large().await;
        assert!(large().now_or_never().is_none(), "and a part holds that of all");
    }

    /// One test: the room is the process's.
    #[test]
    fn long_lists_have_room_together_and_short_ones_need_none() {
        let (mut long, mut other, mut short) =
            (ListReservation::default(), ListReservation::default(), ListReservation::default());
        for _ in 0..16 {
            long.add(1 << 20).expect("room");
            other.add(1 << 20).expect("room");
        }
        short.add(SMALL_ANSWER as u64).expect("a short list needs none");
        assert!(short.add(1).is_err() && long.add(1).is_err(), "all of it is taken");
        drop(long);
        short.add(1 << 20).expect("a list that is over gives its room back");
        drop((other, short));
        let mut longest = ListReservation::default();
        longest.add(1 << 40).expect("alone it has all the room");
        longest.add(1 << 40).expect("which is all it can take");
        assert!(ListReservation::default().add(1 << 20).is_err());
    }

    #[test]
    fn the_limit_is_kept_and_nothing_is_in_reserve() {
        let mut small = CollectedBody::new(5);
        assert!(small.fits(b"12345") && !small.fits(b"123456"));
        small.add(b"123");
        assert!(!small.fits(b"456"));
        assert_eq!(small.finish(), &b"123"[..]);
    }
}
