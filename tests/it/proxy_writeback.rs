//! `transload proxy` with a durable tier: what only the original had is copied there, each byte read once.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

use super::support::layer::layer;
use super::support::process::RUN_TIMEOUT;
use super::support::proxied::{assert_metric_line, ops_addr};
use super::support::registry::PASSWORD;
use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, TempDir, Tool, http};

/// A proxy of `durable`, then `original`, that writes back.
fn writing_back(cache: TempDir, durable: SocketAddr, original: SocketAddr) -> ProxyProcess {
    let upstream = format!("{original}={durable},{original}");
    let flags = ["--write-back", "--listen-ops", "127.0.0.1:0", "--negative-ttl", "0"];
    ProxyProcess::start_in(cache, &upstream, &flags)
}

#[track_caller]
fn appears(at: SocketAddr, image: &Image) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while http::get(at, "/v2/library/app/manifests/v1").status != 200 {
        assert!(Instant::now() < deadline, "never written");
        std::thread::sleep(Duration::from_millis(50));
    }
    image.assert_at(at, "library/app", "v1");
}

#[test]
fn what_only_the_original_had_is_written_to_the_durable_tier() {
    let (original, durable) = (Registry::start(), Registry::start());
    let image = Image::index(7, 2, &[5000]);
    image.push(original.addr(), "library/app", "v1");
    let proxy = writing_back(TempDir::new(), durable.addr(), original.addr());
    // As containerd: HEAD the tag, GET the digest.
    http::send(proxy.addr(), "HEAD", "/v2/library/app/manifests/v1", &[], &[]).expect(200);
    http::get(proxy.addr(), &format!("/v2/library/app/manifests/{}", image.digest())).expect(200);
    appears(durable.addr(), &image);
    let ops = ops_addr(&proxy);
    assert_metric_line(ops, "transload_proxy_write_back_images_total{result=\"copied\"} 1");
    assert_metric_line(ops, "transload_proxy_write_back_queue_length 0");
}

#[test]
fn a_durable_tier_that_is_down_fails_no_pull_and_gets_the_image_after_a_restart() {
    let (original, durable) = (Registry::start(), Registry::start());
    let image = Image::single(8, &[5000]);
    image.push(original.addr(), "library/app", "v1");
    let down = || Rule::on("*", "/v2/", Fault::status(503));
    let front = Front::before(durable.addr()).rule(down()).start();
    let proxy = writing_back(TempDir::new(), front.addr(), original.addr());
    image.assert_at(proxy.addr(), "library/app", "v1");
    let shown = ops_addr(&proxy);
    assert_metric_line(shown, "transload_proxy_write_back_queue_length 1");
    assert_eq!(http::get(durable.addr(), "/v2/library/app/manifests/v1").status, 404);
    let file = proxy.cache.path().join("cache/write-back.json");
    let deadline = Instant::now() + Duration::from_secs(20);
    while !std::fs::read_to_string(&file).is_ok_and(|text| text.contains("library/app")) {
        assert!(Instant::now() < deadline, "never saved");
        std::thread::sleep(Duration::from_millis(20));
    }
    let cache = proxy.kill();
    front.clear_rules();
    let _proxy = writing_back(cache, front.addr(), original.addr());
    // Nobody pulls now.
    appears(durable.addr(), &image);
}

