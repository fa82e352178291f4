//! The connections of one listener: their number, their states, and which one is closed when a further client needs its
//! slot.
//!
//! ```text
//! accept ─▶ Connections::admit ─▶ ConnectionSlot ─▶ New ─▶ Head ─▶ Busy ─▶ Answered ─▶ Idle ─▶ Head …
//!              │ full: closes the connection that has been idle longest
//! ```
//! A connection within a request's body or a response is never closed for another one.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

/// The connections of a listener. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Connections(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    max: usize,
    /// The limit of connections of one client address.
    max_per_address: Option<usize>,
    open: Mutex<OpenConnections>,
    /// A connection ended or became idle. Only the task that accepts waits for it.
    changed: Notify,
    /// Whether a client waits for a slot. Only then `changed` is signalled.
    full: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct OpenConnections {
    next: u64,
    slots: HashMap<u64, Arc<Connection>>,
}

/// One connection, as the listener sees it.
#[derive(Debug)]
struct Connection {
    accepted: Instant,
    address: Option<IpAddr>,
    /// The [`State`] in the low bits, and since when: milliseconds after `accepted`.
    activity: AtomicU64,
    closed: Notify,
}

/// The state of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// No byte of a request has arrived; the TLS handshake may be running.
    New,
    /// It waits for the next request.
    Idle,
    /// A part of a request's head has arrived.
    Head,
    /// A request is being read or answered.
    Busy,
    /// The response is complete, but some of its bytes may not be sent yet.
    Answered,
    /// It is being closed, because its slot is needed for another client.
    Closing,
}

/// The slot of a connection. Dropping it frees the slot.
#[derive(Debug)]
pub(super) struct ConnectionSlot {
    number: u64,
    connection: Arc<Connection>,
    shared: Arc<Shared>,
}

/// Reports the state of a connection. Clones are for the same connection.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    connection: Arc<Connection>,
    shared: Arc<Shared>,
}

/// Keeps a connection busy until it is dropped.
#[derive(Debug)]
pub(super) struct Busy(Activity);

impl Connections {
    /// A limit of `max` connections, and of `max_per_address` from one client address.
    pub(super) fn new(max: usize, max_per_address: Option<usize>) -> Self {
        Self(Arc::new(Shared {
            max,
            max_per_address,
            open: Mutex::default(),
            changed: Notify::new(),
            full: std::sync::atomic::AtomicBool::new(false),
        }))
    }

    /// A slot for a connection from `peer`. If there is none, the connection that has been idle longest is closed. If all are
    /// busy, this waits. `None` if `peer` already has the limit of busy connections of one address.
    ///
    /// Cancel safe. Only one task may wait in this method.
    pub(super) async fn admit(&self, peer: Option<SocketAddr>) -> Option<ConnectionSlot> {
        let address = peer.map(|peer| peer.ip().to_canonical());
        loop {
            {
                let mut open = self.0.lock();
                let own = |connection: &Connection| address.is_some() && connection.address == address;
                let count = || open.slots.values().filter(|connection| own(connection)).count();
                match self.0.max_per_address {
                    Some(max) if count() >= max => {
                        if !open.make_room(own) {
                            return None;
                        }
                    }
                    _ if open.slots.len() < self.0.max => {
                        self.0.full.store(false, Ordering::Relaxed);
                        return Some(open.add(address, &self.0));
                    }
                    _ => _ = open.make_room(|_| true),
                }
                self.0.full.store(true, Ordering::Release);
            }
            self.0.changed.notified().await;
        }
    }

