//! Files of a served layout are verified before they are served, once for each state of a file.
//!
//! A file under `blobs/` should be complete and match its digest, but others may change the directory: a copy that was
//! interrupted, a disk that lost data, or a link to a file of the host. The first request for a file waits until it is hashed,
//! also if it is for a part. Later requests cost one `stat`. No byte of a damaged file is served.

use std::fs::File;
use std::sync::Arc;

use quick_cache::sync::Cache;
use tokio::sync::Semaphore;

use super::file_stream::FileVersion;
use super::file_stream::StoredBlob;
use super::names::Scope;
use super::store::Store;
use crate::descriptor::Digest;
use crate::error::Result;
use crate::memory;

/// The results of verifying files.
#[derive(Debug)]
pub(super) struct VerifiedFiles {
    /// Whether the file in this version matched its digest.
    known: Cache<Digest, (FileVersion, bool)>,
    /// Limits the files that are hashed at one time: each uses a core and the disk.
    turns: Arc<Semaphore>,
}

impl Default for VerifiedFiles {
    fn default() -> Self {
        let turns = std::thread::available_parallelism().map_or(2, usize::from).max(2);
        Self { known: Cache::new(MAX_REMEMBERED), turns: Arc::new(Semaphore::new(turns)) }
    }
}

impl VerifiedFiles {
    fn verdict(&self, digest: &Digest, stamp: FileVersion) -> Option<bool> {
        self.known.get(digest).filter(|(known, _)| *known == stamp).map(|(_, right)| right)
    }
}

impl Store {
    /// The blob or manifest as a file, if it belongs to the repository and has the right digest.
    pub(super) async fn verified_blob(&self, scope: &Scope, digest: &Digest) -> Result<Option<StoredBlob>> {
        let (scope, digest) = (scope.clone(), *digest);
        // The membership check may read and parse many manifests.
        let turn = memory::disk_read_permit().await;
        let found = self.run_blocking(move |store| {
            if !store.is_member(&scope, &digest)? {
                return Ok(None);
            }
            let Some(stored) = store.open_blob_blocking(&digest)? else { return Ok(None) };
            let verdict = store.checked().verdict(&digest, stored.stamp());
            Ok(Some((stored, verdict)))
        });
        let found = found.await?;
        drop(turn);
        match found {
            None | Some((_, Some(false))) => Ok(None),
            Some((stored, Some(true))) => Ok(Some(stored)),
            Some((stored, None)) => self.verify_blob(digest, stored).await,
        }
    }

    /// Hashes the file. If the caller is dropped, hashing continues, and the result is remembered.
    async fn verify_blob(&self, digest: Digest, stored: StoredBlob) -> Result<Option<StoredBlob>> {
        let Ok(turn) = self.checked().turns.clone().acquire_owned().await else { return Ok(None) };
        self.run_blocking(move |store| {
            let _turn = turn;
            // Another request may have hashed the file while this one waited.
            let verdict = store.checked().verdict(&digest, stored.stamp());
            let right = match verdict {
                Some(right) => right,
                None => {
                    let right = stored.matches(&digest)?;
                    store.checked().known.insert(digest, (stored.stamp(), right));
                    right
                }
            };
            if !right {
                tracing::error!(
                    "the file of {digest} in {} does not match the digest: not served",
                    store.dir().display()
                );
            }
            Ok(right.then_some(stored))
        })
        .await
    }

    /// Records that the current version of the file is verified.
    pub(super) fn is_right(&self, digest: Digest, file: &File) {
        if self.root().is_confined()
            && let Ok(data) = file.metadata()
        {
            self.checked().known.insert(digest, (FileVersion::of(&data), true));
        }
    }
}

/// Results that are kept. Other files are hashed again.
const MAX_REMEMBERED: usize = 65_536;
