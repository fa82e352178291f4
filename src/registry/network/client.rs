//! An HTTP client for one registry and the hosts that it sends us to.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::header::{HeaderValue, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, USER_AGENT};
use http::{Request, Response, StatusCode};
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use reqwest::{Body, Url};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::address_pin::{AddressPin, PinnedPool};
use super::connector::{Connector, Shared, Target, TlsConfigs, through};
use super::proxies::Proxies;
use super::trust::{Roots, Trust};
use super::verifier::{self, ClientCertificate};
use super::{AGENT, find_source, probe};
use crate::error::{Error, Result};
use crate::reference::is_loopback;
use crate::registry::address::{Policy, authority, bare_host};
use crate::registry::error::transport_error;

/// The sender's name in errors of a response's body: the registry, and the proxy that forwards its responses. Stored in
/// the response's extensions.
#[derive(Clone, Debug)]
pub(in crate::registry) struct PeerName(pub(in crate::registry) String);

/// A pool of connections. Clones share it.
pub(super) type Pool = Client<Connector, Body>;

/// A client with a pool of connections. Clones share it.
#[derive(Clone, Debug)]
pub(in crate::registry) struct HttpClient {
    pool: Pool,
    shared: Arc<Shared>,
    idle: usize,
    /// A pool that is used instead of `pool`; all of its connections lead to one address.
    pinned: Option<Arc<PinnedPool<Pool>>>,
    /// The newest of these pools. Later pushes may share it.
    newest_pinned: Arc<Mutex<Option<Arc<PinnedPool<Pool>>>>>,
}

/// The parts of a client.
pub(in crate::registry) struct Settings<'a> {
    /// The name of the registry that users write.
    pub(in crate::registry) registry: &'a str,
    /// The URL of the registry's API.
    pub(in crate::registry) base: &'a Url,
    pub(in crate::registry) policy: Policy,
    pub(in crate::registry) proxies: &'a Proxies,
    pub(in crate::registry) trust: &'a Arc<Trust>,
    /// Certificates are not verified.
    pub(in crate::registry) insecure: bool,
    /// The number of idle connections for each host.
    pub(in crate::registry) idle: usize,
}

impl HttpClient {
    /// A client without connections.
    pub(in crate::registry) fn new(settings: Settings<'_>) -> Self {
        let Settings { registry, base, policy, proxies, trust, insecure, idle } = settings;
        let host = bare_host(base).to_ascii_lowercase();
        let port = base.port_or_known_default().unwrap_or(443);
        let own = Target { host, port, is_explicit: base.port().is_some() };
        let (registry, proxies, trust) = (registry.to_owned(), proxies.clone(), trust.clone());
        let (tls, answered) = (OnceCell::new(), AtomicBool::new(false));
        let shared = Arc::new(Shared { registry, own, policy, proxies, tls, trust, insecure, answered });
        let pool = new_pool(&shared, idle, None);
        Self { pool, shared, idle, pinned: None, newest_pinned: Arc::default() }
    }

    /// The client with connections that all lead to one address of the registry. `None` if the registry is not a name
    /// in DNS, or is reached through a proxy.
    pub(in crate::registry) fn pinned(&self) -> Option<Self> {
        let Target { host, port, .. } = &self.shared.own;
        let is_name = !is_loopback(host) && host.parse::<IpAddr>().is_err();
        let is_direct = |https| matches!(self.shared.proxies.for_host(https, host, *port), Ok(None));
        let is_resolved = is_name && self.shared.policy.given_address(host).is_none();
        if !is_resolved || !is_direct(true) || !is_direct(false) {
            return None;
        }
        let mut newest = self.newest_pinned.lock().unwrap_or_else(PoisonError::into_inner);
        let joined = newest.take().filter(|pinned| pinned.may_be_joined());
        let pinned = joined.unwrap_or_else(|| PinnedPool::new(|pin| new_pool(&self.shared, self.idle, Some(pin))));
        *newest = Some(pinned.clone());
        Some(Self { pinned: Some(pinned), ..self.clone() })
    }

    /// Reports that a request, which began at `since`, failed on the network.
    pub(in crate::registry) fn on_fault(&self, since: Instant) {
        if let Some(pinned) = &self.pinned {
            pinned.on_fault(since);
        }
    }

    fn pool(&self) -> Pool {
        match &self.pinned {
            Some(pinned) => pinned.current(|pin| new_pool(&self.shared, self.idle, Some(pin))),
            None => self.pool.clone(),
        }
    }

