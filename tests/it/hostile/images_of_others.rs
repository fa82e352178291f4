//! Cached content that is asked for under another repository.
//!
//! The proxy stores content by its digest, once for all repositories. A digest is no secret: it stands in logs, lock
//! files and manifests. The attacker may pull `public/app`, knows a digest of `private/secret`, and asks for it where he
//! may ask. Requests are counted at the upstream, since the rule must not cost what it saves.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use super::super::proxy_blobs::wait_until;
use super::super::proxy_config::{addr, start};
use super::super::support::images::Document;
use super::super::support::proxied::files;
use super::super::support::push::push_blob;
use super::super::support::{Fault, Front, Image, Process, ProxyProcess, Registry, Rule, TempDir, http};

const MIB: usize = 1 << 20;
const PUBLIC: &str = "public/app";
const PRIVATE: &str = "private/secret";

/// One registry with an image for all and an image for a few, and a front that counts.
struct World {
    registry: Registry,
    front: Front,
    public: Image,
    secret: Image,
    dir: TempDir,
}

impl World {
    fn new() -> Self {
        Self::with_secret(Image::index(2, 2, &[40_000]))
    }

    fn with_secret(secret: Image) -> Self {
        let registry = Registry::start();
        let public = Image::single(1, &[3000]);
        public.push(registry.addr(), PUBLIC, "v1");
        secret.push(registry.addr(), PRIVATE, "v1");
        let front = Front::before(registry.addr()).start();
        Self { registry, front, public, secret, dir: TempDir::new() }
    }

    /// A proxy that knows the registry as `a.test`.
    fn proxy(&self) -> ProxyProcess {
        self.proxy_in(TempDir::new())
    }

    fn proxy_in(&self, cache: TempDir) -> ProxyProcess {
        ProxyProcess::start_in(cache, &format!("a.test={}", self.front.addr()), &[])
    }

    /// Writes a configuration with these upstreams.
    fn configure(&self, upstreams: &str) -> String {
        let text = format!(
            "listen: [{{ http: 127.0.0.1:0 }}]\ncache: {{ dir: cache, keep-free: 0 }}\nupstreams:\n{upstreams}"
        );
        self.dir.write("proxy.yaml", text)
    }

    /// Has a running proxy take over this configuration.
    fn reconfigure(&self, proxy: &Process, upstreams: &str) {
        let before = proxy.stderr.text().matches("reloaded ").count();
        self.configure(upstreams);
        proxy.hang_up();
        wait_until("the configuration is read", || proxy.stderr.text().matches("reloaded ").count() > before);
    }

    /// Everything of the private image, by digest: as paths under `repository`.
    fn secrets_under(&self, repository: &str) -> Vec<String> {
        paths(&self.secret, repository)
    }

    /// Pulls the private image where that is allowed.
    fn cache_secret(&self, at: SocketAddr, ns: &str) {
        for path in [tag_of(PRIVATE)].iter().chain(&self.secrets_under(PRIVATE)) {
            http::get(at, &format!("{path}?ns={ns}")).expect(200);
        }
    }

    fn a_test(&self, more: &str) -> String {
        format!("  - {{ name: a.test, tiers: [\"{}\"], {more} }}\n", self.front.addr())
    }
}

fn tag_of(repository: &str) -> String {
    format!("/v2/{repository}/manifests/v1")
}

/// All manifests, then all blobs.
fn paths(image: &Image, repository: &str) -> Vec<String> {
    let manifests = image.manifests.iter().map(|manifest| format!("/v2/{repository}/manifests/{}", manifest.digest));
    let blobs = image.blobs.iter().map(|blob| format!("/v2/{repository}/blobs/{}", blob.digest));
    manifests.chain(blobs).collect()
}

/// Asks in every way for content that must not be served here.
fn assert_withheld(at: SocketAddr, path: &str, status: u16) {
    for (method, headers) in [("GET", &[][..]), ("HEAD", &[]), ("GET", &[("range", "bytes=0-9")])] {
        let reply = http::send(at, method, path, headers, &[]).expect(status);
        assert_eq!(
            (reply.header("cache-status"), reply.header("docker-content-digest")),
            (None, None),
            "{method} {path}"
        );
    }
}

