//! A directory of content by digest, within limits.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::cache_dir::{CacheDir, is_full};
use super::index::{Index, Pin, Reservation};
use super::reserved_file::ReservedFile;
use super::temp::{TempFile, UnwrittenBytes, sync_dir};
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::file_access::OpenFile;

/// Content by digest. Clones share it. Some methods block; their documentation says so.
#[derive(Clone)]
pub(crate) struct ContentStore(Arc<Inner>);

/// Called for evicted content with its digest and size.
type EvictionCallback = Box<dyn Fn(&Digest, u64) + Send + Sync>;

struct Inner {
    dir: PathBuf,
    home: CacheDir,
    keep_free: u64,
    /// Reserved bytes that are not written yet, of all files.
    unwritten: Arc<AtomicU64>,
    index: Index,
    /// Held while files are renamed and removed, so that an eviction cannot remove a file that was just fetched again under
    /// the same name.
    names: Mutex<()>,
    evicted: EvictionCallback,
}

/// The result of removing something from the cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// It was removed.
    Gone,
    /// It is being read, and was not removed.
    Busy,
    /// It is not in the cache.
    Absent,
}

/// Open content. It stays on the disk as long as this lives.
#[derive(Debug)]
pub(crate) struct StoredContent {
    /// Its digest.
    pub(crate) digest: Digest,
    /// The open file.
    pub(crate) file: OpenFile,
    /// Prevents the eviction of the content, and has its size.
    pub(crate) pin: Pin,
}

impl ContentStore {
    /// Opens the store in the directory `name` of `home`, with its complete files. Blocks.
    pub(super) fn open(
        name: &str,
        home: CacheDir,
        capacity: u64,
        keep_free: u64,
        evicted: impl Fn(&Digest, u64) + Send + Sync + 'static,
    ) -> Result<Self> {
        let inner = Inner {
            dir: home.path().join(name),
            home,
            keep_free,
            unwritten: Arc::default(),
            index: Index::new(capacity),
            names: Mutex::default(),
            evicted: Box::new(evicted),
        };
        let store = Self(Arc::new(inner));
        for (digest, size) in super::scan::scan_directory(&store.0.dir)? {
            store.0.index.recall(digest, size);
        }
        while store.0.index.is_over() && store.evict(&store.lock_names()) {}
        Ok(store)
    }

