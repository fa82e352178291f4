//! A company's HTTP proxy: CONNECT and forwarding, with a password, with TLS, or with refusals.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, copy_bidirectional};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;

use super::background::{Background, serve_connections};

/// What a proxy does. The default lets everybody through.
#[derive(Clone, Default)]
pub struct ForwardProxy {
    hosts: HashMap<String, SocketAddr>,
    /// Where all other hosts are.
    others: Option<SocketAddr>,
    user: Option<String>,
    offers: Option<String>,
    refusal: Option<String>,
    tls: Option<Arc<ServerConfig>>,
}

/// A running proxy. Stops on Drop.
pub struct RunningProxy {
    addr: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    background: Background,
}

impl ForwardProxy {
    /// Knows that `host:port` is at `to`; nothing else can be reached through it.
    pub fn to(host: &str, to: SocketAddr) -> Self {
        Self { hosts: HashMap::from([(host.to_owned(), to)]), ..Self::default() }
    }

    /// Whatever host is asked for, it is at `to`: lets a program without `--resolve`, such as skopeo, meet a look-alike
    /// by its real name.
    pub fn always_to(to: SocketAddr) -> Self {
        Self { others: Some(to), ..Self::default() }
    }

    pub fn and(mut self, host: &str, to: SocketAddr) -> Self {
        self.hosts.insert(host.to_owned(), to);
        self
    }

    /// Wants `USER:PASSWORD`.
    pub fn user(mut self, user: &str) -> Self {
        self.user = Some(user.to_owned());
        self
    }

    /// Wants a user by these schemes, and never Basic.
    pub fn offers(mut self, schemes: &str) -> Self {
        self.offers = Some(schemes.to_owned());
        self
    }

    /// Answers everything with this head (after the version) and body, such as `403 Forbidden\r\ncontent-type: …`.
    pub fn refuses(mut self, answer: &str) -> Self {
        self.refusal = Some(answer.to_owned());
        self
    }

    /// Speaks TLS itself.
    pub fn tls(mut self, config: Arc<ServerConfig>) -> Self {
        self.tls = Some(config);
        self
    }

    pub fn start(self) -> RunningProxy {
        let (log, this) = (Arc::<Mutex<Vec<String>>>::default(), Arc::new(self));
        let seen = log.clone();
        let (addr, background) = serve_connections(move |client| {
            let (this, seen) = (this.clone(), seen.clone());
            async move {
                match this.tls.clone().map(TlsAcceptor::from) {
                    Some(tls) => this.serve(tls.accept(client).await?, &seen).await,
                    None => this.serve(client, &seen).await,
                }
            }
        });
        RunningProxy { addr, log, background }
    }

    async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
        &self,
        mut client: S,
        log: &Mutex<Vec<String>>,
    ) -> std::io::Result<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(client.read_u8().await?);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let line = head.lines().next().unwrap_or_default().to_owned();
        let signed = head.lines().find_map(|line| {
            let (name, value) = line.split_once(": ")?;
            name.eq_ignore_ascii_case("proxy-authorization").then(|| value.to_owned())
        });
        log.lock().expect("no panic while held").push(line.clone());
        if let Some(answer) = self.answer(signed.as_deref()) {
            client.write_all(answer.as_bytes()).await?;
            return client.shutdown().await;
        }
        let mut words = line.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (to, first) = if method == "CONNECT" {
            (target.to_owned(), None)
        } else {
            let bare = target.strip_prefix("http://").unwrap_or_default();
            let (host, path) = bare.split_once('/').unwrap_or((bare, ""));
            let host = if host.contains(':') { host.to_owned() } else { format!("{host}:80") };
            // One request for each connection: the answer ends with it.
            let head = head.replacen(target, &format!("/{path}"), 1).replacen("\r\n", "\r\nConnection: close\r\n", 1);
            (host, Some(head))
        };
        let Some(to) = self.hosts.get(&to).or(self.others.as_ref()) else {
            return client.write_all(b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n").await;
        };
        let mut server = TcpStream::connect(to).await?;
        match first {
            None => client.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n").await?,
            Some(head) => server.write_all(head.as_bytes()).await?,
        }
        copy_bidirectional(&mut client, &mut server).await.map(drop)
    }

    /// The answer to whoever is not let through.
    fn answer(&self, signed: Option<&str>) -> Option<String> {
        if let Some(refusal) = &self.refusal {
            return Some(format!("HTTP/1.1 {refusal}"));
        }
        let expected = self.user.as_ref().map(|user| format!("Basic {}", STANDARD.encode(user)));
        let offers = self.offers.as_deref().or(expected.as_ref().map(|_| "Basic realm=\"corp\""))?;
        if self.offers.is_none() && signed == expected.as_deref() {
            return None;
        }
        let head = format!("Proxy-Authenticate: {offers}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
        Some(format!("HTTP/1.1 407 Proxy Authentication Required\r\n{head}"))
    }
}

impl RunningProxy {
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// The first line of each request so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic while held").clone()
    }
}
