//! Files as streams. The kernel sends a part directly if the connection allows it and the part is in the page cache.
//! Otherwise the part is read into a buffer, whose size depends on the number of readers.

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

/// The number of current readers, and their buffers. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct FileReaders(Arc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: AtomicUsize,
    /// Free buffers. New ones would cost a page fault for each 4 KiB, and are not in the CPU cache.
    large: Mutex<Vec<Vec<u8>>>,
    middle: Mutex<Vec<Vec<u8>>>,
}

/// A reader of files for one answer.
#[derive(Debug)]
pub(super) struct FileReader {
    readers: FileReaders,
    /// The client's connection, if the kernel can send parts of files on it.
    pipe: Option<FilePipe>,
}

/// A buffer that is returned to the free ones when it is dropped.
struct LentBuffer {
    bytes: Vec<u8>,
    readers: FileReaders,
}

impl FileReaders {
    /// A new reader, which sends on `pipe` if there is one.
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

    /// The free buffers of this capacity.
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
    /// The first bytes of `range`: as many as one step sends.
    ///
    /// # Errors
    /// [`Kind::Local`] if the disk fails, or the file is shorter.
    pub(super) async fn some(&self, file: &OpenFile, range: Range<u64>) -> Result<Bytes> {
        if let (Some(pipe), Some(file)) = (&self.pipe, file.for_sendfile()) {
            let part = range.start..range.end.min(range.start + FilePipe::MAX_PART);
            // Otherwise the kernel would wait for the disk, and block a thread that runs many tasks.
            if is_in_page_cache(file, &part) {
                return Ok(pipe.part(file.clone(), part));
            }
        }
        let end = range.end.min(range.start + self.chunk());
        self.readers.read(file.clone(), range.start..end).await
    }

    /// Bytes to read in one step: fewer if there are many readers.
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

/// Whether the range is in the page cache. Probes a few offsets, which takes a microsecond. The kernel may drop the pages
/// before they are sent; then sending takes longer.
#[cfg(target_os = "linux")]
fn is_in_page_cache(file: &File, range: &Range<u64>) -> bool {
    let places = (range.start..range.end).step_by(PROBE_INTERVAL).chain(range.end.checked_sub(1));
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

/// The distance of the probes in bytes. The kernel reads ahead at least half of this.
const PROBE_INTERVAL: usize = 256 << 10;
/// Bytes that each of a few readers reads in one step. Each step costs two thread switches.
const LARGE_READ: usize = 1 << 20;
const FEW_READERS: usize = 8;
/// Bytes that each of more readers reads in one step. They fit into the cache of a core.
pub(super) const MEDIUM_READ: usize = 256 << 10;
/// Bytes that each of more than [`MANY_READERS`] reads in one step.
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
