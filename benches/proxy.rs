//! `transload proxy` beside Debian's docker-registry in proxy mode and nginx with `proxy_cache`: cold (beside the
//! least that it can cost, too), a herd, warm, small requests, a slow line. Run by `cargo bench --bench proxy [-- CASE…]`; needs Debian's
//! docker-registry, nginx-light and wrk. Absolute times on a shared machine mean nothing, ratios do.
#![allow(clippy::disallowed_methods, reason = "tests start tasks and read the environment")]
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a benchmark's own output and faults")]

#[path = "floor/cache.rs"]
mod floor;
#[path = "../tests/it/support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;
use std::time::{Duration, Instant};

use support::{Front, Image, Process, ProxyProcess, Registry, SlowLink, TempDir, Tool};

const CASES: [&str; 6] = ["cold", "herd", "warm", "clients", "small", "slow"];
const GIB: f64 = (1_u64 << 30) as f64;

fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    for case in CASES {
        if asked.is_empty() || asked.iter().any(|name| name == case) {
            println!("\n## {case}");
            match case {
                "cold" => cold(),
                "herd" => herd(),
                "warm" => warm(),
                "clients" => clients(),
                "small" => small(),
                _ => slow(),
            }
        }
    }
}

/// A cache under test.
struct Server {
    name: &'static str,
    addr: SocketAddr,
    pids: Vec<u32>,
    _running: Box<dyn std::any::Any>,
}

impl Server {
    fn all(upstream: SocketAddr) -> Vec<Self> {
        vec![Self::transload(upstream), Self::nginx(upstream), Self::registry(upstream)]
    }

    fn transload(upstream: SocketAddr) -> Self {
        let proxy = ProxyProcess::hub(upstream, &["--quiet"]);
        Self { name: "transload", addr: proxy.addr(), pids: vec![proxy.process.id()], _running: Box::new(proxy) }
    }

    fn registry(upstream: SocketAddr) -> Self {
        let registry = Registry::mirror_of(&format!("http://{upstream}"));
        let pids = vec![registry.id()];
        Self { name: "docker-registry", addr: registry.addr(), pids, _running: Box::new(registry) }
    }

