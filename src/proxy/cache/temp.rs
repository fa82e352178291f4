//! Temporary files, with the space that is reserved for them.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::reserved_file::ReservedFile;
use crate::error::{Error, Result};
use crate::file_access::{Files, OpenFile};

/// A file that others may read while it grows. It is removed on drop, unless it was renamed to its final name.
///
/// All methods block.
#[derive(Debug)]
pub(crate) struct TempFile {
    file: OpenFile,
    access: Files,
    path: PathBuf,
    /// The reserved space of content. Other files are small, and reserve none.
    pub(super) reserved: Option<Arc<ReservedFile>>,
    named: bool,
}

/// Reserved bytes that are not written yet, so that the disk still counts them as free.
#[derive(Debug)]
pub(super) struct UnwrittenBytes {
    all: Arc<AtomicU64>,
    size: u64,
}

impl UnwrittenBytes {
    /// No bytes yet. `all` is the sum over all files.
    pub(super) fn new(all: Arc<AtomicU64>) -> Self {
        Self { all, size: 0 }
    }

    /// Sets the number of bytes.
    pub(super) fn set(&mut self, size: u64) {
        if size > self.size {
            self.all.fetch_add(size - self.size, Ordering::Relaxed);
        } else if size < self.size {
            self.all.fetch_sub(self.size - size, Ordering::Relaxed);
        }
        self.size = size;
    }
}

impl Drop for UnwrittenBytes {
    fn drop(&mut self) {
        self.all.fetch_sub(self.size, Ordering::Relaxed);
    }
}

impl TempFile {
    /// A new file in `dir`.
    ///
    /// # Errors
    /// The system's errors, unchanged: the caller may evict content, or create the directory.
    pub(super) fn create(dir: &Path, access: &Files) -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{}-{number}", std::process::id()));
        // Files that a dead process with the same PID has left were removed at the start.
        let file = OpenFile::new(access.create(&path)?, access.clone());
        Ok(Self { file, access: access.clone(), path, reserved: None, named: false })
    }

    /// The file with its reserved space, to write content within the limits of the cache.
    ///
    /// # Errors
    /// [`Kind::Local`](crate::error::Kind::Local) if the file is not for content.
    pub(crate) fn reserved(&self) -> Result<Arc<ReservedFile>> {
        self.reserved.clone().ok_or_else(|| Error::new(crate::error::Kind::Local, "the file has no reserved space"))
    }

    /// The open file. It stays readable after the file is renamed or removed.
    pub(crate) fn file(&self) -> OpenFile {
        self.file.clone()
    }

    /// Makes the bytes durable.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| self.failed("write", &error))
    }

    /// Renames the file to its final name. An existing file of that name is replaced.
    pub(super) fn rename(&mut self, to: &Path) -> Result<()> {
        self.access.rename(&self.path, to).map_err(|error| Error::io(format!("create {}", to.display()), &error))?;
        self.named = true;
        Ok(())
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> Error {
        Error::io(format!("{doing} {}", self.path.display()), error)
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.named
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// Writes all of `bytes` at an offset. Blocks.
pub(crate) fn write_at(file: &OpenFile, bytes: &[u8], at: u64) -> Result<()> {
    file.write_all_at(bytes, at).map_err(|error| Error::io("write to the cache", &error))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(access: &Files, dir: &Path) -> Result<()> {
    access.sync_dir(dir).map_err(|error| Error::io(format!("sync {}", dir.display()), &error))
}
