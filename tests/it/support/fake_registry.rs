//! A registry without anything behind it: a closure makes each answer. For lists without an end, hostile texts, and
//! other answers that no real registry gives and a [`Fault`](super::Fault) cannot state.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::background::{Background, serve_connections};

/// A request to a [`FakeRegistry`].
#[derive(Debug, Clone, Default)]
pub struct FakeRequest {
    pub method: String,
    /// Path and query.
    pub target: String,
    pub host: String,
    /// Of the `Authorization` header; empty without one.
    pub authorization: String,
}

/// An answer of a [`FakeRegistry`].
#[derive(Debug, Clone)]
pub struct FakeResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
}

impl FakeResponse {
    pub fn new(status: u16, body: impl AsRef<[u8]>) -> Self {
        Self { status, headers: Vec::new(), body: body.as_ref().to_vec() }
    }

    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    /// 200 with this JSON.
    pub fn json(body: &serde_json::Value) -> Self {
        Self::new(200, body.to_string())
    }

    /// 404.
    pub fn absent() -> Self {
        Self::new(404, "")
    }

    /// An error document of the distribution API.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message, "detail": message}]});
        Self::new(status, body.to_string()).with("content-type", "application/json")
    }
}

type Script = dyn Fn(&FakeRequest) -> FakeResponse + Send + Sync;

/// A running registry. Stops on Drop.
#[derive(Debug)]
pub struct FakeRegistry {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<FakeRequest>>>,
    background: Background,
}

impl FakeRegistry {
    pub fn start(script: impl Fn(&FakeRequest) -> FakeResponse + Send + Sync + 'static) -> Self {
        let seen = Arc::<Mutex<Vec<FakeRequest>>>::default();
        let (script, log): (Arc<Script>, _) = (Arc::new(script), seen.clone());
        let (addr, background) = serve_connections(move |stream| {
            let (script, log) = (script.clone(), log.clone());
            async move { serve(stream, &*script, &log).await }
        });
        Self { addr, seen, background }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn seen(&self) -> Vec<FakeRequest> {
        self.seen.lock().expect("no panic while held").clone()
    }

    /// How many requests had this in their method, path and query, such as `GET /v2/`.
    pub fn count(&self, what: &str) -> usize {
        self.seen().iter().filter(|asked| format!("{} {}", asked.method, asked.target).contains(what)).count()
    }
}

/// Serves one connection until the client closes it. Bodies of requests are read and ignored.
async fn serve(mut stream: TcpStream, script: &Script, log: &Mutex<Vec<FakeRequest>>) -> std::io::Result<()> {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await?);
            // The beginning of a TLS handshake: a client looks whether TLS is spoken here.
            if head == [22] {
                return Ok(());
            }
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let mut words = head.split(' ').map(str::to_owned);
        let mut asked = FakeRequest { method: words.next().unwrap_or_default(), ..FakeRequest::default() };
        asked.target = words.next().unwrap_or_default();
        let mut length = 0;
        for (name, value) in head.lines().filter_map(|line| line.split_once(':')) {
            match name.to_ascii_lowercase().as_str() {
                "host" => value.trim().clone_into(&mut asked.host),
                "authorization" => value.trim().clone_into(&mut asked.authorization),
                "content-length" => length = value.trim().parse().unwrap_or(0),
                _ => {}
            }
        }
        stream.read_exact(&mut vec![0; length]).await?;
        log.lock().expect("no panic while held").push(asked.clone());
        let FakeResponse { status, headers, body } = script(&asked);
        let mut answer = format!("HTTP/1.1 {status} X\r\ncontent-length: {}\r\n", body.len()).into_bytes();
        headers.iter().for_each(|(name, value)| answer.extend(format!("{name}: {value}\r\n").bytes()));
        answer.extend(b"\r\n");
        if asked.method != "HEAD" {
            answer.extend(body);
        }
        stream.write_all(&answer).await?;
    }
}
