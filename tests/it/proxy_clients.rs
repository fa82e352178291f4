//! `transload proxy` with real clients.

use std::time::Duration;

use super::support::{Fault, Front, Image, Process, Proxied, Registry, Rule, TempDir, Tool, http, skopeo};

#[test]
fn skopeo_copies_through_it() {
    let registry = Registry::start();
    let image = Image::index(5, 3, &[30_000, 200_000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = Proxied::hub(front.addr(), &[]);
    let out = TempDir::new();
    for (round, path) in ["library/app", "docker.io/library/app"].iter().enumerate() {
        let from = format!("docker://{}/{path}:v1", proxy.addr());
        let to = format!("oci:{}:v1", out.join(&round.to_string()));
        skopeo(&["--insecure-policy", "copy", "--all", "--src-tls-verify=false", &from, &to]).ok();
        for blob in image.blobs.iter().map(|blob| (&blob.digest, &blob.bytes)) {
            let file = out.path().join(format!("{round}/blobs/sha256/{}", &blob.0[7..]));
            assert!(&std::fs::read(&file).expect("a blob") == blob.1, "{}", file.display());
        }
    }
    let blobs = image.blobs.len();
    assert_eq!(front.count("GET", "/blobs/"), blobs, "each once");
}

/// A containerd of its own: root, state and socket in a directory of the test.
struct Containerd {
    process: Process,
    dir: TempDir,
}

impl Containerd {
    /// Asks the proxy for `registry`'s images, and nobody else: `server` is the proxy too.
    fn start(registry: &str, proxy: &Proxied) -> Self {
        let dir = TempDir::new();
        let at = proxy.addr();
        let hosts =
            format!("server = \"http://{at}\"\n[host.\"http://{at}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        dir.write(&format!("certs.d/{registry}/hosts.toml"), hosts);
        let config = format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.snapshotter.v1.btrfs\", \
             \"io.containerd.snapshotter.v1.zfs\", \"io.containerd.snapshotter.v1.devmapper\", \
             \"io.containerd.internal.v1.opt\"]\n\
             [grpc]\n  address = \"{}\"\n",
            dir.join("root"),
            dir.join("state"),
            dir.join("sock")
        );
        let config = dir.write("config.toml", config);
        let process = Tool::new("containerd").args(&["--config", &config]).spawn();
        process.stderr.wait_line("containerd successfully booted", Duration::from_secs(30));
        Self { process, dir }
    }

    fn ctr(&self, args: &[&str]) -> super::support::Run {
        Tool::new("ctr").args(&["--address", &self.dir.join("sock")]).args(args).run()
    }

    fn pull(&self, image: &str) -> super::support::Run {
        let certs = self.dir.join("certs.d");
        self.ctr(&[
            "images",
            "pull",
            "--hosts-dir",
            &certs,
            "--snapshotter",
            "native",
            "--platform",
            "linux/amd64",
            image,
        ])
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Gracefully, so that it takes what it mounted with it.
        if self.process.is_running() {
            self.process.terminate();
            let deadline = std::time::Instant::now() + Duration::from_secs(5);
            while self.process.is_running() && std::time::Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}

#[test]
fn containerd_pulls_through_it() {
    let registry = Registry::start();
    let image = Image::index(6, 2, &[30_000, 3 << 20]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = Proxied::hub(front.addr(), &["--tag-ttl", "0"]);
    let containerd = Containerd::start("docker.io", &proxy);
    // One layer breaks at the upstream: containerd doesn't notice.
    front.add(Rule::on("GET", &image.blobs[2].digest, Fault::TruncateAt(1 << 20)).once());
    containerd.pull("docker.io/library/app:v1").ok();
    assert_eq!(front.struck(), 1);
    let blobs: Vec<_> = front.log().into_iter().filter(|seen| seen.path.contains("/blobs/")).collect();
    assert_eq!(blobs.len(), 4, "three blobs of one platform, one of them in two goes: {blobs:?}");
    assert!(front.log().iter().all(|seen| seen.query.is_empty()), "ns is not passed on");
    // Another node, and the upstream is gone: by the cache alone.
    front.add(Rule::on("*", "/v2/", Fault::status(503)));
    let other = Containerd::start("docker.io", &proxy);
    other.pull("docker.io/library/app:v1").ok();
    let listed = other.ctr(&["images", "list", "-q"]).ok().stdout;
    assert_eq!(listed.trim(), "docker.io/library/app:v1");
    let content = other.ctr(&["content", "list", "-q"]).ok().stdout;
    assert!(image.blobs[..3].iter().all(|blob| content.contains(&blob.digest)), "{content}");
    // What it can't have is an error that containerd understands.
    let missing = other.pull("docker.io/library/nothing:v1");
    assert_ne!(missing.code, 0);
}

#[test]
fn docker_asks_it_without_a_name() {
    // As dockerd with registry-mirrors: no ns, no first part; a ping before.
    let registry = Registry::start();
    let image = Image::docker(8, &[20_000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = Proxied::hub(registry.addr(), &[]);
    http::get(proxy.addr(), "/v2/").expect(200);
    image.assert_at(proxy.addr(), "library/app", "v1");
}
