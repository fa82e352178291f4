//! `transload proxy`: manifests and tags, the closed world, and upstreams that can't be asked.

use std::time::{Duration, Instant};

use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, http};

struct World {
    registry: Registry,
    front: Front,
    image: Image,
}

impl World {
    fn new() -> Self {
        let registry = Registry::start();
        let image = Image::index(3, 2, &[5000]);
        image.push(registry.addr(), "library/app", "v1");
        let front = Front::before(registry.addr()).start();
        Self { registry, front, image }
    }
}

const TAG: &str = "/v2/library/app/manifests/v1";

fn by_digest(image: &Image) -> String {
    format!("/v2/library/app/manifests/{}", image.digest())
}

#[test]
fn a_fresh_tag_is_asked_for_once() {
    let world = World::new();
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    for _ in 0..3 {
        let reply = http::get(proxy.addr(), TAG).expect(200);
        assert!(reply.body == world.image.bytes());
        assert_eq!(reply.header("docker-content-digest"), Some(world.image.digest()));
        assert_eq!(reply.header("content-type"), Some(world.image.media_type()));
        let head = http::send(proxy.addr(), "HEAD", TAG, &[], &[]).expect(200);
        assert_eq!(head.header("content-length"), Some(&*world.image.bytes().len().to_string()));
    }
    http::get(proxy.addr(), &by_digest(&world.image)).expect(200);
    assert_eq!(world.front.log().len(), 1, "{:?}", world.front.log());
}

#[test]
fn a_head_costs_no_pull() {
    let world = World::new();
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    // As containerd: HEAD the tag, GET the digest.
    let head = http::send(proxy.addr(), "HEAD", TAG, &[], &[]).expect(200);
    assert_eq!(head.header("docker-content-digest"), Some(world.image.digest()));
    assert_eq!((world.front.count("HEAD", "/manifests/"), world.front.count("GET", "/manifests/")), (1, 0));
    assert!(http::get(proxy.addr(), &by_digest(&world.image)).expect(200).body == world.image.bytes());
    assert!(http::get(proxy.addr(), TAG).expect(200).body == world.image.bytes());
    assert_eq!((world.front.count("HEAD", "/manifests/"), world.front.count("GET", "/manifests/")), (1, 1));
}

#[test]
fn an_old_tag_is_looked_at_once_for_all_and_follows_the_upstream() {
    let world = World::new();
    let proxy = ProxyProcess::hub(world.front.addr(), &["--tag-ttl", "0"]);
    http::get(proxy.addr(), TAG).expect(200);
    world.front.reset_log();
    world.front.add(Rule::on("HEAD", "/manifests/", Fault::Delay(Duration::from_millis(500))));
    let addr = proxy.addr();
    let clients: Vec<_> = (0..10).map(|_| std::thread::spawn(move || http::get(addr, TAG).expect(200))).collect();
    clients.into_iter().for_each(|client| drop(client.join().expect("a client")));
    assert_eq!((world.front.count("HEAD", TAG), world.front.count("GET", "")), (1, 0));
    // It moves.
    world.front.clear_rules();
    let newer = Image::single(4, &[3000]);
    newer.push(world.registry.addr(), "library/app", "v1");
    assert!(http::get(proxy.addr(), TAG).expect(200).body == newer.bytes());
    // It goes.
    let gone = format!("/v2/library/app/manifests/{}", newer.digest());
    http::send(world.registry.addr(), "DELETE", &gone, &[], &[]).expect(202);
    http::get(proxy.addr(), TAG).expect(404);
    // What has a digest stays.
    assert!(http::get(proxy.addr(), &gone).expect(200).body == newer.bytes());
}