/// The same where the upstream cannot be asked: an error, of a connection or of the time that the client waited.
fn assert_unconfirmed(at: SocketAddr, path: &str) {
    for (method, headers) in [("GET", &[][..]), ("HEAD", &[]), ("GET", &[("range", "bytes=0-9")])] {
        let reply = http::send(at, method, path, headers, &[]);
        assert!(matches!(reply.status, 502 | 504), "{method} {path}: {}", reply.status);
        assert_eq!((reply.header("cache-status"), reply.header("docker-content-digest")), (None, None), "{path}");
    }
}

/// The attacker asks the public repository for each manifest and blob of the private one. An unknown digest costs the
/// upstream one `HEAD`, and no more while the answer is remembered.
#[test]
fn a_digest_of_a_private_image_opens_nothing_under_a_public_repository() {
    let world = World::new();
    let proxy = world.proxy();
    world.cache_secret(proxy.addr(), "a.test");
    http::get(proxy.addr(), &tag_of(PUBLIC)).expect(200);
    world.front.reset_log();
    let paths = world.secrets_under(PUBLIC);
    for path in &paths {
        assert_withheld(proxy.addr(), path, 404);
    }
    let log = world.front.log();
    assert!(log.iter().all(|seen| seen.method == "HEAD"), "{log:?}");
    assert_eq!(log.len(), paths.len(), "{log:?}");
    // A manifest is content of the registry's blobs too, and a blob is no manifest.
    assert_withheld(proxy.addr(), &format!("/v2/{PUBLIC}/blobs/{}", world.secret.digest()), 404);
    assert_withheld(proxy.addr(), &format!("/v2/{PUBLIC}/manifests/{}", world.secret.blobs[0].digest), 404);
    // Whoever may have it still gets it, from the cache.
    world.front.reset_log();
    world.cache_secret(proxy.addr(), "a.test");
    assert_eq!(world.front.log().len(), 0, "{:?}", world.front.log());
}

/// The attacker asks while somebody else pulls: the running fetch of the private blob is not for him.
#[test]
fn a_running_fetch_for_a_private_repository_is_not_joined_from_another_one() {
    let world = World::with_secret(Image::single(3, &[4 * MIB]));
    let proxy = world.proxy();
    let at = proxy.addr();
    http::get(at, &tag_of(PRIVATE)).expect(200);
    let layer = world.secret.blobs[1].clone();
    let [private, public] = [PRIVATE, PUBLIC].map(|repository| format!("/v2/{repository}/blobs/{}", layer.digest));
    world.front.add(Rule::on("GET", &private, Fault::StallAfter(MIB as u64)).once());
    let cut = std::thread::spawn(move || http::try_send(at, "GET", &private, &[], &[]));
    world.front.wait_for("for the private blob", |seen| seen.method == "GET" && seen.sent() >= MIB as u64);
    assert_withheld(at, &public, 404);
    assert_eq!(world.front.count("GET", &public), 0, "the upstream would have said 404 anyway");
    assert_eq!(files(&proxy.cache, "fills").len(), 1, "it was still being fetched");
    drop(proxy);
    drop(cut.join());
}

/// The same layer in two repositories is no attack: one `HEAD` shows that the second repository holds it, and the
/// content comes from the cache. What its own manifest names costs nothing at all.
#[test]
fn what_a_second_repository_holds_too_is_not_fetched_again() {
    let world = World::new();
    for repository in ["team/same", "team/blobs"] {
        world.secret.push(world.registry.addr(), repository, "v1");
    }
    let proxy = world.proxy();
    world.cache_secret(proxy.addr(), "a.test");
    world.front.reset_log();
    let index = format!("/v2/team/blobs/manifests/{}", world.secret.digest());
    for path in [index].iter().chain(&world.secrets_under("team/blobs")) {
        http::get(proxy.addr(), path).expect(200);
    }
    // The index is confirmed; it names its children, and they name the blobs.
    let log = world.front.log();
    assert!(log.len() == 1 && log[0].method == "HEAD", "{log:?}");
    world.front.reset_log();
    let blob = format!("/v2/team/same/blobs/{}", world.secret.blobs[0].digest);
    let hit = |reply: &http::Reply| reply.header("cache-status") == Some("transload; hit");
    for _ in 0..2 {
        assert!(hit(&http::send(proxy.addr(), "HEAD", &blob, &[], &[]).expect(200)));
        assert!(http::get(proxy.addr(), &blob).expect(200).body == world.secret.blobs[0].bytes);
    }
    assert_eq!((world.front.count("HEAD", &blob), world.front.log().len()), (1, 1), "{:?}", world.front.log());
}

