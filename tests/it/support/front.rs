//! A front before a registry: counts requests, injects faults, plays Docker Hub or ACR.

use std::io::Read as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use transload::demo::persona::{Acr, AcrConfig, Hub, HubConfig, Persona};

use super::background::{Background, listen};
use super::front_log::{Chooser, SeenRequest, Shared};
use super::front_serve::{Listen, serve};
use super::process::RUN_TIMEOUT;
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

/// A front to be.
pub struct Builder {
    upstream: SocketAddr,
    role: Role,
    rules: Vec<Rule>,
    tls: bool,
    h2: bool,
    abrupt: bool,
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

    /// Hangs up after an answer that came before the request's body was read, where nginx and the
    /// like read on for a while: the client may get a reset instead of the answer.
    pub fn abrupt(mut self) -> Self {
        self.abrupt = true;
        self
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
                // Which speaks no TLS.
                config.entra.metadata = format!("http://{side_base}");
                if self.tls {
                    let metadata = config.entra.metadata;
                    config = AcrConfig::default();
                    config.entra.metadata = metadata;
                }
                adapt(&mut config);
                if self.tls {
                    host = host_of(&config.url);
                    let urls = [&config.url, &config.storage, &config.entra.authority];
                    names.extend(urls.map(|url| host_of(url)));
                }
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
        let shared = Shared::new(self.upstream, persona, self.rules, !self.abrupt);
        let shared = Arc::new(shared);
        let main = Listen { listener: main, acceptor, side: false };
        let side_listener = Listen { listener: side_listener, acceptor: None, side: true };
        let served = Arc::clone(&shared);
        let background = Background::spawn(move || async move {
            tokio::join!(serve(main, Arc::clone(&served)), serve(side_listener, served));
        });
        Front { addr, side, host, names, authority, shared, background }
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
            abrupt: false,
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
        self.authority.as_ref().map(|directory| directory.join("ca.pem"))
    }

    /// The same for the registry client.
    pub fn trust(&self) -> transload::registry::Trust {
        let mut trust = transload::registry::Trust::default();
        if let Some(file) = self.ca_file() {
            let pem = std::fs::read(&file).expect("the authority");
            trust.add_file(file.as_ref(), &pem).expect("a certificate");
        }
        trust
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

    /// The same for this name alone.
    pub fn flags_only(&self, name: &str) -> Vec<String> {
        let file = self.ca_file().expect("a front with TLS");
        vec!["--ca-file".to_owned(), file, "--resolve".to_owned(), format!("{name}={}", self.addr)]
    }

    /// Every request since the start or [`Self::reset_log`], in the order they came.
    pub fn log(&self) -> Vec<SeenRequest> {
        self.shared.log().clone()
    }

    pub fn reset_log(&self) {
        self.shared.log().clear();
    }

    /// How many requests since then have this method (`*` is any) and this in their path or query.
    pub fn count(&self, method: &str, path: &str) -> usize {
        let matches = |seen: &&SeenRequest| (method == "*" || seen.method == method) && seen.target().contains(path);
        self.log().iter().filter(matches).count()
    }

    /// Waits until a request is such; it may be under way still.
    #[track_caller]
    pub fn wait_for(&self, what: &str, such: impl Fn(&SeenRequest) -> bool) -> SeenRequest {
        let deadline = Instant::now() + RUN_TIMEOUT;
        loop {
            if let Some(seen) = self.log().into_iter().find(|seen| such(seen)) {
                return seen;
            }
            assert!(Instant::now() < deadline, "no request {what} in {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits until nothing is under way: what a killed client had sent goes on to the registry.
    #[track_caller]
    pub fn wait_idle(&self) {
        // Connections are accepted in turn: when this one is, all before it were.
        let mut last = std::net::TcpStream::connect(self.addr).expect("the front listens");
        last.set_read_timeout(Some(RUN_TIMEOUT)).expect("a timeout");
        last.shutdown(std::net::Shutdown::Write).expect("connected");
        last.read_to_end(&mut Vec::new()).expect("the front hangs up");
        let deadline = Instant::now() + RUN_TIMEOUT;
        while !self.shared.is_idle() {
            assert!(Instant::now() < deadline, "still under way: {:#?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// How many requests met a fault. Assert it, or a rule that never matched lets a test pass.
    pub fn struck(&self) -> usize {
        self.log().iter().filter(|seen| seen.fault.is_some()).count()
    }

    /// Adds a rule while running; the first one that strikes wins.
    pub fn add(&self, rule: Rule) {
        self.shared.rules().push(rule);
    }

    pub fn clear_rules(&self) {
        self.shared.rules().clear();
    }

    /// Lets `choose` decide which fault each request meets, where no rule applies.
    pub fn choose(&self, choose: impl Fn(&SeenRequest) -> Option<Fault> + Send + 'static) {
        *self.shared.chooser() = Some(Chooser(Box::new(choose)));
    }

    /// Whether new connections are refused, on both ports.
    pub fn refuse(&self, refusing: bool) {
        self.shared.refusing.send_replace(refusing);
    }

    /// Requests go to this registry from now on.
    pub fn lead_to(&self, upstream: SocketAddr) {
        self.shared.lead_to(upstream);
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

/// The host in a URL.
fn host_of(url: &str) -> String {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split('/').next().unwrap_or_default().to_owned()
}
