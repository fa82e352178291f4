//! Files of the layout as streams.

use rustix::fs::MetadataExt;
use std::fs::{File, Metadata};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};

use super::IO_CHUNK;

use crate::body::Body;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::pool::run_blocking;

/// A blob as an open file. It stays readable if it is replaced.
#[derive(Debug)]
pub(crate) struct StoredBlob {
    file: File,
    size: u64,
    stamp: FileVersion,
    name: Arc<str>,
}

impl StoredBlob {
    pub(super) fn new(file: File, data: &Metadata, name: String) -> Self {
        Self { file, size: data.len(), stamp: FileVersion::of(data), name: name.into() }
    }

    /// The version of the file.
    pub(super) fn stamp(&self) -> FileVersion {
        self.stamp
    }

    /// Whether the file has this digest. Reads the whole file.
    pub(super) fn matches(&self, digest: &Digest) -> Result<bool> {
        let failed = |error: &std::io::Error| Error::io(format!("read {}", self.name), error);
        let (mut hasher, mut chunk) = (digest.hasher(), vec![0; IO_CHUNK]);
        let mut file = &self.file;
        file.rewind().map_err(|error| failed(&error))?;
        loop {
            match file.read(&mut chunk).map_err(|error| failed(&error))? {
                0 => return Ok(hasher.finish() == *digest),
                read => hasher.update(&chunk[..read]),
            }
        }
    }

    /// The file's size.
    pub(crate) fn size(&self) -> u64 {
        self.size
    }

    /// The bytes in `range`, limited to the file's size. At most one chunk is in memory.
    pub(crate) fn read(self, range: Range<u64>) -> Body {
        let rest = range.start..range.end.min(self.size);
        let start = rest.start;
        let first = FileStream { file: self.file, name: self.name, rest, seek: Some(start) };
        stream::try_unfold(first, |reading| async move {
            if reading.rest.is_empty() {
                return Ok(None);
            }
            run_blocking(move || reading.step()).await.map(Some)
        })
        .boxed()
    }

    /// The whole content, for files whose size was checked.
    pub(super) fn read_all(self) -> Result<Bytes> {
        let mut bytes = Vec::with_capacity(usize::try_from(self.size).unwrap_or(0));
        // If the file grows at the same time, its digest does not match.
        let read = self.file.take(self.size).read_to_end(&mut bytes);
        read.map_err(|error| Error::io(format!("read {}", self.name), &error))?;
        Ok(bytes.into())
    }
}

struct FileStream {
    file: File,
    name: Arc<str>,
    rest: Range<u64>,
    seek: Option<u64>,
}

impl FileStream {
    fn step(mut self) -> Result<(Bytes, Self)> {
        let failed = |error: &std::io::Error| Error::io(format!("read {}", self.name), error);
        if let Some(at) = self.seek.take() {
            self.file.seek(SeekFrom::Start(at)).map_err(|error| failed(&error))?;
        }
        let wanted = (self.rest.end - self.rest.start).min(IO_CHUNK as u64);
        // `read_to_end` fills the capacity without writing zeros to it first.
        let mut chunk = Vec::with_capacity(IO_CHUNK.min(usize::try_from(wanted).unwrap_or(IO_CHUNK)));
        let read = (&self.file).take(wanted).read_to_end(&mut chunk).map_err(|error| failed(&error))?;
        if (read as u64) < wanted {
            return Err(Error::new(Kind::Mismatch, format!("{} became shorter while it was read", self.name)));
        }
        self.rest.start += wanted;
        Ok((chunk.into(), self))
    }
}

/// Identifies a version of a file. A rename changes the inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct FileVersion {
    pub(super) size: u64,
    modified: (i64, i64),
    /// The time of the last change. Unlike the modification time, programs cannot set it.
    pub(super) changed: (i64, i64),
    inode: u64,
    device: u64,
}

impl FileVersion {
    pub(super) fn of(data: &Metadata) -> Self {
        Self {
            size: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
            inode: data.ino(),
            device: data.dev(),
        }
    }
}
