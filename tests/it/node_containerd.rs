//! A real containerd, by the `hosts.toml` that `transload node install-mirror` writes.

use std::collections::BTreeSet;
use std::path::PathBuf;

use super::support::containerd::Containerd;
use super::support::{Fault, Front, ProxyProcess, Registry, Rule, TempDir, Tool, transload};

/// The fixture `hello-world` at this place of a registry.
fn hello(registry: &Registry, repository: &str) {
    let fixture = concat!("oci:", env!("CARGO_MANIFEST_DIR"), "/fixtures/hello-world:latest");
    transload(&["copy", fixture, &format!("{}/{repository}:latest", registry.addr())]).ok();
}

/// A node's root with a `hosts.toml` for this registry.
struct Node {
    root: TempDir,
    registry: String,
    proxy: String,
    acr: String,
}

impl Node {
    fn new(registry: &str, proxy: &str, acr: &str) -> Self {
        let node = Self { root: TempDir::new(), registry: registry.into(), proxy: proxy.into(), acr: acr.into() };
        node.install(&[]);
        node
    }

    fn install(&self, more: &[&str]) {
        let (proxy, acr) = (format!("http://{}", self.proxy), format!("http://{}", self.acr));
        let root = self.root.join("");
        let args =
            ["node", "install-mirror", "--root", &root, "--registry", &self.registry, "--proxy", &proxy, "--acr", &acr];
        Tool::transload().args(&args).args(more).run().ok();
    }

    fn certs(&self) -> PathBuf {
        self.root.path().join("etc/containerd/certs.d")
    }
}

fn asked_by_containerd(front: &Front) -> usize {
    let own = |seen: &super::support::SeenRequest| {
        seen.header("user-agent").is_some_and(|agent| agent.starts_with("containerd"))
    };
    front.log().iter().filter(|seen| own(seen)).count()
}

/// Each host in its turn, as the ones before it go away.
#[test]
fn hosts_are_asked_in_order() {
    let (near, far, origin) = (Registry::start(), Registry::start(), Registry::start());
    // The first host knows the repository by its own name, ACR below a prefix.
    hello(&near, "library/hello-world");
    hello(&far, "docker.io/library/hello-world");
    hello(&origin, "library/hello-world");
    let first = Front::before(near.addr()).start();
    let acr = Front::before(far.addr()).acr(|acr| acr.anonymous_pull = true).start();
    let original = Front::before(origin.addr()).start();
    let registry = original.addr().to_string();
    let node = Node::new(&registry, &first.addr().to_string(), &format!("{}/docker.io", acr.addr()));
    let image = format!("{registry}/library/hello-world:latest");
    let pull = || Containerd::start().pull(&node.certs(), &image);

    pull().ok();
    assert!(first.log().iter().all(|seen| seen.query.contains("ns=127.0.0.1")), "{:?}", first.log());
    assert!(asked_by_containerd(&first) >= 4 && acr.log().is_empty() && original.log().is_empty());
    drop(first);
    pull().ok();
    assert!(asked_by_containerd(&acr) >= 4 && original.log().is_empty());
    assert!(
        acr.log().iter().all(|seen| !seen.path.starts_with("/v2/") || seen.path.starts_with("/v2/docker.io/library/"))
    );
    drop(acr);
    pull().ok();
    assert!(asked_by_containerd(&original) >= 4);
}

/// As in a cluster: nodes, the proxy, ACR.
#[test]
fn a_node_pulls_through_the_proxy_and_past_it() {
    let behind = Registry::start();
    hello(&behind, "docker.io/library/hello-world");
    let acr = Front::before(behind.addr()).acr(|acr| acr.anonymous_pull = true).start();
    let proxy = ProxyProcess::start(&format!("docker.io={}/docker.io", acr.addr()), &[]);
    let node = Node::new("docker.io", &proxy.addr().to_string(), &format!("{}/docker.io", acr.addr()));
    let pull = || Containerd::start().pull(&node.certs(), "docker.io/library/hello-world:latest");

    pull().ok();
    assert_eq!(asked_by_containerd(&acr), 0, "the proxy alone asks ACR");
    let blobs = acr.count("GET", "/blobs/");
    assert!(blobs > 0);
    // Another node finds it all in the cache.
    pull().ok();
    assert_eq!((acr.count("GET", "/blobs/"), asked_by_containerd(&acr)), (blobs, 0));

    proxy.kill();
    pull().ok();
    assert!(asked_by_containerd(&acr) >= 4, "{:?}", acr.log());
}

