//! Connections: directly or through a proxy, plain or with TLS. Every error says whose fault it is.

use std::future::Future;
use std::io::{self, IoSlice};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OnceCell;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::{ClientConfig, Error as TlsError};
use tower_service::Service;

use super::dial::dial;
use super::find_source;
use super::proxies::{Proxies, Proxy, Scheme};
use super::tls_error::{self, Peer};
use super::trust::Trust;
use super::verifier::ClientCertificate;
use super::{probe, socks, tunnel};
use crate::error::{Error, Kind, Result};
use crate::pool;
use crate::registry::address::{Lookup, Policy, authority, without_brackets};

/// Makes the connections to one registry, and to where it sends us.
#[derive(Clone, Debug)]
pub(super) struct Connector(Arc<Shared>);

#[derive(Debug)]
pub(super) struct Shared {
    /// The registry as users name it.
    pub(super) registry: String,
    /// Its host and port: the only place where the client certificate is shown.
    pub(super) own: Target,
    pub(super) policy: Policy,
    pub(super) proxies: Proxies,
    /// Made for the first connection with TLS: it takes some time to read all certificates of a system.
    pub(super) tls: OnceCell<Result<TlsConfigs>>,
    pub(super) trust: Arc<Trust>,
    /// No certificate is verified.
    pub(super) insecure: bool,
    /// The registry answered at least once: a later fault is none of the client certificate.
    pub(super) answered: AtomicBool,
}

/// TLS for the registry itself, for other hosts, and for hosts whose certificates are not verified.
#[derive(Debug)]
pub(super) struct TlsConfigs {
    pub(super) own: Arc<ClientConfig>,
    pub(super) other: Arc<ClientConfig>,
    pub(super) unverified: Arc<ClientConfig>,
    /// For proxies, which speak no HTTP of a registry.
    pub(super) proxy: Arc<ClientConfig>,
    pub(super) certificate: Arc<ClientCertificate>,
    pub(super) none: Arc<ClientCertificate>,
}

/// A host and port.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// A name or an address, an IPv6 one without brackets.
    pub(super) host: String,
    pub(super) port: u16,
    /// The port stands in the URL. Then it holds also where the user says at which address the host is.
    pub(super) is_explicit: bool,
}

impl PartialEq for Target {
    fn eq(&self, other: &Self) -> bool {
        self.host == other.host && self.port == other.port
    }
}

impl Target {
    fn of(uri: &Uri) -> Option<Self> {
        let host = without_brackets(uri.host()?).to_ascii_lowercase();
        let default = if uri.scheme_str() == Some("https") { 443 } else { 80 };
        Some(Self { host, port: uri.port_u16().unwrap_or(default), is_explicit: uri.port_u16().is_some() })
    }

    /// As CONNECT names it.
    fn authority(&self) -> String {
        authority(&self.host, self.port)
    }
}

/// A connection.
pub(super) struct Stream {
    io: Box<dyn Io>,
    /// Its other end is a proxy that forwards requests.
    forwarded: bool,
}

/// Why there is no stream to a host.
struct NoStream {
    error: Error,
    /// The host or its proxy answered: nothing listens at the port, or no tunnel leads there.
    refused: bool,
}

impl From<Error> for NoStream {
    fn from(error: Error) -> Self {
        Self { error, refused: false }
    }
}

impl From<NoStream> for Error {
    fn from(no: NoStream) -> Self {
        no.error
    }
}

/// What a connection can do.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

impl Connector {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self(shared)
    }
}

impl Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move { shared.connect(&uri).await.map(TokioIo::new) })
    }
}

impl Shared {
    /// # Errors
    /// If certificates that are configured cannot be read.
    async fn tls(&self) -> Result<&TlsConfigs> {
        let made = self.tls.get_or_init(|| {
            let (trust, registry, own) = (self.trust.clone(), self.registry.clone(), self.own.clone());
            let insecure = self.insecure;
            pool::run_blocking(move || TlsConfigs::new(&trust, &registry, &own, insecure))
        });
        made.await.as_ref().map_err(Error::duplicate)
    }