#[test]
fn what_is_not_there_is_remembered_for_a_while() {
    let world = World::new();
    let proxy = ProxyProcess::hub(world.front.addr(), &["--negative-ttl", "1"]);
    let path = "/v2/library/app/manifests/v2";
    for _ in 0..5 {
        http::get(proxy.addr(), path).expect(404);
        http::send(proxy.addr(), "HEAD", path, &[], &[]).expect(404);
    }
    assert_eq!(world.front.log().len(), 1);
    world.image.push(world.registry.addr(), "library/app", "v2");
    let deadline = Instant::now() + Duration::from_secs(10);
    while http::get(proxy.addr(), path).status == 404 {
        assert!(Instant::now() < deadline, "for ever");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn the_upstream_is_gone_and_the_proxy_starts_anew() {
    let world = World::new();
    let proxy = ProxyProcess::hub(world.front.addr(), &["--tag-ttl", "0"]);
    for manifest in &world.image.manifests {
        http::get(proxy.addr(), &format!("/v2/library/app/manifests/{}", manifest.digest)).expect(200);
    }
    for blob in &world.image.blobs {
        http::get(proxy.addr(), &format!("/v2/library/app/blobs/{}", blob.digest)).expect(200);
    }
    http::get(proxy.addr(), TAG).expect(200);
    let deadline = Instant::now() + Duration::from_secs(20);
    while proxy.files("blobs").len() < world.image.blobs.len() {
        assert!(Instant::now() < deadline, "never committed");
        std::thread::sleep(Duration::from_millis(10));
    }
    let upstream = format!("docker.io={}", world.front.addr());
    let image = world.image.clone();
    drop(world);
    image.assert_at(proxy.addr(), "library/app", "v1");
    let proxy = ProxyProcess::start_in(proxy.kill(), &upstream, &["--tag-ttl", "0", "--upstream-timeout", "3"]);
    let begun = Instant::now();
    image.assert_at(proxy.addr(), "library/app", "v1");
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
    // What was never here can't be had.
    let status = http::get(proxy.addr(), "/v2/library/app/manifests/v9").status;
    assert!(matches!(status, 502 | 504), "{status}");
}

#[test]
fn a_silent_upstream_costs_a_client_of_a_known_tag_seconds_only() {
    let world = World::new();
    let proxy = ProxyProcess::hub(world.front.addr(), &["--tag-ttl", "0"]);
    http::get(proxy.addr(), TAG).expect(200);
    world.front.add(Rule::on("*", "/v2/", Fault::Stall));
    let begun = Instant::now();
    for _ in 0..5 {
        assert!(http::get(proxy.addr(), TAG).expect(200).body == world.image.bytes());
    }
    assert!(begun.elapsed() < Duration::from_secs(10), "{:?}", begun.elapsed());
}

#[test]
fn limits_are_waited_out_then_stale_then_503() {
    let world = World::new();
    let proxy = ProxyProcess::hub(world.front.addr(), &["--tag-ttl", "0"]);
    // Within the patience.
    world.front.add(Rule::on("GET", "/manifests/", Fault::too_many(2)).once());
    let begun = Instant::now();
    assert!(http::get(proxy.addr(), TAG).expect(200).body == world.image.bytes());
    assert!(begun.elapsed() >= Duration::from_secs(2));
    let fresh = http::send(proxy.addr(), "HEAD", TAG, &[], &[]).expect(200);
    assert_eq!(fresh.header("warning"), None);
    world.front.clear_rules();
    // Past it.
    world.front.add(Rule::on("*", "/v2/", Fault::too_many(60)));
    let begun = Instant::now();
    let stale = http::get(proxy.addr(), TAG).expect(200);
    assert!(stale.body == world.image.bytes(), "stale");
    assert_eq!(stale.header("warning"), Some("110 - \"Response is Stale\""));
    let other = http::get(proxy.addr(), "/v2/library/app/manifests/v2").expect(503);
    let wait: u64 = other.header("retry-after").and_then(|text| text.parse().ok()).expect("a wait");
    assert!((30..=60).contains(&wait), "{wait}");
    http::get(proxy.addr(), &format!("/v2/library/app/blobs/{}", world.image.blobs[0].digest)).expect(503);
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
    assert_eq!(world.front.struck(), 2, "left alone after the first: {:?}", world.front.log());
}

#[test]
fn an_upstream_that_refuses_the_proxy_asks_its_clients_for_nothing() {
    let blob = |world: &World| format!("/v2/library/app/blobs/{}", world.image.blobs[0].digest);
    for status in [401, 403] {
        let world = World::new();
        let proxy = ProxyProcess::hub(world.front.addr(), &["--tag-ttl", "0"]);
        http::get(proxy.addr(), TAG).expect(200);
        world.front.add(Rule::on("*", "/v2/", Fault::status(status)));
        for path in [blob(&world), "/v2/library/app/manifests/v2".into(), "/v2/library/app/tags/list".into()] {
            for method in ["GET", "HEAD"] {
                let reply = http::send(proxy.addr(), method, &path, &[], &[]).expect(403);
                assert_eq!(reply.header("www-authenticate"), None, "{path}");
                if method == "GET" {
                    assert_eq!(reply.json()["errors"][0]["code"], "DENIED", "{path}");
                }
            }
        }
        // What is known stays of use.
        let stale = http::get(proxy.addr(), TAG).expect(200);
        assert!(stale.body == world.image.bytes() && stale.header("warning").is_some());
    }
}

/// However many clients wait for it, one question at a time probes it, and the pause between two probes has its full
/// length.
#[test]
fn a_dead_upstream_is_left_alone() {
    let world = World::new();
    let proxy = ProxyProcess::hub(world.front.addr(), &["--negative-ttl", "0", "--upstream-timeout", "5"]);
    // Of so long a timeout.
    let longest_pause = Duration::from_secs(2);
    world.front.add(Rule::on("*", "/v2/", Fault::status(503)));
    let clients = |tags: std::ops::Range<usize>| {
        let (addr, path) = (proxy.addr(), |tag: usize| format!("/v2/library/app/manifests/t{tag}"));
        let ask = |tag| std::thread::spawn(move || assert!(matches!(http::get(addr, &path(tag)).status, 502 | 504)));
        tags.map(ask).collect::<Vec<_>>().into_iter().for_each(|client| client.join().expect("a client"));
    };
    // Five failures open the circuit. When these clients have given up, it had time for its longest pause.
    clients(0..5);
    proxy.process.stderr.wait_line("circuit open for ", Duration::from_secs(1));
    world.front.reset_log();
    clients(5..30);
    let log = world.front.log();
    let probes: Vec<_> = log.chunk_by(|one, next| one.path == next.path).collect();
    assert!((1..=3).contains(&probes.len()), "{} probes in 5 s: {log:?}", probes.len());
    // A question is asked three times at once before its registry counts as failing.
    assert!(probes.iter().all(|probe| probe.len() <= 3), "{log:?}");
    for pair in probes.windows(2) {
        let (last, next) = (pair[0].last().expect("a request"), &pair[1][0]);
        assert!(next.at - last.at >= longest_pause, "{:?} between two probes", next.at - last.at);
    }
}

#[test]
fn the_world_is_closed() {
    let world = World::new();
    let other = Front::before(world.registry.addr()).start();
    let proxy =
        ProxyProcess::start(&format!("docker.io={}", world.front.addr()), &["--upstream", "ghcr.io=127.0.0.1:1"]);
    let at = proxy.addr();
    http::get(at, "/v2/").expect(200);
    let port = other.addr().port();
    for path in [
        format!("{TAG}?ns=127.0.0.1:{port}"),
        format!("{TAG}?ns=quay.io"),
        "/v2/quay.io/library/app/manifests/v1".to_owned(),
        format!("/v2/quay.io/library/app/blobs/{}", world.image.blobs[0].digest),
        "/v2/quay.io/library/app/tags/list".to_owned(),
    ] {
        let reply = http::get(at, &path).expect(404);
        assert_eq!(reply.header("oci-namespace"), None, "{path}");
    }
    assert_eq!((world.front.log().len(), other.log().len()), (0, 0));
    let secret = [("authorization", "Basic c2VjcmV0OnNlY3JldA==")];
    for path in [format!("{TAG}?ns=docker.io"), "/v2/docker.io/library/app/manifests/v1".to_owned()] {
        let reply = http::send(at, "GET", &path, &secret, &[]).expect(200);
        assert!(reply.body == world.image.bytes());
        let named = path.contains("ns=").then_some("docker.io");
        assert_eq!(reply.header("oci-namespace"), named);
    }
    assert!(world.front.log().iter().all(|seen| seen.header("authorization").is_none()));
    let tags = http::get(at, "/v2/library/app/tags/list").expect(200).json();
    assert_eq!(tags["tags"], serde_json::json!(["v1"]));
    for (method, path) in [("POST", "/v2/library/app/blobs/uploads/"), ("PUT", TAG), ("DELETE", TAG)] {
        http::send(at, method, path, &[], &[]).expect(405);
    }
}

#[test]
fn what_the_durable_tier_lacks_comes_from_the_original() {
    let (durable, hub) = (World::new(), World::new());
    let only = Image::single(9, &[7000]);
    only.push(hub.registry.addr(), "library/app", "v2");
    // The original is asked by its own name: which is where the flags say it is.
    let original = format!("{}", hub.front.addr());
    let upstream = format!("{original}={}/mirror,{original}", durable.front.addr());
    durable.image.push(durable.registry.addr(), "mirror/library/app", "v1");
    let proxy = ProxyProcess::start(&upstream, &[]);
    http::get(proxy.addr(), TAG).expect(200);
    assert_eq!(hub.front.log().len(), 0, "not asked while the durable tier has it");
    assert!(http::get(proxy.addr(), "/v2/library/app/manifests/v2").expect(200).body == only.bytes());
    for blob in &only.blobs {
        let path = format!("/v2/library/app/blobs/{}", blob.digest);
        assert!(http::get(proxy.addr(), &path).expect(200).body == blob.bytes);
    }
    http::get(proxy.addr(), "/v2/library/app/manifests/v3").expect(404);
    // The durable tier is down: the original is still there.
    durable.front.add(Rule::on("*", "/v2/", Fault::status(503)));
    only.push(hub.registry.addr(), "library/app", "v4");
    assert!(http::get(proxy.addr(), "/v2/library/app/manifests/v4").expect(200).body == only.bytes());
}

/// In the middle of a blob, too: it's gone on from there, and a client notices nothing.
#[test]
fn what_the_durable_tier_loses_in_the_middle_is_gone_on_from_by_the_original() {
    let (durable, hub) = (World::new(), World::new());
    let image = Image::single(10, &[3 << 20]);
    image.push(durable.registry.addr(), "library/app", "v5");
    image.push(hub.registry.addr(), "library/app", "v5");
    let original = hub.front.addr().to_string();
    let proxy = ProxyProcess::start(&format!("{original}={},{original}", durable.front.addr()), &[]);
    let layer = &image.blobs[1];
    durable.front.add(Rule::on("GET", &layer.digest, Fault::TruncateAt(1 << 20)).once());
    durable.front.add(Rule::on("GET", &layer.digest, Fault::status(404)));
    image.assert_at(proxy.addr(), "library/app", "v5");
    let asked: Vec<_> =
        hub.front.log().into_iter().map(|seen| (seen.path.clone(), seen.header("range").map(str::to_owned))).collect();
    let rest = (format!("/v2/library/app/blobs/{}", layer.digest), Some("bytes=1048576-".to_owned()));
    assert_eq!(asked, [rest], "and nothing else");
    assert_eq!(durable.front.struck(), 2);
}