    /// Sends a request and returns the response's head.
    ///
    /// # Errors
    /// `Kind::Network` and `Kind::Timeout` if no response came; the text names the registry, and the proxy if one
    /// leads there.
    pub(in crate::registry) async fn send(&self, mut request: Request<Body>) -> Result<Response<Body>> {
        let uri = request.uri().clone();
        request.headers_mut().entry(USER_AGENT).or_insert(HeaderValue::from_static(AGENT));
        // A tunnel has credentials of its own.
        let forwarding = match uri.scheme_str() {
            Some("http") => {
                let port = uri.port_u16().unwrap_or(80);
                let proxy = self.shared.proxies.for_host(false, uri.host().unwrap_or_default(), port)?;
                proxy.filter(|proxy| proxy.forwards())
            }
            _ => None,
        };
        if let Some(value) = forwarding.as_ref().and_then(|proxy| proxy.authorization()) {
            request.headers_mut().insert(PROXY_AUTHORIZATION, value.clone());
        }
        let peer = PeerName(format!("{}{}", self.shared.registry, through(forwarding.as_deref())));
        let mut response = self.pool().request(request).await.map_err(|error| match find_source::<Error>(&error) {
            Some(own) => own.duplicate(),
            None => self.shared.explain_exchange(&error, &uri).unwrap_or_else(|| transport_error(&error, &peer.0)),
        })?;
        response.extensions_mut().insert(peer);
        if let Some(proxy) = forwarding.filter(|_| response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED) {
            let values = response.headers().get_all(PROXY_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
            return Err(proxy.wants_user(&values.collect::<Vec<_>>().join(", ")));
        }
        self.shared.answered.store(true, Ordering::Relaxed);
        Ok(response.map(Body::wrap))
    }

    /// How the registry's own port answers a TLS handshake.
    ///
    /// # Errors
    /// If it cannot be reached, or stays silent for [`PROBE_TIMEOUT`].
    pub(in crate::registry) async fn probe(&self) -> Result<probe::Answer> {
        self.shared.probe_own(PROBE_TIMEOUT).await
    }
}

fn new_pool(shared: &Arc<Shared>, idle: usize, pin: Option<Arc<AddressPin>>) -> Pool {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .pool_max_idle_per_host(idle)
        .build(Connector::new(shared.clone(), pin))
}

impl TlsConfigs {
    /// # Errors
    /// If certificates that are configured cannot be read.
    pub(super) fn new(trust: &Trust, registry: &str, own: &Target, insecure: bool) -> Result<Self> {
        const HTTP: &[&[u8]] = &[b"http/1.1"];
        let roots = trust.roots()?;
        let files = trust.own_files(&names(registry, own))?;
        let (certificate, none) = (ClientCertificate::new(files.identity), ClientCertificate::new(None));
        let for_all = verifier::by_roots(&roots)?;
        let trusted = if files.authorities.is_empty() {
            for_all.clone()
        } else {
            let mut with_own = Roots::clone(&roots);
            with_own.add(files.authorities);
            verifier::by_roots(&Arc::new(with_own))?
        };
        let verified = if insecure { verifier::accept_all() } else { trusted };
        let config = |verifier, client: &Arc<ClientCertificate>, alpn| {
            verifier::config(verifier, client.clone(), alpn).map(Arc::new)
        };
        Ok(Self {
            own: config(verified.clone(), &certificate, HTTP)?,
            other: config(verified, &none, HTTP)?,
            unverified: config(verifier::accept_all(), &none, HTTP)?,
            proxy: config(for_all, &none, &[])?,
            certificate,
            none,
        })
    }
}

/// The names of a registry's directory in `certs.d`: the name that users write, with and without the port of https, and
/// the host of the API.
fn names(registry: &str, own: &Target) -> Vec<String> {
    let mut names = vec![registry.to_owned()];
    let with_port = authority(&own.host, own.port);
    if let Some(host) = with_port.strip_suffix(":443") {
        names.extend([format!("{registry}:443"), host.to_owned()]);
    }
    names.push(with_port);
    let mut seen = std::collections::HashSet::new();
    names.retain(|name| seen.insert(name.clone()));
    names
}

/// The TLS configuration for identity services.
///
/// # Errors
/// If certificates that are configured cannot be read.
pub(in crate::registry) fn library_tls(trust: &Trust) -> Result<tokio_rustls::rustls::ClientConfig> {
    verifier::config(verifier::by_roots(&trust.roots()?)?, ClientCertificate::new(None), &[b"http/1.1"])
}

const IDLE_TIMEOUT: Duration = Duration::from_secs(30);
/// The time limit for the answer to a TLS handshake in a probe.
pub(in crate::registry) const PROBE_TIMEOUT: Duration = Duration::from_secs(5);
