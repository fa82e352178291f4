//! One address for all requests of an image's push.
//!
//! The name of a registry with geo-replication leads to any of its replicas, which are eventually consistent. A push
//! that reaches two replicas may fail with `MANIFEST_BLOB_UNKNOWN`. The documentation of Azure Container Registry
//! advises to keep the name's address during a push
//! (<https://learn.microsoft.com/azure/container-registry/container-registry-geo-replication>).
//!
//! A [`PinnedPool`] keeps the address of its first connection, and has connections of its own, since those of the
//! common pool may lead elsewhere. The TLS name, the certificate and the `Host` header stay the same.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, PoisonError};
use std::time::Duration;

use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

/// An address that is kept for a while.
#[derive(Debug)]
pub(super) struct AddressPin {
    address: OnceLock<IpAddr>,
    /// Held while the first connection is made.
    first: Mutex<()>,
    begun: Instant,
    /// A connection to the address, or an exchange over one, failed.
    failed: AtomicBool,
    /// The address that failed before; the last choice.
    avoid: Option<IpAddr>,
}

impl AddressPin {
    fn new(avoid: Option<IpAddr>) -> Arc<Self> {
        let (address, first) = (OnceLock::new(), Mutex::new(()));
        Arc::new(Self { address, first, begun: Instant::now(), failed: AtomicBool::new(false), avoid })
    }

    fn is_over(&self) -> bool {
        self.failed.load(Ordering::Relaxed) || self.begun.elapsed() >= MAX_PIN
    }

    /// The kept address. `Err` is the permission to make the first connection; other connections wait until it is
    /// dropped.
    pub(super) async fn kept(&self) -> Result<IpAddr, MutexGuard<'_, ()>> {
        let turn = self.first.lock().await;
        self.address.get().copied().ok_or(turn)
    }

    /// Moves the address that failed before to the end.
    pub(super) fn order(&self, addresses: &mut [SocketAddr]) {
        addresses.sort_by_key(|address| Some(address.ip()) == self.avoid);
    }

    /// Keeps the address that the first connection reached.
    pub(super) fn keep(&self, address: IpAddr) {
        let _ = self.address.set(address);
    }
}

/// Connections to one address of a registry at a time. `P` is a connection pool.
#[derive(Debug)]
pub(super) struct PinnedPool<P>(std::sync::Mutex<(P, Arc<AddressPin>)>);

impl<P: Clone> PinnedPool<P> {
    /// A pool without an address. `pool` creates the connections for a pin.
    pub(super) fn new(pool: impl FnOnce(Arc<AddressPin>) -> P) -> Arc<Self> {
        let pin = AddressPin::new(None);
        Arc::new(Self(std::sync::Mutex::new((pool(pin.clone()), pin))))
    }

    /// The connections for the next request; new ones with a new pin if the current pin is over.
    pub(super) fn current(&self, pool: impl FnOnce(Arc<AddressPin>) -> P) -> P {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1.is_over() {
            let failed = current.1.failed.load(Ordering::Relaxed);
            let pin = AddressPin::new(current.1.address.get().copied().filter(|_| failed));
            *current = (pool(pin.clone()), pin);
        }
        current.0.clone()
    }

    /// Whether another push may start with this address: most of the time is left.
    pub(super) fn may_be_joined(&self) -> bool {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !current.1.is_over() && current.1.begun.elapsed() < JOIN_TIME
    }

    /// Ends the pin after a network fault of a request that began at `since`. A newer pin stays.
    pub(super) fn on_fault(&self, since: Instant) {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1.begun <= since {
            current.1.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// The longest time that an address is kept. DNS moves a name away from a replica that is out of service.
const MAX_PIN: Duration = Duration::from_secs(5 * 60);
/// How long other pushes may start with the same address, to share its connections.
const JOIN_TIME: Duration = Duration::from_secs(2 * 60);

#[cfg(test)]
mod tests {
    use super::*;

    /// Each pool is its own pin.
    fn pool() -> Arc<PinnedPool<Arc<AddressPin>>> {
        PinnedPool::new(|pin| pin)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pin_ends_after_five_minutes_or_a_fault() {
        let pinned = pool();
        let first = pinned.current(|pin| pin);
        first.address.set(IpAddr::from([10, 0, 0, 1])).expect("no address yet");
        tokio::time::advance(MAX_PIN - Duration::from_secs(1)).await;
        assert!(Arc::ptr_eq(&first, &pinned.current(|pin| pin)));
        tokio::time::advance(Duration::from_secs(1)).await;
        let second = pinned.current(|pin| pin);
        assert!(!Arc::ptr_eq(&first, &second) && second.avoid.is_none());

        second.address.set(IpAddr::from([10, 0, 0, 1])).expect("no address yet");
        pinned.on_fault(Instant::now() - Duration::from_secs(1));
        assert!(Arc::ptr_eq(&second, &pinned.current(|pin| pin)), "a request of an older pin");
        pinned.on_fault(Instant::now());
        assert_eq!(pinned.current(|pin| pin).avoid, Some(IpAddr::from([10, 0, 0, 1])));
    }

    #[tokio::test(start_paused = true)]
    async fn a_push_joins_an_address_that_is_kept_long_enough() {
        let pinned = pool();
        tokio::time::advance(JOIN_TIME - Duration::from_secs(1)).await;
        assert!(pinned.may_be_joined());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(!pinned.may_be_joined());
    }
}
