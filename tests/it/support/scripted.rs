//! A server without a registry behind it: a closure makes each answer. For lists without an end and other answers
//! that a [`Fault`](super::Fault) cannot state.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use super::background::{Background, listen};

/// What a closure answers: a status, headers, and a body.
#[derive(Debug, Clone, Default)]
pub struct ScriptedResponse {
    pub status: u16,
    pub headers: Vec<(String, String)>,
    pub body: String,
}

impl ScriptedResponse {
    /// 200 with this JSON.
    pub fn json(body: &serde_json::Value) -> Self {
        Self { status: 200, headers: Vec::new(), body: body.to_string() }
    }

    /// 404.
    pub fn absent() -> Self {
        Self { status: 404, ..Self::default() }
    }

    pub fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }
}

/// A running server. Stops on Drop.
#[derive(Debug)]
pub struct ScriptedServer {
    addr: SocketAddr,
    seen: Arc<Mutex<Vec<String>>>,
    background: Background,
}

impl ScriptedServer {
    /// Calls `answer` with method, path and query of each request, such as `GET /v2/`.
    pub fn start(answer: impl Fn(&str, &str) -> ScriptedResponse + Send + Sync + 'static) -> Self {
        let (listener, addr) = listen();
        let (answer, seen) = (Arc::new(answer), Arc::<Mutex<Vec<String>>>::default());
        let log = Arc::clone(&seen);
        let background = Background::spawn(move || async move {
            let listener = TcpListener::from_std(listener).expect("a listener");
            let mut open = JoinSet::new();
            loop {
                if let Ok((stream, _)) = listener.accept().await {
                    let (answer, log) = (Arc::clone(&answer), Arc::clone(&log));
                    open.spawn(async move { serve(stream, &*answer, &log).await });
                }
                while open.try_join_next().is_some() {}
            }
        });
        Self { addr, seen, background }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// All requests so far, such as `GET /v2/`.
    pub fn log(&self) -> Vec<String> {
        self.seen.lock().expect("no panic while held").clone()
    }

    /// How many requests had this in their method, path and query.
    pub fn count(&self, what: &str) -> usize {
        self.log().iter().filter(|seen| seen.contains(what)).count()
    }
}

/// Serves one connection until the client closes it. Bodies of requests are read and ignored.
async fn serve(
    mut stream: TcpStream,
    answer: &(impl Fn(&str, &str) -> ScriptedResponse + Send + Sync),
    log: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
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
        let mut words = head.split(' ');
        let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let length = head.lines().filter_map(|line| line.split_once(':'));
        let length = length.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
        let length: usize = length.filter_map(|(_, value)| value.trim().parse().ok()).next().unwrap_or(0);
        stream.read_exact(&mut vec![0; length]).await?;
        log.lock().expect("no panic while held").push(format!("{method} {target}"));
        let ScriptedResponse { status, headers, body } = answer(method, target);
        let mut text = format!("HTTP/1.1 {status} Scripted\r\ncontent-length: {}\r\n", body.len());
        headers.iter().for_each(|(name, value)| text += &format!("{name}: {value}\r\n"));
        text += "\r\n";
        if method != "HEAD" {
            text += &body;
        }
        stream.write_all(text.as_bytes()).await?;
    }
}
