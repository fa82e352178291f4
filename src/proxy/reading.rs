//! Files as streams, for many readers within one bound of memory.

use std::fs::File;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::blocking;
use super::cache::Stored;
use crate::content::Body;
use crate::error::{Error, Kind, Result};

/// How many read at the moment. Clones share the count.
#[derive(Clone, Debug, Default)]
pub(super) struct Readers(Arc<AtomicUsize>);

/// One of them.
#[derive(Debug)]
pub(super) struct Reader(Arc<AtomicUsize>);

impl Readers {
    pub(super) fn enter(&self) -> Reader {
        self.0.fetch_add(1, Ordering::Relaxed);
        Reader(self.0.clone())
    }
}

impl Reader {
    /// How much to read in one go: much for a few (a call costs as much as 100 KiB), less for each of many.
    pub(super) fn chunk(&self) -> u64 {
        let readers = self.0.load(Ordering::Relaxed).max(1) as u64;
        (MEMORY / readers).clamp(SMALLEST, LARGEST) & !0xffff
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The bytes of a stored blob in `range`, read as they are asked for.
pub(super) fn stored(stored: Stored, range: Range<u64>, reader: Reader) -> Body {
    let Stored { file, pin } = stored;
    stream::try_unfold((Arc::new(file), pin, range, reader), |(file, pin, rest, reader)| async move {
        if rest.is_empty() {
            return Ok(None);
        }
        let end = rest.end.min(rest.start + reader.chunk());
        let bytes = read_at(file.clone(), rest.start..end).await?;
        Ok(Some((bytes, (file, pin, end..rest.end, reader))))
    })
    .boxed()
}

/// Exactly the bytes in `range`.
///
/// # Errors
/// [`Kind::Mismatch`] if the file is shorter.
pub(super) async fn read_at(file: Arc<File>, range: Range<u64>) -> Result<Bytes> {
    blocking(move || {
        let wanted = usize::try_from(range.end - range.start).unwrap_or(0);
        let mut bytes = Vec::with_capacity(wanted);
        while bytes.len() < wanted {
            let at = range.start + bytes.len() as u64;
            // Into memory that wasn't filled with zeros first, which std can't do at an offset.
            match rustix::io::pread(&*file, rustix::buffer::spare_capacity(&mut bytes), at) {
                Ok(0) => {
                    return Err(Error::new(Kind::Mismatch, "a file of the cache became shorter while it was read"));
                }
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(Error::io("read from the cache", &error.into())),
            }
        }
        bytes.truncate(wanted);
        Ok(Bytes::from(bytes))
    })
    .await
}

const MEMORY: u64 = 16 << 20;
const SMALLEST: u64 = 64 << 10;
const LARGEST: u64 = 1 << 20;