    async fn connect(&self, uri: &Uri) -> Result<Stream> {
        let target = Target::of(uri).ok_or_else(|| Error::new(Kind::Usage, "there is no host in a URL"))?;
        let https = uri.scheme_str() == Some("https");
        let proxy = self.proxies.for_host(https, &target.host, target.port)?;
        let connecting = async {
            let io = self.stream(&target, https, proxy.as_deref()).await?;
            if https {
                return self.secured(io, &target, proxy.as_deref()).await;
            }
            Ok(Stream { io, forwarded: proxy.as_ref().is_some_and(|proxy| proxy.forwards()) })
        };
        match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(self.late(&target, proxy.as_deref(), CONNECT_TIMEOUT)),
        }
    }

    /// A stream that leads to a host, or to the proxy that forwards requests to it.
    async fn stream(&self, target: &Target, https: bool, proxy: Option<&Proxy>) -> Result<Box<dyn Io>, NoStream> {
        let Some(proxy) = proxy else { return self.direct(target).await };
        let mut io = to_proxy(self, proxy).await?;
        if https || !proxy.forwards() {
            io = self.through(proxy, io, target).await?;
        }
        proxy.works();
        Ok(io)
    }

    /// The error of a connection that was not made within `limit`.
    fn late(&self, target: &Target, proxy: Option<&Proxy>, limit: Duration) -> Error {
        let seconds = limit.as_secs();
        match proxy {
            None => Error::new(
                Kind::Timeout,
                format!("{} cannot be reached in time: no connection in {seconds} s", self.name(target)),
            ),
            Some(proxy) => proxy.fault(format!("made no connection to {} in {seconds} s", target.authority())),
        }
    }

    /// How messages name a host: the registry's name where it is that.
    fn name(&self, target: &Target) -> String {
        if *target == self.own { self.registry.clone() } else { target.authority() }
    }

    /// TCP to a host, at one of the addresses that the address rule allows.
    async fn direct(&self, target: &Target) -> Result<Box<dyn Io>, NoStream> {
        let addresses = self.addresses(target).await?;
        let name = self.name(target);
        let stream = dial(&addresses, DIAL_TIMEOUT).await.map_err(|error| {
            let hint = if *target == self.own {
                "is the registry up, and reachable from here?"
            } else {
                "the registry sends us there: is it up, and reachable from here?"
            };
            let refused = error.kind() == io::ErrorKind::ConnectionRefused;
            NoStream {
                error: Error::new(Kind::Network, format!("{name}: {error}")).caused_by(error).hint(hint),
                refused,
            }
        })?;
        Ok(Box::new(stream))
    }

    async fn lookup(&self, target: &Target) -> Result<Vec<SocketAddr>, Lookup> {
        match self.policy.given_address(&target.host) {
            Some(address) if target.is_explicit => Ok(vec![SocketAddr::new(address.ip(), target.port)]),
            Some(address) => Ok(vec![address]),
            None => self.policy.addresses_of(&target.host, target.port).await,
        }
    }

    async fn addresses(&self, target: &Target) -> Result<Vec<SocketAddr>> {
        match self.lookup(target).await {
            Ok(addresses) => Ok(addresses),
            Err(Lookup::Refused(error)) => Err(error),
            Err(Lookup::Failed(error)) => Err(no_address(&self.name(target), &error)),
        }
    }

    /// Makes a tunnel through a proxy that the stream leads to.
    async fn through(&self, proxy: &Proxy, mut io: Box<dyn Io>, target: &Target) -> Result<Box<dyn Io>, NoStream> {
        let handshake = async {
            if proxy.forwards() {
                let answer = tunnel::connect(&mut io, &target.authority(), proxy.authorization()).await;
                let answer = answer.map_err(|error| broken(proxy, &error))?;
                return opened(proxy, target, &answer);
            }
            let (host, port) = self.socks_target(proxy, target).await?;
            let user = proxy.user.as_ref().map(|(user, password)| (user.as_str(), password.reveal()));
            let opened = socks::connect(&mut io, &host, port, user).await;
            opened.map_err(|fault| socks_fault(proxy, target, &fault).into())
        };
        match tokio::time::timeout(HANDSHAKE_TIMEOUT, handshake).await {
            Ok(done) => done.map(|()| io),
            Err(_) if proxy.forwards() => Err(self.late(target, Some(proxy), HANDSHAKE_TIMEOUT).into()),
            Err(_) => {
                let seconds = HANDSHAKE_TIMEOUT.as_secs();
                Err(proxy.fault(format!("did not answer in {seconds} s: does it speak SOCKS 5?")).into())
            }
        }
    }

    /// How a SOCKS proxy is told where to connect. With `socks5://` names are resolved here, as curl does, and the
    /// address rule holds for them; a name that only the proxy knows is left to it.
    async fn socks_target(&self, proxy: &Proxy, target: &Target) -> Result<(socks::Host, u16)> {
        let by_name = match target.host.parse::<IpAddr>() {
            Ok(address) => socks::Host::Address(address),
            Err(_) => socks::Host::Name(target.host.clone()),
        };
        if proxy.scheme != Scheme::Socks5 {
            return Ok((by_name, target.port));
        }
        match self.lookup(target).await {
            Ok(addresses) => Ok(addresses
                .first()
                .map_or((by_name, target.port), |address| (socks::Host::Address(address.ip()), address.port()))),
            Err(Lookup::Refused(error)) => Err(error),
            Err(Lookup::Failed(_)) => Ok((by_name, target.port)),
        }
    }

    /// TLS with a host, on a stream that leads there.
    async fn secured(&self, io: Box<dyn Io>, target: &Target, proxy: Option<&Proxy>) -> Result<Stream> {
        let tls = self.tls().await?;
        let (config, client) = if *target == self.own {
            (&tls.own, &tls.certificate)
        } else if self.policy.is_insecure(&target.host, target.port) {
            (&tls.unverified, &tls.none)
        } else {
            (&tls.other, &tls.none)
        };
        let name = self.name(target);
        let peer = Peer { name: &name, host: &target.host, client };
        match handshake(config, io, &target.host).await {
            Ok(io) => Ok(Stream { io, forwarded: false }),
            Err(error) => {
                let made = self.explain(&error, peer);
                Err(made.unwrap_or_else(|| {
                    Error::new(Kind::Network, format!("{name}{}: {error}", through(proxy))).caused_by(error).hint(
                        format!("does it speak TLS? if it is plain http, allow that by --insecure-registry {name}"),
                    )
                }))
            }
        }
    }

    /// What is wrong if it is about TLS: the peer said so, or it hung up after it asked for a client certificate.
    fn explain(&self, error: &(dyn std::error::Error + 'static), peer: Peer<'_>) -> Option<Error> {
        if let Some(tls) = find_source::<TlsError>(error) {
            return Some(tls_error::explain(tls, peer));
        }
        let hung_up = find_source::<io::Error>(error).is_some_and(|error| {
            use io::ErrorKind as K;
            matches!(error.kind(), K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe | K::UnexpectedEof)
        }) || find_source::<hyper::Error>(error).is_some_and(hyper::Error::is_incomplete_message);
        let refused = hung_up && peer.client.was_asked_for() && !self.answered.load(Ordering::Relaxed);
        refused.then(|| tls_error::client_certificate(peer, "it hung up"))
    }

    /// The error of an exchange that got no answer, if it is about TLS. With TLS 1.3 a server refuses a client's
    /// certificate only after the client thinks that the handshake is done.
    pub(super) fn explain_exchange(&self, error: &(dyn std::error::Error + 'static), uri: &Uri) -> Option<Error> {
        let target = Target::of(uri).filter(|_| uri.scheme_str() == Some("https"))?;
        let tls = self.tls.get()?.as_ref().ok()?;
        let client = if target == self.own { &tls.certificate } else { &tls.none };
        self.explain(error, Peer { name: &self.name(&target), host: &target.host, client })
    }

    /// How the registry's own port answers a TLS handshake. The connection goes the way of https: through the proxy,
    /// if one leads there.
    ///
    /// # Errors
    /// If the registry cannot be reached, or stays silent for `limit`.
    pub(super) async fn probe_own(&self, limit: Duration) -> Result<probe::Answer> {
        let own = &self.own;
        let proxy = self.proxies.for_host(true, &own.host, own.port)?;
        let connecting = self.stream(own, true, proxy.as_deref());
        let io = match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
            Ok(Ok(io)) => io,
            // Nothing listens at the port of https, or the proxy makes no tunnels there.
            Ok(Err(no)) if no.refused && !own.is_explicit => return Ok(probe::Answer::Nothing),
            Ok(Err(no)) => return Err(no.error),
            Err(_) => return Err(self.late(own, proxy.as_deref(), CONNECT_TIMEOUT)),
        };
        probe::ask(io, &own.host, limit).await
    }
}

