//! The cache's directory as such: its parts, its lock, temporary files in it, and whether it can be written.
//!
//! Somebody may remove the directory, or parts of it, while the proxy runs. The next temporary file then creates
//! them again. All methods block.

use std::fs::{File, TryLockError};
use std::io::ErrorKind;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use super::temp::TempFile;
use crate::error::{Error, Kind, Result};
use crate::file_access::Files;
use crate::regular_file;
use std::fs;

/// The directory of a running proxy. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct CacheDir(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    path: PathBuf,
    files: Files,
    /// The system releases the lock, however the process ends. `None` where the directory cannot be written.
    lock: Mutex<Option<File>>,
    restored: AtomicU64,
    /// The last temporary file could not be created.
    failed: AtomicBool,
}

impl CacheDir {
    /// Creates the directory and its parts if need be, and takes its lock. A directory that exists and cannot be
    /// written is used as it is.
    ///
    /// # Errors
    /// [`Kind::Usage`] if another proxy uses it, [`Kind::Local`] if it cannot be created.
    pub(super) fn open(path: PathBuf, files: Files) -> Result<Self> {
        let dir = Self(Arc::new(Inner {
            path,
            files,
            lock: Mutex::default(),
            restored: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        }));
        match dir.create() {
            Err(error) if error.kind() == Kind::Local && dir.path().is_dir() => {
                tracing::error!("{error}: nothing new will be cached");
            }
            other => other?,
        }
        Ok(dir)
    }

    /// The path of the directory.
    pub(crate) fn path(&self) -> &Path {
        &self.0.path
    }

    /// The directory of temporary files.
    pub(super) fn fills(&self) -> PathBuf {
        self.0.path.join("fills")
    }

    /// The calls that access the cache's files.
    pub(super) fn files(&self) -> &Files {
        &self.0.files
    }

    /// Whether this process has the lock.
    pub(super) fn is_locked(&self) -> bool {
        self.lock().is_some()
    }

    /// How often the directory, or a part of it, had to be created again.
    pub(crate) fn restored(&self) -> u64 {
        self.0.restored.load(Ordering::Relaxed)
    }

    /// A new temporary file. Creates the directory again if somebody removed it.
    ///
    /// # Errors
    /// The system's error. [`is_full`] is true for it if the disk has no space for one more file.
    pub(super) fn temporary(&self) -> std::io::Result<TempFile> {
        let created = self.create_temporary();
        self.0.failed.store(created.as_ref().is_err_and(|error| !is_full(error)), Ordering::Relaxed);
        created
    }

    fn create_temporary(&self) -> std::io::Result<TempFile> {
        match TempFile::create(&self.fills(), &self.0.files) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let restored = self.create().map_err(|failed| std::io::Error::other(failed.to_string()));
                restored?;
                self.0.restored.fetch_add(1, Ordering::Relaxed);
                tracing::error!("{} was removed: created it again", self.fills().display());
                TempFile::create(&self.fills(), &self.0.files)
            }
            other => other,
        }
    }

    /// Whether files can be created in it now. A full disk does not count: content can be evicted from it.
    ///
    /// # Errors
    /// Why not.
    pub(crate) fn check_writable(&self) -> Result<()> {
        let access = rustix::fs::access(self.fills(), rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK);
        if access.is_ok() && !self.0.failed.load(Ordering::Relaxed) {
            return Ok(());
        }
        match self.temporary() {
            Err(error) if !is_full(&error) => Err(self.failed("create a file in", &error)),
            _ => Ok(()),
        }
    }

    /// The error of a temporary file that could not be created.
    pub(super) fn failed(&self, doing: &str, error: &std::io::Error) -> Error {
        Error::io(format!("{doing} {}", self.fills().display()), error)
    }

    fn create(&self) -> Result<()> {
        let created = SUBDIRECTORIES.iter().try_for_each(|part| {
            let path = self.0.path.join(part);
            let created = self.0.files.create_dir_all(&path);
            created.map_err(|error| Error::io(format!("create {}", path.display()), &error))
        });
        // Also if a part could not be created: the disk may fail only once, and the directory is written later.
        if created.is_ok() || self.0.path.is_dir() {
            self.take_lock()?;
        }
        created
    }

    fn take_lock(&self) -> Result<()> {
        let path = self.0.path.join("lock");
        let mut held = self.lock();
        if !held.as_ref().is_some_and(|lock| is_same_file(lock, &path)) {
            *held = Some(take_lock(&self.0.path, &path)?);
        }
        Ok(())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<File>> {
        self.0.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error means that the disk has no space: no blocks, no inodes, or a quota is exceeded.
pub(super) fn is_full(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded)
}

fn is_same_file(open: &File, path: &Path) -> bool {
    let id = |metadata: std::fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((open.metadata().map(id), std::fs::metadata(path).map(id)), (Ok(open), Ok(named)) if open == named)
}

/// Takes the lock of the directory `dir`, whose file is `path`.
pub(super) fn take_lock(dir: &Path, path: &Path) -> Result<File> {
    let failed = |error: &std::io::Error| Error::io(format!("lock {}", path.display()), error);
    let mut options = File::options();
    options.create(true).truncate(false).write(true).mode(0o600);
    let file = regular_file::with_safe_flags(&mut options).open(path).map_err(|error| failed(&error))?;
    regular_file::check(&file).map_err(|error| failed(&error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(Error::new(Kind::Usage, format!("another proxy uses the cache {}", dir.display()))
                .hint("use another directory for each proxy"))
        }
        Err(TryLockError::Error(error)) => Err(failed(&error)),
    }
}

const SUBDIRECTORIES: [&str; 5] = ["blobs", "manifests", "tags", super::REPOSITORIES, "fills"];

/// Removes a file. Returns false if it does not exist.
pub(super) fn unlink(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(false),
        Err(error) => Err(Error::io(format!("remove {}", path.display()), &error)),
    }
}