/// Nobody may have the image any more. That it is cached changes nothing.
#[test]
fn a_new_deny_rule_holds_at_once_for_what_is_cached() {
    let world = World::new();
    let proxy = start(&world.configure(&world.a_test("")));
    let at = addr(&proxy, "http");
    world.cache_secret(at, "a.test");
    http::get(at, &tag_of(PUBLIC)).expect(200);
    world.reconfigure(&proxy, &world.a_test("deny: [\"private/**\"]"));
    world.front.reset_log();
    for path in world.secrets_under(PRIVATE).iter().chain([&tag_of(PRIVATE)]) {
        assert_withheld(at, path, 404);
    }
    http::get(at, &format!("/v2/{PRIVATE}/tags/list")).expect(404);
    assert_eq!(world.front.log().len(), 0, "not even asked for");
    for path in world.secrets_under(PUBLIC) {
        assert_withheld(at, &path, 404);
    }
    http::get(at, &tag_of(PUBLIC)).expect(200);
}

/// The upstream was removed from the configuration. Its name is unknown then, and its content belongs to no other one.
#[test]
fn an_upstream_that_was_removed_leaves_nothing_behind() {
    let world = World::new();
    let other = Registry::start();
    world.public.push(other.addr(), PUBLIC, "v1");
    let other = format!("  - {{ name: b.test, tiers: [\"{}\"] }}\n", other.addr());
    let proxy = start(&world.configure(&format!("{}{other}", world.a_test(""))));
    let at = addr(&proxy, "http");
    world.cache_secret(at, "a.test");
    world.reconfigure(&proxy, &other);
    for repository in [PRIVATE, PUBLIC] {
        for path in world.secrets_under(repository) {
            assert_withheld(at, &format!("{path}?ns=a.test"), 404);
            assert_withheld(at, &format!("{path}?ns=b.test"), 404);
            assert_withheld(at, &path, 404);
        }
    }
    assert_withheld(at, &format!("{}?ns=a.test", tag_of(PRIVATE)), 404);
    assert_withheld(at, &format!("{}?ns=b.test", tag_of(PRIVATE)), 404);
}

/// A second name for the same registry, which may have other credentials or rules: what came by the first name is
/// confirmed under the second one before it is served.
#[test]
fn a_second_name_of_an_upstream_is_another_upstream() {
    let world = World::new();
    let second = Front::before(world.registry.addr()).start();
    let names = format!("{}  - {{ name: b.test, tiers: [\"{}\"] }}\n", world.a_test(""), second.addr());
    let proxy = start(&world.configure(&names));
    let at = addr(&proxy, "http");
    world.cache_secret(at, "a.test");
    second.add(Rule::on("*", "/v2/private/", Fault::status(403)));
    for path in world.secrets_under(PRIVATE) {
        assert_withheld(at, &format!("{path}?ns=b.test"), 403);
    }
    second.clear_rules();
    second.reset_log();
    world.cache_secret(at, "b.test");
    assert_eq!((second.count("GET", "/blobs/"), second.count("HEAD", "/blobs/")), (0, 0), "{:?}", second.log());
}

