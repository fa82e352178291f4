//! Files as streams: sent by the kernel where the connection can and the bytes are in memory already, else
//! read, for many readers within one bound of memory.

use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::error::{Error, Kind, Result};
use crate::file_access::OpenFile;
use crate::pool::run_blocking;
use crate::server::FilePipe;

/// Who reads at the moment, and the memory that they read into. Clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct FileReaders(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicUsize,
    /// Buffers that were read into before: new ones cost a page fault for each 4 KiB, and are cold.
    large: Mutex<Vec<Vec<u8>>>,
    middle: Mutex<Vec<Vec<u8>>>,
}

/// One of them.
#[derive(Debug)]
pub(super) struct FileReader {
    readers: FileReaders,
    /// The connection that it's for, if parts of files can be sent on it.
    pipe: Option<FilePipe>,
}

/// A buffer that goes back when nobody needs its bytes any more.
struct LentBuffer {
    bytes: Vec<u8>,
    readers: FileReaders,
}

impl FileReaders {
    pub(super) fn enter(&self, pipe: Option<FilePipe>) -> FileReader {
        self.0.count.fetch_add(1, Ordering::Relaxed);
        FileReader { readers: self.clone(), pipe }
    }

    /// Exactly the bytes in `range`.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails, or the file is shorter.
    pub(super) async fn read(&self, file: OpenFile, range: Range<u64>) -> Result<Bytes> {
        let readers = self.clone();
        run_blocking(move || {
            let wanted = usize::try_from(range.end - range.start).unwrap_or(0);
            let mut bytes = readers.buffer(wanted);
            while bytes.len() < wanted {
                let at = range.start + bytes.len() as u64;
                match file.read_at(&mut bytes, at) {
                    // Local: no registry is to blame for it.
                    Ok(0) => {
                        return Err(Error::new(Kind::Local, "a file of the cache became shorter while it was read"));
                    }
                    Ok(_) => {}
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(Error::io("read from the cache", &error)),
                }
            }
            bytes.truncate(wanted);
            Ok(Bytes::from_owner(LentBuffer { bytes, readers }))
        })
        .await
    }

    fn buffer(&self, size: usize) -> Vec<u8> {
        if size <= SMALL_READ {
            return Vec::with_capacity(size);
        }
        let capacity = if size <= MEDIUM_READ { MEDIUM_READ } else { size.max(LARGE_READ) };
        let free = self.free(capacity).and_then(|mut free| free.pop());
        free.unwrap_or_else(|| Vec::with_capacity(capacity))
    }

    /// The buffers of this capacity that nobody uses.
    fn free(&self, capacity: usize) -> Option<MutexGuard<'_, Vec<Vec<u8>>>> {
        let list = match capacity {
            MEDIUM_READ => &self.0.middle,
            LARGE_READ => &self.0.large,
            _ => return None,
        };
        Some(list.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsRef<[u8]> for LentBuffer {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for LentBuffer {
    fn drop(&mut self) {
        let mut bytes = std::mem::take(&mut self.bytes);
        let most = if bytes.capacity() == LARGE_READ { 2 * FEW_READERS } else { MANY_READERS };
        if let Some(mut free) = self.readers.free(bytes.capacity())
            && free.len() < most
        {
            bytes.clear();
            free.push(bytes);
        }
    }
}

impl FileReader {
    /// What `range` of the file begins with: as much as is for one step.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails, or the file is shorter.
    pub(super) async fn some(&self, file: &OpenFile, range: Range<u64>) -> Result<Bytes> {
        if let (Some(pipe), Some(file)) = (&self.pipe, file.for_sendfile()) {
            let part = range.start..range.end.min(range.start + FilePipe::MOST);
            // Else the kernel would wait for the disk in the middle of what many tasks run on.
            if is_in_page_cache(file, &part) {
                return Ok(pipe.part(file.clone(), part));
            }
        }
        let end = range.end.min(range.start + self.chunk());
        self.readers.read(file.clone(), range.start..end).await
    }

    /// How much to read in one go: less for each of many.
    fn chunk(&self) -> u64 {
        let count = self.readers.0.count.load(Ordering::Relaxed);
        let size = if count <= FEW_READERS {
            LARGE_READ
        } else if count <= MANY_READERS {
            MEDIUM_READ
        } else {
            SMALL_READ
        };
        size as u64
    }
}

/// Whether the kernel has these bytes of the file in memory: looked at in a few places, which costs
/// a microsecond. It may drop them again before they are sent; then sending them takes longer.
#[cfg(target_os = "linux")]
fn is_in_page_cache(file: &File, range: &Range<u64>) -> bool {
    let places = (range.start..range.end).step_by(READ_AHEAD).chain(range.end.checked_sub(1));
    let mut there = places.map(|at| {
        let mut byte = [0];
        rustix::io::preadv2(file, &mut [IoSliceMut::new(&mut byte)], at, rustix::io::ReadWriteFlags::NOWAIT)
    });
    there.all(|read| read == Ok(1))
}

#[cfg(not(target_os = "linux"))]
fn is_in_page_cache(_: &File, _: &Range<u64>) -> bool {
    false
}

impl Drop for FileReader {
    fn drop(&mut self) {
        self.readers.0.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// The disk is read ahead by half of this, at least.
const READ_AHEAD: usize = 256 << 10;
/// Read in one go by one of a few readers: each time costs two changes of thread.
const LARGE_READ: usize = 1 << 20;
const FEW_READERS: usize = 8;
/// By one of some more. It fits a core's cache.
pub(super) const MEDIUM_READ: usize = 256 << 10;
/// And by each of many, from so many on.
const SMALL_READ: usize = 64 << 10;
const MANY_READERS: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::file_access::Files;
    use crate::proxy::cache::{Cache, Settings};

    /// A fill that reads its own file in parts charges an error of this kind to no registry.
    #[tokio::test]
    async fn a_file_that_is_too_short_is_a_local_fault() {
        let dir = std::env::temp_dir().join(format!("transload-file-stream-{}", std::process::id()));
        let settings = Settings { dir: dir.clone(), size: 1 << 20, keep_free: 0, files: Files::default() };
        let cache = Cache::open(settings, |_, _| {}).await.expect("opens");
        let temp = cache.blobs.prepare(100).expect("a file");
        let short = FileReaders::default().read(temp.file(), 0..100).await;
        std::fs::remove_dir_all(&dir).expect("is there");
        assert_eq!(short.expect_err("it is empty").kind(), Kind::Local);
    }
}
