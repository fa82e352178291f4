//! `transload proxy`: how it stops. While load balancers still send connections they are answered, and what is under
//! way ends whole.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::proxy_blobs::{World, pull_manifest};
use super::support::process::RUN_TIMEOUT;
use super::support::proxied::ops_addr;
use super::support::{Fault, ProxyProcess, Rule, http};

const MIB: usize = 1 << 20;

/// A proxy, and an answer from it that takes some seconds and has begun.
struct Stage {
    world: World,
    proxy: ProxyProcess,
    ops: SocketAddr,
    /// What came of it.
    answer: JoinHandle<Vec<u8>>,
}

impl Stage {
    fn new(proxied: impl FnOnce(SocketAddr) -> ProxyProcess, bytes_per_second: u64) -> Self {
        let world = World::new(&[6 * MIB]);
        world.front.add(Rule::on("GET", &world.path(), Fault::Throttle(bytes_per_second)));
        let proxy = proxied(world.front.addr());
        pull_manifest(proxy.addr());
        let mut stream = TcpStream::connect(proxy.addr()).expect("connects");
        stream.set_read_timeout(Some(RUN_TIMEOUT)).expect("set");
        write!(stream, "GET {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", world.path()).expect("sends");
        let mut reader = BufReader::new(stream);
        let mut line = String::new();
        reader.read_line(&mut line).expect("an answer");
        assert!(line.starts_with("HTTP/1.1 200"), "{line}");
        while line != "\r\n" {
            line.clear();
            reader.read_line(&mut line).expect("a head");
        }
        let answer = std::thread::spawn(move || {
            let mut body = Vec::new();
            // Cut, it is shorter.
            let _ = reader.read_to_end(&mut body);
            body
        });
        let ops = ops_addr(&proxy);
        http::get(ops, "/readyz").expect(200);
        Self { world, proxy, ops, answer }
    }

    /// Waits until it says that it stops: at once.
    fn unready(&self) {
        let begun = Instant::now();
        while http::get(self.ops, "/readyz").status != 503 {
            assert!(begun.elapsed() < Duration::from_secs(2), "still ready");
        }
        assert_eq!(http::get(self.ops, "/readyz").text(), "it stops\n");
        http::get(self.ops, "/healthz").expect(200);
    }
}

fn with(at: SocketAddr, flags: &[&str]) -> ProxyProcess {
    ProxyProcess::hub(at, &[&["--listen-ops", "127.0.0.1:0"], flags].concat())
}

/// kube-proxy goes on sending connections to a pod for some time after it was told to stop.
#[test]
fn connections_that_come_after_sigterm_are_answered_and_what_is_under_way_ends_whole() {
    let stage = Stage::new(|at| with(at, &["--shutdown-delay", "2", "--drain-timeout", "30"]), MIB as u64);
    let begun = Instant::now();
    stage.proxy.process.terminate();
    stage.unready();
    let mut answered = 0;
    // Each is a connection of its own. One that comes when the delay ends may be refused.
    while begun.elapsed() < Duration::from_millis(1700) {
        http::get(stage.proxy.addr(), "/v2/library/app/manifests/v1").expect(200);
        answered += 1;
    }
    assert!(answered > 10, "{answered}");
    while TcpStream::connect(stage.proxy.addr()).is_ok() {
        assert!(begun.elapsed() < RUN_TIMEOUT, "still accepting");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(begun.elapsed() >= Duration::from_secs(2), "{:?}", begun.elapsed());
    let Stage { world, proxy, answer, .. } = stage;
    assert!(answer.join().expect("a client") == world.layer().bytes, "the answer was cut");
    let ProxyProcess { process, .. } = proxy;
    process.finish(RUN_TIMEOUT).ok();
}

/// Without a delay it accepts nothing more, and it cuts what takes longer than it may.
#[test]
fn what_is_under_way_has_the_time_of_the_drain_timeout() {
    let stage = Stage::new(|at| with(at, &["--drain-timeout", "1"]), (MIB / 2) as u64);
    let begun = Instant::now();
    stage.proxy.process.terminate();
    let Stage { world, proxy, answer, .. } = stage;
    let ProxyProcess { process, .. } = proxy;
    process.finish(RUN_TIMEOUT).ok();
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert!(answer.join().expect("a client").len() < world.layer().bytes.len());
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for second in ["TERM", "INT"] {
        let stage = Stage::new(|at| with(at, &["--shutdown-delay", "30", "--drain-timeout", "30"]), (MIB / 4) as u64);
        stage.proxy.process.terminate();
        stage.unready();
        let begun = Instant::now();
        if second == "TERM" {
            stage.proxy.process.terminate()
        } else {
            stage.proxy.process.interrupt()
        };
        let ProxyProcess { process, .. } = stage.proxy;
        let run = process.finish(RUN_TIMEOUT).exits(130);
        assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
        assert!(run.stderr.contains(&format!("interrupted again by SIG{second}")), "{}", run.stderr);
    }
}