/// How messages name the proxy on the way to a host.
pub(super) fn through(proxy: Option<&Proxy>) -> String {
    proxy.map(|proxy| format!(", through the proxy {proxy}")).unwrap_or_default()
}

/// The error for a name that the resolver knows no address of. `getaddrinfo` has a code of its own for a resolver that
/// failed (EAI_AGAIN), of which only the text is left here: glibc's or musl's.
fn no_address(name: &str, error: &io::Error) -> Error {
    let made = Error::new(Kind::Network, format!("{name} has no address: {error}"))
        .caused_by_io(error)
        .hint("is the registry's name spelled right, and does this machine resolve it?");
    let text = error.to_string();
    if ["Temporary failure", "Try again"].iter().any(|part| text.contains(part)) { made } else { made.permanent() }
}

/// A stream to the proxy itself. The user named it, so it may be at any address.
async fn to_proxy(shared: &Shared, proxy: &Proxy) -> Result<Box<dyn Io>> {
    let addresses = match shared.policy.given_address(&proxy.host) {
        Some(address) => vec![SocketAddr::new(address.ip(), proxy.port)],
        None => tokio::net::lookup_host((proxy.host.as_str(), proxy.port))
            .await
            .map_err(|error| proxy.fault(format!("has no address: {error}")))?
            .collect(),
    };
    let stream =
        dial(&addresses, DIAL_TIMEOUT).await.map_err(|error| proxy.fault(format!("cannot be reached: {error}")))?;
    if proxy.scheme != Scheme::Https {
        return Ok(Box::new(stream));
    }
    let tls = shared.tls().await?;
    let shaken = handshake(&tls.proxy, Box::new(stream), &proxy.host);
    let silent = |_| {
        let seconds = HANDSHAKE_TIMEOUT.as_secs();
        proxy.fault(format!("did not answer the TLS handshake in {seconds} s: does it speak TLS?"))
    };
    tokio::time::timeout(HANDSHAKE_TIMEOUT, shaken).await.map_err(silent)?.map_err(|error| {
        let name = format!("the proxy {proxy}");
        let peer = Peer { name: &name, host: &proxy.host, client: &tls.none };
        match find_source::<TlsError>(&error) {
            Some(tls) => tls_error::explain(tls, peer).hint_instead(format!(
                "{}; the issuer of the proxy's certificate is trusted by --ca-file",
                proxy.hint()
            )),
            None => proxy.fault(format!("failed in the TLS handshake: {error}")),
        }
    })
}

