//! A front before a registry: counts requests, injects faults, plays Docker Hub or ACR.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use hyper::HeaderMap;
use hyper::header::AUTHORIZATION;
use transload::demo::persona::{Acr, AcrConfig, Hub, HubConfig, Persona};

use super::background::{Background, listen};
use super::front_serve::{Listen, serve};
use super::{Fault, Rule, TempDir, tls};

/// A running front. Stops on Drop; connections that are open then are cut.
#[derive(Debug)]
pub struct Front {
    addr: SocketAddr,
    side: SocketAddr,
    host: String,
    names: Vec<String>,
    authority: Option<TempDir>,
    shared: Arc<Shared>,
    background: Background,
}

/// One request, as it came.
#[derive(Debug, Clone)]
pub struct Seen {
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

impl Seen {
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
        self.header(AUTHORIZATION.as_str())
            .map(|value| value.split(' ').next().unwrap_or_default())
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

/// A front to be.
pub struct Builder {
    upstream: SocketAddr,
    role: Role,
    rules: Vec<Rule>,
    tls: bool,
    h2: bool,
    names: Vec<String>,
}

enum Role {
    Plain,
    Hub(Box<dyn FnOnce(&mut HubConfig)>),
    Acr(Box<dyn FnOnce(&mut AcrConfig)>),
}

impl Builder {
    /// Plays Docker Hub; the closure makes it stricter or laxer.
    pub fn hub(mut self, adapt: impl FnOnce(&mut HubConfig) + 'static) -> Self {
        self.role = Role::Hub(Box::new(adapt));
        self
    }

    /// Plays Azure Container Registry with Entra ID; the closure makes it stricter or laxer.
    pub fn acr(mut self, adapt: impl FnOnce(&mut AcrConfig) + 'static) -> Self {
        self.role = Role::Acr(Box::new(adapt));
        self
    }

    pub fn rule(mut self, rule: Rule) -> Self {
        self.rules.push(rule);
        self
    }

    /// Speaks TLS, under the persona's real names. [`Front::side`] stays plain HTTP.
    pub fn tls(mut self) -> Self {
        self.tls = true;
        self
    }

    /// Offers HTTP/2 too.
    pub fn h2(mut self) -> Self {
        self.h2 = true;
        self.tls()
    }

    /// A further name in the certificate.
    pub fn name(mut self, name: &str) -> Self {
        self.names.push(name.to_owned());
        self
    }

    pub fn start(self) -> Front {
        let ((main, addr), (side_listener, side)) = (listen(), listen());
        let (main_base, side_base) = (addr.to_string(), side.to_string());
        let mut names = self.names;
        let mut host = main_base.clone();
        let persona: Persona = match self.role {
            Role::Plain => {
                if let (true, Some(name)) = (self.tls, names.first()) {
                    host.clone_from(name);
                }
                Persona::Plain
            }
            Role::Hub(adapt) => {
                let mut config = HubConfig::loopback(&main_base, &side_base);
                if self.tls {
                    config = HubConfig::default();
                    host = "registry-1.docker.io".to_owned();
                    names.extend([&host, "index.docker.io", "docker.io"].map(str::to_owned));
                    names.extend([&config.realm, &config.cdn].map(|url| host_of(url)));
                }
                adapt(&mut config);
                Hub::new(config).into()
            }
            Role::Acr(adapt) => {
                let mut config = AcrConfig::loopback(&main_base, &side_base);
                if self.tls {
                    config = AcrConfig::default();
                    host = host_of(&config.url);
                    let urls = [&config.url, &config.storage, &config.entra.authority];
                    names.extend(urls.map(|url| host_of(url)));
                }
                adapt(&mut config);
                Acr::new(config).into()
            }
        };
        let (authority, acceptor) = if self.tls {
            let loopback = ["localhost".to_owned(), "127.0.0.1".to_owned()];
            let (pem, config) = tls::server(&[&names[..], &loopback].concat(), self.h2);
            let directory = TempDir::new();
            directory.write("ca.pem", pem);
            (Some(directory), Some(config))
        } else {
            (None, None)
        };
        let shared = Arc::new(Shared {
            upstream: self.upstream,
            persona,
            rules: Mutex::new(self.rules.into_iter().map(Arc::new).collect()),
            log: Mutex::default(),
            connections: AtomicU64::new(0),
            uploads: Mutex::default(),
        });
        let main = Listen {
            listener: main,
            acceptor,
            side: false,
        };
        let side_listener = Listen {
            listener: side_listener,
            acceptor: None,
            side: true,
        };
        let served = Arc::clone(&shared);
        let background = Background::spawn(move || async move {
            tokio::join!(
                serve(main, Arc::clone(&served)),
                serve(side_listener, served)
            );
        });
        Front {
            addr,
            side,
            host,
            names,
            authority,
            shared,
            background,
        }
    }
}

impl Front {
    /// A front before a registry, a plain one unless told otherwise.
    pub fn before(upstream: SocketAddr) -> Builder {
        Builder {
            upstream,
            role: Role::Plain,
            rules: Vec::new(),
            tls: false,
            h2: false,
            names: Vec::new(),
        }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// A second port with the same behind it: another origin.
    pub fn side(&self) -> SocketAddr {
        self.side
    }

    /// The registry's host for an image reference: a name with TLS, else address and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The authority's certificate, as a PEM file.
    pub fn ca_file(&self) -> Option<String> {
        self.authority
            .as_ref()
            .map(|directory| directory.join("ca.pem"))
    }

    /// `--ca-file FILE --resolve NAME=ADDRESS …`, nothing without TLS.
    pub fn flags(&self) -> Vec<String> {
        let Some(file) = self.ca_file() else {
            return Vec::new();
        };
        let resolve = |name: &String| ["--resolve".to_owned(), format!("{name}={}", self.addr)];
        let mut flags = vec!["--ca-file".to_owned(), file];
        flags.extend(self.names.iter().flat_map(resolve));
        flags
    }

    /// Every request since the start or [`Self::reset_log`], in the order they came.
    pub fn log(&self) -> Vec<Seen> {
        self.shared.log().clone()
    }

    pub fn reset_log(&self) {
        self.shared.log().clear();
    }

    /// How many requests since then have this method (`*` is any) and this in their path or query.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let matches =
            |seen: &&Seen| (method == "*" || seen.method == method) && seen.target().contains(path);
        self.log().iter().filter(matches).count()
    }

