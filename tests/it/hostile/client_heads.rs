//! Malformed request heads from clients.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};

use crate::proxy_blobs::World;
use crate::support::process::RUN_TIMEOUT;
use crate::support::proxied::ops_addr;
use crate::support::{Process, ProxyProcess, TempDir, Tool};

/// All that the server answers to these bytes, until it closes the connection.
fn talk(at: SocketAddr, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(at).expect("connects");
    stream.set_read_timeout(Some(RUN_TIMEOUT / 2)).expect("set");
    stream.write_all(bytes).expect("sends");
    let mut answers = Vec::new();
    // A reset after the answer is an end, too.
    match stream.read_to_end(&mut answers) {
        Err(error) if answers.is_empty() => panic!("{error}"),
        _ => String::from_utf8_lossy(&answers).into_owned(),
    }
}

fn statuses(answers: &str) -> Vec<&str> {
    answers.split("HTTP/1.1 ").skip(1).map(|answer| &answer[..3]).collect()
}

/// Everything that answers HTTP: the proxy, its operations port, `serve`.
struct Servers {
    proxy: ProxyProcess,
    serve: (Process, SocketAddr),
    _home: TempDir,
}

impl Servers {
    fn start() -> Self {
        let world = World::new(&[1000]);
        let home = TempDir::new();
        let args = ["serve", &home.join("layout"), "--writable", "--listen", "127.0.0.1:0"];
        let serve = Tool::transload().args(&args).spawn();
        let line = serve.stderr.wait_line("serving ", RUN_TIMEOUT);
        let at = line.split(" on http://").nth(1).and_then(|at| at.parse().ok()).expect("an address");
        let proxy = ProxyProcess::hub(world.front.addr(), &["--listen-ops", "127.0.0.1:0"]);
        Self { proxy, serve: (serve, at), _home: home }
    }

    /// With a path that each one answers with 200.
    fn all(&self) -> [(SocketAddr, &'static str); 3] {
        [(self.proxy.addr(), "/v2/"), (ops_addr(&self.proxy), "/healthz"), (self.serve.1, "/v2/")]
    }

    /// Each server refuses this head, and closes the connection. `PATH` stands for a path that exists.
    #[track_caller]
    fn refuse(&self, head: &str) {
        for (at, path) in self.all() {
            let answers = talk(at, head.replace("PATH", path).as_bytes());
            assert_eq!(statuses(&answers), ["400"], "{head:?}: {answers}");
        }
    }
}

/// A bare LF ends a line for one parser and not for another: a proxy in front would see other headers than we do
/// (RFC 9112 §2.2).
#[test]
fn a_line_that_ends_with_lf_alone_is_refused() {
    let servers = Servers::start();
    servers.refuse("GET PATH HTTP/1.1\nhost: x\n\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\nx-other: y\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\r\nx: y\r\n\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\r\nx: a\rb: c\r\n\r\n");
}

/// Without exactly one `Host`, two servers may disagree about whose request it is (RFC 9112 §3.2).
#[test]
fn a_missing_or_doubled_or_invalid_host_is_refused() {
    let servers = Servers::start();
    servers.refuse("GET PATH HTTP/1.1\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: a\r\nhost: a\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: a\r\nHOST: b\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: a b\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: user@a/b\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.0\r\nhost: a\r\nhost: b\r\n\r\n");
    servers.refuse("GET http://a/ HTTP/1.1\r\n\r\n");
}

/// Folded lines, whitespace before a colon and control characters hide headers from one of two parsers
/// (RFC 9112 §5).
#[test]
fn folded_lines_and_hidden_names_are_refused() {
    let servers = Servers::start();
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\r\nx: a\r\n b\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\r\nx: a\r\n\tcontent-length: 5\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\n host: x\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost : x\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\r\ncontent-length : 5\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\r\nx: a\0b\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\r\nx\0: b\r\n\r\n");
    servers.refuse("GET PATH HTTP/1.1\r\nhost: x\r\nno colon\r\n\r\n");
}

/// Request smuggling: where two parsers see bodies of different length, one client's bytes become another client's
/// request (RFC 9112 §6.3). The second request, which hides in the body, is never answered.
#[test]
fn a_body_of_two_lengths_is_refused() {
    let servers = Servers::start();
    let hidden = "0\r\n\r\nGET PATH HTTP/1.1\r\nhost: x\r\n\r\n";
    for lengths in [
        "content-length: 60\r\ntransfer-encoding: chunked",
        "transfer-encoding: chunked\r\ncontent-length: 60",
        "content-length: 5\r\ncontent-length: 60",
        "content-length: 5, 60",
        "content-length: +5",
        "content-length: 0x5",
        "content-length: -5",
        "transfer-encoding: xchunked",
        "transfer-encoding: chunked, identity",
        "transfer-encoding: gzip, chunked",
        "transfer-encoding: chunked\r\ntransfer-encoding: identity",
    ] {
        servers.refuse(&format!("POST PATH HTTP/1.1\r\nhost: x\r\n{lengths}\r\n\r\n{hidden}"));
    }
    servers.refuse(&format!("POST PATH HTTP/1.0\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n{hidden}"));
}

/// A malformed head that hides behind a good request on the same connection is found there, too: behind one without a
/// body, behind a body with a length, and behind chunks.
#[test]
fn a_malformed_second_request_is_refused_too() {
    let servers = Servers::start();
    for first in [
        "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n",
        "PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\ncontent-length: 6\r\n\r\n1234\r\n",
        "PUT /v2/a/manifests/v1 HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n4\r\n1234\r\n0\r\n\r\n",
    ] {
        let both = format!("{first}GET /v2/ HTTP/1.1\nhost: x\n\n");
        let answers = talk(servers.serve.1, both.as_bytes());
        let statuses = statuses(&answers);
        assert_eq!((statuses.len(), statuses.last()), (2, Some(&"400")), "{first:?}: {answers}");
    }
}

/// What the RFC allows still works: an absolute target, empty lines before the request, HTTP/1.0 without a host, equal
/// lengths, any case, and a head that comes byte by byte.
#[test]
fn odd_but_valid_heads_are_answered() {
    let servers = Servers::start();
    for (at, path) in servers.all() {
        for head in [
            format!("GET http://x{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"),
            format!("\r\n\r\nGET {path} HTTP/1.1\r\nHost:x\r\nConnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nhost:\r\nconnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.1\r\nhost: [::1]:5000\r\nconnection: close\r\n\r\n"),
            format!("GET {path} HTTP/1.0\r\n\r\n"),
            format!(
                "GET {path} HTTP/1.1\r\nhost: x\r\nContent-Length: 0\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
            ),
        ] {
            let answer = talk(at, head.as_bytes());
            assert!(answer.starts_with("HTTP/1.1 200") || answer.starts_with("HTTP/1.0 200"), "{head:?}: {answer}");
        }
        let mut stream = TcpStream::connect(at).expect("connects");
        stream.set_nodelay(true).expect("a socket");
        for byte in format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").bytes() {
            stream.write_all(&[byte]).expect("sends");
        }
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
