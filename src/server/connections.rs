//! The connections of one listener: how many there are, what each one does, and which one is closed when a
//! further client needs its place.
//!
//! ```text
//! accept ─▶ Connections::enter ─▶ Place ─▶ New ─▶ Head ─▶ Busy ─▶ Answered ─▶ Idle ─▶ Head …
//!              │ full: closes the connection that has been idle longest
//! ```
//! A connection in the middle of a request's body or of an answer is never closed for another one.

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
    /// Of one client address, if that is limited.
    max_per_address: Option<usize>,
    open: Mutex<Open>,
    /// A connection ended or became idle. Only the task that accepts waits for it.
    changed: Notify,
    /// Whether a client waits for a place, which is what makes `changed` worth a wake-up.
    full: std::sync::atomic::AtomicBool,
}

#[derive(Debug, Default)]
struct Open {
    next: u64,
    slots: HashMap<u64, Arc<Slot>>,
}

/// One connection, as the listener sees it.
#[derive(Debug)]
struct Slot {
    accepted: Instant,
    address: Option<IpAddr>,
    /// The [`State`] in the low bits, and since when: milliseconds after `accepted`.
    activity: AtomicU64,
    closed: Notify,
}

/// What a connection does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It sent no byte of a request yet; TLS may be in progress.
    New,
    /// It waits for the next request.
    Idle,
    /// A part of a request's head has arrived.
    Head,
    /// A request is being read or answered.
    Busy,
    /// The handler's answer has ended; bytes of it may still be on their way.
    Answered,
    /// Its place is wanted for another client.
    Closing,
}

/// A connection's place among the others. Dropping it frees the place.
#[derive(Debug)]
pub(super) struct Place {
    number: u64,
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

/// A handle that reports what a connection does. Clones are for the same connection.
#[derive(Clone, Debug)]
pub(super) struct Activity {
    slot: Arc<Slot>,
    shared: Arc<Shared>,
}

/// Keeps a connection busy until it is dropped.
#[derive(Debug)]
pub(super) struct Busy(Activity);

impl Connections {
    /// Room for `max` connections, and for `max_per_address` of one client address.
    pub(super) fn new(max: usize, max_per_address: Option<usize>) -> Self {
        Self(Arc::new(Shared {
            max,
            max_per_address,
            open: Mutex::default(),
            changed: Notify::new(),
            full: std::sync::atomic::AtomicBool::new(false),
        }))
    }

