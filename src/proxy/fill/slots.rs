//! Limits what is read from each registry at the same time. A slow registry takes no permits of another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The permits, by registry. All registries come from the configuration, so they are few.
#[derive(Debug)]
pub(super) struct RegistrySlots {
    each: usize,
    by_registry: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl RegistrySlots {
    /// `each` permits for each registry, at least 1.
    pub(super) fn new(each: usize) -> Self {
        Self { each: each.max(1), by_registry: Mutex::default() }
    }

    /// A permit for this registry. `None` if none is free within `patience`.
    pub(super) async fn acquire(&self, registry: &str, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let permits = {
            let mut by_registry = self.by_registry.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(self.each));
            by_registry.entry(registry.to_owned()).or_insert_with(new).clone()
        };
        // The semaphore is never closed.
        tokio::time::timeout(patience, permits.acquire_owned()).await.ok()?.ok()
    }
}
