//! Which repository of a destination holds which blob, as far as this run knows.
//!
//! Whoever needs a blob that is on its way to the same registry waits for it, then mounts it: so
//! each blob is read from its source once.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use crate::descriptor::Digest;
use crate::reference::Repository;

/// The directory. One for a run.
#[derive(Debug, Default)]
pub struct Directory {
    blobs: Mutex<HashMap<(Arc<str>, Digest), Holders>>,
}

/// The repositories that hold one blob. Locked by whoever is bringing it there: if he fails, the
/// next one who waits finds no holder and takes over.
pub(super) type Holders = Arc<tokio::sync::Mutex<Vec<Repository>>>;

impl Directory {
    /// The holders of a blob in `registry`.
    pub(super) fn holders(&self, registry: &str, digest: Digest) -> Holders {
        let mut blobs = self.blobs.lock().unwrap_or_else(PoisonError::into_inner);
        blobs.entry((registry.into(), digest)).or_default().clone()
    }

    /// Notes that a manifest is in the repository.
    pub(super) async fn wrote(&self, repository: &Repository, manifest: Digest) {
        let holders = self.holders(&repository.registry, manifest);
        let mut holders = holders.lock().await;
        if !holders.contains(repository) {
            holders.push(repository.clone());
        }
    }
}
