//! `transload proxy` with real clients.

use super::proxy_blobs::wait_until;
use super::support::containerd::Containerd;
use super::support::layer::sha256;
use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, Run, TempDir, Tool, http, skopeo};

#[test]
fn skopeo_copies_through_it() {
    let registry = Registry::start();
    let image = Image::index(5, 3, &[30_000, 200_000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &[]);
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

/// A containerd of its own, which asks the proxy for `registry`'s images, and nobody else: `server` is
/// the proxy too.
struct Node {
    containerd: Containerd,
    certs: TempDir,
}

impl Node {
    fn start(registry: &str, proxy: &ProxyProcess) -> Self {
        let certs = TempDir::new();
        let at = proxy.addr();
        let hosts =
            format!("server = \"http://{at}\"\n[host.\"http://{at}\"]\n  capabilities = [\"pull\", \"resolve\"]\n");
        certs.write(&format!("{registry}/hosts.toml"), hosts);
        Self { containerd: Containerd::start(), certs }
    }

    fn pull(&self, image: &str) -> Run {
        self.containerd.pull(self.certs.path(), image)
    }
}

/// podman with a storage of its own, which knows where Docker Hub is from a `registries.conf`.
struct Podman {
    home: TempDir,
    conf: String,
    policy: String,
}

impl Podman {
    fn new(hub: &str) -> Self {
        let home = TempDir::new();
        let conf = home.write("registries.conf", format!("[[registry]]\nprefix = \"docker.io\"\n{hub}"));
        let policy = home.write("policy.json", r#"{"default":[{"type":"insecureAcceptAnything"}]}"#);
        Self { home, conf, policy }
    }

    fn pull(&self, image: &str) -> Run {
        self.run(&["pull", "--signature-policy", &self.policy, image])
    }

    fn run(&self, args: &[&str]) -> Run {
        let at = |name| self.home.join(name);
        Tool::new("podman")
            .args(&["--root", &at("root"), "--runroot", &at("run"), "--storage-driver", "vfs"])
            .args(&["--cgroup-manager", "cgroupfs", "--events-backend", "none"])
            .args(args)
            .env("CONTAINERS_REGISTRIES_CONF", &self.conf)
            // It insists on the file where there is such a variable.
            .without("DOCKER_CONFIG")
            .run()
    }
}

#[test]
fn containerd_pulls_through_it() {
    let registry = Registry::start();
    let image = Image::index(6, 2, &[30_000, 3 << 20]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &["--tag-ttl", "0"]);
    let node = Node::start("docker.io", &proxy);
    // One layer breaks at the upstream: containerd doesn't notice.
    front.add(Rule::on("GET", &image.blobs[2].digest, Fault::TruncateAt(1 << 20)).once());
    node.pull("docker.io/library/app:v1").ok();
    assert_eq!(front.struck(), 1);
    let blobs: Vec<_> = front.log().into_iter().filter(|seen| seen.path.contains("/blobs/")).collect();
    assert_eq!(blobs.len(), 4, "three blobs of one platform, one of them in two goes: {blobs:?}");
    assert!(front.log().iter().all(|seen| seen.query.is_empty()), "ns is not passed on");
    // Another node, and the upstream is gone: by the cache alone.
    front.add(Rule::on("*", "/v2/", Fault::status(503)));
    let other = Node::start("docker.io", &proxy);
    other.pull("docker.io/library/app:v1").ok();
    let listed = other.containerd.ctr(&["images", "list", "-q"]).ok().stdout;
    assert_eq!(listed.trim(), "docker.io/library/app:v1");
    let content = other.containerd.ctr(&["content", "list", "-q"]).ok().stdout;
    assert!(image.blobs[..3].iter().all(|blob| content.contains(&blob.digest)), "{content}");
    // What it can't have is an error that containerd understands.
    let missing = other.pull("docker.io/library/nothing:v1");
    assert_ne!(missing.code, 0);
}

#[test]
fn podman_pulls_through_it() {
    let registry = Registry::start();
    let image = Image::index(9, 1, &[40_000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &[]);
    // A mirror, before what isn't there.
    let podman = Podman::new(&format!(
        "location = \"127.0.0.1:1\"\n[[registry.mirror]]\nlocation = \"{}/docker.io\"\ninsecure = true\n",
        proxy.addr()
    ));
    podman.pull("docker.io/library/app:v1").ok();
    let listed = podman.run(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).ok().stdout;
    assert_eq!(listed.trim(), "docker.io/library/app:v1");
    assert_eq!(front.count("GET", "/blobs/"), image.blobs.len());
}

/// An upstream that refuses the proxy: each client says so, and that it's not their credentials that are wanting.
#[test]
fn clients_hear_that_the_upstream_denies() {
    for fault in [Fault::Demand("Basic realm=\"upstream\""), Fault::status(403)] {
        let registry = Registry::start();
        let front = Front::before(registry.addr()).rule(Rule::on("*", "/v2/", fault.clone())).start();
        let proxy = ProxyProcess::hub(front.addr(), &[]);
        let [skopeo, podman, containerd] = pulls(&proxy, "library/app");
        for run in [&skopeo, &podman] {
            let said = "denied: the upstream denies access to this proxy: the proxy's own credentials";
            assert!(run.code != 0 && run.stderr.contains(said), "{fault:?}: {run:?}");
            assert!(!run.stderr.contains("retrying"), "{fault:?}: {run:?}");
        }
        // It asks by HEAD: there is nothing to read.
        assert!(containerd.code != 0 && containerd.stderr.contains("403 Forbidden"), "{fault:?}: {containerd:?}");
        assert!(front.struck() > 0);
    }
}

/// What a pattern denies isn't there, for any client, and its upstream isn't asked.
#[test]
fn what_is_denied_by_a_pattern_is_not_found() {
    let registry = Registry::start();
    Image::single(11, &[3000]).push(registry.addr(), "team/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::by_file(front.addr(), "deny: [team/**]");
    let [skopeo, podman, containerd] = pulls(&proxy, "team/app");
    for run in [skopeo, podman] {
        assert!(run.code != 0 && run.stderr.contains("manifest unknown"), "{run:?}");
    }
    assert!(containerd.code != 0 && containerd.stderr.contains("docker.io/team/app:v1: not found"), "{containerd:?}");
    assert_eq!(front.log().len(), 0, "{:?}", front.log());
}

/// Docker Hub's `repository:v1`, pulled by skopeo, podman and containerd, for which the proxy is all that there is.
fn pulls(proxy: &ProxyProcess, repository: &str) -> [Run; 3] {
    CLIENTS.map(|client| client.pull(proxy, repository).0)
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Client {
    Skopeo,
    Podman,
    Containerd,
}

const CLIENTS: [Client; 3] = [Client::Skopeo, Client::Podman, Client::Containerd];

impl Client {
    /// What a new one has to say, and the digests of what it has then: the manifest's, and what else it names so.
    fn pull(self, proxy: &ProxyProcess, repository: &str) -> (Run, String) {
        let image = format!("docker.io/{repository}:v1");
        match self {
            Self::Skopeo => {
                let out = TempDir::new();
                let from = format!("docker://{}/{image}", proxy.addr());
                let to = format!("dir:{}", out.join("image"));
                let run = skopeo(&["--insecure-policy", "copy", "--src-tls-verify=false", &from, &to]);
                let files = std::fs::read_dir(out.join("image")).into_iter().flatten().flatten();
                let digests = files.map(|file| sha256(&std::fs::read(file.path()).expect("a file")));
                (run, digests.collect::<Vec<_>>().join(" "))
            }
            Self::Podman => {
                let podman = Podman::new(&format!("location = \"{}/docker.io\"\ninsecure = true\n", proxy.addr()));
                let run = podman.pull(&image);
                // It checks each layer against it.
                (run, podman.run(&["images", "--no-trunc", "--format", "{{.Digest}}"]).stdout)
            }
            Self::Containerd => {
                let node = Node::start("docker.io", proxy);
                let run = node.pull(&image);
                // Nothing is in there that wasn't verified.
                let complete = run.code == 0;
                let digests = node.containerd.ctr(&["content", "list", "-q"]).stdout;
                (run, if complete { digests } else { String::new() })
            }
        }
    }

    /// The digests that there are to be.
    fn whole(self, image: &Image) -> Vec<String> {
        let mut digests = vec![image.digest().to_owned()];
        if self != Self::Podman {
            digests.extend(image.blobs.iter().map(|blob| blob.digest.clone()));
        }
        digests
    }

    #[track_caller]
    fn pulls_all(self, proxy: &ProxyProcess, image: &Image, what: &str) {
        let (run, digests) = self.pull(proxy, "library/app");
        assert_eq!(run.code, 0, "{self:?}, {what}: {run:?}");
        for digest in self.whole(image) {
            assert!(digests.contains(&digest), "{self:?}, {what}: no {digest} in {digests}");
        }
    }
}

/// What an upstream may do to a pull, and what of that its client notices: nothing.
#[test]
fn clients_notice_nothing_of_what_the_proxy_can_mend() {
    let image = Image::single(12, &[900_000, 20_000]);
    let layer = image.blobs[1].digest.clone();
    for client in CLIENTS {
        for (method, path, fault, asked) in [
            // The rest is asked for, and nothing twice.
            ("GET", &*layer, Fault::TruncateAt(500_000), 2),
            ("GET", &*layer, Fault::ResetAfter(300_000), 2),
            // It's waited out.
            ("*", "/manifests/v1", Fault::too_many(2), 1),
            ("GET", &*layer, Fault::too_many(1), 2),
            ("GET", &*layer, Fault::Throttle(1 << 20), 1),
        ] {
            let registry = Registry::start();
            image.push(registry.addr(), "library/app", "v1");
            let front = Front::before(registry.addr()).rule(Rule::on(method, path, fault.clone()).once()).start();
            let proxy = ProxyProcess::hub(front.addr(), &[]);
            let what = format!("{fault:?}");
            client.pulls_all(&proxy, &image, &what);
            assert_eq!(
                (front.struck(), front.count("GET", &layer)),
                (1, asked),
                "{client:?}, {what}: {:?}",
                front.log()
            );
            let others = image.blobs.iter().filter(|blob| blob.digest != layer);
            others.for_each(|blob| assert_eq!(front.count("GET", &blob.digest), 1, "{client:?}, {what}"));
            // Gone: another node gets all of it from the cache.
            drop(front);
            client.pulls_all(&proxy, &image, "gone, and cached");
        }
    }
}

/// Where the proxy can't mend it, a client has an error and nothing wrong; and what it's asked for later is right.
#[test]
fn clients_get_an_error_rather_than_what_is_wrong() {
    let image = Image::single(13, &[900_000]);
    let layer = image.blobs[1].digest.clone();
    for client in CLIENTS {
        for (path, fault) in
            [("/v2/", Fault::too_many(60)), (&*layer, Fault::FlipByteAt(1000)), ("/v2/", Fault::ResetAfter(0))]
        {
            let registry = Registry::start();
            image.push(registry.addr(), "library/app", "v1");
            let front = Front::before(registry.addr()).rule(Rule::on("*", path, fault.clone())).start();
            let proxy = ProxyProcess::hub(front.addr(), &["--upstream-timeout", "1", "--negative-ttl", "2"]);
            let (run, digests) = client.pull(&proxy, "library/app");
            assert_ne!(run.code, 0, "{client:?}, {fault:?}: {run:?}");
            assert!(!digests.contains(image.digest()), "{client:?}, {fault:?}: {digests}");
            assert!(front.struck() > 0);
            match fault {
                // It's left alone for as long as it wants, however often a client tries.
                Fault::Status { .. } => assert_eq!(front.struck(), 1, "{client:?}: {:?}", front.log()),
                Fault::FlipByteAt(_) => {
                    let hex = layer.split(':').nth(1).expect("hex");
                    assert!(!proxy.files("blobs").iter().any(|file| file.contains(hex)), "kept what is wrong");
                    front.clear_rules();
                    let path = format!("/v2/library/app/blobs/{layer}");
                    wait_until("it is asked for again", || http::get(proxy.addr(), &path).status == 200);
                    client.pulls_all(&proxy, &image, "mended");
                }
                _ => {}
            }
        }
    }
}

#[test]
fn docker_asks_it_without_a_name() {
    // As dockerd with registry-mirrors: no ns, no first part; a ping before.
    let registry = Registry::start();
    let image = Image::docker(8, &[20_000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = ProxyProcess::hub(registry.addr(), &[]);
    http::get(proxy.addr(), "/v2/").expect(200);
    image.assert_at(proxy.addr(), "library/app", "v1");
}
