//! A directory of content by its digest, within bounds.

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

/// Content by its digest. Clones share it. Methods that say so block.
#[derive(Clone)]
pub struct ContentStore(Arc<Inner>);

/// Hears of what had to go.
type EvictionCallback = Box<dyn Fn(&Digest, u64) + Send + Sync>;

struct Inner {
    dir: PathBuf,
    home: CacheDir,
    keep_free: u64,
    /// Bytes on their way, which the disk doesn't know of.
    unwritten: Arc<AtomicU64>,
    index: Index,
    /// Held while names are made and removed, so that the removal of a victim can't hit the file
    /// that was fetched anew under its name.
    names: Mutex<()>,
    evicted: EvictionCallback,
}

/// What became of something that was to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Removal {
    /// It's gone.
    Gone,
    /// It's being read, and stays.
    Busy,
    /// It wasn't here.
    Absent,
}

/// Content that is open. It stays on the disk as long as this lives.
#[derive(Debug)]
pub struct StoredContent {
    /// Which content it is.
    pub digest: Digest,
    /// To be read from.
    pub file: OpenFile,
    /// Keeps it there, and knows its size.
    pub pin: Pin,
}

impl ContentStore {
    /// The shelf in the part `name` of `home`, with what is whole in there. Blocks.
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

    /// Whether it's here, and how large.
    pub fn size_of(&self, digest: &Digest) -> Option<u64> {
        self.0.index.size_of(digest)
    }

    /// Marks it as being read, if it's here. Cheap; [`open`](Self::open_pinned) follows.
    pub fn pin(&self, digest: &Digest) -> Option<Pin> {
        self.0.index.pin(digest)
    }

