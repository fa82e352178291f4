//! A registry that answers whatever a test wants, byte by byte: what no real one would.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

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

    /// An error document of the distribution API.
    pub fn error(status: u16, code: &str, message: &str) -> Self {
        let body = serde_json::json!({"errors": [{"code": code, "message": message, "detail": message}]});
        Self::new(status, body.to_string()).with("content-type", "application/json")
    }
}

type Script = dyn Fn(&FakeRequest) -> FakeResponse + Send + Sync;

/// A running registry. Stops on Drop.
pub struct FakeRegistry {
    addr: SocketAddr,
    ending: Arc<AtomicBool>,
    seen: Arc<Mutex<Vec<FakeRequest>>>,
}

impl FakeRegistry {
    pub fn start(script: impl Fn(&FakeRequest) -> FakeResponse + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let (ending, seen) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (script, ended, log): (Arc<Script>, _, _) = (Arc::new(script), ending.clone(), seen.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                if ended.load(Ordering::Relaxed) {
                    return;
                }
                let (script, log) = (script.clone(), log.clone());
                std::thread::spawn(move || drop(serve(stream, &*script, &log)));
            }
        });
        Self { addr, ending, seen }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub fn seen(&self) -> Vec<FakeRequest> {
        self.seen.lock().expect("no panic while held").clone()
    }
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.ending.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.addr));
    }
}

/// One request for each connection.
fn serve(stream: TcpStream, script: &Script, log: &Mutex<Vec<FakeRequest>>) -> std::io::Result<()> {
    let mut reader = BufReader::new(&stream);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    if !line.trim_end().ends_with("HTTP/1.1") {
        // The beginning of a TLS handshake: a client looks whether TLS is spoken here.
        return Ok(());
    }
    let mut parts = line.split(' ').map(str::to_owned);
    let mut asked = FakeRequest { method: parts.next().unwrap_or_default(), ..FakeRequest::default() };
    asked.target = parts.next().unwrap_or_default();
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "host" => value.trim().clone_into(&mut asked.host),
            "authorization" => value.trim().clone_into(&mut asked.authorization),
            "content-length" => length = value.trim().parse().unwrap_or(0),
            _ => {}
        }
    }
    std::io::copy(&mut reader.take(length), &mut std::io::sink())?;
    log.lock().expect("no panic while held").push(asked.clone());
    let FakeResponse { status, headers, body } = script(&asked);
    let mut head = format!("HTTP/1.1 {status} X\r\nconnection: close\r\ncontent-length: {}\r\n", body.len());
    for (name, value) in headers {
        head += &format!("{name}: {value}\r\n");
    }
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(b"\r\n")?;
    if asked.method != "HEAD" {
        (&stream).write_all(&body)?;
    }
    Ok(())
}
