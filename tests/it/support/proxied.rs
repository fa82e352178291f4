//! A running `transload proxy`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::process::RUN_TIMEOUT;
use super::{Process, TempDir, Tool};

/// A proxy on a free port, killed on Drop. Its cache stays as long as this.
#[derive(Debug)]
pub struct ProxyProcess {
    pub process: Process,
    pub cache: TempDir,
    addr: SocketAddr,
}

impl ProxyProcess {
    /// A proxy of this upstream: `docker.io=127.0.0.1:PORT`.
    #[track_caller]
    pub fn start(upstream: &str, flags: &[&str]) -> Self {
        Self::start_in(TempDir::new(), upstream, flags)
    }

    /// Docker Hub, at this address.
    #[track_caller]
    pub fn hub(at: SocketAddr, flags: &[&str]) -> Self {
        Self::start(&format!("docker.io={at}"), flags)
    }

    /// The same with a cache that is there already.
    #[track_caller]
    pub fn start_in(cache: TempDir, upstream: &str, flags: &[&str]) -> Self {
        let dir = cache.join("cache");
        let own = if flags.contains(&"--cache") { vec![] } else { vec!["--cache", &dir] };
        let process = Tool::transload()
            .args(&["proxy", "--listen", "127.0.0.1:0", "--upstream", upstream, "--keep-free", "0"])
            .args(&own)
            .args(flags)
            .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
            .spawn();
        Self::running(process, cache)
    }

    /// A proxy of Docker Hub, at this address, by a configuration file that says this more of the upstream.
    #[track_caller]
    pub fn by_file(at: SocketAddr, more: &str) -> Self {
        let cache = TempDir::new();
        let config = cache.write(
            "proxy.yaml",
            format!(
                "listen: [{{ http: 127.0.0.1:0 }}]\ncache: {{ dir: cache, keep-free: 0 }}\n\
                 upstreams: [{{ name: docker.io, tiers: [\"{at}\"], {more} }}]\n"
            ),
        );
        let process = Tool::transload()
            .args(&["proxy", "--config", &config])
            .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
            .spawn();
        Self::running(process, cache)
    }

    #[track_caller]
    fn running(process: Process, cache: TempDir) -> Self {
        let line = process.stderr.wait_line("proxying ", RUN_TIMEOUT);
        let addr = line.split(" on http://").nth(1).and_then(|addr| addr.parse().ok()).expect("an address");
        Self { process, cache, addr }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Kills it at once. What it cached stays.
    pub fn kill(mut self) -> TempDir {
        self.process.kill();
        let Self { cache, .. } = self;
        cache
    }

    /// The names of all files below a directory of the cache, without those of directories.
    pub fn files(&self, below: &str) -> Vec<String> {
        files(&self.cache, below)
    }
}

/// Where it answers those who operate it.
#[track_caller]
pub fn ops_addr(proxy: &ProxyProcess) -> SocketAddr {
    told(proxy, "/metrics on http://")
}

/// Where it takes orders, if that has an address of its own.
#[track_caller]
pub fn admin_addr(proxy: &ProxyProcess) -> SocketAddr {
    told(proxy, "--admin on http://")
}

#[track_caller]
fn told(proxy: &ProxyProcess, what: &str) -> SocketAddr {
    let line = proxy.process.stderr.wait_line(what, RUN_TIMEOUT);
    line.split("http://").nth(1).and_then(|address| address.trim().parse().ok()).expect("an address")
}

/// Waits until a line of the page is there: what is counted may be so a moment after the last byte.
#[track_caller]
pub fn assert_metric_line(ops: SocketAddr, line: &str) {
    let deadline = Instant::now() + Duration::from_secs(20);
    loop {
        let page = super::http::get(ops, "/metrics").expect(200).text();
        if page.lines().any(|shown| shown == line) {
            return;
        }
        assert!(Instant::now() < deadline, "no {line} in\n{page}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// The paths of all files below a directory of a cache, relative to it.
pub fn files(cache: &TempDir, below: &str) -> Vec<String> {
    let root = cache.path().join("cache");
    let (mut found, mut left) = (Vec::new(), vec![root.join(below)]);
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                left.push(entry.path());
            } else {
                let path = entry.path();
                found.push(path.strip_prefix(&root).expect("below it").to_str().expect("UTF-8").to_owned());
            }
        }
    }
    found.sort();
    found
}

/// Fails the test unless every named file of the cache has the digest and the size that its name says.
#[track_caller]
pub fn assert_blobs_valid(cache: &TempDir) -> usize {
    let all = [files(cache, "blobs"), files(cache, "manifests/sha256")].concat();
    for path in &all {
        let name = path.rsplit('/').next().expect("a name");
        let (hex, size) = name.split_once('.').expect("hex and size");
        let bytes = std::fs::read(cache.path().join("cache").join(path)).expect("a file");
        assert_eq!(bytes.len().to_string(), size, "{path}");
        assert_eq!(super::layer::sha256(&bytes), format!("sha256:{hex}"), "{path}");
    }
    all.len()
}