    /// How many requests met a fault. Assert it, or a rule that never matched lets a test pass.
    pub fn struck(&self) -> usize {
        self.log()
            .iter()
            .filter(|seen| seen.fault.is_some())
            .count()
    }

    /// Adds a rule while running; the first one that strikes wins.
    pub fn add(&self, rule: Rule) {
        self.shared.rules().push(Arc::new(rule));
    }

    pub fn clear_rules(&self) {
        self.shared.rules().clear();
    }

    pub fn persona(&self) -> &Persona {
        &self.shared.persona
    }

    #[track_caller]
    pub fn hub(&self) -> &Hub {
        match &self.shared.persona {
            Persona::Hub(hub) => hub,
            other => panic!("not Docker Hub but {other:?}"),
        }
    }

    #[track_caller]
    pub fn acr(&self) -> &Acr {
        match &self.shared.persona {
            Persona::Acr(acr) => acr,
            other => panic!("not ACR but {other:?}"),
        }
    }
}

/// What all connections of a front share.
#[derive(Debug)]
pub struct Shared {
    pub upstream: SocketAddr,
    pub persona: Persona,
    rules: Mutex<Vec<Arc<Rule>>>,
    log: Mutex<Vec<Seen>>,
    pub connections: AtomicU64,
    /// One request at a time for each upload session, as a registry's lock has it.
    uploads: Mutex<std::collections::HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Shared {
    /// Logs a request, and finds out what befalls it.
    pub fn enter(&self, mut seen: Seen) -> Entry<'_> {
        // One lock over all rules, so that they count in the log's order.
        let rules = self.rules();
        seen.fault = None;
        for rule in rules.iter() {
            let struck = rule.strike(&seen);
            seen.fault = seen.fault.take().or(struck);
        }
        let entry = Entry {
            shared: self,
            received: Arc::clone(&seen.received),
            sent: Arc::clone(&seen.sent),
            fault: seen.fault.clone(),
        };
        self.log().push(seen);
        entry
    }

    pub fn upload(&self, path: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut uploads = self.uploads.lock().expect("no panic while held");
        Arc::clone(uploads.entry(path.to_owned()).or_default())
    }

    fn rules(&self) -> MutexGuard<'_, Vec<Arc<Rule>>> {
        self.rules.lock().expect("no panic while held")
    }

    fn log(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.log.lock().expect("no panic while held")
    }
}

/// A request's entry in the log, while it is under way.
pub struct Entry<'a> {
    shared: &'a Shared,
    pub received: Arc<AtomicU64>,
    pub sent: Arc<AtomicU64>,
    pub fault: Option<Fault>,
}

impl Entry<'_> {
    /// Notes the status, unless the log was reset meanwhile.
    pub fn answered(&self, status: u16) {
        let mut log = self.shared.log();
        let own = |seen: &&mut Seen| Arc::ptr_eq(&seen.received, &self.received);
        if let Some(seen) = log.iter_mut().rev().find(own) {
            seen.status = Some(status);
        }
    }
}

impl Seen {
    pub fn new(connection: u64, side: bool, head: &hyper::http::request::Parts) -> Self {
        let named = head
            .headers
            .get("host")
            .and_then(|value| value.to_str().ok());
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
}

/// The host in a URL.
fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}
