//! The cache: plain files in a directory of its own.
//!
//! ```text
//! DIR/
//!   lock                            held by the proxy that uses the directory
//!   blobs/sha256/ab/<hex>.<size>    a blob; it has this name only when it's whole and its digest matched
//!   manifests/sha256/ab/<hex>.<size>  a manifest's bytes, verbatim
//!   manifests/types/<hex>           its media type, where the bytes don't say it themselves
//!   tags/ab/<hash>                  JSON: upstream, repository and tag, what it was when, by the hash of the name
//!   fills/<pid>-<n>                 what is on its way; removed at the start
//! ```
//!
//! **A file's way**: temporary file → hashed while it's written → fsync → rename → fsync of the
//! directory. So a process may be killed at any moment: what has a name is whole, what has none is
//! removed at the next start. The size in the name is what a file that a broken disk cut short is
//! known by, at the start and whenever it's served; a manifest's digest is checked whenever it's read.
//! Nobody but the proxy makes names here, but anyone may remove files: a file that isn't there any
//! more is fetched again.
//!
//! - [`index`]: what is here and what has to go (S3-FIFO by bytes, measured there); room is reserved before a fetch
//! - `shelf`: a directory of content with its index: one for blobs, a smaller one for manifests
//! - `temp`, `scan`, `space`: files on their way, the start, the disk's free space
//! - `documents`, `tags`: manifests and tags, in memory and on the shelf, and the number of tags' files
//! - `gc`, `live`: what is too old, too much, or left over; a running proxy's side of mending
//! - [`admin`]: looking at a directory and mending it from outside
//!
//! A directory that can't be written is used as it is: what it holds is served, all else is passed on.

pub mod admin;
mod documents;
mod gc;
pub mod index;
mod live;
mod scan;
mod shelf;
mod space;
mod tags;
mod temp;

use std::fs::{self, File, TryLockError};
use std::path::PathBuf;

pub use documents::{Documents, Tag, TagName};
pub use gc::{Freed, Sum, Wanted, Why};
pub use index::Pin;
pub(super) use live::Live;
pub use shelf::{Removal, Shelf, Stored};
pub use temp::{Temp, write_at};

use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::pool::blocking;
use crate::regular_file;

/// Where the cache is and how much it may use.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory.
    pub dir: PathBuf,
    /// Bytes of blobs at most. Manifests may have a 64th of that besides.
    pub size: u64,
    /// Bytes to leave free on the disk, whoever fills it.
    pub keep_free: u64,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    /// Blobs by their digest.
    pub blobs: Shelf,
    /// Manifests and tags.
    pub documents: Documents,
    settings: Settings,
    /// Released by the system, however the process ends.
    _lock: Option<File>,
}

impl Cache {
    /// Opens the directory, making it if need be, and finds what is in there. `evicted` hears of what
    /// has to go.
    ///
    /// # Errors
    /// [`Kind::Usage`] if another proxy uses it, [`Kind::Local`] if it can be neither made nor read.
    pub async fn open(
        settings: Settings,
        evicted: impl Fn(&Digest, u64) + Send + Sync + Clone + 'static,
    ) -> Result<Self> {
        blocking(move || Self::open_blocking(settings, evicted)).await
    }

    fn open_blocking(
        settings: Settings,
        evicted: impl Fn(&Digest, u64) + Send + Sync + Clone + 'static,
    ) -> Result<Self> {
        let Settings { dir, size, keep_free } = settings.clone();
        let fills = dir.join("fills");
        let lock = match prepare(&dir) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == Kind::Local && dir.is_dir() => {
                tracing::error!("{error}: nothing new will be cached");
                None
            }
            Err(error) => return Err(error),
        };
        if lock.is_some() {
            scan::sweep(&fills)?;
        }
        let blobs = Shelf::open(dir.join("blobs"), fills.clone(), size, keep_free, evicted.clone())?;
        let few = manifests_bound(size);
        // Manifests are small and hold the blobs together: the disk's last bytes are for them.
        let manifests = Shelf::open(dir.join("manifests"), fills.clone(), few, 0, evicted)?;
        let documents = Documents::new(manifests, dir.join("tags"), fills, tags::MOST);
        Ok(Self { blobs, documents, settings, _lock: lock })
    }
}

/// Bytes that manifests may have beside `size` bytes of blobs.
fn manifests_bound(size: u64) -> u64 {
    (size / MANIFESTS_SHARE).max(LEAST_MANIFESTS)
}

/// Makes the directories and takes the lock.
fn prepare(dir: &std::path::Path) -> Result<File> {
    for sub in ["blobs", "manifests", "tags", "fills"] {
        let path = dir.join(sub);
        fs::create_dir_all(&path).map_err(|error| Error::io(format!("create {}", path.display()), &error))?;
    }
    lock(dir)
}

/// Takes the lock.
fn lock(dir: &std::path::Path) -> Result<File> {
    let path = dir.join("lock");
    let failed = |error: &std::io::Error| Error::io(format!("lock {}", path.display()), error);
    let mut options = File::options();
    options.create(true).truncate(false).write(true);
    let file = regular_file::careful(&mut options).open(&path).map_err(|error| failed(&error))?;
    regular_file::check(&file).map_err(|error| failed(&error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(Kind::Usage, format!("another proxy uses the cache {}", dir.display()))
                .hint("give each proxy a directory of its own"))
        }
        Err(TryLockError::Error(error)) => Err(failed(&error)),
    }
}

const MANIFESTS_SHARE: u64 = 64;
const LEAST_MANIFESTS: u64 = 64 << 20;

#[cfg(test)]
mod tests;