    fn nginx(upstream: SocketAddr) -> Self {
        let dir = TempDir::new();
        // nginx takes no port 0: one that was free a moment ago.
        let addr = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let at = |name: &str| dir.join(name);
        let config = format!(
            "daemon off; user root; worker_processes 2; pid {}; error_log {} error;\n\
             events {{ worker_connections 1024; }}\n\
             http {{ access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
             client_body_temp_path {}; proxy_temp_path {}; fastcgi_temp_path {}; uwsgi_temp_path {}; scgi_temp_path {};\n\
             proxy_cache_path {} levels=1:2 keys_zone=c:10m max_size=50g use_temp_path=off;\n\
             server {{ listen {addr}; location / {{ proxy_pass http://{upstream}; proxy_http_version 1.1;\n\
             proxy_set_header Connection \"\"; proxy_cache c; proxy_cache_lock on; proxy_cache_lock_timeout 100s;\n\
             proxy_cache_lock_age 100s; proxy_cache_valid 200 1h; proxy_ignore_headers Cache-Control Expires Vary; }} }} }}\n",
            at("pid"),
            at("log"),
            at("t1"),
            at("t2"),
            at("t3"),
            at("t4"),
            at("t5"),
            at("cache"),
        );
        let config = dir.write("nginx.conf", config);
        let process: Process = Tool::new("/usr/sbin/nginx").args(&["-c", &config, "-p", &dir.join("")]).spawn();
        let deadline = Instant::now() + Duration::from_secs(10);
        while TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < deadline, "nginx: {}", process.stderr.text());
            std::thread::sleep(Duration::from_millis(10));
        }
        let children = Command::new("pgrep").args(["-P", &process.id().to_string()]).output().unwrap();
        let mut pids = vec![process.id()];
        pids.extend(String::from_utf8_lossy(&children.stdout).lines().filter_map(|line| line.parse::<u32>().ok()));
        Self { name: "nginx", addr, pids, _running: Box::new((Nginx(process), dir)) }
    }

    /// CPU seconds so far.
    fn cpu(&self) -> f64 {
        let ticks = |pid: &u32| {
            let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
            let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
            let number = |n: usize| fields.get(n).and_then(|text| text.parse::<f64>().ok()).unwrap_or_default();
            number(11) + number(12)
        };
        self.pids.iter().map(ticks).sum::<f64>() / 100.0
    }

    /// The largest resident set of each process, in MiB, summed.
    fn peak(&self) -> f64 {
        let peak = |pid: &u32| {
            let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or("0");
            line.split_whitespace().next().and_then(|text| text.parse::<f64>().ok()).unwrap_or_default() / 1024.0
        };
        self.pids.iter().map(peak).sum()
    }
}

/// Its workers outlive a master that is killed.
struct Nginx(Process);

impl Drop for Nginx {
    fn drop(&mut self) {
        self.0.terminate();
        while self.0.is_running() {
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// One download, thrown away: seconds to the first byte, seconds in all, bytes of the body.
fn download(at: SocketAddr, path: &str) -> (f64, f64, u64) {
    let begun = Instant::now();
    let mut stream = TcpStream::connect(at).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\naccept: {}\r\nconnection: close\r\n\r\n", support::http::ACCEPT)
        .unwrap();
    let mut buffer = vec![0; 1 << 20];
    let mut read = stream.read(&mut buffer).unwrap();
    assert!(buffer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&buffer[..read.min(300)]));
    let mut head = buffer[..read].windows(4).position(|end| end == b"\r\n\r\n");
    let mut total = read as u64;
    while read > 0 && (head.is_none() || total <= head.unwrap() as u64 + 4) {
        read = stream.read(&mut buffer[usize::try_from(total).unwrap()..]).unwrap();
        total += read as u64;
        head = buffer.windows(4).position(|end| end == b"\r\n\r\n");
    }
    let first = begun.elapsed().as_secs_f64();
    loop {
        match stream.read(&mut buffer).unwrap() {
            0 => break,
            read => total += read as u64,
        }
    }
    (first, begun.elapsed().as_secs_f64(), total - head.unwrap() as u64 - 4)
}

fn at_once(clients: usize, at: SocketAddr, path: &str) -> f64 {
    let begun = Instant::now();
    let clients: Vec<_> = (0..clients)
        .map(|_| {
            let path = path.to_owned();
            std::thread::spawn(move || download(at, &path))
        })
        .collect();
    for client in clients {
        client.join().unwrap();
    }
    begun.elapsed().as_secs_f64()
}

/// An upstream with one layer of this size, and the paths of tag and layer.
fn upstream(size: usize) -> (Registry, Image, String) {
    let registry = Registry::start();
    let image = Image::single(77, &[size]);
    image.push(registry.addr(), "library/app", "v1");
    let path = format!("/v2/library/app/blobs/{}", image.blobs[1].digest);
    (registry, image, path)
}

const TAG: &str = "/v2/library/app/manifests/v1";

fn cold() {
    let (registry, image, path) = upstream(1 << 30);
    let gib = image.blobs[1].bytes.len() as f64 / GIB;
    let direct = download(registry.addr(), &path);
    println!("| server | first byte ms | wall s | CPU s/GiB | peak MiB |\n|---|---|---|---|---|");
    println!("| upstream itself | {:.1} | {:.2} | - | - |", direct.0 * 1e3, direct.1);
    for _ in 0..3 {
        for server in Server::all(registry.addr()) {
            download(server.addr, TAG);
            let before = server.cpu();
            let (first, wall, _) = download(server.addr, &path);
            let cpu = (server.cpu() - before) / gib;
            println!("| {} | {:.1} | {wall:.2} | {cpu:.2} | {:.0} |", server.name, first * 1e3, server.peak());
        }
        let dir = TempDir::new();
        let file = std::fs::File::options().read(true).write(true).create_new(true).open(dir.join("blob")).unwrap();
        let (addr, answered) = floor::serve(registry.addr(), file, image.blobs[1].digest.clone());
        let (first, wall, _) = download(addr, &path);
        println!("| floor | {:.1} | {wall:.2} | {:.2} | - |", first * 1e3, answered.join().unwrap() / gib);
    }
}

fn herd() {
    let (registry, image, path) = upstream(256 << 20);
    let size = image.blobs[1].bytes.len() as f64;
    println!("| server | wall s | CPU s | upstream bytes | peak MiB |\n|---|---|---|---|---|");
    for _ in 0..3 {
        for make in [Server::transload, Server::nginx, Server::registry] {
            let front = Front::before(registry.addr()).start();
            let counted = make(front.addr());
            download(counted.addr, TAG);
            at_once(20, counted.addr, &path);
            let sent: u64 =
                front.log().iter().filter(|s| s.path.contains("/blobs/")).map(support::SeenRequest::sent).sum();
            // The time without the front, which would be the bottleneck.
            let server = make(registry.addr());
            download(server.addr, TAG);
            let before = server.cpu();
            let wall = at_once(20, server.addr, &path);
            let cpu = server.cpu() - before;
            println!("| {} | {wall:.2} | {cpu:.2} | {:.1}x | {:.0} |", server.name, sent as f64 / size, server.peak());
        }
    }
}

fn warm() {
    let (registry, image, path) = upstream(512 << 20);
    let gib = image.blobs[1].bytes.len() as f64 / GIB;
    println!("| server | clients | GiB/s | CPU s/GiB |\n|---|---|---|---|");
    let servers = Server::all(registry.addr());
    for server in &servers {
        download(server.addr, TAG);
        download(server.addr, &path);
        download(server.addr, &path);
    }
    std::thread::sleep(Duration::from_secs(2));
    for _ in 0..3 {
        for clients in [1, 8] {
            for server in &servers {
                let before = server.cpu();
                let wall = at_once(clients, server.addr, &path);
                let moved = clients as f64 * gib;
                let cpu = (server.cpu() - before) / moved;
                println!("| {} | {clients} | {:.2} | {cpu:.2} |", server.name, moved / wall);
            }
        }
    }
}

fn clients() {
    let (registry, _image, path) = upstream(32 << 20);
    println!("| server | clients | wall s | peak MiB |\n|---|---|---|---|");
    // docker-registry answers some of them with 500.
    for server in [Server::transload(registry.addr()), Server::nginx(registry.addr())] {
        download(server.addr, TAG);
        let cold = at_once(200, server.addr, &path);
        println!("| {} | 200, cold | {cold:.2} | {:.0} |", server.name, server.peak());
        let warm = at_once(200, server.addr, &path);
        println!("| {} | 200, warm | {warm:.2} | {:.0} |", server.name, server.peak());
    }
}

fn small() {
    let (registry, image, _) = upstream(10_000);
    println!("| server | what | requests/s | p99 |\n|---|---|---|---|");
    let by_digest = format!("/v2/library/app/manifests/{}", image.digest());
    let servers = Server::all(registry.addr());
    for _ in 0..2 {
        for (what, path) in [("by digest", by_digest.as_str()), ("by tag", TAG)] {
            for server in &servers {
                download(server.addr, path);
                let url = format!("http://{}{path}", server.addr);
                let accept = format!("Accept: {}", support::http::ACCEPT);
                let done = Command::new("wrk").args(["-t1", "-c64", "-d5s", "--latency", "-H", &accept, &url]).output();
                let text = String::from_utf8_lossy(&done.unwrap().stdout).into_owned();
                let value = |name: &str| {
                    let line = text.lines().find_map(|line| line.trim().strip_prefix(name));
                    line.unwrap_or("-").trim().to_owned()
                };
                println!("| {} | {what} | {} | {} |", server.name, value("Requests/sec:"), value("99%"));
                assert!(!text.contains("Non-2xx"), "{text}");
            }
        }
    }
}

fn slow() {
    let (registry, image, path) = upstream(256 << 20);
    let link = SlowLink::start(registry.addr(), Duration::from_millis(40), 25 << 20);
    println!("| server | wall s | MiB/s |\n|---|---|---|");
    for server in Server::all(link.addr()) {
        download(server.addr, TAG);
        let (_, wall, _) = download(server.addr, &path);
        let rate = image.blobs[1].bytes.len() as f64 / f64::from(1 << 20) / wall;
        println!("| {} | {wall:.2} | {rate:.0} |", server.name);
    }
}
