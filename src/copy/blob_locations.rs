//! Which repository of a destination holds which blob, as far as this run knows.
//!
//! Whoever needs a blob that is on its way to the same registry waits for it, then mounts it: so
//! each blob is read from its source once. Lists have tens of thousands of blobs, some of them in
//! thousands of repositories: so names are kept once, and stand here as numbers.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::descriptor::Digest;
use crate::reference::Repository;

/// The directory. One for a run.
#[derive(Debug, Default)]
pub struct BlobLocations(Mutex<State>);

#[derive(Debug, Default)]
struct State {
    registries: HashMap<String, u32>,
    numbers: HashMap<Repository, RepositoryId>,
    repositories: Vec<Repository>,
    blobs: HashMap<(u32, Digest), Holders>,
}

/// A repository of this run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RepositoryId(u32);

/// The repositories that hold one blob. Locked by whoever is bringing it there: if he fails, the
/// next one who waits finds no holder and takes over.
pub(super) type Holders = Arc<tokio::sync::Mutex<Vec<RepositoryId>>>;

impl BlobLocations {
    /// The number of a repository.
    pub(super) fn id_of(&self, repository: &Repository) -> RepositoryId {
        let mut known = self.lock();
        if let Some(number) = known.numbers.get(repository) {
            return *number;
        }
        let number = RepositoryId(u32::try_from(known.repositories.len()).unwrap_or(u32::MAX));
        known.repositories.push(repository.clone());
        known.numbers.insert(repository.clone(), number);
        number
    }

    pub(super) fn repository(&self, number: RepositoryId) -> Option<Repository> {
        self.lock().repositories.get(number.0 as usize).cloned()
    }

    /// The holders of a blob in `registry`.
    pub(super) fn holders(&self, registry: &str, digest: Digest) -> Holders {
        let mut known = self.lock();
        let next = u32::try_from(known.registries.len()).unwrap_or(u32::MAX);
        let registry = match known.registries.get(registry) {
            Some(registry) => *registry,
            None => *known.registries.entry(registry.to_owned()).or_insert(next),
        };
        known.blobs.entry((registry, digest)).or_default().clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
