//! A tiny HTTP/1.1 client on a plain socket: a judge that shares no code with what it judges.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// An answer.
#[derive(Debug, Clone)]
pub struct Reply {
    pub status: u16,
    /// Names in lower case.
    pub headers: Vec<(String, String)>,
    pub body: Vec<u8>,
    /// Whether the body came whole: as long as announced.
    pub whole: bool,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|pair| pair.0 == name).map(|pair| pair.1.as_str())
    }

    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error} in {}", self.text()))
    }

    /// Fails the test, showing the answer, unless it has this status.
    #[track_caller]
    pub fn expect(self, status: u16) -> Self {
        let (got, headers, text) = (self.status, &self.headers, self.text());
        assert!(got == status, "status {got} instead of {status}: {headers:?}\n{text}");
        self
    }
}

/// Every type of manifest: distribution 2.8 answers 404 to a request that does not name them.
pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, \
     application/vnd.oci.image.manifest.v1+json, \
     application/vnd.docker.distribution.manifest.list.v2+json, \
     application/vnd.docker.distribution.manifest.v2+json, */*";

/// A request on a connection of its own. `Host` is the address and `Accept` is [`ACCEPT`], unless
/// given.
#[track_caller]
pub fn send(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Reply {
    match try_send(at, method, path, headers, body) {
        Ok(reply) => reply,
        Err(error) => panic!("{method} {path}: {error}"),
    }
}

/// GET without further headers.
#[track_caller]
pub fn get(at: SocketAddr, path: &str) -> Reply {
    send(at, "GET", path, &[], &[])
}

/// As [`send`], where the connection may break before there is an answer.
pub fn try_send(at: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
    let mut stream = TcpStream::connect_timeout(&at, Duration::from_secs(10))?;
    stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    stream.set_write_timeout(Some(Duration::from_secs(30)))?;
    stream.set_nodelay(true)?;
    exchange(&mut stream, &at.to_string(), method, path, headers, body)
}

/// Sends a request to `host` over a connection, and reads the answer.
pub fn exchange(
    stream: &mut (impl Read + Write),
    host: &str,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<Reply> {
    let given = |name: &str| headers.iter().any(|header| header.0.eq_ignore_ascii_case(name));
    let mut head = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
    if !given("host") {
        head.push_str(&format!("host: {host}\r\n"));
    }
    if !given("accept") {
        head.push_str(&format!("accept: {ACCEPT}\r\n"));
    }
    let chunked = given("transfer-encoding");
    if !chunked && (!body.is_empty() || !matches!(method, "GET" | "HEAD" | "DELETE")) {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    // A server may answer and hang up before it has read everything: its answer counts more.
    let sent = write_request(stream, head.as_bytes(), body, chunked);
    match read_reply(&mut BufReader::new(stream), method == "HEAD") {
        Ok(reply) => Ok(reply),
        Err(read) => Err(sent.err().unwrap_or(read)),
    }
}

fn write_request(stream: &mut impl Write, head: &[u8], body: &[u8], chunked: bool) -> io::Result<()> {
    stream.write_all(head)?;
    if !chunked {
        stream.write_all(body)?;
        return stream.flush();
    }
    for chunk in body.chunks(64 << 10) {
        write!(stream, "{:x}\r\n", chunk.len())?;
        stream.write_all(chunk)?;
        stream.write_all(b"\r\n")?;
    }
    stream.write_all(b"0\r\n\r\n")?;
    stream.flush()
}

fn read_reply(from: &mut impl BufRead, head_only: bool) -> io::Result<Reply> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "no status line"))?;
    let mut headers = Vec::new();
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else {
            break;
        };
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut reply = Reply { status, headers, body: Vec::new(), whole: true };
    if head_only || status == 204 || status == 304 {
        return Ok(reply);
    }
    if reply.header("transfer-encoding") == Some("chunked") {
        reply.whole = read_chunks(from, &mut reply.body).is_ok();
        return Ok(reply);
    }
    let length: Option<u64> = reply.header("content-length").and_then(|text| text.parse().ok());
    // A reset in the middle still leaves what came before it.
    let end = from.take(length.unwrap_or(u64::MAX)).read_to_end(&mut reply.body);
    reply.whole = end.is_ok() && length.is_none_or(|length| reply.body.len() as u64 == length);
    Ok(reply)
}

fn read_chunks(from: &mut impl BufRead, body: &mut Vec<u8>) -> io::Result<()> {
    loop {
        let mut line = String::new();
        from.read_line(&mut line)?;
        let size = u64::from_str_radix(line.trim_end(), 16);
        let size = size.map_err(|_| io::Error::new(io::ErrorKind::UnexpectedEof, "no chunk"))?;
        let read = from.take(size).read_to_end(body)?;
        if read as u64 != size {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        from.read_line(&mut line)?;
        if size == 0 {
            return Ok(());
        }
    }
}
