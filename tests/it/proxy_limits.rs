//! `transload proxy`: what clients may use up, by `limits` of the file and without them; and as a process without
//! rights, on a root that can't be written.

use std::io::{ErrorKind, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use super::proxy_blobs::{World, path_of, pull_manifest, wait_until};
use super::proxy_config::{Authority, addr, start};
use super::support::process::RUN_TIMEOUT;
use super::support::proxied::assert_blobs_valid;
use super::support::{Fault, Process, ProxyProcess, Rule, TempDir, Tool, http};

/// A proxy of this world by a file with this `listen` and these `limits`.
fn limited(world: &World, listen: &str, limits: &str) -> (TempDir, Process) {
    let dir = TempDir::new();
    let (certificate, key) = Authority::new().issue();
    dir.write("tls.crt", certificate);
    dir.write("tls.key", key);
    let at = world.front.addr();
    let text = format!(
        "listen: [{listen}]\ncache: {{ dir: cache, keep-free: 0 }}\nupstreams: [{{ name: docker.io, tiers: [\"{at}\"] }}]\n{limits}"
    );
    let process = start(&dir.write("proxy.yaml", text));
    (dir, process)
}

const HTTP: &str = "{ http: 127.0.0.1:0 }";

fn connect(at: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(at).expect("connects");
    stream.set_read_timeout(Some(RUN_TIMEOUT / 2)).expect("set");
    stream
}

/// The connection is ended from there, with no more than this said before.
#[track_caller]
fn is_closed(mut stream: TcpStream, what: &str) {
    let mut said = Vec::new();
    match stream.read_to_end(&mut said) {
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
        Err(error) => panic!("{what}: {error}"),
    }
    assert!(said.is_empty() || said.starts_with(b"HTTP/1.1 408"), "{what}: {}", String::from_utf8_lossy(&said));
}

#[test]
fn so_many_connections_at_a_time() {
    let world = World::new(&[1000]);
    let (_dir, proxy) = limited(&world, HTTP, "limits: { connections: 1 }\n");
    let at = addr(&proxy, "http");
    let ask = |stream: &mut TcpStream| write!(stream, "GET /v2/ HTTP/1.1\r\nhost: x\r\n\r\n").expect("sends");
    let mut first = connect(at);
    ask(&mut first);
    first.read_exact(&mut [0; 12]).expect("an answer");
    let mut second = connect(at);
    ask(&mut second);
    let mut answer = [0; 12];
    second.read_exact(&mut answer).expect("the idle connection's place");
    assert_eq!(&answer, b"HTTP/1.1 200");
    first.read_to_end(&mut Vec::new()).expect("the idle connection is closed");
}

/// Who is slow to say what he wants holds nothing for long: not by silence, nor in drops, nor before TLS is agreed.
#[test]
fn so_long_for_a_head() {
    let world = World::new(&[1000]);
    let listen = format!("{HTTP}, {{ https: 127.0.0.1:0, certificate: tls.crt, key: tls.key }}");
    let (_dir, proxy) = limited(&world, &listen, "limits: { head-timeout: 1 }\n");
    for (scheme, begins) in [
        ("http", &b""[..]),
        ("http", b"GET /v2/ HTTP/1.1\r\nhos"),
        ("https", b""),
        // A hello of 512 bytes, of which there are five.
        ("https", &[22, 3, 1, 2, 0, 1, 0, 1, 252, 3]),
    ] {
        let mut stream = connect(addr(&proxy, scheme));
        stream.write_all(begins).expect("sends");
        is_closed(stream, &format!("{scheme} {begins:?}"));
    }
}

#[test]
fn so_many_fetches_at_a_time() {
    let world = World::new(&[400_000, 400_000, 400_000]);
    let (_dir, proxy) = limited(&world, HTTP, "limits: { fills: 1 }\n");
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(1_000_000)));
    let at = addr(&proxy, "http");
    pull_manifest(at);
    let clients: Vec<_> = world.image.blobs[1..].iter().map(path_of).collect();
    let clients = clients.into_iter().map(|path| std::thread::spawn(move || http::get(at, &path).expect(200)));
    for client in clients.collect::<Vec<_>>() {
        assert!(client.join().expect("a client").whole);
    }
    assert_eq!(begun_within(&world, Duration::from_millis(300)), 1);
}

/// How many blobs' requests began within so long of each other, at most.
fn begun_within(world: &World, window: Duration) -> usize {
    let blobs = world.front.log().into_iter().filter(|seen| seen.method == "GET" && seen.path.contains("/blobs/"));
    let begun: Vec<_> = blobs.map(|seen| seen.at).collect();
    let most = begun.iter().map(|from| begun.iter().filter(|at| **at >= *from && **at < *from + window).count()).max();
    most.expect("there are some")
}

/// Each of a large blob's requests takes a quarter of a second, so that those which begin within less of it are open
/// at one time.
#[test]
fn so_many_requests_at_a_time_for_a_large_blob() {
    for (limits, expected) in [("limits: { parallel-fetch: 2 }\n", 2), ("", 4)] {
        let world = World::new(&[80 << 20]);
        let (_dir, proxy) = limited(&world, HTTP, limits);
        world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(32 << 20)));
        let at = addr(&proxy, "http");
        pull_manifest(at);
        assert!(http::get(at, &world.path()).expect(200).body == world.layer().bytes);
        let most = begun_within(&world, Duration::from_millis(200));
        assert!(most <= expected, "{limits}: {most}");
    }
}

