//! What a front has seen, and what its connections share.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use tokio::sync::watch;
use transload::demo::persona::Persona;

use super::{Fault, Rule};

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct SeenRequest {
    /// Requests with the same number shared a connection.
    pub connection: u64,
    /// Whether it came to [`Front::side`].
    pub side: bool,
    pub host: String,
    pub method: String,
    pub path: String,
    pub query: String,
    pub headers: HeaderMap,
    pub at: Instant,
    /// The answer's status; none while there is no answer.
    pub status: Option<u16>,
    pub fault: Option<Fault>,
    received: Arc<AtomicU64>,
    sent: Arc<AtomicU64>,
}

impl SeenRequest {
    pub fn new(connection: u64, side: bool, head: &hyper::http::request::Parts) -> Self {
        let named = head.headers.get("host").and_then(|value| value.to_str().ok());
        let named = named.or_else(|| head.uri.authority().map(|authority| authority.as_str()));
        Self {
            connection,
            side,
            host: named.unwrap_or_default().to_owned(),
            method: head.method.to_string(),
            path: head.uri.path().to_owned(),
            query: head.uri.query().unwrap_or_default().to_owned(),
            headers: head.headers.clone(),
            at: Instant::now(),
            status: None,
            fault: None,
            received: Arc::default(),
            sent: Arc::default(),
        }
    }

    /// Path and query.
    pub fn target(&self) -> String {
        match self.query.as_str() {
            "" => self.path.clone(),
            query => format!("{}?{query}", self.path),
        }
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }

    /// `Basic`, `Bearer`, or none without Authorization.
    pub fn scheme(&self) -> Option<&str> {
        self.header(AUTHORIZATION.as_str()).map(|value| value.split(' ').next().unwrap_or_default())
    }

    /// Bytes of the request's body that came.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    /// Bytes of the answer's body that were sent.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

/// Chooses the fault of each request, where no rule applies.
pub struct Chooser(pub Choice);

type Choice = Box<dyn Fn(&SeenRequest) -> Option<Fault> + Send>;

impl std::fmt::Debug for Chooser {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Chooser")
    }
}

/// What all connections of a front share.
#[derive(Debug)]
pub struct Shared {
    /// Whether a request's body is read after an early answer.
    pub linger: bool,
    upstream: Mutex<SocketAddr>,
    /// Whether connections are refused.
    pub refusing: watch::Sender<bool>,
    chooser: Mutex<Option<Chooser>>,
    pub persona: Persona,
    rules: Mutex<Vec<Rule>>,
    log: Mutex<Vec<SeenRequest>>,
    pub connections: AtomicU64,
    /// Connections and requests that haven't ended. A request may outlive its connection.
    open: Arc<AtomicUsize>,
    /// One request at a time for each upload session, as a registry's lock has it.
    uploads: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Shared {
    pub fn new(upstream: SocketAddr, persona: Persona, rules: Vec<Rule>, linger: bool) -> Self {
        Self {
            linger,
            upstream: Mutex::new(upstream),
            refusing: watch::Sender::new(false),
            chooser: Mutex::default(),
            persona,
            rules: Mutex::new(rules),
            log: Mutex::default(),
            connections: AtomicU64::new(0),
            open: Arc::default(),
            uploads: Mutex::default(),
        }
    }

    /// Logs a request, and finds out what befalls it.
    pub fn enter(&self, mut seen: SeenRequest) -> Entry<'_> {
        // One lock over all rules, so that they count in the log's order.
        let rules = self.rules();
        seen.fault = None;
        for rule in rules.iter() {
            let struck = rule.strike(&seen);
            seen.fault = seen.fault.take().or(struck);
        }
        drop(rules);
        if seen.fault.is_none() {
            seen.fault = self.chooser().as_ref().and_then(|chooser| (chooser.0)(&seen));
        }
        let entry = Entry {
            shared: self,
            received: Arc::clone(&seen.received),
            sent: Arc::clone(&seen.sent),
            fault: seen.fault.clone(),
            _open: self.open(),
        };
        self.log().push(seen);
        entry
    }

    pub fn upstream(&self) -> SocketAddr {
        *self.upstream.lock().expect("no panic while held")
    }

    pub fn lead_to(&self, upstream: SocketAddr) {
        *self.upstream.lock().expect("no panic while held") = upstream;
    }

    pub fn chooser(&self) -> MutexGuard<'_, Option<Chooser>> {
        self.chooser.lock().expect("no panic while held")
    }

    pub fn open(&self) -> Open {
        self.open.fetch_add(1, Ordering::SeqCst);
        Open(Arc::clone(&self.open))
    }

    pub fn is_idle(&self) -> bool {
        self.open.load(Ordering::SeqCst) == 0
    }

    pub fn upload(&self, path: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut uploads = self.uploads.lock().expect("no panic while held");
        Arc::clone(uploads.entry(path.to_owned()).or_default())
    }

    pub fn rules(&self) -> MutexGuard<'_, Vec<Rule>> {
        self.rules.lock().expect("no panic while held")
    }

    pub fn log(&self) -> MutexGuard<'_, Vec<SeenRequest>> {
        self.log.lock().expect("no panic while held")
    }
}

/// A request's entry in the log, while it is under way.
pub struct Entry<'a> {
    shared: &'a Shared,
    pub received: Arc<AtomicU64>,
    pub sent: Arc<AtomicU64>,
    pub fault: Option<Fault>,
    _open: Open,
}

/// A connection or a request that hasn't ended.
pub struct Open(Arc<AtomicUsize>);

impl Drop for Open {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Entry<'_> {
    /// Notes the status, unless the log was reset meanwhile.
    pub fn answered(&self, status: u16) {
        let mut log = self.shared.log();
        let own = |seen: &&mut SeenRequest| Arc::ptr_eq(&seen.received, &self.received);
        if let Some(seen) = log.iter_mut().rev().find(own) {
            seen.status = Some(status);
        }
    }
}
