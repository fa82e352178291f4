//! The cache: plain files in a directory of its own.
//!
//! ```text
//! DIR/
//!   lock                            held by the proxy that uses the directory
//!   blobs/sha256/ab/<hex>.<size>    a blob; it has this name only when it's whole and its digest matched
//!   manifests/sha256/ab/<hex>.<size>  a manifest's bytes, verbatim
//!   manifests/types/<hex>           its media type, where the bytes don't say it themselves
//!   tags/ab/<hash>                  JSON: upstream, repository and tag, what it was when, by the hash of the name
//!   repositories/ab/<hash>          text: a repository's name, then the manifests that belong to it
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
//! Content has no owner in its name: `repository_records` says which repository may have it, see `membership` above
//! this module. Directories are made with mode 0700 and files with 0600, since private images are in them; a directory
//! that exists keeps its mode.
//!
//! - [`index`]: what is here and what has to go (S3-FIFO by bytes, measured there); room is reserved before bytes are written
//! - `content_store`: a directory of content with its index: one for blobs, a smaller one for manifests
//! - `cache_dir`: the directory as such, which is created again if somebody removes it
//! - `reserved_file`: what a file that is being fetched takes of all that, as its bytes arrive
//! - `temp`, `scan`: files that are being written; reading the directory at the start
//! - `manifest_store`, `tag_files`: manifests and tags, in memory and on the shelf, and the number of tags' files
//! - `repository_records`: which manifests belong to which repository
//! - `gc`, `online`: what is too old, too much, or left over; a running proxy's side of mending
//! - [`offline`]: looking at a directory and mending it from outside
//!
//! A directory that can't be written is used as it is: what it holds is served, all else is passed on.
//! Content is written and read through [`file_access`](crate::file_access), so that tests can make each call fail. A file
//! that can't be read, or has become short, is dropped.

mod cache_dir;
mod content_store;
mod gc;
pub mod index;
mod manifest_store;
pub mod offline;
mod online;
mod repository_records;
mod reserved_file;
mod scan;
mod tag_files;
mod temp;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

pub use cache_dir::CacheDir;
pub use content_store::{ContentStore, Removal, StoredContent};
pub use gc::{FileTotals, GcOptions, GcResult, RemovalReason};
pub use index::Pin;
pub use manifest_store::{CachedTag, ManifestStore, TagName};
pub(super) use online::OnlineCache;
pub use reserved_file::ReservedFile;
pub use temp::{TempFile, write_at};

use self::repository_records::RepositoryRecords;
use crate::descriptor::Digest;
use crate::error::Result;
use crate::file_access::Files;
use crate::pool::run_blocking;

/// Where the cache is and how much it may use.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The directory.
    pub dir: PathBuf,
    /// Bytes of blobs at most. Manifests may have a 64th of that besides.
    pub size: u64,
    /// Bytes to leave free on the disk, whoever fills it.
    pub keep_free: u64,
    /// The calls that access its files.
    pub files: Files,
}

/// The cache.
#[derive(Debug)]
pub struct Cache {
    /// Blobs by their digest.
    pub blobs: ContentStore,
    /// Manifests and tags.
    pub manifest_store: ManifestStore,
    settings: Settings,
    dir: CacheDir,
    /// The directory is of a version that kept no record of repositories.
    lacks_records: bool,
}

impl Cache {
    /// Opens the directory, making it if need be, and finds what is in there. `evicted` hears of what
    /// has to go.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage) if another proxy uses it, [`Kind::Local`](crate::error::Kind::Local) if it
    /// can be neither made nor read.
    pub async fn open(
        settings: Settings,
        evicted: impl Fn(&Digest, u64) + Send + Sync + Clone + 'static,
    ) -> Result<Self> {
        run_blocking(move || Self::open_blocking(settings, evicted)).await
    }

    fn open_blocking(
        settings: Settings,
        evicted: impl Fn(&Digest, u64) + Send + Sync + Clone + 'static,
    ) -> Result<Self> {
        let Settings { dir, size, keep_free, files } = settings.clone();
        let lacks_records = dir.join("tags").is_dir() && !dir.join(REPOSITORIES).exists();
        let dir = CacheDir::open(dir, files)?;
        if dir.is_locked() {
            scan::sweep(&dir.fills())?;
        }
        let blobs = ContentStore::open("blobs", dir.clone(), size, keep_free, evicted.clone())?;
        let few = manifest_capacity(size);
        // Manifests are small and hold the blobs together: the disk's last bytes are for them.
        let manifests = ContentStore::open("manifests", dir.clone(), few, 0, evicted)?;
        let records = RepositoryRecords::new(dir.path().join(REPOSITORIES), repository_records::MAX_RECORDS_BYTES);
        let manifest_store = ManifestStore::new(manifests, records, dir.clone(), tag_files::MAX_TAG_FILES);
        Ok(Self { blobs, manifest_store, settings, dir, lacks_records })
    }

    /// Whether the directory was made by a version that kept no record of repositories. Its tags are the evidence then.
    pub(super) fn lacks_records(&self) -> bool {
        self.lacks_records
    }

    /// The directory that it is in.
    pub fn dir(&self) -> &CacheDir {
        &self.dir
    }
}

/// Bytes that manifests may have beside `size` bytes of blobs.
fn manifest_capacity(size: u64) -> u64 {
    (size / MANIFEST_SHARE).max(MIN_MANIFEST_BYTES)
}

/// Makes the directory and those above it that are missing, for nobody else to look into: private images are in there.
/// One that exists keeps its mode.
fn make_dir(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The directory of the records.
const REPOSITORIES: &str = "repositories";
const MANIFEST_SHARE: u64 = 64;
const MIN_MANIFEST_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests;