    /// A place for a connection from `peer`. If there is none, the connection that has been idle longest is
    /// closed; if all are busy, this waits. `None` if `peer` has as many busy connections as one address may have.
    ///
    /// Cancel safe. Only one task may wait in here.
    pub(super) async fn enter(&self, peer: Option<SocketAddr>) -> Option<Place> {
        let address = peer.map(|peer| peer.ip().to_canonical());
        loop {
            {
                let mut open = self.0.lock();
                let own = |slot: &Slot| address.is_some() && slot.address == address;
                let count = || open.slots.values().filter(|slot| own(slot)).count();
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
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Open {
    fn add(&mut self, address: Option<IpAddr>, shared: &Arc<Shared>) -> Place {
        let slot = Arc::new(Slot {
            accepted: Instant::now(),
            address,
            activity: AtomicU64::new(State::New as u64),
            closed: Notify::new(),
        });
        let number = self.next;
        self.next += 1;
        self.slots.insert(number, slot.clone());
        Place { number, slot, shared: shared.clone() }
    }

    /// Closes one idle connection among those that `such` accepts. `true` if one is closing now.
    fn make_room(&self, such: impl Fn(&Slot) -> bool) -> bool {
        let now = Instant::now();
        let candidates = || self.slots.values().filter(|slot| such(slot));
        // One at a time: the place of a closing connection is free in a moment.
        if candidates().any(|slot| slot.state().0 == State::Closing) {
            return true;
        }
        // A candidate may become busy while this looks at it.
        for _ in 0..4 {
            let worst = candidates().filter_map(|slot| Some((slot.rank(now)?, slot))).max_by_key(|(rank, _)| *rank);
            match worst {
                None => return false,
                Some((rank, slot)) if slot.close(rank.seen) => return true,
                Some(_) => {}
            }
        }
        false
    }
}

/// How far a connection is from being of use: the greatest is closed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Rank {
    class: u8,
    idle: Duration,
    /// The activity that this was computed from.
    seen: u64,
}

impl Slot {
    fn state(&self) -> (State, u64) {
        let seen = self.activity.load(Ordering::Acquire);
        let state = match seen & MASK {
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
        let millis = u64::try_from(self.accepted.elapsed().as_millis()).unwrap_or(u64::MAX >> BITS);
        self.activity.store(millis << BITS | state as u64, Ordering::Release);
    }

    /// `None` for a connection that may not be closed. Those that are idle for less than a second have no class:
    /// the next bytes of an honest client are on their way.
    fn rank(&self, now: Instant) -> Option<Rank> {
        let (state, seen) = self.state();
        let class = match state {
            State::New => 3,
            State::Idle => 2,
            State::Head => 1,
            State::Busy | State::Answered | State::Closing => return None,
        };
        let idle = now.saturating_duration_since(self.accepted + Duration::from_millis(seen >> BITS));
        let class = if idle < GRACE { 0 } else { class };
        Some(Rank { class, idle, seen })
    }

    /// Closes it, unless it did something since `seen`.
    fn close(&self, seen: u64) -> bool {
        let closing = seen & !MASK | State::Closing as u64;
        let closed = self.activity.compare_exchange(seen, closing, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if closed {
            self.closed.notify_one();
        }
        closed
    }
}

impl Place {
    pub(super) fn activity(&self) -> Activity {
        Activity { slot: self.slot.clone(), shared: self.shared.clone() }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.shared.lock().slots.remove(&self.number);
        self.shared.changed.notify_one();
    }
}

impl Activity {
    /// Bytes arrived. `false` if the connection is being closed, and they must not be looked at.
    pub(super) fn received(&self) -> bool {
        let (state, seen) = self.slot.state();
        match state {
            State::New | State::Idle => {
                let millis = u64::try_from(self.slot.accepted.elapsed().as_millis()).unwrap_or(0);
                let head = millis << BITS | State::Head as u64;
                self.slot.activity.compare_exchange(seen, head, Ordering::AcqRel, Ordering::Relaxed).is_ok()
            }
            State::Head | State::Busy | State::Answered => true,
            State::Closing => false,
        }
    }

    /// A request's head is complete: the connection is busy until what this returns is dropped and the answer is
    /// flushed.
    pub(super) fn busy(&self) -> Busy {
        self.slot.set(State::Busy);
        Busy(self.clone())
    }

    /// All that was written is with the kernel.
    pub(super) fn flushed(&self) {
        if self.slot.state().0 == State::Answered {
            self.slot.set(State::Idle);
            if self.shared.full.load(Ordering::Acquire) {
                self.shared.changed.notify_one();
            }
        }
    }

    /// Whether no byte of a request has arrived.
    pub(super) fn is_new(&self) -> bool {
        self.slot.state().0 == State::New
    }

    /// Ready when the place is wanted for another client.
    pub(super) async fn closed(&self) {
        self.slot.closed.notified().await;
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.slot.set(State::Answered);
    }
}

/// The bits of [`Slot::activity`] that are the state.
const BITS: u32 = 3;
const MASK: u64 = (1 << BITS) - 1;
/// A connection that is idle for less is closed only if all others are busy or as young.
const GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    fn is_closing(place: &Place) -> bool {
        place.slot.state().0 == State::Closing
    }

    /// As if this had happened `ago`.
    fn at(place: &Place, state: State, ago: Duration, now: Instant) {
        let slot = &place.slot;
        let since = (now - ago).saturating_duration_since(slot.accepted).as_millis();
        slot.activity.store((u64::try_from(since).expect("short")) << BITS | state as u64, Ordering::Release);
    }

    fn place(open: &mut Open, shared: &Arc<Shared>, state: State, ago: u64) -> Place {
        let mut place = open.add(None, shared);
        let now = Instant::now();
        let slot = Slot {
            accepted: now.checked_sub(Duration::from_secs(1000)).expect("the machine is up for that long"),
            address: None,
            activity: AtomicU64::new(0),
            closed: Notify::new(),
        };
        place.slot = Arc::new(slot);
        open.slots.insert(place.number, place.slot.clone());
        at(&place, state, Duration::from_millis(ago), now);
        place
    }

    #[tokio::test]
    async fn silent_connections_go_first_then_idle_ones_then_slow_heads_and_busy_ones_never() {
        let shared = Connections::new(9, None).0;
        let mut open = Open::default();
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
        let place = connections.enter(None).await.expect("a place");
        let seen = place.slot.state().1;
        let _busy = place.activity().busy();
        assert!(!place.slot.close(seen));
        // And what is being closed reads nothing more.
        let other = Connections::new(1, None).enter(None).await.expect("a place");
        assert!(other.slot.close(other.slot.state().1) && !other.activity().received());
    }

    #[tokio::test]
    async fn an_address_has_its_own_limit() {
        let connections = Connections::new(9, Some(1));
        let peer = |text: &str| Some(text.parse::<SocketAddr>().expect("an address"));
        let first = connections.enter(peer("10.0.0.1:1")).await.expect("a place");
        let _busy = first.activity().busy();
        assert!(connections.enter(peer("10.0.0.1:2")).await.is_none(), "its only connection is busy");
        assert!(connections.enter(peer("10.0.0.2:1")).await.is_some());
        assert!(connections.enter(None).await.is_some(), "a Unix socket has no address");
    }
}
