//! The quota of a layout directory.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Kind, Result};
use crate::file_access;

/// The disk space that pushes to a served layout may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Quota {
    /// The limit of all blobs, manifests and uploads of the directory in bytes; `None` for no limit.
    pub(crate) max_size: Option<u64>,
    /// Bytes to keep free on the file system.
    pub(crate) keep_free: u64,
}

/// A [`Quota`], with the bytes that are used.
#[derive(Debug)]
pub(super) struct QuotaUsage {
    quota: Quota,
    used: AtomicU64,
}

impl QuotaUsage {
    /// Counts the existing files. Blocks for one `stat` per file, if there is a limit of bytes.
    pub(super) fn new(quota: Quota, dir: &Path) -> Self {
        let used = if quota.max_size.is_some() { directory_size(dir, MAX_DEPTH) } else { 0 };
        Self { quota, used: AtomicU64::new(used) }
    }

    /// Reserves `bytes` more. Blocks.
    ///
    /// # Errors
    /// [`Kind::Full`] if the quota does not allow them. Nothing is reserved then.
    pub(super) fn reserve(&self, dir: &Path, bytes: u64) -> Result<()> {
        let before = self.used.fetch_add(bytes, Ordering::Relaxed);
        let checked = self.check(dir, before, bytes);
        if checked.is_err() {
            self.release(bytes);
        }
        checked
    }

    fn check(&self, dir: &Path, used: u64, bytes: u64) -> Result<()> {
        if let Some(max) = self.quota.max_size
            && used.saturating_add(bytes) > max
        {
            return Err(quota_exceeded(format!("the registry may hold {max} bytes (--max-size), and {used} are used")));
        }
        // If the system does not say how much is free, the write itself fails on a full disk.
        if file_access::free_bytes(dir).is_some_and(|free| free < self.quota.keep_free.saturating_add(bytes)) {
            return Err(quota_exceeded(format!("{} bytes are kept free on the registry's disk", self.quota.keep_free)));
        }
        Ok(())
    }

    /// Releases bytes of content that was removed, or replaced by equal content.
    pub(super) fn release(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// The error for content that exceeds the quota.
pub(super) fn quota_exceeded(why: String) -> Error {
    Error::new(Kind::Full, format!("no space left: {why}"))
}

/// The size of the regular files in `dir` and `depth` levels below it. Links are not followed.
fn directory_size(dir: &Path, depth: usize) -> u64 {
    let mut size = 0;
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(data) if data.is_file() => size += data.len(),
            Ok(data) if data.is_dir() && depth > 0 => size += directory_size(&entry.path(), depth - 1),
            _ => {}
        }
    }
    size
}

/// `blobs/sha256/<hex>`.
const MAX_DEPTH: usize = 2;
