//! Room for a file that is being fetched: it grows with the bytes that arrive.
//!
//! The upstream announces a size before it sends anything, and the announcement may be a lie. So nothing is evicted for
//! a size alone: a fetch takes [`FIRST_STEP`] bytes of room with its first byte, and then at most twice what has arrived,
//! in steps that double. A gigabyte takes eleven steps, each some microseconds on the thread that hashes and writes.
//!
//! Where the file is written from its beginning on, each step also has the disk set blocks aside, which costs less
//! than to find some at each write. Where it's written in parts, the room is counted and the disk finds the blocks: the
//! connection is the limit then.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::content_store::ContentStore;
use super::index::Reservation;
use super::temp::{UnwrittenBytes, write_at};
use crate::error::{Error, Result};
use crate::file_access::OpenFile;

/// The room of one file. Clones of the `Arc` around it write to the same file.
pub struct ReservedFile {
    store: ContentStore,
    file: OpenFile,
    size: u64,
    taken: Mutex<ReservedBytes>,
}

#[derive(Debug)]
struct ReservedBytes {
    reservation: Option<Reservation>,
    /// Bytes that arrived, in whatever order.
    arrived: u64,
    /// The file's first bytes that have blocks on the disk.
    allocated: u64,
    /// Blocks are still set aside: so far all was written from the beginning on, on a file system that does it.
    allocates: bool,
    /// What the disk still calls free.
    unwritten: UnwrittenBytes,
}

impl ReservedBytes {
    fn reserved(&self) -> u64 {
        self.reservation.as_ref().map_or(0, Reservation::size)
    }

    fn count_owed(&mut self) {
        self.unwritten.set(self.reserved().saturating_sub(self.allocated.max(self.arrived)));
    }
}

impl ReservedFile {
    /// None yet, for a file that will have `size` bytes.
    pub(super) fn new(store: ContentStore, file: OpenFile, size: u64) -> Self {
        let unwritten = store.unwritten_bytes();
        let taken = ReservedBytes { reservation: None, arrived: 0, allocated: 0, allocates: true, unwritten };
        Self { store, file, size, taken: Mutex::new(taken) }
    }

    /// The file.
    pub fn file(&self) -> &OpenFile {
        &self.file
    }

    /// Writes bytes that arrived, once there is room for them. Blocks.
    ///
    /// # Errors
    /// [`Kind::Local`](crate::error::Kind::Local) if there is no room: all is being read, or the disk is full.
    pub fn write(&self, bytes: &Bytes, at: u64) -> Result<()> {
        {
            let mut taken = self.lock();
            taken.arrived = (taken.arrived + bytes.len() as u64).min(self.size);
            taken.allocates &= at <= taken.allocated;
            if taken.arrived > taken.reserved() {
                let doubled = taken.arrived.max(taken.reserved().saturating_mul(2)).max(FIRST_STEP);
                self.grow(&mut taken, doubled.min(self.size))?;
            }
            taken.count_owed();
        }
        write_at(&self.file, bytes, at)
    }

    /// Takes all of it at once, for bytes that are here. Blocks.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub(super) fn take_all(&self) -> Result<()> {
        let mut taken = self.lock();
        self.grow(&mut taken, self.size)
    }

    /// What was taken, which is all of it. Blocks.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub(super) fn close(&self) -> Result<Reservation> {
        let mut taken = self.lock();
        self.grow(&mut taken, self.size)?;
        taken.reservation.take().ok_or_else(|| Error::new(crate::error::Kind::Local, "the file has no room"))
    }

    fn grow(&self, taken: &mut ReservedBytes, to: u64) -> Result<()> {
        let reserved = taken.reserved();
        if taken.reservation.is_some() && to <= reserved {
            return Ok(());
        }
        // With the names held: who comes next sees what is left.
        let (more, _names) = self.store.reserve(to - reserved, self.size - reserved)?;
        match &mut taken.reservation {
            Some(reservation) => reservation.join(more),
            none => *none = Some(more),
        }
        // Of what is small the kernel finds all blocks at once anyway, when it writes them.
        taken.allocates = taken.allocates
            && self.size >= FIRST_STEP
            && self.file.allocate(taken.allocated..to).map_err(|error| Error::io("make room in the cache", &error))?;
        if taken.allocates {
            taken.allocated = to;
        }
        taken.count_owed();
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, ReservedBytes> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for ReservedFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReservedFile").field("size", &self.size).field("taken", &*self.lock()).finish_non_exhaustive()
    }
}

/// The first step, which a single byte takes.
pub(super) const FIRST_STEP: u64 = 1 << 20;
