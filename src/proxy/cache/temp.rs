//! Content on its way to the disk: a temporary file with room reserved for it.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;

use super::index::Reservation;
use crate::error::{Error, Result};

/// A file that others may read while it grows. Removed on drop, unless it got its name.
///
/// All methods block.
#[derive(Debug)]
pub struct Temp {
    file: Arc<File>,
    path: PathBuf,
    pub(super) room: Option<Reservation>,
    /// What it will take of the disk, where the disk doesn't know of that.
    pub(super) owed: Option<Owed>,
    named: bool,
}

/// Bytes that will be written, and that the disk still calls free.
#[derive(Debug)]
pub(super) struct Owed {
    all: Arc<AtomicU64>,
    size: u64,
}

impl Owed {
    pub(super) fn new(all: &Arc<AtomicU64>, size: u64) -> Self {
        all.fetch_add(size, Ordering::Relaxed);
        Self { all: all.clone(), size }
    }
}

impl Drop for Owed {
    fn drop(&mut self) {
        self.all.fetch_sub(self.size, Ordering::Relaxed);
    }
}

impl Temp {
    pub(super) fn new(dir: &Path, room: Option<Reservation>) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{}-{number}", std::process::id()));
        // What a dead process of the same number left behind was removed at the start.
        let opened = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = opened.map_err(|error| Error::io(format!("create {}", path.display()), &error))?;
        Ok(Self { file: Arc::new(file), path, room, owed: None, named: false })
    }

    /// The file, which stays readable when it gets its name, and when it's removed.
    pub fn file(&self) -> Arc<File> {
        self.file.clone()
    }

    /// Has the disk set blocks aside for all of it, which costs less than to find some at each write. Whether it did.
    ///
    /// # Errors
    /// [`Kind::Local`](crate::error::Kind::Local) if there aren't so many.
    pub(super) fn allocate(&self, size: u64) -> Result<bool> {
        match super::space::allocate(&self.file, size) {
            Ok(done) => Ok(done),
            Err(error) => Err(self.failed("make room for", &error.into())),
        }
    }

    /// Syncs it, and gives it its name. What has the name already is replaced.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync_all().map_err(|error| self.failed("write", &error))
    }

    pub(super) fn rename(&mut self, to: &Path) -> Result<()> {
        fs::rename(&self.path, to).map_err(|error| Error::io(format!("create {}", to.display()), &error))?;
        self.named = true;
        Ok(())
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> Error {
        Error::io(format!("{doing} {}", self.path.display()), error)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Writes all of `bytes` at an offset. Blocks.
pub fn write_at(file: &File, bytes: &Bytes, at: u64) -> Result<()> {
    file.write_all_at(bytes, at).map_err(|error| Error::io("write to the cache", &error))
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(dir: &Path) -> Result<()> {
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|error| Error::io(format!("sync {}", dir.display()), &error))
}
