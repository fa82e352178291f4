//! File access behind a trait, so that tests can make any call fail.
//!
//! A broken or full disk fails in the middle of things: one write fails and the next one succeeds, a file that was
//! written well cannot be read any more, a directory disappears. [`SystemFiles`] is what the program uses. The tests
//! put an implementation in its place that returns the same errors on purpose.

#[cfg(test)]
pub(crate) mod faults;
#[cfg(debug_assertions)]
pub mod random_faults;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::ops::{Deref, Range};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::Path;
use std::sync::Arc;

use crate::atomic_file;
use crate::regular_file::{self, Links};

/// The calls that a disk can fail. All of them block. The methods' own bodies call the operating system.
pub trait FileAccess: std::fmt::Debug + Send + Sync + 'static {
    /// Creates a file that does not exist yet, for reading and writing, readable by its owner only.
    fn create(&self, path: &Path) -> io::Result<File> {
        OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)
    }

    /// Opens a regular file for reading. A symbolic link is not followed, since the program makes none.
    fn open(&self, path: &Path) -> io::Result<File> {
        regular_file::open(path, Links::Refuse).map(|(file, _)| file)
    }

    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        file.write_all_at(bytes, offset)
    }

    /// Appends to `buffer` what the file has at `offset`: as many bytes as the buffer has spare capacity for, at
    /// most. Returns their number, which is 0 at the end of the file.
    fn read_at(&self, file: &File, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        // The memory need not be filled with zeros first. std cannot do that at an offset.
        Ok(rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), offset)?)
    }

    /// Makes a file's content durable.
    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_all()
    }

    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        atomic_file::sync_dir(dir)
    }

    /// Renames a file. An existing file of the new name is replaced.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    /// Sets blocks aside for `part` of a file whose length stays: what reads ahead stops at what is written. Returns
    /// false where the file system cannot do that quickly.
    fn allocate(&self, file: &File, part: Range<u64>) -> io::Result<bool> {
        allocate(file, part)
    }

    /// Creates a directory and its parents, if they do not exist, for their owner only. An existing one keeps its
    /// mode.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)
    }

    /// Whether the kernel may send parts of files to a connection by itself, so that no read can fail on purpose.
    fn allows_sendfile(&self) -> bool {
        true
    }
}

/// Bytes that an ordinary user can still write to the file system of `path`; `None` if the system does not say. Blocks.
pub(crate) fn free_bytes(path: &Path) -> Option<u64> {
    let stats = rustix::fs::statvfs(path).ok()?;
    Some(stats.f_bavail.saturating_mul(stats.f_frsize))
}

/// The operating system's files.
#[derive(Clone, Copy, Debug)]
pub struct SystemFiles;

impl FileAccess for SystemFiles {}

/// A shared [`FileAccess`]: the operating system's by default.
#[derive(Clone, Debug)]
pub struct Files(Arc<dyn FileAccess>);

impl Files {
    /// File access by these calls.
    pub fn new(access: impl FileAccess) -> Self {
        Self(Arc::new(access))
    }
}

impl Default for Files {
    fn default() -> Self {
        Self::new(SystemFiles)
    }
}

impl Deref for Files {
    type Target = dyn FileAccess;

    fn deref(&self) -> &Self::Target {
        &*self.0
    }
}

/// An open file together with the calls that access it. Clones share the file.
#[derive(Clone, Debug)]
pub struct OpenFile {
    file: Arc<File>,
    access: Files,
}

impl OpenFile {
    /// A file that is accessed by `access`.
    pub fn new(file: File, access: Files) -> Self {
        Self { file: Arc::new(file), access }
    }

    /// Writes all of `bytes` at `offset`.
    pub fn write_all_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.access.write_all_at(&self.file, bytes, offset)
    }

    /// See [`FileAccess::read_at`].
    pub fn read_at(&self, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        self.access.read_at(&self.file, buffer, offset)
    }

    /// Makes the content durable.
    pub fn sync(&self) -> io::Result<()> {
        self.access.sync(&self.file)
    }

    /// See [`FileAccess::allocate`].
    pub fn allocate(&self, part: Range<u64>) -> io::Result<bool> {
        self.access.allocate(&self.file, part)
    }

    /// The file for sendfile(2), where that is allowed.
    pub fn for_sendfile(&self) -> Option<&Arc<File>> {
        self.access.allows_sendfile().then_some(&self.file)
    }

    /// The file itself, for its metadata.
    pub fn file(&self) -> &File {
        &self.file
    }
}

#[cfg(target_os = "linux")]
fn allocate(file: &File, part: Range<u64>) -> io::Result<bool> {
    use rustix::io::Errno;

    /// What statfs(2) says of ext4, and of XFS: there it is a line in the file's map of blocks. Other file systems
    /// may write zeros.
    const FAST_FILE_SYSTEMS: [i64; 2] = [0xEF53, 0x5846_5342];
    let stat = rustix::fs::fstatfs(file)?;
    if part.is_empty() || !FAST_FILE_SYSTEMS.iter().any(|kind| i128::from(*kind) == i128::from(stat.f_type)) {
        return Ok(false);
    }
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::KEEP_SIZE, part.start, part.end - part.start) {
        Ok(()) => Ok(true),
        Err(error @ (Errno::NOSPC | Errno::DQUOT)) => Err(error.into()),
        // The file is written without blocks set aside.
        Err(_) => Ok(false),
    }
}

#[cfg(not(target_os = "linux"))]
fn allocate(_: &File, _: Range<u64>) -> io::Result<bool> {
    Ok(false)
}