/// Another registry stands behind the name now. The old one's tags and content are not the new one's, also after a
/// restart, and also while the new one cannot be asked.
#[test]
fn another_registry_behind_the_same_name_is_another_upstream() {
    let world = World::new();
    let cache = {
        let proxy = world.proxy();
        world.cache_secret(proxy.addr(), "a.test");
        wait_until("it is committed", || files(&proxy.cache, "fills").is_empty());
        proxy.kill()
    };
    let other = Registry::start();
    let front = Front::before(other.addr()).start();
    let proxy = ProxyProcess::start_in(cache, &format!("a.test={}", front.addr()), &[]);
    for path in world.secrets_under(PRIVATE).iter().chain([&tag_of(PRIVATE)]) {
        assert_withheld(proxy.addr(), path, 404);
    }
    let cache = proxy.kill();
    let unreachable = front.addr();
    drop(front);
    let proxy = ProxyProcess::start_in(cache, &format!("a.test={unreachable}"), &["--upstream-timeout", "1"]);
    for path in [&tag_of(PRIVATE), &world.secrets_under(PRIVATE)[0]] {
        assert_unconfirmed(proxy.addr(), path);
    }
    // Back at the first one all of it is as warm as before.
    let proxy = world.proxy_in(proxy.kill());
    world.front.reset_log();
    for path in world.secrets_under(PRIVATE) {
        http::get(proxy.addr(), &path).expect(200);
    }
    assert_eq!(world.front.log().len(), 0, "{:?}", world.front.log());
}

/// What a manifest of the repository named is served without any request to the upstream: by tag, by digest, children
/// and blobs, before and after a restart, in any order.
#[test]
fn a_warm_pull_asks_the_upstream_nothing_also_after_a_restart() {
    let world = World::new();
    let proxy = world.proxy();
    world.cache_secret(proxy.addr(), "a.test");
    wait_until("it is committed", || files(&proxy.cache, "fills").is_empty());
    world.front.reset_log();
    world.cache_secret(proxy.addr(), "a.test");
    // Blobs first: nothing is in memory yet.
    let proxy = world.proxy_in(proxy.kill());
    for path in world.secrets_under(PRIVATE).iter().rev() {
        http::send(proxy.addr(), "HEAD", path, &[], &[]).expect(200);
        http::get(proxy.addr(), path).expect(200);
    }
    http::get(proxy.addr(), &tag_of(PRIVATE)).expect(200);
    assert_eq!(world.front.log().len(), 0, "{:?}", world.front.log());
}

/// While the upstream cannot be asked, what is known stays served, and what is unknown is an error. It is never served
/// on the chance that it might be allowed.
#[test]
fn an_upstream_that_cannot_be_asked_confirms_nothing() {
    let world = World::new();
    let proxy = world.proxy();
    world.cache_secret(proxy.addr(), "a.test");
    http::get(proxy.addr(), &tag_of(PUBLIC)).expect(200);
    wait_until("it is committed", || files(&proxy.cache, "fills").is_empty());
    let cache = proxy.kill();
    let (at, secret) = (world.front.addr(), world.secret.clone());
    drop(world);
    let proxy = ProxyProcess::start_in(cache, &format!("a.test={at}"), &["--upstream-timeout", "1"]);
    for path in paths(&secret, PRIVATE).iter().chain([&tag_of(PRIVATE), &tag_of(PUBLIC)]) {
        http::get(proxy.addr(), path).expect(200);
    }
    let (unknown_tag, blob) = (format!("/v2/{PUBLIC}/manifests/v2"), &secret.blobs[0].digest);
    let manifests = [secret.digest(), &secret.manifests[0].digest];
    let manifests = manifests.map(|digest| format!("/v2/{PUBLIC}/manifests/{digest}"));
    let lists = ["tags/list".to_owned(), format!("referrers/{}", secret.digest())];
    // Each waits for the upstream: together they wait once.
    std::thread::scope(|scope| {
        let at = proxy.addr();
        for path in manifests.into_iter().chain([unknown_tag, format!("/v2/{PUBLIC}/blobs/{blob}")]) {
            scope.spawn(move || assert_unconfirmed(at, &path));
        }
        for list in lists {
            scope.spawn(move || {
                let status = http::get(at, &format!("/v2/{PUBLIC}/{list}")).status;
                assert!(matches!(status, 502 | 504), "{list}: {status}");
            });
        }
    });
}