#[test]
fn heads_of_requests_are_bounded() {
    let world = World::new(&[1000]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    let long = "x".repeat(20_000);
    http::send(proxy.addr(), "GET", "/v2/", &[("x-long", &long)], &[]).expect(200);
    let mut stream = connect(proxy.addr());
    stream.set_write_timeout(Some(RUN_TIMEOUT / 2)).expect("set");
    stream.write_all(b"GET /v2/ HTTP/1.1\r\nhost: x\r\nx-long: ").expect("sends");
    // Sockets hold some MiB of it.
    let sent = (0..1024).take_while(|_| stream.write_all(&[b'x'; 64 << 10]).is_ok()).count();
    assert!(sent < 1024, "it takes any head");
    let mut head = Vec::new();
    let _ = stream.read_to_end(&mut head);
    assert!(head.is_empty() || head.starts_with(b"HTTP/1.1 431"), "{}", String::from_utf8_lossy(&head));
    http::get(proxy.addr(), "/v2/").expect(200);
}

/// By flags there is no file to read again: the signal is told, and ends nothing.
#[test]
fn a_hangup_ends_no_proxy() {
    let world = World::new(&[1000]);
    let mut proxy = ProxyProcess::hub(world.front.addr(), &[]);
    for _ in 0..2 {
        proxy.process.hang_up();
        proxy.process.stderr.wait_line("SIGHUP: there is no file to read again without --config", RUN_TIMEOUT);
    }
    http::get(proxy.addr(), "/v2/library/app/manifests/v1").expect(200);
    assert!(proxy.process.is_running());
    proxy.process.terminate();
    proxy.process.finish(RUN_TIMEOUT).exits(0);
}

/// As in the chart's pod: nobody's user, no rights, and nothing to write but the cache.
#[test]
#[expect(clippy::print_stderr, reason = "whoever reads the tests must know that it was not looked at")]
fn without_rights_and_on_a_root_that_cannot_be_written() {
    let world = World::new(&[300_000]);
    let dir = TempDir::new();
    // In mounts of its own, which end with it.
    let script = "mount --make-rprivate / && mount -t tmpfs -o uid=65532,gid=65532,size=64m tmpfs \"$1\" || exit 98
        # Where it was built may be nobody's to look into.
        : > \"$1/transload\" && mount --bind \"$2\" \"$1/transload\" || exit 98
        for at in / /tmp /var/tmp /dev/shm /run; do mountpoint -q $at && mount -o remount,bind,ro $at; done
        shift 2
        cd / && exec setpriv --reuid 65532 --regid 65532 --clear-groups --no-new-privs --inh-caps=-all \\
            --bounding-set=-all \"$@\"";
    let upstream = format!("docker.io={}", world.front.addr());
    let begin = |what: &[&str]| {
        let tool = Tool::new("unshare").args(&[
            "--mount",
            "sh",
            "-c",
            script,
            "sh",
            &dir.join(""),
            env!("CARGO_BIN_EXE_transload"),
        ]);
        tool.env("HOME", "/nonexistent").without("DOCKER_CONFIG").without("XDG_RUNTIME_DIR").args(what).spawn()
    };
    let probe = begin(&["sh", "-c", "for at in / /tmp; do touch $at/transload-probe && exit 97; done; exit 0"]);
    let probe = probe.finish(RUN_TIMEOUT);
    if matches!(probe.code, 1 | 98) {
        eprintln!("NOT TESTED: without rights, on a root that can't be written: {}", probe.stderr);
        return;
    }
    assert_eq!(probe.code, 0, "the root can be written: nothing was tested: {probe:?}");
    let cache = dir.join("cache");
    let flags = ["--listen", "127.0.0.1:0", "--upstream", &upstream, "--cache", &cache, "--keep-free", "0"];
    let proxy = begin(&[&[&*dir.join("transload"), "proxy"], &flags[..]].concat());
    proxy.stderr.wait_line("the cache ", RUN_TIMEOUT);
    let at = addr(&proxy, "http");
    let status = std::fs::read_to_string(format!("/proc/{}/status", proxy.id())).expect("readable");
    assert!(status.contains("Uid:\t65532\t65532") && status.contains("CapEff:\t0000000000000000"), "{status}");
    world.image.assert_at(at, "library/app", "v1");
    // From its mounts: the cache isn't there from here.
    let seen = format!("/proc/{}/root{cache}/blobs/sha256", proxy.id());
    let blobs = || std::fs::read_dir(&seen).map_or(0, Iterator::count);
    wait_until("all is committed", || blobs() == world.image.blobs.len());
    let said = proxy.stderr.text();
    assert!(!said.contains("uncached") && !said.contains("error"), "{said}");
    proxy.terminate();
    proxy.finish(RUN_TIMEOUT).exits(0);
    assert_eq!(assert_blobs_valid(&dir), 0, "nothing was written elsewhere");
}
