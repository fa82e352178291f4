//! `transload proxy` at the bounds of what it may use, and of where it may be led.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::support::process::RUN_TIMEOUT;
use super::support::{Fault, Front, Image, Process, ProxyProcess, Registry, Rule, TempDir, Tool, http};

/// A connection that stays, for one request after another.
struct Client(TcpStream);

impl Client {
    fn connect(at: SocketAddr) -> Self {
        let stream = TcpStream::connect(at).expect("connects");
        stream.set_read_timeout(Some(RUN_TIMEOUT)).expect("set");
        Self(stream)
    }

    /// The answer's status and length, when all of it was read.
    fn get(&mut self, path: &str) -> (u16, usize) {
        write!(self.0, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("sends");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte).expect("a head");
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).expect("text").to_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).expect("a length");
        let length = length.trim().parse().expect("a number");
        self.0.read_exact(&mut vec![0; length]).expect("a body");
        (head[9..12].parse().expect("a status"), length)
    }
}

/// From now on the process can open so many files, whatever it has open; without a number as many as ever.
fn may_open(process: &Process, files: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(process.id()).expect("a pid"));
    // That of this process is what it was started with.
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: files.or(maximum), maximum }).expect("set");
}

#[test]
fn without_open_files_to_be_had_nothing_cached_is_lost() {
    let registry = Registry::start();
    let image = Image::single(7, &[200_000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &[]);
    http::get(proxy.addr(), "/v2/library/app/manifests/v1").expect(200);
    let path = format!("/v2/library/app/blobs/{}", image.blobs[1].digest);
    http::get(proxy.addr(), &path).expect(200);
    let deadline = Instant::now() + RUN_TIMEOUT;
    while proxy.files("blobs").is_empty() {
        assert!(Instant::now() < deadline, "never committed");
        std::thread::sleep(Duration::from_millis(10));
    }
    let mut client = Client::connect(proxy.addr());
    assert_eq!(client.get("/v2/").0, 200);
    may_open(&proxy.process, Some(1));
    assert_eq!(client.get(&path).0, 500);
    assert_eq!(proxy.files("blobs").len(), 1, "taken for lost");
    may_open(&proxy.process, None);
    assert_eq!(client.get(&path), (200, 200_000));
    assert_eq!(front.count("GET", &path), 1, "it was on the disk");
}

#[test]
fn it_takes_as_many_open_files_as_it_may_have() {
    let cache = TempDir::new();
    let process = Tool::new("sh")
        .args(&["-c", "ulimit -Sn 256 && exec \"$@\"", "sh", env!("CARGO_BIN_EXE_transload"), "proxy"])
        .args(&["--listen", "127.0.0.1:0", "--upstream", "docker.io=127.0.0.1:1", "--cache", &cache.join("cache")])
        .spawn();
    process.stderr.wait_line("proxying ", RUN_TIMEOUT);
    let limits = std::fs::read_to_string(format!("/proc/{}/limits", process.id())).expect("readable");
    let line = limits.lines().find(|line| line.starts_with("Max open files")).expect("a line");
    let [soft, hard] = [3, 4].map(|nth| line.split_whitespace().nth(nth).expect("a limit"));
    assert_eq!(soft, hard, "{line}");
}

/// It's not our storage that failed, and nothing there was asked.
#[test]
fn where_it_is_not_led_is_the_upstreams_fault() {
    let registry = Registry::start();
    let image = Image::single(7, &[2000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &["--negative-ttl", "0"]);
    let blob = format!("/v2/library/app/blobs/{}", image.blobs[1].digest);
    for to in ["http://169.254.169.254/latest/meta-data", "ftp://127.0.0.1/x", "file:///etc/passwd"] {
        front.add(Rule::on("*", "/v2/library/", Fault::Redirect(to.to_owned())).nth(..=5));
        for (method, path) in [
            ("GET", "/v2/library/app/manifests/v1"),
            ("HEAD", "/v2/library/app/manifests/v1"),
            ("GET", &blob),
            ("HEAD", &blob),
            ("GET", "/v2/library/app/tags/list"),
        ] {
            http::send(proxy.addr(), method, path, &[], &[]).expect(502);
        }
    }
    assert_eq!(front.struck(), 15);
    http::get(proxy.addr(), &blob).expect(200);
}
