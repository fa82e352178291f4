//! Registries on this machine, which are named without a scheme: `kubectl port-forward`, `ssh -L`, `docker run`.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::{NAME, failed_at_once};
use crate::support::background::{Background, serve_connections};
use crate::support::certificates::{Authority, Special, TlsFront};
use crate::support::{Image, Registry, TempDir, Tool};

/// A port that notes the first bytes of each connection, and answers with these. Stops on Drop.
struct Port {
    addr: SocketAddr,
    heard: Arc<Mutex<Vec<Vec<u8>>>>,
    ended: Arc<AtomicBool>,
}

impl Port {
    fn answering(answer: &'static [u8]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let addr = listener.local_addr().expect("an address");
        let (heard, ended) = (Arc::<Mutex<Vec<Vec<u8>>>>::default(), Arc::new(AtomicBool::new(false)));
        let (log, over) = (heard.clone(), ended.clone());
        std::thread::spawn(move || {
            for mut stream in listener.incoming().map_while(Result::ok) {
                if over.load(Ordering::Relaxed) {
                    return;
                }
                let mut first = vec![0; 4096];
                let size = stream.read(&mut first).unwrap_or(0);
                first.truncate(size);
                log.lock().expect("no panic while held").push(first);
                drop(stream.write_all(answer));
            }
        });
        Self { addr, heard, ended }
    }

    /// The first bytes of each connection.
    fn heard(&self) -> Vec<Vec<u8>> {
        self.heard.lock().expect("no panic while held").clone()
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        drop(TcpStream::connect(self.addr));
    }
}

const HANDSHAKE: u8 = 22;

/// Credentials for a registry, as docker keeps them.
fn config(registry: &str) -> String {
    json!({"auths": {registry: {"auth": STANDARD.encode("me:sesame")}}}).to_string()
}

/// A tunnel leads to a registry with TLS: it is asked by https, by whatever name of loopback.
#[test]
fn a_registry_with_tls_on_loopback_is_asked_by_https() {
    let behind = Registry::with_basic("me");
    let authority = Authority::new("Example Authority");
    let server = authority.issue(&["localhost", "127.0.0.1"], Special::default());
    let front = TlsFront::start(server.server(), behind.addr());
    let files = TempDir::new();
    let ca = files.write("ca.pem", &authority.certificate);
    for host in ["localhost", "127.0.0.1"] {
        let at = format!("{host}:{}", front.addr().port());
        let login = ["login", &at, "-u", "me", "--password-stdin", "--ca-file", &ca];
        let run = Tool::transload().args(&login).stdin("wrong").run();
        failed_at_once(run, &[&format!("cannot log in to {at}"), "'me'"]);
    }
    assert!(front.clients().len() >= 2, "both came by TLS");
}

/// A certificate that is not trusted is an error. The port is never asked by http for that.
#[test]
fn a_wrong_certificate_on_loopback_is_no_reason_for_http() {
    let behind = Registry::start();
    let server = Authority::new("Unknown").issue(&["localhost"], Special::default());
    let front = TlsFront::start(server.server(), behind.addr());
    let at = format!("localhost:{}", front.addr().port());
    let args = ["inspect", &format!("{at}/app:v1")];
    let run = Tool::transload().args(&args).file(".docker/config.json", &config(&at)).run();
    failed_at_once(run, &[&format!("the TLS certificate of {at} is not trusted"), "--ca-file"]);
    assert_eq!(behind.requests(), [], "nothing got through");
}