    /// The size of the content in bytes; `None` if it is not in the cache.
    pub(crate) fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.0.index.size_of(digest)
    }

    /// Marks the content as being read; `None` if it is not in the cache. Cheap; [`open_pinned`](Self::open_pinned) follows.
    pub(crate) fn pin(&self, digest: &Digest) -> Option<Pin> {
        self.0.index.pin(digest)
    }

    /// Opens pinned content. If its file is missing or has a wrong size, the content is removed, and this returns `None`.
    /// Blocks.
    ///
    /// # Errors
    /// [`Kind::Local`] if the system cannot open any more files: the content is not removed then.
    pub(crate) fn open_pinned(&self, digest: &Digest, pin: Pin) -> Result<Option<StoredContent>> {
        let path = self.path(digest, pin.size());
        // The proxy has written the file itself: `open` accepts only a regular file, and no link.
        let files = self.0.home.files();
        let file = files.open(&path).and_then(|file| Ok((file.metadata()?.len(), file)));
        match file {
            Ok((size, file)) if size == pin.size() => {
                return Ok(Some(StoredContent { digest: *digest, file: OpenFile::new(file, files.clone()), pin }));
            }
            Ok((size, _)) => tracing::error!("{} has {size} bytes: it is fetched again", path.display()),
            Err(error) if is_exhausted(&error) => return Err(Error::io(format!("open {}", path.display()), &error)),
            Err(error) => tracing::error!("{}: {error}: it is fetched again", path.display()),
        }
        self.discard(digest);
        Ok(None)
    }

    /// A temporary file with `size` reserved bytes, for content that is in memory. May evict other content. Blocks.
    ///
    /// # Errors
    /// Those of [`prepare`](Self::prepare), and [`Kind::Local`] if there is no space.
    pub(crate) fn begin(&self, size: u64) -> Result<TempFile> {
        let temp = self.prepare(size)?;
        temp.reserved()?.take_all()?;
        Ok(temp)
    }

    /// A temporary file without reserved bytes, for content whose size was announced. Evicts nothing. Blocks.
    ///
    /// # Errors
    /// [`Kind::Local`] if `size` exceeds the cache or all that could be freed on the disk, or the disk cannot be written.
    pub(crate) fn prepare(&self, size: u64) -> Result<TempFile> {
        if !self.0.index.could_hold(size) {
            return Err(cache_full(size));
        }
        if self.insufficient_bytes(size).is_some_and(|free| self.is_hopeless(free, size)) {
            return Err(cache_full(size).hint("other files fill the disk"));
        }
        let mut temp = self.temporary()?;
        temp.reserved = Some(Arc::new(ReservedFile::new(self.clone(), temp.file(), size)));
        Ok(temp)
    }

    /// A temporary file. If the disk has no free inode, evicts content until there is one, within a limit.
    pub(super) fn temporary(&self) -> Result<TempFile> {
        for _ in 0..MAX_EVICTIONS_FOR_INODE {
            match self.0.home.temporary() {
                Err(error) if is_full(&error) && self.evict(&self.lock_names()) => {}
                other => return other.map_err(|error| self.0.home.failed("create a file in", &error)),
            }
        }
        Err(cache_full(0).hint("the disk has no free inodes: other files use them"))
    }

    /// Reserves `size` bytes, and evicts other content if necessary. `to_come` is the number of bytes that the file will still
    /// need in total. The caller holds the returned lock until it has counted the bytes as unwritten. Blocks.
    ///
    /// # Errors
    /// [`Kind::Local`] if there is no space: all content is being read, or the disk is full. If evicting everything would not
    /// free enough of the disk, nothing is evicted: otherwise one blob that is too large would empty the cache.
    pub(super) fn reserve(&self, size: u64, to_come: u64) -> Result<(Reservation, MutexGuard<'_, ()>)> {
        loop {
            let names = self.lock_names();
            if let Some(free) = self.insufficient_bytes(size) {
                if self.is_hopeless(free, to_come) || !self.evict(&names) {
                    return Err(cache_full(size).hint("other files fill the disk"));
                }
            } else if let Some(reserved) = self.0.index.reserve(size) {
                return Ok((reserved, names));
            } else if !self.evict(&names) {
                return Err(cache_full(size));
            }
        }
    }

    /// The free bytes of the disk, if they are too few for `size` more bytes.
    fn insufficient_bytes(&self, size: u64) -> Option<u64> {
        let wanted = self.0.keep_free.saturating_add(self.0.unwritten.load(Ordering::Relaxed)).saturating_add(size);
        crate::file_access::free_bytes(self.0.home.path()).filter(|free| *free < wanted)
    }

    /// Whether `size` bytes would not fit on the disk even if all content were evicted. If other files use the space that is to
    /// be kept free, content is evicted anyway.
    fn is_hopeless(&self, free: u64, size: u64) -> bool {
        let (keep_free, (count, bytes)) = (self.0.keep_free, self.0.index.count());
        if free < keep_free { count == 0 } else { free - keep_free + bytes < size }
    }

    /// A counter of unwritten bytes, for a new file.
    pub(super) fn unwritten_bytes(&self) -> UnwrittenBytes {
        UnwrittenBytes::new(self.0.unwritten.clone())
    }

    /// Renames a complete and verified file to its final name. On return the content is durable. Blocks.
    pub(crate) fn commit(&self, digest: Digest, mut temp: TempFile) -> Result<Pin> {
        temp.sync()?;
        let reserved = temp.reserved()?.close()?;
        let path = self.path(&digest, reserved.size());
        let parent = path.parent().unwrap_or(&self.0.dir);
        let files = self.0.home.files();
        if !parent.exists() {
            self.create_shard(parent)?;
            for dir in parent.ancestors().skip(1).take(2) {
                sync_dir(files, dir)?;
            }
        }
        let pin = {
            let _names = self.lock_names();
            temp.rename(&path)?;
            self.0.index.add(digest, reserved)
        };
        sync_dir(files, parent)?;
        Ok(pin)
    }

    /// Creates the directory of a shard, which takes an inode as a file does.
    fn create_shard(&self, dir: &Path) -> Result<()> {
        for _ in 0..MAX_EVICTIONS_FOR_INODE {
            match self.0.home.files().create_dir_all(dir) {
                Err(error) if is_full(&error) && self.evict(&self.lock_names()) => {}
                other => return other.map_err(|error| Error::io(format!("create {}", dir.display()), &error)),
            }
        }
        Err(cache_full(0).hint("the disk has no free inodes: other files use them"))
    }

    /// Removes content, also while it is read. Readers that have it open continue. Blocks.
    pub(crate) fn discard(&self, digest: &Digest) -> bool {
        let names = self.lock_names();
        let Some(size) = self.0.index.remove(digest) else { return false };
        self.unlink(digest, size, &names);
        true
    }

    /// Removes content, unless it is being read. Blocks.
    pub(super) fn discard_idle(&self, digest: &Digest) -> Removal {
        let names = self.lock_names();
        match self.0.index.remove_idle(digest) {
            Err(()) => Removal::Busy,
            Ok(None) => Removal::Absent,
            Ok(Some(size)) => {
                self.unlink(digest, size, &names);
                Removal::Gone
            }
        }
    }

    /// Removes content that cannot be read, if its file is still the open one. Blocks.
    pub(in crate::proxy) fn discard_file(&self, digest: &Digest, size: u64, file: &OpenFile) -> bool {
        file.file().metadata().is_ok_and(|metadata| self.discard_same(digest, size, metadata.ino()))
    }

    /// Removes corrupt content, also while it is read, if its file still has this inode. Blocks.
    pub(in crate::proxy) fn discard_same(&self, digest: &Digest, size: u64, inode: u64) -> bool {
        let names = self.lock_names();
        let is_same = fs::metadata(self.path(digest, size)).is_ok_and(|metadata| metadata.ino() == inode);
        if !is_same || self.0.index.size_of(digest) != Some(size) {
            return false;
        }
        self.0.index.remove(digest);
        self.unlink(digest, size, &names);
        true
    }

    /// The time of the last request; `None` if there was none since the start.
    pub(super) fn last_used(&self, digest: &Digest) -> Option<SystemTime> {
        self.0.index.last_used(digest)
    }

    /// The number of entries, and their bytes.
    pub(crate) fn count(&self) -> (usize, u64) {
        self.0.index.count()
    }

    /// The content whose digest begins with the byte `shard`.
    pub(in crate::proxy) fn shard(&self, shard: u8) -> Vec<(Digest, u64)> {
        self.0.index.shard(shard)
    }

    /// All content, in no order.
    #[cfg(test)]
    pub(crate) fn list(&self) -> Vec<(Digest, u64)> {
        self.0.index.list()
    }

    /// The path of content with this digest and size.
    pub(crate) fn path(&self, digest: &Digest, size: u64) -> PathBuf {
        let hex = digest.hex();
        self.0.dir.join(digest.algorithm()).join(&hex[..2]).join(format!("{hex}.{size}"))
    }

    /// Evicts the content that the index chooses. False if there is none that is not being read.
    fn evict(&self, names: &MutexGuard<'_, ()>) -> bool {
        let Some((digest, size)) = self.0.index.victim() else { return false };
        tracing::debug!("evicted {digest}, {size} bytes");
        self.unlink(&digest, size, names);
        (self.0.evicted)(&digest, size);
        true
    }

    fn unlink(&self, digest: &Digest, size: u64, _: &MutexGuard<'_, ()>) {
        let path = self.path(digest, size);
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!("cannot remove {}: {error}", path.display());
            }
            _ => {}
        }
    }

    fn lock_names(&self) -> MutexGuard<'_, ()> {
        self.0.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &Path {
        &self.0.dir
    }
}

fn cache_full(size: u64) -> Error {
    Error::new(Kind::Local, format!("the cache has no space for {size} bytes"))
}

/// Files that are evicted for one new file at most. If other files use up the inodes of the disk, emptying the cache would not
/// help.
const MAX_EVICTIONS_FOR_INODE: usize = 16;

/// Whether the process or the system has too many open files or too little memory, which may pass.
fn is_exhausted(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

impl std::fmt::Debug for ContentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentStore").field("dir", &self.0.dir).field("count", &self.count()).finish_non_exhaustive()
    }
}