    /// Opens what was pinned. A file that is missing, or of another size, is forgotten: `None`. Blocks.
    ///
    /// # Errors
    /// [`Kind::Local`] where the system can't open any more files: that tells nothing of this one.
    pub fn open_pinned(&self, digest: &Digest, pin: Pin) -> Result<Option<StoredContent>> {
        let path = self.path(digest, pin.size());
        // The program itself wrote it: `open` takes a regular file only, and no link.
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

    /// A temporary file with room for `size` bytes that are here, for which others may have to go. Blocks.
    ///
    /// # Errors
    /// Those of [`prepare`](Self::prepare), and [`Kind::Local`] if there is no room.
    pub fn begin(&self, size: u64) -> Result<TempFile> {
        let temp = self.prepare(size)?;
        temp.reserved()?.take_all()?;
        Ok(temp)
    }

    /// A temporary file that has no room yet, for `size` bytes that are only announced. Nothing has to go. Blocks.
    ///
    /// # Errors
    /// [`Kind::Local`] if it's larger than the cache or than all that could be freed on the disk, or the disk can't be
    /// written.
    pub fn prepare(&self, size: u64) -> Result<TempFile> {
        if !self.0.index.could_hold(size) {
            return Err(cache_full(size));
        }
        if self.missing_bytes(size).is_some_and(|free| self.is_hopeless(free, size)) {
            return Err(cache_full(size).hint("other files fill the disk"));
        }
        let mut temp = self.temporary()?;
        temp.reserved = Some(Arc::new(ReservedFile::new(self.clone(), temp.file(), size)));
        Ok(temp)
    }

    /// A temporary file. Where the disk has no inode for it, content is evicted until there is one, within a limit.
    pub(super) fn temporary(&self) -> Result<TempFile> {
        for _ in 0..MAX_EVICTIONS_FOR_INODE {
            match self.0.home.temporary() {
                Err(error) if is_full(&error) && self.evict(&self.lock_names()) => {}
                other => return other.map_err(|error| self.0.home.failed("create a file in", &error)),
            }
        }
        Err(cache_full(0).hint("the disk has no free inodes: other files use them"))
    }

    /// Takes room for `size` bytes, for which others may have to go; so many are still to come in all. The lock is held
    /// until the disk's part is counted. Blocks.
    ///
    /// # Errors
    /// [`Kind::Local`] if there is none: all is being read, or the disk is full. What could never make room
    /// enough on the disk makes none: else one blob that is too large would cost all the others.
    pub(super) fn reserve(&self, size: u64, to_come: u64) -> Result<(Reservation, MutexGuard<'_, ()>)> {
        loop {
            let names = self.lock_names();
            if let Some(free) = self.missing_bytes(size) {
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

    /// What the disk has free, where that is too little for `size` bytes more.
    fn missing_bytes(&self, size: u64) -> Option<u64> {
        let wanted = self.0.keep_free.saturating_add(self.0.unwritten.load(Ordering::Relaxed)).saturating_add(size);
        crate::file_access::free_bytes(self.0.home.path()).filter(|free| *free < wanted)
    }

    /// Whether `size` bytes would find no room on the disk if all content went. Content goes all the same where other
    /// files take the room that is to stay free.
    fn is_hopeless(&self, free: u64, size: u64) -> bool {
        let (keep_free, (count, bytes)) = (self.0.keep_free, self.0.index.count());
        if free < keep_free { count == 0 } else { free - keep_free + bytes < size }
    }

    /// For a file that begins to take room.
    pub(super) fn unwritten_bytes(&self) -> UnwrittenBytes {
        UnwrittenBytes::new(self.0.unwritten.clone())
    }

    /// Gives a whole and verified file its name. On return it's durable. Blocks.
    pub fn commit(&self, digest: Digest, mut temp: TempFile) -> Result<Pin> {
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

    /// Removes content, though it may be read: who has it open goes on reading. Blocks.
    pub fn discard(&self, digest: &Digest) -> bool {
        let names = self.lock_names();
        let Some(size) = self.0.index.remove(digest) else { return false };
        self.unlink(digest, size, &names);
        true
    }

    /// Removes content, unless it's being read. Blocks.
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

    /// Removes content whose file is still the open one, as it cannot be read. Blocks.
    pub(in crate::proxy) fn discard_file(&self, digest: &Digest, size: u64, file: &OpenFile) -> bool {
        file.file().metadata().is_ok_and(|metadata| self.discard_same(digest, size, metadata.ino()))
    }

    /// Removes content whose file is this one still, as it was found to be bad, though it may be read. Blocks.
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

    /// When it was asked for last, if it was since the start.
    pub(super) fn last_used(&self, digest: &Digest) -> Option<SystemTime> {
        self.0.index.last_used(digest)
    }

    /// Number and bytes of what is here.
    pub fn count(&self) -> (usize, u64) {
        self.0.index.count()
    }

    /// What is here of a 256th of all digests.
    pub(in crate::proxy) fn shard(&self, shard: u8) -> Vec<(Digest, u64)> {
        self.0.index.shard(shard)
    }

    /// What is here, in no order.
    pub fn list(&self) -> Vec<(Digest, u64)> {
        self.0.index.list()
    }

    /// The file that content of this digest and size has.
    pub fn path(&self, digest: &Digest, size: u64) -> PathBuf {
        let hex = digest.hex();
        self.0.dir.join(digest.algorithm()).join(&hex[..2]).join(format!("{hex}.{size}"))
    }

    /// Removes the least worthy content. False if there is none that isn't being read.
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

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.0.dir
    }
}

fn cache_full(size: u64) -> Error {
    Error::new(Kind::Local, format!("the cache has no room for {size} bytes"))
}

/// Files that are evicted for one new file, at most: where the disk has no inodes because other files use them,
/// the cache must not empty itself for nothing.
const MAX_EVICTIONS_FOR_INODE: usize = 16;

/// Whether the process or the system has too much open, which passes.
fn is_exhausted(error: &std::io::Error) -> bool {
    use rustix::io::Errno;
    matches!(Errno::from_io_error(error), Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM))
}

impl std::fmt::Debug for ContentStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ContentStore").field("dir", &self.0.dir).field("count", &self.count()).finish_non_exhaustive()
    }
}