async fn handshake(config: &Arc<ClientConfig>, io: Box<dyn Io>, host: &str) -> io::Result<Box<dyn Io>> {
    let name = ServerName::try_from(host.to_owned())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, format!("{host} is not a name for TLS")))?;
    let stream = TlsConnector::from(config.clone()).connect(name, io).await?;
    Ok(Box::new(stream))
}

/// Whether the proxy's answer to CONNECT opens the tunnel.
fn opened(proxy: &Proxy, target: &Target, answer: &tunnel::Answer) -> Result<(), NoStream> {
    let kind = answer.content_type.split(';').next().unwrap_or_default().trim();
    let page = if kind.is_empty() { String::new() } else { format!(" ({kind})") };
    let refused = format!("answered {}{page} to CONNECT {}", answer.status, target.authority());
    let is_page = kind.eq_ignore_ascii_case("text/html");
    let hint = if is_page {
        format!(
            "it answered with a web page, perhaps one that says why: is {} blocked there? {}",
            target.host,
            proxy.hint()
        )
    } else {
        proxy.hint()
    };
    match answer.status {
        200..=299 => Ok(()),
        407 => Err(proxy.wants_user(&answer.authenticate).into()),
        status => {
            let error = if status >= 500 { proxy.fault(refused) } else { proxy.refusal(refused) };
            Err(NoStream { error: error.hint_instead(hint), refused: true })
        }
    }
}

