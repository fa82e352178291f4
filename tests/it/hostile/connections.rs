//! Clients that hold connections open.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::proxy_blobs::World;
use crate::proxy_config::{Authority, addr, start};
use crate::support::process::RUN_TIMEOUT;
use crate::support::proxied::ops_addr;
use crate::support::{Fault, Process, ProxyProcess, Rule, TempDir, Tool, http};

/// What an idle connection has sent before it falls silent.
const BEGINS: [(&str, &[u8]); 4] = [
    ("nothing", b""),
    ("a request, and waits for the next", b"GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n"),
    ("half of a head", b"GET /v2/ HTTP/1.1\r\nhost: x\r\nx-slo"),
    ("half of a line", b"GE"),
];

fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).expect("connects");
    stream.set_read_timeout(Some(RUN_TIMEOUT)).expect("set");
    stream
}

/// So many connections that send this and then nothing.
fn idle(at: SocketAddr, count: usize, begin: &[u8]) -> Vec<TcpStream> {
    let begun = (0..count).map(|_| {
        let mut stream = connect(at);
        // The server may have closed it already.
        let _ = stream.write_all(begin);
        if begin.ends_with(b"\r\n\r\n") {
            let _ = stream.read(&mut [0; 1024]);
        }
        stream
    });
    begun.collect()
}

/// Reads until the server ends the connection.
#[track_caller]
fn is_closed(stream: &mut TcpStream, what: &str) {
    match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{what}: {error}"),
    }
}

/// A proxy by a file that has one plain listener, one with TLS, and these limits.
fn limited(world: &World, limits: &str) -> (TempDir, Process) {
    let dir = TempDir::new();
    let (certificate, key) = Authority::new().issue();
    dir.write("tls.crt", certificate);
    dir.write("tls.key", key);
    let at = world.front.addr();
    let listen = "{ http: 127.0.0.1:0 }, { https: 127.0.0.1:0, certificate: tls.crt, key: tls.key }";
    let text = format!(
        "listen: [{listen}]\ncache: {{ dir: cache, keep-free: 0 }}\n\
         upstreams: [{{ name: docker.io, tiers: [\"{at}\"] }}]\nlimits: {{ {limits} }}\n"
    );
    let process = start(&dir.write("proxy.yaml", text));
    (dir, process)
}

/// 64 idle connections took all places of the operations port, and Kubernetes' probes failed.
#[test]
fn idle_connections_do_not_make_the_readiness_probe_fail() {
    let world = World::new(&[1000]);
    for (what, begin) in BEGINS {
        let proxy = ProxyProcess::hub(world.front.addr(), &["--listen-ops", "127.0.0.1:0"]);
        let at = ops_addr(&proxy);
        let _idle = idle(at, 80, begin);
        for _ in 0..8 {
            let begun = Instant::now();
            http::get(at, "/readyz").expect(200);
            // Less than any limit on an idle connection: nothing was waited for.
            assert!(begun.elapsed() < Duration::from_secs(3), "{what}: {:?}", begun.elapsed());
        }
    }
}

/// Whoever connects to the operations port and says nothing keeps a place there for five seconds at most.
#[test]
fn a_silent_connection_to_the_operations_port_is_closed_soon() {
    let world = World::new(&[1000]);
    let proxy = ProxyProcess::hub(world.front.addr(), &["--listen-ops", "127.0.0.1:0"]);
    let at = ops_addr(&proxy);
    let begun = Instant::now();
    for stream in &mut idle(at, 3, b"") {
        is_closed(stream, "a silent connection");
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
}

/// As many idle connections as the pull port has places stopped all pulls; each kind of them gives its place away.
#[test]
fn idle_connections_do_not_stop_pulls() {
    let world = World::new(&[1000]);
    for (what, begin) in BEGINS {
        let (_dir, proxy) = limited(&world, "connections: 8");
        let at = addr(&proxy, "http");
        let mut held = idle(at, 8, begin);
        for _ in 0..3 {
            let begun = Instant::now();
            http::get(at, "/v2/library/app/manifests/v1").expect(200);
            assert!(begun.elapsed() < Duration::from_secs(10), "{what}: {:?}", begun.elapsed());
        }
        is_closed(&mut held[0], what);
    }
}

/// A TLS handshake that never ends is an idle connection, too, whether it has begun or not.
#[test]
fn unfinished_tls_handshakes_do_not_stop_pulls() {
    let world = World::new(&[1000]);
    // A ClientHello of 512 bytes, of which there are five.
    for begin in [&b""[..], &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3]] {
        let (_dir, proxy) = limited(&world, "connections: 4");
        let at = addr(&proxy, "https");
        let mut held = idle(at, 4, begin);
        let mut next = connect(at);
        next.write_all(begin).expect("sends");
        // The oldest one made room; none of the limits in time (10 s) was needed.
        let begun = Instant::now();
        is_closed(&mut held[0], "the oldest handshake");
        assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    }
}

/// A flood of idle connections must not cost another client its answer: a connection in the middle of a blob is never
/// closed for a new one.
#[test]
fn a_pull_in_progress_keeps_its_connection() {
    let world = World::new(&[1_000_000]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(500_000)));
    let (_dir, proxy) = limited(&world, "connections: 2");
    let at = addr(&proxy, "http");
    http::get(at, "/v2/library/app/manifests/v1").expect(200);
    let path = world.path();
    let pull = std::thread::spawn(move || http::get(at, &path));
    world.front.wait_for("for the blob", |seen| seen.method == "GET" && seen.path.contains("/blobs/"));
    let _idle = idle(at, 30, b"");
    let reply = pull.join().expect("no panic").expect(200);
    assert!(reply.whole && reply.body == world.layer().bytes);
}

/// `serve` has 512 places, and no flag for it.
#[test]
fn idle_connections_do_not_block_serve() {
    let home = TempDir::new();
    let serve =
        Tool::transload().args(&["serve", &home.join("layout"), "--writable", "--listen", "127.0.0.1:0"]).spawn();
    let line = serve.stderr.wait_line("serving ", RUN_TIMEOUT);
    let at: SocketAddr = line.split(" on http://").nth(1).and_then(|at| at.parse().ok()).expect("an address");
    let _idle = idle(at, 520, b"");
    let begun = Instant::now();
    http::get(at, "/v2/").expect(200);
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

/// With `connections-per-client`, one client address can't take the places of the others: it replaces its own idle
/// connections.
#[test]
fn a_client_address_can_have_a_limit_of_its_own() {
    let world = World::new(&[1000]);
    let (_dir, proxy) = limited(&world, "connections: 100, connections-per-client: 3");
    let at = addr(&proxy, "http");
    let mut held = idle(at, 4, b"");
    is_closed(&mut held[0], "the oldest one");
    http::get(at, "/v2/").expect(200);
}
