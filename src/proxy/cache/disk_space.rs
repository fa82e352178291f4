//! How much room the disk has.
//!
//! By `rustix`, which is in the tree for the terminal's width already: std has no `statvfs`.

use std::path::Path;

/// Bytes that an ordinary user can still write where `dir` is; `None` if the system doesn't say. Blocks.
pub(super) fn free_bytes(dir: &Path) -> Option<u64> {
    let told = rustix::fs::statvfs(dir).ok()?;
    Some(told.f_bavail.saturating_mul(told.f_frsize))
}
