//! Uploads: a temporary file that is renamed to its final name when it is complete.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, IoSlice, Read as _, Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::TryStream;

use super::partial;
use super::quota::{QuotaUsage, quota_exceeded};
use super::root_dir::RootDir;
use super::store::Store;
use super::{IO_CHUNK, collect_frames};
use crate::descriptor::{Descriptor, Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::pool::run_blocking;
use crate::reference::RepositoryName;

/// An upload: a temporary file in the directory, which is removed on drop unless it is committed.
///
/// After a dropped `append` the upload is still usable: written bytes are counted, so that a client can query the size and
/// continue there.
#[derive(Debug)]
pub struct BlobUpload {
    store: Store,
    temp: Arc<Mutex<TempFile>>,
    /// The repository of the upload, if the directory has several.
    owner: Option<RepositoryName>,
}

impl BlobUpload {
    pub(super) fn new(store: Store, temp: TempFile, owner: Option<RepositoryName>) -> Self {
        Self { store, temp: Arc::new(Mutex::new(temp)), owner }
    }

    /// The number of written bytes.
    pub(crate) async fn size(&self) -> Result<u64> {
        // On the pool, because the write of a dropped append may still hold the lock.
        self.run_blocking(|temp| Ok(temp.written)).await
    }

    /// The state of the hash after what an earlier copy had written of the blob.
    pub(super) async fn hash_kept(&self, digest: Digest) -> Result<Hasher> {
        self.run_blocking(move |temp| {
            partial::hash(&mut temp.file, digest.hasher()).map_err(|error| temp.failed("read", &error))
        })
        .await
    }

    /// Keeps nothing of what is written: it is wrong.
    pub(super) async fn discard(&self) -> Result<()> {
        self.run_blocking(|temp| {
            temp.keep_as = None;
            Ok(())
        })
        .await
    }

    /// Writes `body` behind what is there, to its end. Reads the next chunk while one is written.
    ///
    /// # Errors
    /// The error of the body, after the bytes before it are written; [`Kind::Local`] if the disk fails.
    pub(crate) async fn append<B>(&self, body: &mut B) -> Result<()>
    where
        B: TryStream<Ok = Bytes, Error = Error> + Unpin + Send,
    {
        let mut failed = None;
        let mut frames = collect_frames(body, &mut failed).await;
        while !frames.is_empty() {
            let write = self.run_blocking(move |temp| temp.write(&frames));
            let (written, next) = futures_util::join!(write, collect_frames(body, &mut failed));
            written?;
            frames = next;
        }
        failed.map_or(Ok(()), Err)
    }

    /// Makes the bytes durable, and renames the file to its final name. The digest is verified if a hash was kept, or if
    /// `digest` has another algorithm.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] if the bytes have another digest.
    pub(crate) async fn commit(self, digest: Digest) -> Result<()> {
        let (store, owner) = (self.store.clone(), self.owner.clone());
        self.run_blocking(move |temp| {
            let is_checked = temp.check(&digest)?;
            temp.rename(store.root(), &blob_name(&digest))?;
            if is_checked {
                store.is_right(digest, &temp.file);
            }
            if let Some(owner) = owner {
                store.note_upload(&owner, digest);
            }
            Ok(())
        })
        .await
    }

    async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut TempFile) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let temp = self.temp.clone();
        run_blocking(move || work(&mut lock(&temp))).await
    }
}

fn lock(temp: &Mutex<TempFile>) -> MutexGuard<'_, TempFile> {
    temp.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A temporary file. All its methods block.
pub(super) struct TempFile {
    file: File,
    path: PathBuf,
    written: u64,
    hasher: Option<Hasher>,
    /// The quota that its bytes count for.
    room: Option<Arc<QuotaUsage>>,
    /// The name that it keeps if it is dropped unfinished.
    keep_as: Option<PathBuf>,
    done: bool,
}

impl std::fmt::Debug for TempFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TempFile").field("path", &self.path).field("written", &self.written).finish_non_exhaustive()
    }
}

