//! One address for all requests of an image's push.
//!
//! A registry with geo-replication has one name, which leads to any of its replicas. What one of them took, the others
//! have only some time later. A push whose requests reach two replicas may fail with `MANIFEST_BLOB_UNKNOWN`; the
//! documentation of Azure Container Registry advises to keep the name's address for the time of a push
//! (<https://learn.microsoft.com/azure/container-registry/container-registry-geo-replication>).
//!
//! A [`PinnedPool`] keeps the address that its first connection reached, and has connections of its own: those of the
//! common pool may lead elsewhere. The TLS name, the certificate and the `Host` header stay those of the registry.

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
    /// The address that failed before: tried last.
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

    /// The address that is kept, if the first connection has been made. Else the turn to make it: other connections wait
    /// until the turn is dropped.
    pub(super) async fn kept(&self) -> Result<IpAddr, MutexGuard<'_, ()>> {
        let turn = self.first.lock().await;
        self.address.get().copied().ok_or(turn)
    }

    /// Puts the address that failed before behind the others.
    pub(super) fn order(&self, addresses: &mut [SocketAddr]) {
        addresses.sort_by_key(|address| Some(address.ip()) == self.avoid);
    }

    /// Keeps the address that the first connection reached.
    pub(super) fn keep(&self, address: IpAddr) {
        let _ = self.address.set(address);
    }
}

/// Connections to one address of a registry at a time. `P` is a pool of connections.
#[derive(Debug)]
pub(super) struct PinnedPool<P>(std::sync::Mutex<(P, Arc<AddressPin>)>);

impl<P: Clone> PinnedPool<P> {
    /// A pool that has no address yet. `pool` makes one whose connections go by a pin.
    pub(super) fn new(pool: impl FnOnce(Arc<AddressPin>) -> P) -> Arc<Self> {
        let pin = AddressPin::new(None);
        Arc::new(Self(std::sync::Mutex::new((pool(pin.clone()), pin))))
    }

    /// The connections for the next request. If the pin is over, they are new ones, with another pin.
    pub(super) fn current(&self, pool: impl FnOnce(Arc<AddressPin>) -> P) -> P {
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1.is_over() {
            let failed = current.1.failed.load(Ordering::Relaxed);
            let pin = AddressPin::new(current.1.address.get().copied().filter(|_| failed));
            *current = (pool(pin.clone()), pin);
        }
        current.0.clone()
    }

    /// Whether another push may begin with the address: most of its time is left.
    pub(super) fn may_be_joined(&self) -> bool {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        !current.1.is_over() && current.1.begun.elapsed() < JOIN_TIME
    }

    /// A request that began at `since` failed on the network: its address is not used any longer. A pin that is newer
    /// than the request stays.
    pub(super) fn on_fault(&self, since: Instant) {
        let current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if current.1.begun <= since {
            current.1.failed.store(true, Ordering::Relaxed);
        }
    }
}

/// How long an address is kept at most. DNS moves a name away from a replica that is taken out of service.
const MAX_PIN: Duration = Duration::from_secs(5 * 60);
/// How long further pushes begin with the same address, so that they share its connections.
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
