//! Files of a served layout are verified before they are served, once for each state of a file.
//!
//! A file under `blobs/` should be whole and right, but others may write to the directory: a copy that was cut short,
//! a disk that lost something, or somebody who links a file of the host there. The first request for a file waits for
//! its hash; later ones cost a `stat`. A request for a part waits as well. Of a file that isn't right no byte is
//! served.

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

/// What was found of files.
#[derive(Debug)]
pub(super) struct VerifiedFiles {
    /// Whether the file in this state had the right digest.
    known: Cache<Digest, (FileVersion, bool)>,
    /// Files that are hashed at one time: each takes a processor and the disk.
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
        // Whether it belongs there may be asked of many manifests, each of which is read and parsed.
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

    /// Hashes the file. If the caller goes away meanwhile, the hash is still finished, and remembered.
    async fn verify_blob(&self, digest: Digest, stored: StoredBlob) -> Result<Option<StoredBlob>> {
        let Ok(turn) = self.checked().turns.clone().acquire_owned().await else { return Ok(None) };
        self.run_blocking(move |store| {
            let _turn = turn;
            // Another request may have done it while this one waited.
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
                tracing::error!("the file of {digest} in {} has another digest: not served", store.dir().display());
            }
            Ok(right.then_some(stored))
        })
        .await
    }

    /// Remembers that the file, as it is now, was verified.
    pub(super) fn is_right(&self, digest: Digest, file: &File) {
        if self.root().is_confined()
            && let Ok(data) = file.metadata()
        {
            self.checked().known.insert(digest, (FileVersion::of(&data), true));
        }
    }
}

/// Files that are remembered. Others are hashed again.
const MAX_REMEMBERED: usize = 65_536;