    /// Closes the connection that has been idle longest, if there is one.
    pub(super) fn close_idle(&self) {
        self.0.lock().make_room(|_| true);
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, OpenConnections> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnections {
    fn add(&mut self, address: Option<IpAddr>, shared: &Arc<Shared>) -> ConnectionSlot {
        let connection = Arc::new(Connection {
            accepted: Instant::now(),
            address,
            activity: AtomicU64::new(State::New as u64),
            closed: Notify::new(),
        });
        let number = self.next;
        self.next += 1;
        self.slots.insert(number, connection.clone());
        ConnectionSlot { number, connection, shared: shared.clone() }
    }

    /// Closes one idle connection for which `such` returns true. Returns true if one is closing now.
    fn make_room(&self, such: impl Fn(&Connection) -> bool) -> bool {
        let now = Instant::now();
        let candidates = || self.slots.values().filter(|connection| such(connection));
        // One at a time: the slot of a closing connection is free soon.
        if candidates().any(|connection| connection.state().0 == State::Closing) {
            return true;
        }
        // A candidate may become busy at the same time.
        for _ in 0..4 {
            let worst = candidates()
                .filter_map(|connection| Some((connection.rank(now)?, connection)))
                .max_by_key(|(rank, _)| *rank);
            match worst {
                None => return false,
                Some((rank, connection)) if connection.close(rank.seen) => return true,
                Some(_) => {}
            }
        }
        false
    }
}

/// The order in which connections are closed: the greatest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct ClosePriority {
    class: u8,
    idle: Duration,
    /// The activity that this was computed from.
    seen: u64,
}

impl Connection {
    fn state(&self) -> (State, u64) {
        let seen = self.activity.load(Ordering::Acquire);
        let state = match seen & STATE_MASK {
            0 => State::New,
            1 => State::Idle,
            2 => State::Head,
            3 => State::Busy,
            4 => State::Answered,
            _ => State::Closing,
        };
        (state, seen)
    }

    fn set(&self, state: State) {
        let millis = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX >> STATE_BITS);
        self.activity.store(millis << STATE_BITS | state as u64, Ordering::Release);
    }

    /// The priority for closing; `None` for a connection that must not be closed. Connections that are idle for less than
    /// [`IDLE_GRACE`] come last: the next request of a normal client may be on its way.
    fn rank(&self, now: Instant) -> Option<ClosePriority> {
        let (state, seen) = self.state();
        let class = match state {
            State::New => 3,
            State::Idle => 2,
            State::Head => 1,
            State::Busy | State::Answered | State::Closing => return None,
        };
        let idle = now.saturating_duration_since(self.accepted + Duration::from_millis(seen >> STATE_BITS));
        let class = if idle < IDLE_GRACE { 0 } else { class };
        Some(ClosePriority { class, idle, seen })
    }

    /// Closes the connection, unless its activity has changed since `seen`.
    fn close(&self, seen: u64) -> bool {
        let closing = seen & !STATE_MASK | State::Closing as u64;
        let closed = self.activity.compare_exchange(seen, closing, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if closed {
            self.closed.notify_one();
        }
        closed
    }
}

impl ConnectionSlot {
    pub(super) fn activity(&self) -> Activity {
        Activity { connection: self.connection.clone(), shared: self.shared.clone() }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.shared.lock().slots.remove(&self.number);
        self.shared.changed.notify_one();
    }
}

impl Activity {
    /// Records that bytes have arrived. Returns false if the connection is being closed: the bytes must be ignored then.
    pub(super) fn received(&self) -> bool {
        let (state, seen) = self.connection.state();
        match state {
            State::New | State::Idle => {
                let millis = u64::try_from(self.connection.accepted.elapsed().as_millis()).unwrap_or(0);
                let head = millis << STATE_BITS | State::Head as u64;
                self.connection.activity.compare_exchange(seen, head, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }
            State::Head | State::Busy | State::Answered => true,
            State::Closing => false,
        }
    }

    /// Records that the head of a request is complete. The connection is busy until the returned guard is dropped and the
    /// response is flushed.
    pub(super) fn busy(&self) -> Busy {
        self.connection.set(State::Busy);
        Busy(self.clone())
    }

    /// Records that all written bytes are passed to the kernel.
    pub(super) fn flushed(&self) {
        if self.connection.state().0 == State::Answered {
            self.connection.set(State::Idle);
            if self.shared.full.load(Ordering::Acquire) {
                self.shared.changed.notify_one();
            }
        }
    }

    /// Whether no byte of a request has arrived.
    pub(super) fn is_new(&self) -> bool {
        self.connection.state().0 == State::New
    }

    /// Ready when the connection is to be closed for another client.
    pub(super) async fn closed(&self) {
        self.connection.closed.notified().await;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.connection.set(State::Answered);
    }
}

/// The bits of [`Connection::activity`] that are the state.
const STATE_BITS: u32 = 3;
const STATE_MASK: u64 = (1 << STATE_BITS) - 1;
/// A connection that is idle for less than this is closed only if all others are busy, or idle for less too.
const IDLE_GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closing(slot: &ConnectionSlot) -> bool {
        slot.connection.state().0 == State::Closing
    }

