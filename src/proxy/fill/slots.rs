//! Places for what is read from registries at the same time: of each registry its own.
//!
//! So one registry that crawls, or hangs, takes no place of another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The places of all registries. Those are the ones of the configuration, so they are few.
#[derive(Debug)]
pub(super) struct RegistrySlots {
    each: usize,
    by_registry: Mutex<HashMap<String, Arc<Semaphore>>>,
}

impl RegistrySlots {
    /// So many of each registry.
    pub(super) fn new(each: usize) -> Self {
        Self { each: each.max(1), by_registry: Mutex::default() }
    }

    /// A place of this registry. `None` if there is none within `patience`.
    pub(super) async fn acquire(&self, registry: &str, patience: Duration) -> Option<OwnedSemaphorePermit> {
        let places = {
            let mut by_registry = self.by_registry.lock().unwrap_or_else(PoisonError::into_inner);
            let new = || Arc::new(Semaphore::new(self.each));
            by_registry.entry(registry.to_owned()).or_insert_with(new).clone()
        };
        // They are never closed.
        tokio::time::timeout(patience, places.acquire_owned()).await.ok()?.ok()
    }
}
