//! How much may be stored below a layout's directory.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Kind, Result};
use crate::file_access;

/// What pushes to a served layout may use of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Quota {
    /// The most bytes that the directory's blobs, manifests and uploads have together; `None` for no limit.
    pub max_size: Option<u64>,
    /// Bytes that stay free on the file system.
    pub keep_free: u64,
}

/// A [`Quota`], and what is used of it.
#[derive(Debug)]
pub(super) struct QuotaUsage {
    quota: Quota,
    used: AtomicU64,
}

impl QuotaUsage {
    /// Counts what is there. Blocks, for one `stat` a file where there is a limit of bytes.
    pub(super) fn new(quota: Quota, dir: &Path) -> Self {
        let used = if quota.max_size.is_some() { directory_size(dir, MAX_DEPTH) } else { 0 };
        Self { quota, used: AtomicU64::new(used) }
    }

    /// Takes room for `bytes` more. Blocks.
    ///
    /// # Errors
    /// [`Kind::Full`]: then nothing is taken.
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

    /// Gives back what was removed, or replaced by the same.
    pub(super) fn release(&self, bytes: u64) {
        let less = |used: u64| Some(used.saturating_sub(bytes));
        let _ = self.used.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
    }
}

/// The error for content that there is no room for.
pub(super) fn quota_exceeded(why: String) -> Error {
    Error::new(Kind::Full, format!("there is no room for it: {why}"))
}

/// Bytes of the regular files in `dir`, and so many levels below it. Links aren't followed.
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
