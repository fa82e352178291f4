//! The cache: plain files in a directory of its own.
//!
//! ```text
//! DIR/
//!   lock                            held by the proxy that uses the directory
//!   blobs/sha256/ab/<hex>.<size>    a blob; it gets this name after it is complete and its digest is verified
//!   manifests/sha256/ab/<hex>.<size>  a manifest's bytes, verbatim
//!   manifests/types/<hex>           its media type, if the bytes do not contain it
//!   tags/ab/<hash>                  JSON: upstream, repository and tag, its descriptor and the time of the check; by the
//!                                   hash of the name
//!   repositories/ab/<hash>          text: a repository's name, then the manifests that belong to it
//!   fills/<pid>-<n>                 temporary files; removed at the start
//! ```
//!
//! **Writing a file**: temporary file → hashed while it is written → fsync → rename → fsync of the directory. So a process
//! may be killed at any moment: a file in `blobs` or `manifests` is complete, and temporary files are removed at the next
//! start. The size in the name shows whether a broken disk has cut the file short; it is checked at the start and whenever the
//! file is served. The digest of a manifest is verified whenever it is read. Only the proxy creates files here, but anyone may
//! remove them: a missing file is fetched again.
//!
//! The name of content does not show a repository. `repository_records` stores which repository it belongs to; see the
//! module `membership`. Directories are created with mode 0700 and files with 0600, since they contain private images. An
//! existing directory keeps its mode.
//!
//! - [`index`]: the list of content and the eviction policy (S3-FIFO by bytes, measured there); space is reserved before bytes
//!   are written
//! - `content_store`: a directory of content with its index: one for blobs, a smaller one for manifests
//! - `cache_dir`: the directory as such, which is created again if somebody removes it
//! - `reserved_file`: the space of a file that is being fetched, reserved as its bytes arrive
//! - `temp`, `scan`: temporary files; reading the directory at the start
//! - `manifest_store`, `tag_files`: manifests and tags, in memory and on disk, and the limit of tag files
//! - `repository_records`: which manifests belong to which repository
//! - `gc`, `online`: garbage collection; commands on the cache of a running proxy
//! - `offline`: commands on the cache directory without the proxy
//!
//! A directory that cannot be written is used as it is: its content is served, and other content is streamed uncached.
//! Content is written and read through `file_access`, so that tests can make each call fail. A file
//! that cannot be read, or has become short, is removed.

mod cache_dir;
mod content_store;
mod gc;
pub mod index;
mod manifest_store;
pub(crate) mod offline;
mod online;
mod repository_records;
mod reserved_file;
mod scan;
mod tag_files;
mod temp;

use std::fs;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

pub(crate) use cache_dir::CacheDir;
pub(crate) use content_store::{ContentStore, Removal, StoredContent};
pub(crate) use gc::{FileTotals, GcOptions, GcResult, RemovalReason};
pub(crate) use index::Pin;
pub(crate) use manifest_store::{CachedTag, ManifestStore, TagName};
pub(super) use online::OnlineCache;
pub(crate) use reserved_file::ReservedFile;
pub(crate) use temp::{TempFile, write_at};

use self::repository_records::RepositoryRecords;
use crate::descriptor::Digest;
use crate::error::Result;
use crate::file_access::Files;
use crate::pool::run_blocking;

/// The settings of the cache.
#[derive(Clone, Debug)]
pub(crate) struct Settings {
    /// The directory.
    pub(crate) dir: PathBuf,
    /// The limit of all blobs in bytes. Manifests may take a 64th of it in addition.
    pub(crate) size: u64,
    /// Bytes to keep free on the disk, also if other programs fill it.
    pub(crate) keep_free: u64,
    /// The calls that access its files.
    pub(crate) files: Files,
}

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    /// Blobs by their digest.
    pub(crate) blobs: ContentStore,
    /// Manifests and tags.
    pub(crate) manifest_store: ManifestStore,
    settings: Settings,
    dir: CacheDir,
    /// The directory was made by a version that kept no records of repositories.
    lacks_records: bool,
}

impl Cache {
    /// Opens the directory, creates it if necessary, and reads the list of its content. `evicted` is called for each evicted
    /// blob or manifest.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage) if another proxy uses it, [`Kind::Local`](crate::error::Kind::Local) if it
    /// can be neither created nor read.
    pub(crate) async fn open(
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
        // Manifests are small, and blobs are useless without them: they may use the space that is kept free.
        let manifests = ContentStore::open("manifests", dir.clone(), few, 0, evicted)?;
        let records = RepositoryRecords::new(dir.path().join(REPOSITORIES), repository_records::MAX_RECORDS_BYTES);
        let manifest_store = ManifestStore::new(manifests, records, dir.clone(), tag_files::MAX_TAG_FILES);
        Ok(Self { blobs, manifest_store, settings, dir, lacks_records })
    }

    /// Whether the directory was made by a version that kept no records of repositories. Its tags are the evidence then.
    pub(super) fn lacks_records(&self) -> bool {
        self.lacks_records
    }

    /// The directory.
    pub(crate) fn dir(&self) -> &CacheDir {
        &self.dir
    }
}

/// The limit of all manifests in bytes, for a limit of `size` bytes of blobs.
fn manifest_capacity(size: u64) -> u64 {
    (size / MANIFEST_SHARE).max(MIN_MANIFEST_BYTES)
}

/// Creates the directory and its missing parents with mode 0700, since they contain private images. An existing one keeps its
/// mode.
fn make_dir(path: &Path) -> std::io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// The directory of the records.
const REPOSITORIES: &str = "repositories";
const MANIFEST_SHARE: u64 = 64;
const MIN_MANIFEST_BYTES: u64 = 64 << 20;

#[cfg(test)]
mod tests;