    /// As if this had happened `ago`.
    fn at(slot: &ConnectionSlot, state: State, ago: Duration, now: Instant) {
        let connection = &slot.connection;
        let since = (now - ago).saturating_duration_since(connection.accepted).as_millis();
        connection
            .activity
            .store((u64::try_from(since).expect("short")) << STATE_BITS | state as u64, Ordering::Release);
    }

    fn place(open: &mut OpenConnections, shared: &Arc<Shared>, state: State, ago: u64) -> ConnectionSlot {
        let mut slot = open.add(None, shared);
        let now = Instant::now();
        let connection = Connection {
            accepted: now.checked_sub(Duration::from_secs(1000)).expect("the machine is up for that long"),
            address: None,
            activity: AtomicU64::new(0),
            closed: Notify::new(),
        };
        slot.connection = Arc::new(connection);
        open.slots.insert(slot.number, slot.connection.clone());
        at(&slot, state, Duration::from_millis(ago), now);
        slot
    }

    #[tokio::test]
    async fn silent_connections_go_first_then_idle_ones_then_slow_heads_and_busy_ones_never() {
        let shared = Connections::new(9, None).0;
        let mut open = OpenConnections::default();
        let busy = place(&mut open, &shared, State::Busy, 900_000);
        let answered = place(&mut open, &shared, State::Answered, 900_000);
        let order = [
            place(&mut open, &shared, State::New, 30_000),
            place(&mut open, &shared, State::New, 2_000),
            place(&mut open, &shared, State::Idle, 50_000),
            place(&mut open, &shared, State::Idle, 3_000),
            place(&mut open, &shared, State::Head, 40_000),
            // An honest client's first bytes are on their way.
            place(&mut open, &shared, State::Head, 900),
            place(&mut open, &shared, State::New, 100),
        ];
        for (nth, next) in order.iter().enumerate() {
            assert!(open.make_room(|_| true) && is_closing(next), "{nth}");
            assert!(order[nth + 1..].iter().all(|later| !is_closing(later)), "{nth}: one at a time");
            open.slots.remove(&next.number);
        }
        assert!(!open.make_room(|_| true));
        assert!(!is_closing(&busy) && !is_closing(&answered));
    }

    #[tokio::test]
    async fn a_connection_that_becomes_busy_is_not_closed() {
        let connections = Connections::new(1, None);
        let slot = connections.admit(None).await.expect("a place");
        let seen = slot.connection.state().1;
        let _busy = slot.activity().busy();
        assert!(!slot.connection.close(seen));
        // And what is being closed reads nothing more.
        let other = Connections::new(1, None).admit(None).await.expect("a place");
        assert!(other.connection.close(other.connection.state().1) && !other.activity().received());
    }

    #[tokio::test]
    async fn an_address_has_its_own_limit() {
        let connections = Connections::new(9, Some(1));
        let peer = |text: &str| Some(text.parse::<SocketAddr>().expect("an address"));
        let first = connections.admit(peer("10.0.0.1:1")).await.expect("a place");
        let _busy = first.activity().busy();
        assert!(connections.admit(peer("10.0.0.1:2")).await.is_none(), "its only connection is busy");
        assert!(connections.admit(peer("10.0.0.2:1")).await.is_some());
        assert!(connections.admit(None).await.is_some(), "a Unix socket has no address");
    }
}
