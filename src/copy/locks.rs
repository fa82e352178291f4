//! The manifests that each repository has, as far as this run knows, and the locks to read and write them.
//!
//! **Write lock**, for a manifest in a registry. docker-registry 2.8 refuses a manifest that it is storing at the same time
//! in any repository: it reads half of it (400 `DIGEST_INVALID`). So one task at a time writes a manifest to a registry. In
//! the same way one task at a time mounts a blob into a repository.
//!
//! **Read lock**, for a manifest from a source registry to a repository. If an image has several tags, the first task copies
//! its content, and the others wait and write only their tags. It is a lock of its own, since a source may hold back its
//! manifests for hours, as Docker Hub does when no pulls are left. Tasks that read the image from another source do not wait
//! for that.
//!
//! **Lock order**: the read lock, the write lock of the parent, the write lock of the child. Never reversed, so there is no
//! deadlock.
//!
//! A list may have a hundred thousand manifests. So a written manifest is one entry of a set, and a lock exists only while
//! it is used.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::blob_locations::RepositoryId;
use crate::descriptor::Digest;
use crate::reference::RegistryName;

/// The manifests of a run, and their locks.
#[derive(Debug, Default)]
pub(super) struct ManifestLocks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    held: HashSet<(RepositoryId, Digest)>,
    locks: HashMap<LockKey, Arc<tokio::sync::Mutex<()>>>,
}

/// Lock scope and digest.
type LockKey = (LockScope, Digest);

/// The scope in which one task at a time holds the lock of a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum LockScope {
    /// To write a manifest: a whole registry.
    Registry(RegistryName),
    /// To mount a blob: one repository.
    Repository(RepositoryId),
    /// To read the content of a manifest: the source registry, if the source is one, and the destination repository.
    Source(Option<RegistryName>, RepositoryId),
}

/// A lock of a manifest. If it is dropped without [`finish`](Self::finish), the next waiting task gets it.
#[derive(Debug)]
pub(super) struct ManifestLock<'a> {
    locks: &'a ManifestLocks,
    number: RepositoryId,
    key: LockKey,
    alone: Option<OwnedMutexGuard<()>>,
}

impl ManifestLocks {
    /// Waits for the lock of `digest` in `scope`, for the repository with this number. `None` if the repository has the
    /// content.
    pub(super) async fn acquire(
        &self,
        scope: LockScope,
        number: RepositoryId,
        digest: Digest,
    ) -> Option<ManifestLock<'_>> {
        let key = (scope, digest);
        let lock = {
            let mut known = self.lock();
            if known.held.contains(&(number, digest)) {
                return None;
            }
            known.locks.entry(key.clone()).or_default().clone()
        };
        let mut manifest_lock = ManifestLock { locks: self, number, key, alone: None };
        manifest_lock.alone = Some(lock.lock_owned().await);
        let held = self.lock().held.contains(&(number, digest));
        (!held).then_some(manifest_lock)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ManifestLock<'_> {
    /// Records that the repository has the content, and frees the lock.
    pub(super) fn finish(self) {
        self.locks.lock().held.insert((self.number, self.key.1));
    }
}

impl Drop for ManifestLock<'_> {
    fn drop(&mut self) {
        self.alone = None;
        let mut known = self.locks.lock();
        // A waiting task has a reference of its own.
        if known.locks.get(&self.key).is_some_and(|lock| Arc::strong_count(lock) == 1) {
            known.locks.remove(&self.key);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use futures_util::poll;

    use super::*;
    use crate::copy::BlobLocations;
    use crate::reference::Repository;

    #[tokio::test]
    async fn one_task_at_a_time_holds_a_lock_and_no_lock_stays() {
        let (blob_locations, locks) = (BlobLocations::default(), ManifestLocks::default());
        let number = |text: &str| blob_locations.id_of(&text.parse::<Repository>().expect("a repository"));
        let (one, two, digest) = (number("r.io/one"), number("r.io/two"), Digest::of(b"x"));
        let registry = |name: &str| LockScope::Registry(name.parse().expect("a registry"));
        let first = locks.acquire(registry("r.io"), one, digest).await.expect("no repository has it");
        let (mut same, mut other) =
            (pin!(locks.acquire(registry("r.io"), one, digest)), pin!(locks.acquire(registry("r.io"), two, digest)));
        assert!(poll!(&mut same).is_pending() && poll!(&mut other).is_pending());
        assert!(locks.acquire(registry("s.io"), one, digest).await.is_some(), "the lock of another registry");
        first.finish();
        assert!(same.await.is_none(), "the same repository has it");
        drop(other.await.expect("the other repository lacks it"));
        assert!(
            locks.acquire(registry("r.io"), one, digest).await.is_none()
                && locks.acquire(registry("r.io"), two, digest).await.is_some()
        );
        // A task that fails leaves the lock to the next one.
        let failed = locks.acquire(registry("r.io"), two, digest).await;
        let mut next = pin!(locks.acquire(registry("r.io"), two, digest));
        assert!(poll!(&mut next).is_pending());
        drop(failed);
        next.await.expect("the lock").finish();
        assert!(locks.acquire(registry("r.io"), two, digest).await.is_none());
        assert_eq!(locks.lock().locks.len(), 0);
    }
}