/// A cache of a former version has no records. Its tags are the evidence, so that it stays warm.
#[test]
fn a_cache_without_records_is_still_served_to_who_may_have_it() {
    let world = World::new();
    let proxy = world.proxy();
    world.cache_secret(proxy.addr(), "a.test");
    wait_until("it is committed", || files(&proxy.cache, "fills").is_empty());
    let cache = proxy.kill();
    std::fs::remove_dir_all(cache.path().join("cache/repositories")).expect("removed");
    let proxy = world.proxy_in(cache);
    world.front.reset_log();
    for path in world.secrets_under(PRIVATE).iter().rev() {
        http::get(proxy.addr(), path).expect(200);
    }
    assert_eq!(world.front.log().len(), 0, "{:?}", world.front.log());
    for path in world.secrets_under(PUBLIC) {
        assert_withheld(proxy.addr(), &path, 404);
    }
}

/// The attacker may push to `public/app`. Registries check that the blobs of a manifest are there, except for foreign
/// layers (which have `urls`) and the subject: he names the private layer as the one and the private image as the other.
#[test]
fn a_foreign_layer_and_a_subject_open_nothing() {
    let world = World::new();
    let proxy = world.proxy();
    world.cache_secret(proxy.addr(), "a.test");
    let (layer, config) = (&world.secret.blobs[1], &world.public.blobs[0]);
    push_blob(world.registry.addr(), PUBLIC, config, &[]);
    let document = Document::new(
        "application/vnd.oci.image.manifest.v1+json",
        &json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": config.digest, "size": config.bytes.len(),
            },
            "layers": [{
                "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                "digest": layer.digest, "size": layer.bytes.len(), "urls": ["https://example.com/layer"],
            }],
            "subject": world.secret.descriptor(),
        }),
    );
    let path = format!("/v2/{PUBLIC}/manifests/mine");
    let content_type = [("content-type", document.media_type.as_str())];
    http::send(world.registry.addr(), "PUT", &path, &content_type, &document.bytes).expect(201);
    assert!(http::get(proxy.addr(), &path).expect(200).body == document.bytes);
    assert_withheld(proxy.addr(), &format!("/v2/{PUBLIC}/blobs/{}", layer.digest), 404);
    assert_withheld(proxy.addr(), &format!("/v2/{PUBLIC}/manifests/{}", world.secret.digest()), 404);
    // Its config is the repository's own.
    http::get(proxy.addr(), &format!("/v2/{PUBLIC}/blobs/{}", config.digest)).expect(200);
}

/// Another user of the machine reads the cache's files: they are the proxy's own. A directory that was there keeps its
/// mode, which its owner chose.
#[test]
fn nobody_else_on_the_machine_reads_the_cache() {
    let world = World::new();
    let proxy = world.proxy();
    world.cache_secret(proxy.addr(), "a.test");
    wait_until("it is committed", || files(&proxy.cache, "fills").is_empty());
    let mode = |path: &std::path::Path| std::fs::metadata(path).expect("there").permissions().mode() & 0o777;
    let root = proxy.cache.path().join("cache");
    let mut left = vec![root.clone()];
    let mut seen = (0, 0);
    while let Some(path) = left.pop() {
        if path.is_dir() {
            seen.0 += 1;
            assert_eq!(mode(&path), 0o700, "{}", path.display());
            left.extend(std::fs::read_dir(&path).expect("readable").flatten().map(|entry| entry.path()));
        } else {
            seen.1 += 1;
            assert_eq!(mode(&path), 0o600, "{}", path.display());
        }
    }
    assert!(seen.0 > 8 && seen.1 > 6, "{seen:?}");
    let cache = proxy.kill();
    std::fs::set_permissions(&root, std::fs::Permissions::from_mode(0o755)).expect("its owner");
    let _proxy = world.proxy_in(cache);
    assert_eq!(mode(&root), 0o755);
}
