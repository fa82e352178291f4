//! How much room the disk has.
//!
//! By `rustix`, which is in the tree for the terminal's width already: std has no `statvfs`.

use std::fs::File;
use std::ops::Range;
use std::path::Path;

use rustix::io::Errno;

/// Bytes that an ordinary user can still write where `dir` is; `None` if the system doesn't say. Blocks.
pub(super) fn free(dir: &Path) -> Option<u64> {
    let told = rustix::fs::statvfs(dir).ok()?;
    Some(told.f_bavail.saturating_mul(told.f_frsize))
}

/// Sets blocks aside for these bytes of the file, whose length stays: what reads ahead stops at what is written. False
/// where that isn't done: on other file systems it may mean to write zeros. Blocks.
#[cfg(target_os = "linux")]
pub(super) fn allocate(file: &File, part: Range<u64>) -> Result<bool, Errno> {
    /// What statfs(2) says of ext4, and of XFS: there it's a line in the file's map of blocks.
    const QUICK: [i64; 2] = [0xEF53, 0x5846_5342];
    let told = rustix::fs::fstatfs(file)?;
    if part.is_empty() || !QUICK.iter().any(|kind| i128::from(*kind) == i128::from(told.f_type)) {
        return Ok(false);
    }
    let (from, length) = (part.start, part.end - part.start);
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, from, length) {
        Ok(()) => Ok(true),
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error),
        // It goes without.
        Err(_) => Ok(false),
    }
}

#[cfg(not(target_os = "linux"))]
pub(super) fn allocate(_: &File, _: Range<u64>) -> Result<bool, Errno> {
    Ok(false)
}
