//! Which repository has which manifest, as far as this run knows, and whose turn it is to write one.
//!
//! Of an image under several tags of a repository the first one brings all, and the others, which wait for it, just
//! their tags. And docker-registry 2.8 takes no manifest that it's just storing, in whatever repository: it reads the
//! half of it (400 `DIGEST_INVALID`). So in a registry one writes a manifest at a time, until it's there; and in a
//! repository one mounts a blob.
//!
//! Before that one at a time reads what a manifest names, from each source for a repository. That is a turn of its own:
//! a source may hold back its manifests for hours, as Docker Hub does without pulls, and nobody waits for that who has
//! the image from elsewhere.
//!
//! Who waits to write holds at most the turn to read that, and what names the manifest, and that never the other way
//! round; and who waits to read holds nothing. So nobody waits for himself.
//! A list may have a hundred thousand of them: what is there is a line in a set, and locks live no longer than needed.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::OwnedMutexGuard;

use super::blob_locations::RepositoryId;
use crate::descriptor::Digest;
use crate::reference::RegistryName;

/// The manifests of a run.
#[derive(Debug, Default)]
pub(super) struct ManifestLocks(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    held: HashSet<(RepositoryId, Digest)>,
    locks: HashMap<LockKey, Arc<tokio::sync::Mutex<()>>>,
}

/// Lock scope and digest.
type LockKey = (LockScope, Digest);

/// Within what one at a time holds the lock of a digest.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum LockScope {
    /// To write a manifest: a whole registry.
    Registry(RegistryName),
    /// To mount a blob: one repository.
    Repository(RepositoryId),
    /// To read what a manifest names, for a repository: the registry that it is read from, if it is one.
    Source(Option<RegistryName>, RepositoryId),
}

/// The turn to write or to read one. Dropped without [`finish`](Self::finish), the next one has it.
#[derive(Debug)]
pub(super) struct ManifestLock<'a> {
    turns: &'a ManifestLocks,
    number: RepositoryId,
    key: LockKey,
    alone: Option<OwnedMutexGuard<()>>,
}

impl ManifestLocks {
    /// The turn to write a manifest, or a blob, into the repository with this number, or to read it for that; waits
    /// for whoever has it anywhere in `scope`. `None` if it's there.
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
        let mut manifest_lock = ManifestLock { turns: self, number, key, alone: None };
        manifest_lock.alone = Some(lock.lock_owned().await);
        let held = self.lock().held.contains(&(number, digest));
        (!held).then_some(manifest_lock)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ManifestLock<'_> {
    /// It's written.
    pub(super) fn finish(self) {
        self.turns.lock().held.insert((self.number, self.key.1));
    }
}

impl Drop for ManifestLock<'_> {
    fn drop(&mut self) {
        self.alone = None;
        let mut known = self.turns.lock();
        // Who waits has one of his own.
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
    async fn one_at_a_time_and_nothing_stays_of_it() {
        let (blob_locations, turns) = (BlobLocations::default(), ManifestLocks::default());
        let number = |text: &str| blob_locations.id_of(&text.parse::<Repository>().expect("a repository"));
        let (one, two, digest) = (number("r.io/one"), number("r.io/two"), Digest::of(b"x"));
        let registry = |name: &str| LockScope::Registry(name.parse().expect("a registry"));
        let first = turns.acquire(registry("r.io"), one, digest).await.expect("it's nowhere");
        let (mut same, mut other) =
            (pin!(turns.acquire(registry("r.io"), one, digest)), pin!(turns.acquire(registry("r.io"), two, digest)));
        assert!(poll!(&mut same).is_pending() && poll!(&mut other).is_pending());
        assert!(turns.acquire(registry("s.io"), one, digest).await.is_some(), "another registry's");
        first.finish();
        assert!(same.await.is_none(), "the same repository has it");
        drop(other.await.expect("the other one hasn't"));
        assert!(
            turns.acquire(registry("r.io"), one, digest).await.is_none()
                && turns.acquire(registry("r.io"), two, digest).await.is_some()
        );
        // Who gives up leaves it to the next one.
        let failed = turns.acquire(registry("r.io"), two, digest).await;
        let mut next = pin!(turns.acquire(registry("r.io"), two, digest));
        assert!(poll!(&mut next).is_pending());
        drop(failed);
        next.await.expect("it's his turn").finish();
        assert!(turns.acquire(registry("r.io"), two, digest).await.is_none());
        assert_eq!(turns.lock().locks.len(), 0);
    }
}