impl TempFile {
    /// A new file in `dir`. `hasher` hashes the written bytes, if they are not verified yet.
    pub(super) fn new(dir: &Path, hasher: Option<Hasher>) -> Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        loop {
            let number = NEXT.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{TEMP_PREFIX}{}-{number}", std::process::id()));
            // In containers processes often have the same PID: an existing file is not reused.
            match OpenOptions::new().read(true).write(true).create_new(true).open(&path) {
                Ok(file) => return Ok(Self { file, path, written: 0, hasher, room: None, keep_as: None, done: false }),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => return Err(Error::io(format!("create {}", path.display()), &error)),
            }
        }
    }

    /// A file in `dir` for a blob that a copy brings: with what an earlier one wrote of it, where it is large. Dropped
    /// without a name, it is kept for the next one.
    pub(super) fn for_blob(dir: &Path, blob: &Descriptor) -> Result<Self> {
        let mut temp = Self::new(dir, None)?;
        if blob.size < partial::MIN_SIZE {
            return Ok(temp);
        }
        let kept = partial::path(dir, &blob.digest);
        match partial::take(&kept, &temp.path, blob.size) {
            Ok((file, written)) => (temp.file, temp.written) = (file, written),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => {
                tracing::warn!("{} cannot be gone on from: {error}", kept.display());
                // What has its name now goes with it.
                drop(temp);
                temp = Self::new(dir, None)?;
            }
        }
        temp.keep_as = Some(kept);
        Ok(temp)
    }

    /// The same, whose bytes take of `room`, until it's dropped without a name.
    pub(super) fn with_quota(mut self, room: Option<Arc<QuotaUsage>>) -> Self {
        self.room = room;
        self
    }

    /// Appends all `frames`.
    ///
    /// # Errors
    /// [`Kind::Full`] if the quota is exceeded; [`Kind::Local`] if the disk fails.
    pub(super) fn write(&mut self, frames: &[Bytes]) -> Result<()> {
        let size = frames.iter().map(|frame| frame.len() as u64).sum();
        if let Some(room) = &self.room {
            room.reserve(self.path.parent().unwrap_or(Path::new(".")), size)?;
        }
        let written = self.append(frames);
        if written.is_err() {
            self.release(size);
        }
        written
    }

    fn release(&self, bytes: u64) {
        if let Some(room) = &self.room {
            room.release(bytes);
        }
    }

    fn append(&mut self, frames: &[Bytes]) -> Result<()> {
        let mut slices: Vec<IoSlice<'_>> = frames.iter().map(|frame| IoSlice::new(frame)).collect();
        let mut rest = &mut slices[..];
        IoSlice::advance_slices(&mut rest, 0);
        while !rest.is_empty() {
            match self.file.write_vectored(rest) {
                Ok(0) => return Err(self.truncate_after_error(&ErrorKind::WriteZero.into())),
                Ok(written) => IoSlice::advance_slices(&mut rest, written),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(self.truncate_after_error(&error)),
            }
        }
        for frame in frames {
            self.written += frame.len() as u64;
            if let Some(hasher) = &mut self.hasher {
                hasher.update(frame);
            }
        }
        Ok(())
    }

    /// Syncs the file, and renames it to `to` below the root. An existing file is replaced: it is either equal or damaged.
    /// Current readers of the old file continue.
    pub(super) fn rename(&mut self, root: &RootDir, to: &Path) -> Result<()> {
        self.file.sync_all().map_err(|error| self.failed("write", &error))?;
        let name = self.path.file_name().unwrap_or_default();
        let renamed = root.rename(name, to);
        // After an error the rename may have happened without being durable.
        self.done = renamed.is_ok() || !self.path.exists();
        let replaced =
            renamed.map_err(|error| Error::io(format!("create {}", root.path().join(to).display()), &error))?;
        self.release(replaced);
        Ok(())
    }

    /// Like [`rename`](Self::rename), but keeps an existing file.
    pub(super) fn try_rename(&mut self, root: &RootDir, to: &Path) -> Result<()> {
        self.file.sync_all().map_err(|error| self.failed("write", &error))?;
        match fs::hard_link(&self.path, root.path().join(to)) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
            // Some file systems have no links. Then two processes that create the file at once may not notice each other.
            Err(_) => self.rename(root, to),
            Ok(()) => Ok(()),
        }
    }

    /// Verifies the digest, if a hash was kept. Returns whether one was kept.
    fn check(&mut self, digest: &Digest) -> Result<bool> {
        let Some(hasher) = self.hasher.take() else { return Ok(false) };
        let same_algorithm = matches!(
            (&hasher, digest),
            (Hasher::Sha256(_), Digest::Sha256(_)) | (Hasher::Sha512(_), Digest::Sha512(_))
        );
        let got = if same_algorithm { hasher.finish() } else { self.hash_again(digest)? };
        if got == *digest {
            return Ok(true);
        }
        Err(Error::new(Kind::Mismatch, format!("the bytes have the digest {got}, not {digest}")))
    }

    /// Hashes the file again: a push may state only at its end that its digest is sha512.
    fn hash_again(&mut self, digest: &Digest) -> Result<Digest> {
        let mut hasher = digest.hasher();
        let mut chunk = vec![0; IO_CHUNK];
        self.file.rewind().map_err(|error| self.failed("read", &error))?;
        loop {
            match self.file.read(&mut chunk).map_err(|error| self.failed("read", &error))? {
                0 => return Ok(hasher.finish()),
                read => hasher.update(&chunk[..read]),
            }
        }
    }

    /// After a failed write, removes the bytes that it has written, so that file, hash and count agree.
    fn truncate_after_error(&mut self, error: &std::io::Error) -> Error {
        let cut = self.file.set_len(self.written).and_then(|()| self.file.seek(std::io::SeekFrom::End(0)));
        if let Err(error) = cut {
            tracing::warn!("cannot cut {} back: {error}", self.path.display());
        }
        self.failed("write", error)
    }

    fn failed(&self, doing: &str, error: &std::io::Error) -> Error {
        let made = Error::io(format!("{doing} {}", self.path.display()), error);
        // The response to a push. A full disk is reported as such, and not as an internal error.
        match (&self.room, error.kind()) {
            (Some(_), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) => {
                tracing::error!("{made}");
                quota_exceeded("the registry's disk is full".into())
            }
            _ => made,
        }
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.done {
            self.release(self.written);
        }
        if !self.done
            && self.written > 0
            && let Some(kept) = &self.keep_as
            && fs::rename(&self.path, kept).is_ok()
        {
            return;
        }
        if !self.done
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!("cannot remove {}: {error}", self.path.display());
        }
    }
}

/// The file of a blob or manifest, below the layout's directory.
pub(super) fn blob_name(digest: &Digest) -> PathBuf {
    // A `Digest` contains a known algorithm and a hash, so the path contains no text from outside.
    Path::new("blobs").join(digest.algorithm()).join(digest.hex())
}

/// Whether this is the name of a temporary file.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with(TEMP_PREFIX)
}

/// The prefix of the names of temporary files.
pub(super) const TEMP_PREFIX: &str = ".transload-";
