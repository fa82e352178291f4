//! Content on its way to the disk: a temporary file with room reserved for it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::reserved_file::ReservedFile;
use crate::error::{Error, Result};
use crate::file_access::{Files, OpenFile};

/// A file that others may read while it grows. Removed on drop, unless it got its name.
///
/// All methods block.
#[derive(Debug)]
pub struct TempFile {
    file: OpenFile,
    access: Files,
    path: PathBuf,
    /// Room for it, if it's content: other files are small and take none.
    pub(super) reserved: Option<Arc<ReservedFile>>,
    named: bool,
}

/// Bytes that will be written, and that the disk still calls free.
#[derive(Debug)]
pub(super) struct UnwrittenBytes {
    all: Arc<AtomicU64>,
    size: u64,
}

impl UnwrittenBytes {
    /// Nothing yet, of what is owed in `all`.
    pub(super) fn new(all: Arc<AtomicU64>) -> Self {
        Self { all, size: 0 }
    }

    /// It's so much now.
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
    /// The system's, as they are: the caller may make room, or create the directory.
    pub(super) fn create(dir: &Path, access: &Files) -> std::io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = dir.join(format!("{}-{number}", std::process::id()));
        // What a dead process of the same number left behind was removed at the start.
        let file = OpenFile::new(access.create(&path)?, access.clone());
        Ok(Self { file, access: access.clone(), path, reserved: None, named: false })
    }

    /// Where its bytes go as they arrive, within the cache's bounds.
    ///
    /// # Errors
    /// [`Kind::Local`](crate::error::Kind::Local) if it was made for no content.
    pub fn reserved(&self) -> Result<Arc<ReservedFile>> {
        self.reserved.clone().ok_or_else(|| Error::new(crate::error::Kind::Local, "the file has no room"))
    }

    /// The file, which stays readable when it gets its name, and when it's removed.
    pub fn file(&self) -> OpenFile {
        self.file.clone()
    }

    /// Syncs it, and gives it its name. What has the name already is replaced.
    pub(super) fn sync(&self) -> Result<()> {
        self.file.sync().map_err(|error| self.failed("write", &error))
    }

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
pub fn write_at(file: &OpenFile, bytes: &[u8], at: u64) -> Result<()> {
    file.write_all_at(bytes, at).map_err(|error| Error::io("write to the cache", &error))
}

/// Makes names in a directory durable.
pub(super) fn sync_dir(access: &Files, dir: &Path) -> Result<()> {
    access.sync_dir(dir).map_err(|error| Error::io(format!("sync {}", dir.display()), &error))
}