/// It fails no pull, and whoever watches the proxy sees it.
#[test]
fn a_durable_tier_that_takes_nothing_shows_in_the_figures() {
    let (original, durable) = (Registry::start(), Registry::start());
    let image = Image::single(14, &[5000]);
    image.push(original.addr(), "library/app", "v1");
    let front = Front::before(durable.addr()).rule(Rule::on("POST", "/uploads/", Fault::status(403))).start();
    let proxy = writing_back(TempDir::new(), front.addr(), original.addr());
    image.assert_at(proxy.addr(), "library/app", "v1");
    let ops = ops_addr(&proxy);
    let failed = "transload_proxy_write_back_images_total{result=\"failed\"} ";
    let deadline = Instant::now() + RUN_TIMEOUT;
    // It's tried again and again.
    while !http::get(ops, "/metrics").text().lines().any(|line| line.starts_with(failed)) {
        assert!(Instant::now() < deadline, "{}", http::get(ops, "/metrics").text());
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_metric_line(ops, "transload_proxy_write_back_queue_length 1");
    image.assert_at(proxy.addr(), "library/app", "v1");
}

/// By a registry's retention, say: what was written once is written again for another image.
#[test]
fn what_was_removed_from_the_durable_tier_is_written_again() {
    let (original, durable) = (Registry::start(), Registry::start());
    let (first, second) = (Image::labelled(1, &[layer(1, 5000)]), Image::labelled(2, &[layer(1, 5000)]));
    first.push(original.addr(), "library/app", "v0");
    second.push(original.addr(), "library/app", "v1");
    let proxy = writing_back(TempDir::new(), durable.addr(), original.addr());
    first.assert_at(proxy.addr(), "library/app", "v0");
    let ops = ops_addr(&proxy);
    assert_metric_line(ops, "transload_proxy_write_back_images_total{result=\"copied\"} 1");
    first.assert_at(durable.addr(), "library/app", "v0");
    std::fs::remove_dir_all(durable.storage().path().join("registry/docker")).expect("removed");
    second.assert_at(proxy.addr(), "library/app", "v1");
    appears(durable.addr(), &second);
}

/// Pulled and copied at a time, and by another client: the original sees each manifest and blob once, also
/// those of platforms that nobody pulls here.
#[test]
fn the_original_is_read_once_whoever_wants_it() {
    let (original, durable) = (Registry::start(), Registry::start());
    let image = Image::index(9, 3, &[300_000, 5000]);
    image.push(original.addr(), "library/app", "v1");
    let hub = Front::before(original.addr()).hub(|_| {}).start();
    hub.add(Rule::on("GET", "/blobs/", Fault::Delay(Duration::from_millis(100))));
    let proxy = writing_back(TempDir::new(), durable.addr(), hub.addr());
    let (at, digest) = (proxy.addr(), image.blobs[1].digest.clone());
    let pulling = std::thread::spawn(move || {
        http::get(at, "/v2/library/app/manifests/v1").expect(200);
        http::get(at, &format!("/v2/library/app/blobs/{digest}")).expect(200)
    });
    appears(durable.addr(), &image);
    pulling.join().expect("a client");
    assert_metric_line(ops_addr(&proxy), "transload_proxy_write_back_queue_length 0");
    // The store that it redirects to counts what was sent.
    let log = hub.log();
    for blob in &image.blobs {
        let sent =
            log.iter().filter(|seen| seen.method == "GET" && seen.path.contains(&blob.digest)).map(|seen| seen.status);
        assert_eq!(sent.filter(|status| *status == Some(200)).count(), 1, "{}", blob.digest);
    }
    assert_eq!(hub.hub().pulls().len(), 4, "the index, and each platform's: {:?}", hub.hub().pulls());
    // What was read for the copy is no client's request.
    let page = http::get(ops_addr(&proxy), "/metrics").text();
    assert!(page.contains("kind=\"manifest\",outcome=\"miss\"} 1\n"), "{page}");
}

/// Killed while it writes: the next one goes on from what is cached, though the original is gone.
#[test]
fn killed_in_between_it_goes_on_without_the_original() {
    let (original, durable) = (Registry::start(), Registry::start());
    let image = Image::single(10, &[400_000, 300_000]);
    image.push(original.addr(), "library/app", "v1");
    let (behind, front) = (Front::before(original.addr()).start(), Front::before(durable.addr()).start());
    let stalls = |method| Rule::on(method, "/blobs/uploads/", Fault::Stall);
    for method in ["POST", "PATCH", "PUT"] {
        front.add(stalls(method));
    }
    let proxy = writing_back(TempDir::new(), front.addr(), behind.addr());
    image.assert_at(proxy.addr(), "library/app", "v1");
    front.wait_for("an upload", |seen| seen.path.contains("/blobs/uploads/"));
    let ops = ops_addr(&proxy);
    assert_metric_line(ops, &format!("transload_proxy_fills_completed_total{{result=\"ok\"}} {}", image.blobs.len()));
    let cache = proxy.kill();
    front.clear_rules();
    behind.reset_log();
    behind.add(Rule::on("*", "/v2/", Fault::status(503)));
    let _proxy = writing_back(cache, front.addr(), behind.addr());
    appears(durable.addr(), &image);
    assert_eq!(behind.count("GET", "/blobs/"), 0);
}

/// Whose credentials the registry saw in requests of this kind.
fn users(front: &Front, methods: &[&str], path: &str) -> BTreeSet<String> {
    let log = front.log();
    let such = log.iter().filter(|seen| methods.contains(&seen.method.as_str()) && seen.path.starts_with(path));
    let header = such.filter_map(|seen| seen.header("authorization")?.strip_prefix("Basic ").map(str::to_owned));
    let user = header.map(|value| String::from_utf8(STANDARD.decode(value).expect("base64")).expect("UTF-8"));
    user.map(|user| user.split(':').next().unwrap_or_default().to_owned()).collect()
}

/// Two upstreams at one registry, each with its own account; and one that writes as another one. The file
/// that says so is taken over while it runs.
#[test]
fn each_upstream_has_its_own_credentials_and_may_write_as_another() {
    let durable = Registry::with_users(&["one", "two", "push"]);
    let front = Front::before(durable.addr()).start();
    let originals = [Registry::start(), Registry::start()];
    let image = Image::single(11, &[5000]);
    for original in &originals {
        image.push(original.addr(), "library/app", "v1");
    }
    let dir = TempDir::new();
    for user in ["one", "two", "push"] {
        let auth = STANDARD.encode(format!("{user}:{PASSWORD}"));
        dir.write(&format!("{user}.json"), format!("{{\"auths\":{{\"{}\":{{\"auth\":\"{auth}\"}}}}}}", front.addr()));
    }
    let upstream = |n: usize, path: &str, more: &str| {
        let (name, at) = (originals[n].addr(), front.addr());
        format!(
            "  - name: \"{name}\"\n    tiers: [\"{at}/{path}\", \"{name}\"]\n    auth-file: {path}.json\n    negative-ttl: 0\n{more}"
        )
    };
    let text = |two: &str| {
        let one = upstream(0, "one", "    write-back: true\n    write-back-auth-file: push.json\n");
        let two = upstream(1, "two", two);
        format!("listen: [http: \"127.0.0.1:0\"]\ncache: {{ dir: cache, keep-free: 0 }}\nupstreams:\n{one}{two}")
    };
    let config = dir.write("proxy.yaml", text(""));
    let process = Tool::transload()
        .args(&["proxy", "--config", &config])
        .env("AZURE_POD_IDENTITY_AUTHORITY_HOST", "http://127.0.0.1:1")
        .spawn();
    let line = process.stderr.wait_line("proxying ", RUN_TIMEOUT);
    let at: SocketAddr = line.split(" on http://").nth(1).and_then(|addr| addr.parse().ok()).expect("an address");
    let pull = |n: usize| {
        let ns = originals[n].addr();
        http::get(at, &format!("/v2/library/app/manifests/v1?ns={ns}")).expect(200);
    };
    let written = |path: &'static str| {
        let path = format!("/v2/{path}/library/app/manifests/v1");
        front.wait_for("the manifest", |seen| seen.method == "PUT" && seen.path == path && seen.status == Some(201));
    };
    pull(0);
    pull(1);
    written("one");
    let (reads, writes) = (["GET", "HEAD"], ["POST", "PATCH", "PUT"]);
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<String>>();
    assert_eq!(users(&front, &writes, "/v2/one/"), set(&["push"]));
    assert_eq!(users(&front, &reads, "/v2/one/"), set(&["one", "push"]));
    assert_eq!(users(&front, &reads, "/v2/two/"), set(&["two"]));
    assert_eq!(users(&front, &writes, "/v2/two/"), set(&[]), "not asked for");
    // Taken over while it runs: the second one too, by its own account.
    dir.write("proxy.yaml", text("    tag-ttl: 0\n    write-back: true\n"));
    process.hang_up();
    process.stderr.wait_line("reloaded ", RUN_TIMEOUT);
    pull(1);
    written("two");
    assert_eq!(users(&front, &writes, "/v2/two/"), set(&["two"]));
}