/// An alert of TLS means that TLS is spoken. Nothing is sent in clear, credentials least of all.
#[test]
fn a_tls_alert_on_loopback_is_no_reason_for_http() {
    for alert in
        [&b"\x15\x03\x03\x00\x02\x02\x28"[..], b"\x15\x03\x01\x00\x02\x02\x46", b"\x15\x03\x03\x00\x02\x02\x70"]
    {
        let port = Port::answering(alert);
        let at = port.addr.to_string();
        let args = ["inspect", &format!("{at}/app:v1")];
        let run = Tool::transload().args(&args).file(".docker/config.json", &config(&at)).run();
        failed_at_once(run, &[&at, "TLS"]);
        let heard = port.heard();
        assert!(heard.len() >= 2 && heard.iter().all(|first| first.first() == Some(&HANDSHAKE)), "{heard:?}");
    }
}

/// A port without TLS is asked by http, after one question without credentials for the whole run.
#[test]
fn a_registry_without_tls_on_loopback_is_asked_by_http() {
    let port = Port::answering(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
    let at = port.addr.to_string();
    let args = ["tags", &format!("{at}/app")];
    let run = Tool::transload().args(&args).file(".docker/config.json", &config(&at)).run().exits(1);
    assert!(run.stderr.contains("404"), "{}", run.stderr);
    let heard = port.heard();
    let hellos = heard.iter().filter(|first| first.first() == Some(&HANDSHAKE)).count();
    assert!(hellos == 1 && heard[0].first() == Some(&HANDSHAKE), "{heard:?}");
    let text = String::from_utf8_lossy(&heard.concat()).to_lowercase();
    assert!(text.contains("get /v2/app/tags/list") && !text.contains("authorization"), "{text}");

    let (from, to) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[3000]);
    image.push(from.addr(), "app", "v1");
    let [from, at] = [from.addr(), to.addr()].map(|addr| format!("localhost:{}/app:v1", addr.port()));
    Tool::transload().args(&["copy", &from, &at]).run().ok();
    image.assert_at(to.addr(), "app", "v1");
}

/// A relay to `to` that ends its first connection without a word, as a tunnel does whose registry is not up yet.
fn hanging_up_once(to: SocketAddr) -> (SocketAddr, Background) {
    let first = Arc::new(AtomicBool::new(true));
    serve_connections(move |mut client| {
        let first = first.clone();
        async move {
            if first.swap(false, Ordering::Relaxed) {
                return Ok(());
            }
            let mut server = tokio::net::TcpStream::connect(to).await?;
            tokio::io::copy_bidirectional(&mut client, &mut server).await.map(drop)
        }
    })
}

/// A connection that ends at once says nothing of TLS, on this machine or at a registry that the user called insecure:
/// the next attempt finds out, and is made by https.
#[test]
fn a_connection_that_ends_at_once_is_no_reason_for_http() {
    let behind = Registry::with_basic("me");
    let server = Authority::new("Unknown").issue(&["other.test"], Special::default());
    let front = TlsFront::start(server.server(), behind.addr());
    Image::single(1, &[3000]).push_as(behind.addr(), "app", "v1", &[("authorization", "Basic bWU6c2VzYW1l")]);
    for host in ["localhost", NAME] {
        let (relay, _background) = hanging_up_once(front.addr());
        let at = format!("{host}:{}", relay.port());
        let resolve = format!("{NAME}=127.0.0.1:{}", relay.port());
        let args = ["inspect", &format!("{at}/app:v1"), "--insecure-registry", &at, "--resolve", &resolve];
        Tool::transload().args(&args).file(".docker/config.json", &config(&at)).run().ok();
    }
}

/// A registry on this machine that the user called insecure: by https with any certificate, else by http.
#[test]
fn an_insecure_registry_on_loopback_may_have_any_certificate() {
    let behind = Registry::start();
    Image::single(1, &[3000]).push(behind.addr(), "app", "v1");
    let server = Authority::new("Unknown").issue(&["other.test"], Special::default());
    let front = TlsFront::start(server.server(), behind.addr());
    for addr in [front.addr(), behind.addr()] {
        let at = addr.to_string();
        Tool::transload().args(&["inspect", &format!("{at}/app:v1"), "--insecure-registry", &at]).run().ok();
    }
}
