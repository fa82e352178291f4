//! A tunnel through an HTTP proxy: CONNECT (RFC 9110, section 9.3.6).

use std::io;

use http::HeaderValue;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::AGENT;

/// A proxy's answer to CONNECT.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// The values of `Content-Type` and `Proxy-Authenticate`, the latter's joined by commas; empty without one.
    pub(super) content_type: String,
    pub(super) authenticate: String,
}

/// Asks the proxy for a tunnel to `target`, as host and port. The tunnel is open if the answer's status is 2xx.
///
/// # Errors
/// Those of the connection; [`io::ErrorKind::InvalidData`] if the answer is not HTTP.
pub(super) async fn connect<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    target: &str,
    authorization: Option<&HeaderValue>,
) -> io::Result<Answer> {
    let mut head = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\nUser-Agent: {AGENT}\r\n").into_bytes();
    if let Some(value) = authorization {
        head.extend_from_slice(b"Proxy-Authorization: ");
        head.extend_from_slice(value.as_bytes());
        head.extend_from_slice(b"\r\n");
    }
    head.extend_from_slice(b"\r\n");
    stream.write_all(&head).await?;
    stream.flush().await?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 2048]);
    loop {
        let count = stream.read(&mut buffer).await?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it closed the connection without an answer"));
        }
        answer.extend_from_slice(&buffer[..count]);
        // In a tunnel to TLS the client speaks first: nothing after the head is lost.
        if let Some(end) = answer.windows(4).position(|four| four == b"\r\n\r\n") {
            return parse(&answer[..end]).ok_or_else(not_http);
        }
        if answer.len() > MAX_HEAD || !answer.starts_with(&b"HTTP/"[..answer.len().min(5)]) {
            return Err(not_http());
        }
    }
}

fn not_http() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "its answer is not HTTP")
}

fn parse(head: &[u8]) -> Option<Answer> {
    let text = String::from_utf8_lossy(head);
    let mut lines = text.split("\r\n");
    let mut words = lines.next()?.split(' ');
    words.next().filter(|version| version.starts_with("HTTP/1."))?;
    let status = words.next().filter(|status| status.len() == 3)?.parse().ok()?;
    let mut answer = Answer { status, ..Answer::default() };
    for (name, value) in lines.filter_map(|line| line.split_once(':')) {
        let value = value.trim();
        if name.eq_ignore_ascii_case("content-type") {
            value.clone_into(&mut answer.content_type);
        } else if name.eq_ignore_ascii_case("proxy-authenticate") {
            let separator = if answer.authenticate.is_empty() { "" } else { ", " };
            answer.authenticate = format!("{}{separator}{value}", answer.authenticate);
        }
    }
    Some(answer)
}

/// The most bytes of an answer's head.
const MAX_HEAD: usize = 16 << 10;

#[cfg(test)]
mod tests {
    use super::*;

    async fn asked(answer: &[u8]) -> io::Result<Answer> {
        let (mut ours, mut theirs) = tokio::io::duplex(64 << 10);
        theirs.write_all(answer).await?;
        let (mut reading, mut writing) = tokio::io::split(theirs);
        writing.shutdown().await?;
        let answer = connect(&mut ours, "r.test:443", Some(&HeaderValue::from_static("Basic eA=="))).await;
        drop(ours);
        let mut sent = String::new();
        reading.read_to_string(&mut sent).await?;
        assert!(sent.starts_with("CONNECT r.test:443 HTTP/1.1\r\nHost: r.test:443\r\n"), "{sent}");
        assert!(sent.ends_with("Proxy-Authorization: Basic eA==\r\n\r\n"), "{sent}");
        answer
    }

    #[tokio::test]
    async fn answers_of_proxies_are_read() {
        let answer = asked(b"HTTP/1.0 200 OK\r\nvia: x\r\n\r\n").await.expect("an answer");
        assert_eq!(answer, Answer { status: 200, ..Answer::default() });
        let head = b"HTTP/1.1 407 X\r\nProxy-Authenticate: Negotiate\r\nproxy-authenticate: NTLM x\r\nContent-Type: text/html\r\n\r\n<html>";
        let answer = asked(head).await.expect("an answer");
        assert_eq!(answer.status, 407);
        assert_eq!(answer.authenticate, "Negotiate, NTLM x");
        assert_eq!(answer.content_type, "text/html");
        for wrong in [&b"SSH-2.0-x\r\n"[..], b"HTTP/1.1 2000 OK\r\n\r\n", b"\x05\xff", b"HTTP/2 200\r\n\r\n"] {
            assert_eq!(asked(wrong).await.expect_err("not HTTP").kind(), io::ErrorKind::InvalidData);
        }
        assert_eq!(asked(b"").await.expect_err("closed").kind(), io::ErrorKind::UnexpectedEof);
        let long = [&b"HTTP/1.1 200 OK\r\nx: "[..], &[b'x'; MAX_HEAD]].concat();
        assert_eq!(asked(&long).await.expect_err("too long").kind(), io::ErrorKind::InvalidData);
    }
}
