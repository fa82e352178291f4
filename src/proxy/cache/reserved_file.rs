//! The space of a file that is being fetched. The reservation grows with the bytes that arrive.
//!
//! The size that an upstream announces may be false, so nothing is evicted because of a size alone. A fetch reserves
//! [`FIRST_STEP`] bytes at its first byte, and then at most twice the bytes that have arrived, in steps that double. A
//! gigabyte takes eleven steps of some microseconds each, on the thread that hashes and writes.
//!
//! If the file is written from its beginning on, each step also allocates blocks on the disk, which costs less than
//! allocation at each write. If it is written in parts, the space is only counted: the connection is the limit then.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::content_store::ContentStore;
use super::index::Reservation;
use super::temp::{UnwrittenBytes, write_at};
use crate::error::{Error, Result};
use crate::file_access::OpenFile;

/// A file with its reserved space. Clones of the `Arc` around it write to the same file.
pub(crate) struct ReservedFile {
    store: ContentStore,
    file: OpenFile,
    size: u64,
    taken: Mutex<ReservedBytes>,
}

#[derive(Debug)]
struct ReservedBytes {
    reservation: Option<Reservation>,
    /// Bytes that have arrived, in any order.
    arrived: u64,
    /// The length of the file's beginning that has blocks on the disk.
    allocated: u64,
    /// Whether blocks are allocated in advance: the file is written from its beginning on, and the file system supports it.
    allocates: bool,
    /// Reserved bytes that the disk still counts as free.
    unwritten: UnwrittenBytes,
}

impl ReservedBytes {
    fn reserved(&self) -> u64 {
        self.reservation.as_ref().map_or(0, Reservation::size)
    }

    fn count_unwritten(&mut self) {
        self.unwritten.set(self.reserved().saturating_sub(self.allocated.max(self.arrived)));
    }
}

impl ReservedFile {
    /// A file that will have `size` bytes, without a reservation yet.
    pub(super) fn new(store: ContentStore, file: OpenFile, size: u64) -> Self {
        let unwritten = store.unwritten_bytes();
        let taken = ReservedBytes { reservation: None, arrived: 0, allocated: 0, allocates: true, unwritten };
        Self { store, file, size, taken: Mutex::new(taken) }
    }

    pub(crate) fn file(&self) -> &OpenFile {
        &self.file
    }

    /// Reserves space for `bytes` and writes them at offset `at`. Blocks.
    ///
    /// # Errors
    /// [`Kind::Local`](crate::error::Kind::Local) if there is no space: all content is being read, or the disk is full.
    pub(crate) fn write(&self, bytes: &Bytes, at: u64) -> Result<()> {
        {
            let mut taken = self.lock();
            taken.arrived = (taken.arrived + bytes.len() as u64).min(self.size);
            taken.allocates &= at <= taken.allocated;
            if taken.arrived > taken.reserved() {
                let doubled = taken.arrived.max(taken.reserved().saturating_mul(2)).max(FIRST_STEP);
                self.grow(&mut taken, doubled.min(self.size))?;
            }
            taken.count_unwritten();
        }
        write_at(&self.file, bytes, at)
    }

    /// Reserves the whole size at once, for bytes that are in memory. Blocks.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub(super) fn take_all(&self) -> Result<()> {
        let mut taken = self.lock();
        self.grow(&mut taken, self.size)
    }

    /// Completes the reservation to the whole size, and returns it. Blocks.
    ///
    /// # Errors
    /// Those of [`write`](Self::write).
    pub(super) fn close(&self) -> Result<Reservation> {
        let mut taken = self.lock();
        self.grow(&mut taken, self.size)?;
        taken.reservation.take().ok_or_else(|| Error::new(crate::error::Kind::Local, "the file has no reserved space"))
    }

    fn grow(&self, taken: &mut ReservedBytes, to: u64) -> Result<()> {
        let reserved = taken.reserved();
        if taken.reservation.is_some() && to <= reserved {
            return Ok(());
        }
        // The lock is held until the space is counted: the next caller must see what is left.
        let (more, _names) = self.store.reserve(to - reserved, self.size - reserved)?;
        match &mut taken.reservation {
            Some(reservation) => reservation.join(more),
            none => *none = Some(more),
        }
        // The kernel allocates the blocks of a small file at once when it writes them.
        taken.allocates = taken.allocates
            && self.size >= FIRST_STEP
            && self
                .file
                .allocate(taken.allocated..to)
                .map_err(|error| Error::io("allocate space in the cache", &error))?;
        if taken.allocates {
            taken.allocated = to;
        }
        taken.count_unwritten();
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

/// The bytes that the first step reserves.
pub(super) const FIRST_STEP: u64 = 1 << 20;
