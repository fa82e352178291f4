//! `transload proxy ls`, `rm` and `verify`.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::support::process::RUN_TIMEOUT;
use super::support::proxied::{admin_addr, assert_blobs_valid, assert_metric_line, files, ops_addr};
use super::support::{Image, ProxyProcess, Registry, TempDir, http, transload};

const TAG: &str = "/v2/library/app/manifests/v1";

/// A proxy that has cached an image with a layer of 5000 bytes, and the layer's path at it.
fn filled() -> (Registry, ProxyProcess, Image) {
    let registry = Registry::start();
    let image = Image::single(3, &[5000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = ProxyProcess::hub(registry.addr(), &[]);
    http::get(proxy.addr(), TAG).expect(200);
    http::get(proxy.addr(), &layer(&image)).expect(200);
    committed(&proxy);
    (registry, proxy, image)
}

/// Waits until the layer has its name: its last byte may be with the client a moment before.
#[track_caller]
fn committed(proxy: &ProxyProcess) {
    let deadline = Instant::now() + RUN_TIMEOUT;
    while proxy.files("blobs").is_empty() {
        assert!(Instant::now() < deadline, "the layer was not committed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn layer(image: &Image) -> String {
    format!("/v2/library/app/blobs/{}", digest(image))
}

fn digest(image: &Image) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(image.bytes()).expect("JSON");
    manifest["layers"][0]["digest"].as_str().expect("a digest").to_owned()
}

/// Changes one byte of the layer on the disk.
fn corrupt(cache: &TempDir) {
    let blob = files(cache, "blobs").into_iter().find(|path| path.ends_with(".5000")).expect("the layer");
    let path = cache.path().join("cache").join(blob);
    let mut bytes = std::fs::read(&path).expect("a file");
    bytes[77] ^= 1;
    std::fs::write(&path, bytes).expect("written");
}

#[test]
fn ls_tells_what_is_cached_also_while_a_proxy_runs() {
    let (_registry, proxy, image) = filled();
    let dir = proxy.cache.join("cache");
    let found = transload(&["proxy", "ls", "--cache", &dir, "--output", "json"]).exits(0).json();
    assert_eq!(found["tags"][0]["name"], "docker.io/library/app:v1", "{found}");
    assert_eq!(found["tags"][0]["digest"], image.digest());
    assert!(found["tags"][0]["age_seconds"].as_u64().expect("an age") < 100, "{found}");
    assert_eq!(found["blobs"], serde_json::json!({ "count": 1, "bytes": 5000 }));
    assert_eq!(found["manifests"]["bytes"], image.bytes().len());
    let text = transload(&["proxy", "ls", "--cache", &dir]).exits(0).stdout;
    assert!(text.contains("docker.io/library/app:v1") && text.contains("1 blob, 4.9 KiB"), "{text}");
    // A slip in the path is no empty cache.
    transload(&["proxy", "ls", "--cache", &proxy.cache.join("cach")]).exits(2);
}

#[test]
fn rm_takes_out_tags_and_digests_but_not_under_a_proxy() {
    let (_registry, proxy, image) = filled();
    let dir = proxy.cache.join("cache");
    let rm = |what: &str| transload(&["proxy", "rm", "--cache", &dir, what]);
    let refused = rm(&digest(&image)).exits(2);
    assert!(refused.stderr.contains("a proxy uses the cache"), "{}", refused.stderr);
    assert_eq!(proxy.files("blobs").len(), 1);
    let cache = proxy.kill();
    rm("docker.io/library/app:v1").exits(0);
    assert_eq!((files(&cache, "tags").len(), files(&cache, "manifests/sha256").len()), (0, 1));
    rm("app:v1").exits(1);
    rm(&digest(&image)).exits(0);
    assert_eq!(files(&cache, "blobs").len(), 0);
    rm(&format!("app@{}", image.digest())).exits(0);
    assert_eq!(files(&cache, "manifests/sha256").len(), 0);
    rm(&digest(&image)).exits(1);
}

#[test]
fn verify_drops_what_is_corrupt_and_the_running_proxy_fetches_it_again() {
    let (registry, proxy, image) = filled();
    let dir = proxy.cache.join("cache");
    let verify = || transload(&["proxy", "verify", "--cache", &dir, "--output", "json"]);
    let sound = verify().exits(0).json();
    assert_eq!((&sound["verified"]["count"], &sound["removed"]), (&2.into(), &serde_json::json!([])));
    corrupt(&proxy.cache);
    let found = verify().exits(3).json();
    assert_eq!(found["removed"], serde_json::json!([digest(&image)]));
    assert_eq!(proxy.files("blobs").len(), 0);
    // The proxy has noticed nothing, and serves what is right.
    let whole = http::get(registry.addr(), &layer(&image)).expect(200).body;
    assert!(http::get(proxy.addr(), &layer(&image)).expect(200).body == whole);
    committed(&proxy);
    verify().exits(0);
    assert_eq!(assert_blobs_valid(&proxy.cache), 2);
}

/// Nobody asks for it: the proxy looks by itself, and says so.
#[test]
fn the_scrubber_finds_what_is_corrupt() {
    let (registry, proxy, image) = filled();
    let cache = proxy.kill();
    corrupt(&cache);
    let upstream = format!("docker.io={}", registry.addr());
    let proxy = ProxyProcess::start_in(cache, &upstream, &["--scrub", "10MiB", "--listen-ops", "127.0.0.1:0"]);
    proxy
        .process
        .stderr
        .wait_line(&format!("cached content {} does not match its digest", digest(&image)), RUN_TIMEOUT);
    assert_eq!(proxy.files("blobs").len(), 0);
    assert_metric_line(ops_addr(&proxy), "transload_proxy_corrupt_removed_total 1");
    let whole = http::get(registry.addr(), &layer(&image)).expect(200).body;
    assert!(http::get(proxy.addr(), &layer(&image)).expect(200).body == whole);
    committed(&proxy);
    assert_blobs_valid(&proxy.cache);
    let wrong = transload(&["proxy", "--upstream", "docker.io", "--cache", "/nowhere", "--scrub", "fast"]).exits(2);
    assert!(wrong.stderr.contains("invalid rate") && wrong.stderr.contains("or off"), "{}", wrong.stderr);
}

/// A proxy that answers those who operate it, with an image in its cache; and their address.
fn filled_with_ops(flags: &[&str]) -> (Registry, ProxyProcess, Image, SocketAddr) {
    let (registry, proxy, image) = filled();
    let upstream = format!("docker.io={}", registry.addr());
    let flags = [&["--listen-ops", "127.0.0.1:0", "--scrub", "off"], flags].concat();
    let proxy = ProxyProcess::start_in(proxy.kill(), &upstream, &flags);
    let at = ops_addr(&proxy);
    (registry, proxy, image, at)
}

#[test]
fn a_running_proxys_cache_is_listed_and_thinned() {
    let (registry, proxy, image, at) = filled_with_ops(&["--upstream-timeout", "1"]);
    let at = at.to_string();
    let run = |command: &str, more: &[&str]| {
        transload(&[&["proxy", command, "--admin", &at, "--output", "json"], more].concat())
    };
    let found = run("ls", &[]).exits(0).json();
    assert_eq!(found["tags"][0]["name"], "docker.io/library/app:v1", "{found}");
    assert_eq!((&found["tags"][0]["digest"], &found["blobs"]["bytes"]), (&image.digest().into(), &5000.into()));
    // It remembers the tag and the manifest, and forgets them with the files.
    http::get(proxy.addr(), TAG).expect(200);
    run("rm", &["docker.io/library/app:v1"]).exits(0);
    run("rm", &[image.digest()]).exits(0);
    run("rm", &[&digest(&image)]).exits(0);
    let gone = run("rm", &[&digest(&image)]).exits(1);
    assert!(gone.stderr.contains("is not in the cache"), "{}", gone.stderr);
    assert_eq!(files(&proxy.cache, "blobs").len() + files(&proxy.cache, "tags").len(), 0);
    let found = run("ls", &[]).exits(0).json();
    assert_eq!((&found["tags"], &found["blobs"]["count"]), (&serde_json::json!([]), &0.into()), "{found}");
    run("rm", &["no such reference"]).exits(2);
    // What was removed is fetched again, and with the upstream gone it isn't there.
    http::get(proxy.addr(), TAG).expect(200);
    run("rm", &[image.digest()]).exits(0);
    drop(registry);
    assert_ne!(http::get(proxy.addr(), TAG).status, 200);
    let refused = transload(&["proxy", "rm", "--cache", &proxy.cache.join("cache"), "app:v1"]).exits(2);
    assert!(refused.stderr.contains("--admin"), "{}", refused.stderr);
    transload(&["proxy", "ls"]).exits(2);
}

/// What would go is told first, and stays; then it goes, and is fetched again when it's asked for.
#[test]
fn a_running_proxys_cache_is_collected() {
    let (registry, proxy, image) = filled();
    let cache = proxy.kill();
    let old = std::time::SystemTime::now() - Duration::from_secs(90 * 24 * 60 * 60);
    let blob = std::fs::File::options().write(true).open(cache.path().join("cache").join(&files(&cache, "blobs")[0]));
    let times = std::fs::FileTimes::new().set_accessed(old).set_modified(old);
    blob.and_then(|file| file.set_times(times)).expect("set");
    let flags = ["--listen-ops", "127.0.0.1:0", "--scrub", "off"];
    let proxy = ProxyProcess::start_in(cache, &format!("docker.io={}", registry.addr()), &flags);
    let at = ops_addr(&proxy).to_string();
    let gc = |more: &[&str]| {
        transload(&[&["proxy", "gc", "--admin", &at, "--older-than", "30d", "--output", "json"], more].concat())
    };
    let planned = gc(&["--dry-run"]).exits(0).json();
    assert_eq!((&planned["dryRun"], proxy.files("blobs").len()), (&true.into(), 1), "{planned}");
    let freed = gc(&[]).exits(0).json();
    assert_eq!((&freed["dryRun"], proxy.files("blobs").len()), (&false.into(), 0), "{freed}");
    assert_eq!((&freed["removed"], &freed["busy"]), (&planned["removed"], &0.into()));
    assert!(freed["removed"].to_string().contains("5000"), "{freed}");
    http::get(proxy.addr(), &layer(&image)).expect(200);
    committed(&proxy);
    // It's young now.
    assert_eq!(gc(&[]).exits(0).json()["removed"], serde_json::json!({}));
}

#[test]
fn a_running_proxy_verifies_itself() {
    let (_registry, proxy, image, at) = filled_with_ops(&[]);
    let at = at.to_string();
    let verify = || transload(&["proxy", "verify", "--admin", &at, "--output", "json"]);
    assert_eq!(verify().exits(0).json()["verified"]["count"], 2);
    corrupt(&proxy.cache);
    let found = verify().exits(3).json();
    assert_eq!(found["removed"], serde_json::json!([digest(&image)]));
    assert_eq!((proxy.files("blobs").len(), verify().exits(0).json()["verified"]["count"].clone()), (0, 1.into()));
}

/// What a client is just reading stays, however old it is, and whoever asks for it to go.
#[test]
fn what_is_being_read_stays() {
    let registry = Registry::start();
    // More than fits the buffers of sockets.
    let image = Image::single(4, &[64 << 20]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = ProxyProcess::hub(registry.addr(), &["--listen-ops", "127.0.0.1:0", "--scrub", "off"]);
    let at = ops_addr(&proxy).to_string();
    image.assert_at(proxy.addr(), "library/app", "v1");
    let large = image.blobs.iter().max_by_key(|blob| blob.bytes.len()).expect("a layer");
    let deadline = Instant::now() + RUN_TIMEOUT;
    while proxy.files("blobs").len() < image.blobs.len() {
        assert!(Instant::now() < deadline, "not committed");
        std::thread::sleep(Duration::from_millis(5));
    }
    let mut reading = std::net::TcpStream::connect(proxy.addr()).expect("connects");
    let head = format!("GET /v2/library/app/blobs/{} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n", large.digest);
    std::io::Write::write_all(&mut reading, head.as_bytes()).expect("sent");
    std::io::Read::read_exact(&mut reading, &mut [0; 512]).expect("its head");
    let refused = transload(&["proxy", "rm", "--admin", &at, &large.digest]).exits(1);
    assert!(refused.stderr.contains("is being read"), "{}", refused.stderr);
    let old = std::time::SystemTime::now() - Duration::from_secs(90 * 24 * 60 * 60);
    for path in proxy.files("blobs") {
        let file =
            std::fs::File::options().write(true).open(proxy.cache.path().join("cache").join(path)).expect("opens");
        file.set_times(std::fs::FileTimes::new().set_accessed(old).set_modified(old)).expect("set");
    }
    let gc = |flags: &[&str]| {
        transload(&[&["proxy", "gc", "--admin", &at, "--older-than", "30d", "--output", "json"], flags].concat())
    };
    // It was used just now, by the proxy's own word; what was only written long ago is another matter.
    let freed = gc(&[]).exits(0).json();
    let kept = proxy.files("blobs");
    assert!(kept.iter().any(|path| path.contains(large.digest.split(':').nth(1).expect("hex"))), "{freed}");
    drop(reading);
}

#[test]
fn gc_frees_what_is_left_over_too_old_or_too_much() {
    let (registry, proxy, image) = filled();
    let other = Image::single(8, &[7000]);
    other.push(registry.addr(), "library/other", "v1");
    other.assert_at(proxy.addr(), "library/other", "v1");
    let deadline = Instant::now() + RUN_TIMEOUT;
    while proxy.files("blobs").len() < 1 + other.blobs.len() {
        assert!(Instant::now() < deadline, "not committed");
        std::thread::sleep(Duration::from_millis(5));
    }
    let cache = proxy.kill();
    let dir = cache.join("cache");
    let root = cache.path().join("cache");
    std::fs::write(root.join("fills/1-0"), vec![0; 3000]).expect("written");
    let cut = files(&cache, "blobs").into_iter().find(|path| path.ends_with(".7000")).expect("the layer");
    std::fs::write(root.join(&cut), b"cut").expect("written");
    let old = std::time::SystemTime::now() - Duration::from_secs(90 * 24 * 60 * 60);
    let aged = files(&cache, "blobs").into_iter().find(|path| path.ends_with(".5000")).expect("the layer");
    let file = std::fs::File::options().write(true).open(root.join(&aged)).expect("opens");
    file.set_times(std::fs::FileTimes::new().set_accessed(old).set_modified(old)).expect("set");
    let gc = |flags: &[&str]| transload(&[&["proxy", "gc", "--cache", &dir, "--output", "json"], flags].concat());
    let all = ["blobs", "fills", "manifests", "tags"].map(|below| files(&cache, below).len());
    let planned = gc(&["--older-than", "30d", "--dry-run"]).exits(0).json();
    assert_eq!(planned["dryRun"], true);
    assert_eq!(["blobs", "fills", "manifests", "tags"].map(|below| files(&cache, below).len()), all);
    let freed = gc(&["--older-than", "30d"]).exits(0).json();
    assert_eq!(freed["removed"], planned["removed"]);
    let sum = |why: &str| (freed["removed"][why]["count"].clone(), freed["removed"][why]["bytes"].clone());
    assert_eq!(
        (sum("left"), sum("cut"), sum("unused")),
        ((1.into(), 3000.into()), (1.into(), 3.into()), (1.into(), 5000.into()))
    );
    assert_eq!(files(&cache, "fills").len(), 0);
    assert_eq!(files(&cache, "tags").len(), 2);
    // Nothing is too much until a bound says so.
    assert_eq!(gc(&[]).exits(0).json()["removed"], serde_json::json!({}));
    let freed = gc(&["--cache-size", "1"]).exits(0).json();
    assert_eq!(files(&cache, "blobs").len(), 0, "{freed}");
    let text = transload(&["proxy", "gc", "--cache", &dir]).exits(0).stdout;
    assert_eq!(text, "freed 0 B in 0 files\n");
    // What is old and named by a tag that isn't stays; both gone together when both are old.
    for path in [files(&cache, "manifests/sha256"), files(&cache, "tags")].concat() {
        let file = std::fs::File::options().write(true).open(root.join(path)).expect("opens");
        file.set_times(std::fs::FileTimes::new().set_accessed(old).set_modified(old)).expect("set");
    }
    gc(&["--older-than", "30d"]).exits(0);
    assert_eq!(files(&cache, "manifests").len() + files(&cache, "tags").len(), 0);
    drop(image);
}

/// A page in a browser on the machine, or a name that leads here, gets nothing; neither does the network.
#[test]
fn who_is_refused_by_the_admin_paths() {
    let (_registry, proxy, _image, at) = filled_with_ops(&[]);
    let ours = ("x-transload-admin", "1");
    let ask = |method: &str, path: &str, headers: &[(&str, &str)]| http::send(at, method, path, headers, &[]);
    for (method, path) in [("GET", "/admin/cache"), ("POST", "/admin/gc"), ("POST", "/admin/verify")] {
        ask(method, path, &[ours]).expect(200);
        ask(method, path, &[]).expect(403);
        for page in [("origin", "http://127.0.0.1:9090"), ("origin", "null"), ("sec-fetch-site", "cross-site")] {
            ask(method, path, &[ours, page]).expect(403);
        }
        ask(method, path, &[ours, ("host", "rebound.example:80")]).expect(403);
    }
    ask("DELETE", "/admin/cache?what=docker.io/library/app:v1", &[("origin", "http://evil.example"), ours]).expect(403);
    ask("GET", "/admin/gc", &[ours]).expect(405);
    ask("GET", "/admin/other", &[ours]).expect(404);
    ask("DELETE", "/admin/cache", &[ours]).expect(400);
    ask("POST", "/admin/gc?older-than=x", &[ours]).expect(400);
    // What others may read stays readable, and the whole cache is there.
    http::get(at, "/healthz").expect(200);
    assert_eq!((proxy.files("tags").len(), proxy.files("blobs").len()), (1, 1));
    let open = ProxyProcess::start("docker.io", &["--listen-ops", "0.0.0.0:0"]);
    let port = ops_addr(&open).port();
    let at = SocketAddr::from(([127, 0, 0, 1], port));
    http::get(at, "/healthz").expect(200);
    let refused = http::send(at, "GET", "/admin/cache", &[ours], &[]).expect(403);
    assert!(refused.text().contains("loopback only"), "{}", refused.text());
    let run = transload(&["proxy", "ls", "--admin", &at.to_string()]).exits(1);
    assert!(run.stderr.contains("hint: start the proxy with --listen-admin"), "{}", run.stderr);
}

/// With an address of their own, orders are taken at no other; and nothing else is answered there.
#[test]
fn orders_have_an_address_of_their_own() {
    for beside in ["0.0.0.0:0", "127.0.0.1:0"] {
        let flags = ["--listen-ops", beside, "--listen-admin", "127.0.0.1:0"];
        let proxy = ProxyProcess::start("docker.io=127.0.0.1:1", &flags);
        let at = admin_addr(&proxy);
        let ls = |at: SocketAddr| transload(&["proxy", "ls", "--admin", &at.to_string()]);
        assert!(ls(at).exits(0).stdout.starts_with("0 manifests"), "{beside}");
        let open = SocketAddr::from(([127, 0, 0, 1], ops_addr(&proxy).port()));
        http::get(open, "/readyz").expect(200);
        let refused = ls(open).exits(1);
        assert!(refused.stderr.contains("--listen-admin"), "{}", refused.stderr);
        let ours = ("x-transload-admin", "1");
        http::send(open, "GET", "/admin/cache", &[ours], &[]).expect(403);
        for path in ["/healthz", "/metrics", "/status.json", "/", "/v2/"] {
            http::send(at, "GET", path, &[ours], &[]).expect(404);
        }
        // Browsers are refused here, too.
        http::send(at, "GET", "/admin/cache", &[ours, ("origin", "null")], &[]).expect(403);
        http::send(at, "GET", "/admin/cache", &[ours, ("host", "rebound.example:80")], &[]).expect(403);
        http::send(at, "GET", "/admin/cache", &[ours], &[]).expect(200);
    }
    // Without the other one there is nothing but this.
    let proxy = ProxyProcess::start("docker.io=127.0.0.1:1", &["--listen-admin", "[::1]:0"]);
    assert!(admin_addr(&proxy).is_ipv6());
    transload(&["proxy", "gc", "--admin", &admin_addr(&proxy).to_string()]).exits(0);
}

#[test]
fn orders_are_not_taken_from_elsewhere() {
    for address in ["0.0.0.0:0", "[::]:0", "192.0.2.1:9091"] {
        let wrong = ["proxy", "--upstream", "docker.io", "--cache", "/nowhere", "--listen-admin", address];
        let run = transload(&wrong).exits(2);
        let said = format!("error: local: cannot use --listen-admin: {address} is reachable from other machines");
        // Behind the time of the line.
        let (_, shown) = run.stderr.split_once(' ').expect("a time");
        assert!(shown.starts_with(&said), "{}", run.stderr);
        assert!(run.stderr.contains("Z hint: ") && run.stderr.contains("127.0.0.1:9091"), "{}", run.stderr);
    }
}