fn broken(proxy: &Proxy, error: &io::Error) -> Error {
    let what = match error.kind() {
        io::ErrorKind::InvalidData => "does not speak HTTP".to_owned(),
        _ => format!("failed: {error}"),
    };
    proxy.fault(what)
}

fn socks_fault(proxy: &Proxy, target: &Target, fault: &socks::Fault) -> Error {
    match fault {
        socks::Fault::WantsUser | socks::Fault::WrongUser => proxy.login_refused(fault),
        socks::Fault::Refused(_) => proxy.fault(format!("{fault}, when asked for {}", target.authority())),
        socks::Fault::NotSocks | socks::Fault::LongName => proxy.refusal(fault),
        socks::Fault::Io(_) => proxy.fault(fault),
    }
}

/// What a connection may take in all, with proxy and TLS.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
/// What TCP may take of it.
const DIAL_TIMEOUT: Duration = Duration::from_secs(14);
/// What the proxy's part may take of it.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.forwarded)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shared() -> Shared {
        let base = "https://r.test".parse().expect("a URL");
        Shared {
            registry: "r.test".to_owned(),
            own: Target { host: "r.test".to_owned(), port: 443, is_explicit: false },
            policy: Policy::new(&base, Arc::default(), false),
            proxies: Proxies::default(),
            tls: OnceCell::new(),
            trust: Arc::default(),
            insecure: false,
            answered: AtomicBool::new(false),
        }
    }

    /// The texts of EAI_AGAIN in glibc and in musl, which static binaries have.
    #[test]
    fn a_resolver_that_failed_is_asked_again() {
        for (text, again) in [
            ("failed to lookup address information: Temporary failure in name resolution", true),
            ("failed to lookup address information: Try again", true),
            ("failed to lookup address information: Name or service not known", false),
            ("failed to lookup address information: Name does not resolve", false),
        ] {
            assert_eq!(no_address("r.test", &io::Error::other(text)).is_transient(), again, "{text}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_proxy_that_is_silent_is_named_with_its_own_limit() {
        let proxies = Proxies::from_environment([("HTTPS_PROXY".into(), "http://p.test:3128".into())]);
        let proxy = proxies.for_host(true, "r.test", 443).expect("a proxy").expect("a proxy");
        let (ours, _theirs) = tokio::io::duplex(4096);
        let shared = shared();
        let no = shared.through(&proxy, Box::new(ours), &shared.own).await.err().expect("silence");
        let text = "the proxy http://p.test:3128 (HTTPS_PROXY) made no connection to r.test:443 in 10 s";
        assert_eq!(no.error.to_string(), text);
    }
}