/// The proxy is told to wait for longer than a node would: the node asks its next host at once, and once only.
#[test]
fn a_node_goes_past_a_proxy_whose_upstream_limits_it() {
    let behind = Registry::start();
    hello(&behind, "docker.io/library/hello-world");
    let acr = Front::before(behind.addr()).acr(|acr| acr.anonymous_pull = true).start();
    let limited = Front::before(behind.addr()).rule(Rule::on("*", "/v2/", Fault::too_many(60))).start();
    let proxy = ProxyProcess::start(&format!("docker.io={}/docker.io", limited.addr()), &[]);
    let seen = Front::before(proxy.addr()).start();
    let node = Node::new("docker.io", &seen.addr().to_string(), &format!("{}/docker.io", acr.addr()));
    Containerd::start().pull(&node.certs(), "docker.io/library/hello-world:latest").ok();
    assert!(asked_by_containerd(&acr) >= 4, "{:?}", acr.log());
    assert_eq!(limited.struck(), 1, "it was asked again: {:?}", limited.log());
    let asked: Vec<_> = seen.log().into_iter().map(|seen| (seen.method, seen.path, seen.status)).collect();
    assert!(!asked.is_empty() && asked.iter().all(|(.., status)| *status == Some(503)), "{asked:?}");
    let once = asked.iter().collect::<BTreeSet<_>>();
    assert_eq!(once.len(), asked.len(), "tried again: {asked:?}");
}

/// An ACR that wants credentials which the node hasn't is passed over.
#[test]
fn a_private_acr_is_passed_over() {
    let (far, origin) = (Registry::start(), Registry::start());
    hello(&far, "docker.io/library/hello-world");
    hello(&origin, "library/hello-world");
    let acr = Front::before(far.addr()).acr(|_| {}).start();
    let original = Front::before(origin.addr()).start();
    let registry = original.addr().to_string();
    // Nobody listens at the first.
    let node = Node::new(&registry, "127.0.0.1:1", &format!("{}/docker.io", acr.addr()));
    let image = format!("{registry}/library/hello-world:latest");
    Containerd::start().pull(&node.certs(), &image).ok();
    let refused = acr.log();
    assert!(!refused.is_empty() && refused.iter().all(|seen| seen.status == Some(401)), "{refused:?}");
    assert!(asked_by_containerd(&original) >= 4);

    // And without the original, the pull ends there.
    node.install(&["--no-upstream"]);
    original.reset_log();
    assert_ne!(Containerd::start().pull(&node.certs(), &image).code, 0);
    assert!(original.log().is_empty(), "{:?}", original.log());
}

/// The proxy alone: also a file that containerd takes.
#[test]
fn nobody_but_the_proxy_is_asked() {
    let behind = Registry::start();
    hello(&behind, "library/hello-world");
    let proxy = Front::before(behind.addr()).start();
    let node = TempDir::new();
    let (root, url) = (node.join(""), format!("http://{}", proxy.addr()));
    transload(&["node", "install-mirror", "--root", &root, "--proxy", &url, "--no-upstream"]).ok();
    let certs = node.path().join("etc/containerd/certs.d");
    let containerd = Containerd::start();
    containerd.pull(&certs, "docker.io/library/hello-world:latest").ok();
    assert_ne!(containerd.pull(&certs, "docker.io/library/nothing:latest").code, 0);
    assert!(asked_by_containerd(&proxy) > 4);
}
