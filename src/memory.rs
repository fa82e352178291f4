//! Bounds on the memory of large answers: for the whole process, whoever sends them.
//!
//! Manifests and lists of ordinary images are small and wait for nothing. Larger ones, up to the limits that their
//! readers set, are read a few at a time: a registry can send thousands of manifests of 4 MiB, and each takes several
//! times its bytes while it is parsed.

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit, TryAcquireError};

/// The room for large answers that are being read. Permits are KiB.
static READ_PERMITS: Semaphore = Semaphore::const_new(READING_KIB as usize);
/// The same for what clients push: a slow one holds up no answer.
static PUSH_PERMITS: Semaphore = Semaphore::const_new(READING_KIB as usize);
/// The room for large manifests on their way from an upstream into a proxy's cache.
static CACHE_PERMITS: Semaphore = Semaphore::const_new(2 * READING_KIB as usize);
/// The room for long lists of tags and of referrers that a proxy reads for its clients.
static LIST_PERMITS: Semaphore = Semaphore::const_new(LISTS_KIB as usize);

/// Manifests that are read from a disk at once. That takes no longer for more of them.
static DISK_PERMITS: Semaphore = Semaphore::const_new(8);

/// An answer that is being collected, frame by frame.
///
/// Whoever has room waits only for those bytes, and not for ever: so nobody waits in a circle.
///
/// Beyond [`SMALL_ANSWER`] bytes it holds room of the process, which the finished [`Bytes`] keep for as long as any part of
/// them lives: so the parsing counts too. Whoever keeps the content longer keeps its own copy ([`copy_if_shared`]).
pub(crate) struct CollectedBody {
    bytes: Vec<u8>,
    limit: u64,
    rooms: &'static Semaphore,
    room: Option<SemaphorePermit<'static>>,
}

impl CollectedBody {
    /// An empty one, for at most `limit` bytes.
    pub(crate) fn new(limit: u64) -> Self {
        Self { bytes: Vec::new(), limit, rooms: &READ_PERMITS, room: None }
    }

    /// An empty one for what a client sends.
    pub(crate) fn for_push(limit: u64) -> Self {
        Self { rooms: &PUSH_PERMITS, ..Self::new(limit) }
    }

    /// Whether `frame` still fits below the limit.
    pub(crate) fn fits(&self, frame: &[u8]) -> bool {
        (self.bytes.len() + frame.len()) as u64 <= self.limit
    }

    /// Whether [`Self::wait`] has to be called before `frame` is added.
    pub(crate) fn must_wait(&self, frame: &[u8]) -> bool {
        self.room.is_none() && self.bytes.len() + frame.len() > SMALL_ANSWER
    }

    /// Waits for the room that an answer of `expected` bytes takes, or of as many as the limit allows.
    pub(crate) async fn wait(&mut self, expected: Option<u64>) {
        let expected = expected.unwrap_or(self.limit).min(self.limit);
        // It is never closed.
        self.room = self.rooms.acquire_many(kib(expected).min(READING_KIB)).await.ok();
        self.bytes.reserve_exact(usize::try_from(expected).unwrap_or(0).saturating_sub(self.bytes.len()));
    }

    pub(crate) fn add(&mut self, frame: &[u8]) {
        self.bytes.extend_from_slice(frame);
    }

    pub(crate) fn finish(self) -> Bytes {
        // Exact: what a growing buffer has in reserve would be kept with it.
        let bytes = self.bytes.into_boxed_slice();
        match self.room {
            None => Bytes::from(bytes),
            Some(room) => Bytes::from_owner(BytesWithPermit { bytes, _room: room }),
        }
    }
}

/// The room for a manifest of so many bytes on its way into a cache, if it needs any.
///
/// # Errors
/// If there is none left: to wait would take memory too.
pub(crate) fn reserve_for_cache(bytes: u64) -> Result<Option<SemaphorePermit<'static>>, TryAcquireError> {
    if bytes <= SMALL_ANSWER as u64 { Ok(None) } else { CACHE_PERMITS.try_acquire_many(kib(bytes)).map(Some) }
}

/// The room that a list takes while it is collected page by page, and until it is dropped: none up to [`SMALL_ANSWER`] bytes.
#[derive(Debug, Default)]
pub(crate) struct ListReservation {
    bytes: u64,
    room: Option<SemaphorePermit<'static>>,
}

impl ListReservation {
    /// Counts a page's entries of so many bytes.
    ///
    /// # Errors
    /// If there is no room left: to wait would keep what was collected so far.
    pub(crate) fn add(&mut self, bytes: u64) -> Result<(), TryAcquireError> {
        self.bytes = self.bytes.saturating_add(bytes);
        if self.bytes <= SMALL_ANSWER as u64 {
            return Ok(());
        }
        let held = self.room.as_ref().map_or(0, |room| u32::try_from(room.num_permits()).unwrap_or(u32::MAX));
        // One that takes more than there is takes all of it: its reader has a limit of its own.
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

/// Waits until a manifest may be read from a disk, whatever its size.
pub(crate) async fn disk_read_permit() -> Option<SemaphorePermit<'static>> {
    DISK_PERMITS.acquire().await.ok()
}

/// The same bytes without the room that [`CollectedBody`] holds for them.
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

/// Answers up to this size, in bytes, wait for no room. Manifests of images have some KiB, indexes some tens.
pub(crate) const SMALL_ANSWER: usize = 128 << 10;
/// Room for large answers: four manifests of 4 MiB at once.
const READING_KIB: u32 = 16 << 10;
const LISTS_KIB: u32 = 2 * READING_KIB;

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    /// One test: the room is the process's.
    #[tokio::test]
    async fn large_answers_wait_for_each_other_and_small_ones_for_nobody() {
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
