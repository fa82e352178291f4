//! `transload proxy`: blobs, with faults at the upstream, requests counted there.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::support::images::Blob;
use super::support::proxied::{assert_blobs_valid, files};
use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, TempDir, http};

const MIB: usize = 1 << 20;

/// A registry with one image, and a front that counts what the proxy asks.
pub(super) struct World {
    registry: Registry,
    pub(super) front: Front,
    pub(super) image: Image,
}

impl World {
    pub(super) fn new(layers: &[usize]) -> Self {
        let registry = Registry::start();
        let image = Image::single(7, layers);
        image.push(registry.addr(), "library/app", "v1");
        let front = Front::before(registry.addr()).start();
        Self { registry, front, image }
    }

    /// The first layer.
    pub(super) fn layer(&self) -> &Blob {
        &self.image.blobs[1]
    }

    pub(super) fn path(&self) -> String {
        path_of(self.layer())
    }
}

pub(super) fn path_of(blob: &Blob) -> String {
    format!("/v2/library/app/blobs/{}", blob.digest)
}

/// As a client that knows the image: the proxy has the sizes from the manifest.
pub(super) fn pull_manifest(at: SocketAddr) {
    http::get(at, "/v2/library/app/manifests/v1").expect(200);
}

fn ranged(at: SocketAddr, path: &str, range: &str) -> http::Reply {
    http::send(at, "GET", path, &[("range", range)], &[])
}

#[track_caller]
pub(super) fn wait_until(what: &str, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_herd_on_one_uncached_blob_is_one_request() {
    let world = World::new(&[8 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(16 << 20)));
    pull_manifest(proxy.addr());
    let (addr, path) = (proxy.addr(), world.path());
    let clients: Vec<_> = (0..20)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || http::get(addr, &path).expect(200))
        })
        .collect();
    for client in clients {
        let reply = client.join().expect("a client");
        assert!(reply.whole && reply.body == world.layer().bytes);
    }
    assert_eq!(world.front.count("GET", "/blobs/"), 1);
    assert_eq!(world.front.count("HEAD", "/blobs/"), 0);
    let sent: u64 = world.front.log().iter().filter(|seen| seen.path.contains("/blobs/")).map(|seen| seen.sent()).sum();
    assert_eq!(sent, world.layer().bytes.len() as u64);
    // Warm, and by the other ways to say the name.
    for path in [
        world.path(),
        format!("/v2/docker.io/library/app/blobs/{}", world.layer().digest),
        format!("/v2/library/app/blobs/{}?ns=docker.io", world.layer().digest),
    ] {
        assert!(http::get(addr, &path).expect(200).body == world.layer().bytes, "{path}");
    }
    assert_eq!(world.front.count("GET", "/blobs/"), 1);
    wait_until("it is committed", || files(&proxy.cache, "fills").is_empty());
    assert_eq!(assert_blobs_valid(&proxy.cache), 2);
}

#[test]
fn a_client_that_leaves_changes_nothing() {
    let world = World::new(&[4 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(4 << 20)));
    pull_manifest(proxy.addr());
    let mut leaver = TcpStream::connect(proxy.addr()).expect("connects");
    write!(leaver, "GET {} HTTP/1.1\r\nhost: x\r\n\r\n", world.path()).expect("sends");
    leaver.read_exact(&mut [0; 1000]).expect("it has begun");
    drop(leaver);
    // Nobody asks meanwhile.
    wait_until("it is fetched to its end", || !proxy.files("blobs").is_empty());
    assert!(http::get(proxy.addr(), &world.path()).expect(200).body == world.layer().bytes);
    assert_eq!(world.front.count("GET", "/blobs/"), 1);
}

#[test]
fn a_client_that_reads_slowly_does_not_hold_the_others() {
    let world = World::new(&[16 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    pull_manifest(proxy.addr());
    let mut slow = TcpStream::connect(proxy.addr()).expect("connects");
    write!(slow, "GET {} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n", world.path()).expect("sends");
    slow.read_exact(&mut [0; 100]).expect("it has begun");
    assert!(http::get(proxy.addr(), &world.path()).expect(200).body == world.layer().bytes);
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).expect("the slow one gets all");
    assert!(rest.ends_with(&world.layer().bytes[MIB..]));
    assert_eq!(world.front.count("GET", "/blobs/"), 1);
}

#[test]
fn a_broken_fetch_goes_on_by_range() {
    let world = World::new(&[6 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::TruncateAt(2 << 20)).nth(1..=1));
    world.front.add(Rule::on("GET", "/blobs/", Fault::ResetAfter(1 << 20)).nth(2..=2));
    pull_manifest(proxy.addr());
    let reply = http::get(proxy.addr(), &world.path()).expect(200);
    assert!(reply.whole && reply.body == world.layer().bytes);
    assert_eq!(world.front.struck(), 2);
    let asked: Vec<_> = world.front.log().into_iter().filter(|seen| seen.path.contains("/blobs/")).collect();
    assert_eq!(asked.len(), 3);
    assert_eq!(asked[1].header("range"), Some("bytes=2097152-"), "{asked:?}");
    // What came isn't asked for again; a reset may lose what was on the way.
    let sent: u64 = asked.iter().map(super::support::SeenRequest::sent).sum();
    let size = world.layer().bytes.len() as u64;
    assert!(sent >= size && sent <= size + (1 << 20), "{sent} of {size}");
}

#[test]
fn what_is_corrupt_is_cut_and_never_stored() {
    let world = World::new(&[3 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::FlipByteAt(1000)).once());
    pull_manifest(proxy.addr());
    let (addr, path) = (proxy.addr(), world.path());
    let clients: Vec<_> = [None, Some("bytes=0-"), Some("bytes=2000000-")]
        .map(|range| {
            let path = path.clone();
            std::thread::spawn(move || {
                let headers: Vec<_> = range.map(|range| ("range", range)).into_iter().collect();
                http::try_send(addr, "GET", &path, &headers, &[])
            })
        })
        .into_iter()
        .collect();
    for client in clients {
        // Whoever came after the failure had it fetched anew.
        if let Ok(reply) = client.join().expect("a client") {
            let good = world.layer().bytes.ends_with(&reply.body);
            assert!(!reply.whole || good, "status {}", reply.status);
        }
    }
    assert_eq!(world.front.struck(), 1);
    assert!(http::get(addr, &path).expect(200).body == world.layer().bytes);
    assert!(world.front.count("GET", "/blobs/") >= 2);
    wait_until("it is committed", || !proxy.files("blobs").is_empty());
    assert_blobs_valid(&proxy.cache);
}

#[test]
fn a_corrupt_blob_alone() {
    let world = World::new(&[MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &["--negative-ttl", "1"]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::FlipByteAt(10)));
    pull_manifest(proxy.addr());
    for _ in 0..2 {
        if let Ok(reply) = http::try_send(proxy.addr(), "GET", &world.path(), &[], &[]) {
            let cut = !reply.whole && reply.body.len() < world.layer().bytes.len();
            assert!(cut || reply.status == 502, "{}", reply.status);
        }
    }
    assert_eq!(proxy.files("blobs"), Vec::<String>::new());
    assert_eq!(proxy.files("fills"), Vec::<String>::new());
    world.front.clear_rules();
    wait_until("it is asked for again", || http::get(proxy.addr(), &world.path()).status == 200);
    assert!(http::get(proxy.addr(), &world.path()).expect(200).body == world.layer().bytes);
}

#[test]
fn ranges_of_what_is_not_cached() {
    let world = World::new(&[24 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    // Two seconds for the whole.
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(12 << 20)));
    pull_manifest(proxy.addr());
    let bytes = &world.layer().bytes;
    let size = bytes.len();
    let near = ranged(proxy.addr(), &world.path(), "bytes=100-199").expect(206);
    assert_eq!(near.header("content-range"), Some(&*format!("bytes 100-199/{size}")));
    assert_eq!(near.body, &bytes[100..200]);
    assert_eq!(world.front.count("GET", "/blobs/"), 1, "the whole is fetched for it");
    let begun = Instant::now();
    let far = size - 3 * MIB;
    let reply = ranged(proxy.addr(), &world.path(), &format!("bytes={far}-{}", far + 9)).expect(206);
    assert_eq!(reply.body, &bytes[far..far + 10]);
    assert!(begun.elapsed() < Duration::from_millis(1000), "waited for the whole: {:?}", begun.elapsed());
    assert_eq!(world.front.count("GET", "/blobs/"), 2, "a read beside");
    // With the last byte in it: not before the whole is right.
    let reply = ranged(proxy.addr(), &world.path(), "bytes=-1000000").expect(206);
    assert!(reply.whole && reply.body == bytes[size - 1_000_000..]);
    wait_until("it is committed", || !proxy.files("blobs").is_empty());
    // Hot.
    world.front.reset_log();
    for (range, part) in [("bytes=0-0", 0..1), ("bytes=5-", 5..size), ("bytes=-3", size - 3..size)] {
        let reply = ranged(proxy.addr(), &world.path(), range).expect(206);
        assert!(reply.body == bytes[part], "{range}");
    }
    let beyond = ranged(proxy.addr(), &world.path(), &format!("bytes={size}-")).expect(416);
    assert_eq!(beyond.header("content-range"), Some(&*format!("bytes */{size}")));
    assert_eq!(world.front.log().len(), 0);
}

#[test]
fn a_head_fetches_nothing() {
    let world = World::new(&[MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    let reply = http::send(proxy.addr(), "HEAD", &world.path(), &[], &[]).expect(200);
    assert_eq!(reply.header("content-length"), Some(&*world.layer().bytes.len().to_string()));
    assert_eq!((world.front.count("GET", "/blobs/"), world.front.count("HEAD", "/blobs/")), (0, 1));
    assert_eq!(proxy.files("blobs"), Vec::<String>::new());
    // Without the manifest the size is asked for, once, then the blob.
    assert!(http::get(proxy.addr(), &world.path()).expect(200).body == world.layer().bytes);
    assert_eq!((world.front.count("GET", "/blobs/"), world.front.count("HEAD", "/blobs/")), (1, 1));
    let nowhere = format!("/v2/library/app/blobs/sha256:{}", "0".repeat(64));
    for method in ["HEAD", "GET", "HEAD", "GET"] {
        http::send(proxy.addr(), method, &nowhere, &[], &[]).expect(404);
    }
    assert_eq!(world.front.count("*", &nowhere), 1, "remembered for a while");
}

#[test]
fn a_large_blob_comes_by_several_requests() {
    let world = World::new(&[80 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &["--parallel-fetch", "4"]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::TruncateAt(1 << 20)).nth(3..=3));
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(30_000_000)));
    pull_manifest(proxy.addr());
    let reply = http::get(proxy.addr(), &world.path()).expect(200);
    assert!(reply.whole && reply.body == world.layer().bytes);
    let cut = |seen: &super::support::SeenRequest| seen.fault == Some(Fault::TruncateAt(1 << 20));
    assert_eq!(world.front.log().iter().filter(|seen| cut(seen)).count(), 1);
    let sent: u64 = world.front.log().iter().filter(|seen| seen.path.contains("/blobs/")).map(|seen| seen.sent()).sum();
    assert_eq!(sent, world.layer().bytes.len() as u64, "each byte once");
    assert!(world.front.count("GET", "/blobs/") > 4);
    wait_until("it is committed", || !proxy.files("blobs").is_empty());
    assert_blobs_valid(&proxy.cache);
}

#[test]
fn an_upstream_without_ranges_is_no_trouble() {
    let world = World::new(&[70 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::IgnoreRange));
    pull_manifest(proxy.addr());
    let reply = http::get(proxy.addr(), &world.path()).expect(200);
    assert!(reply.whole && reply.body == world.layer().bytes);
}

#[test]
fn what_does_not_fit_is_passed_on() {
    let world = World::new(&[3 * MIB, 100_000]);
    let proxy = ProxyProcess::hub(world.front.addr(), &["--cache-size", "2MiB"]);
    pull_manifest(proxy.addr());
    for _ in 0..2 {
        let reply = http::get(proxy.addr(), &world.path()).expect(200);
        assert!(reply.whole && reply.body == world.layer().bytes);
    }
    let reply = ranged(proxy.addr(), &world.path(), "bytes=1000-1999").expect(206);
    assert!(reply.body == world.layer().bytes[1000..2000]);
    assert_eq!(world.front.count("GET", "/blobs/"), 3);
    // Still verified.
    world.front.add(Rule::on("GET", "/blobs/", Fault::FlipByteAt(10)).once());
    let reply = http::get(proxy.addr(), &world.path()).expect(200);
    assert!(!reply.whole && reply.body.len() < world.layer().bytes.len(), "{} bytes", reply.body.len());
    assert_eq!(world.front.struck(), 1);
    assert_eq!(proxy.files("blobs"), Vec::<String>::new());
    // What fits is cached.
    http::get(proxy.addr(), &path_of(&world.image.blobs[2])).expect(200);
    wait_until("it is committed", || proxy.files("blobs").len() == 1);
    assert_eq!(proxy.process.stderr.text().matches("streaming without caching").count(), 1, "said once");
}

#[test]
fn the_least_asked_for_goes() {
    let world = World::new(&[400_000, 400_000, 400_000, 400_000]);
    let proxy = ProxyProcess::hub(world.front.addr(), &["--cache-size", "1000000"]);
    pull_manifest(proxy.addr());
    let layers = &world.image.blobs[1..];
    for round in 0..3 {
        for layer in layers {
            assert!(http::get(proxy.addr(), &path_of(layer)).expect(200).body == layer.bytes, "round {round}");
            wait_until("it is committed", || files(&proxy.cache, "fills").is_empty());
            let bytes: u64 = proxy.files("blobs").iter().map(|path| size_of(&proxy.cache, path)).sum();
            assert!(bytes <= 1_000_000, "{bytes} bytes are kept");
        }
    }
    assert_eq!(assert_blobs_valid(&proxy.cache), 3, "two blobs and the manifest");
}

fn size_of(cache: &TempDir, path: &str) -> u64 {
    std::fs::metadata(cache.path().join("cache").join(path)).expect("a file").len()
}

#[test]
fn a_file_that_was_cut_short_or_removed_is_fetched_again() {
    let world = World::new(&[MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    pull_manifest(proxy.addr());
    // Who comes right after the commit may still follow the fetch, in the file that it has open.
    let again = |at, fetches| {
        wait_until("it is fetched again", || {
            assert!(http::get(at, &world.path()).expect(200).body == world.layer().bytes);
            world.front.count("GET", "/blobs/") == fetches
        });
    };
    http::get(proxy.addr(), &world.path()).expect(200);
    wait_until("it is committed", || !proxy.files("blobs").is_empty());
    let file = proxy.cache.path().join("cache").join(&proxy.files("blobs")[0]);
    let cut = std::fs::File::options().write(true).open(&file).expect("the file");
    cut.set_len(1000).expect("cuts");
    again(proxy.addr(), 2);
    wait_until("it is committed again", || !proxy.files("blobs").is_empty());
    std::fs::remove_file(&file).expect("removed");
    again(proxy.addr(), 3);
    // And when nobody was there.
    wait_until("it is committed again", || !proxy.files("blobs").is_empty());
    let cache = proxy.kill();
    std::fs::File::options().write(true).open(&file).expect("the file").set_len(1000).expect("cuts");
    let proxy = ProxyProcess::start_in(cache, &format!("docker.io={}", world.front.addr()), &[]);
    again(proxy.addr(), 4);
}

/// A small disk of its own: needs root, as containerd does.
struct Disk(TempDir);

impl Disk {
    fn new(options: &str) -> Self {
        let dir = TempDir::new();
        mount(&["-t", "tmpfs", "-o", options, "tmpfs", &dir.join("")]);
        Self(dir)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        let unmounted = std::process::Command::new("umount").arg("-l").arg(self.0.path()).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[track_caller]
fn mount(args: &[&str]) {
    let done = std::process::Command::new("mount").args(args).output().expect("mount runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_disk_that_is_full_in_the_middle_or_read_only_is_read_past() {
    let world = World::new(&[5 * MIB, 5 * MIB + 1000]);
    let disk = Disk::new("size=6m");
    let dir = disk.0.join("cache");
    let proxy = ProxyProcess::hub(world.front.addr(), &["--cache", &dir, "--idle-timeout", "3"]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::StallAfter(MIB as u64)).once());
    pull_manifest(proxy.addr());
    let mut clients = [1, 1].map(|_| begun(proxy.addr(), &world.path()));
    wait_until("all that has come is on the disk", || {
        let fills = std::fs::read_dir(disk.0.join("cache/fills")).into_iter().flatten().flatten();
        fills.map(|file| file.metadata().map_or(0, |file| file.len())).sum::<u64>() == MIB as u64
    });
    // It has written some, and what is left of the disk is too little for another one, which is passed on.
    let other = &world.image.blobs[2];
    assert!(http::get(proxy.addr(), &path_of(other)).expect(200).body == other.bytes);
    // But then something else takes it.
    let taken = std::fs::write(disk.0.join("other"), vec![1; 8 * MIB]);
    assert_eq!(taken.map_err(|error| error.kind()), Err(std::io::ErrorKind::StorageFull));
    for client in &mut clients {
        let mut rest = Vec::new();
        client.read_to_end(&mut rest).expect("to its end");
        assert!(rest.ends_with(&world.layer().bytes[MIB..]));
    }
    assert_eq!(world.front.struck(), 1);
    let said = proxy.process.stderr.text();
    assert_eq!(said.matches("streaming without caching").count(), 1, "{said}");
    assert!(said.contains("the cache has no space for 5243880 bytes"), "{said}");
    http::get(proxy.addr(), "/v2/library/app/manifests/v1").expect(200);
    // What it can't write at all: what is there is served, the rest passed on.
    drop(proxy);
    mount(&["-o", "remount,ro", &disk.0.join("")]);
    let proxy = ProxyProcess::hub(world.front.addr(), &["--cache", &dir]);
    for blob in &world.image.blobs {
        assert!(http::get(proxy.addr(), &path_of(blob)).expect(200).body == blob.bytes);
    }
    http::get(proxy.addr(), "/v2/library/app/manifests/v1").expect(200);
    let said = proxy.process.stderr.text();
    assert!(said.contains("Read-only file system") && said.contains("nothing new will be cached"), "{said}");
}

/// By the time its first bytes come, the disk has no room any more. The blob is large enough to be fetched in parts;
/// the client gets all of it, and no byte is requested twice.
#[test]
fn no_byte_of_a_large_blob_that_cannot_be_cached_is_requested_twice() {
    let world = World::new(&[64 * MIB]);
    let disk = Disk::new("size=70m");
    let dir = disk.0.join("cache");
    let proxy = ProxyProcess::hub(world.front.addr(), &["--cache", &dir]);
    pull_manifest(proxy.addr());
    let digest = &world.layer().digest;
    world.front.add(Rule::on("GET", digest, Fault::Delay(Duration::from_secs(2))).once());
    let (addr, path) = (proxy.addr(), world.path());
    let client = std::thread::spawn(move || http::get(addr, &path).expect(200));
    world.front.wait_for("for the blob", |seen| seen.method == "GET" && seen.path.contains(digest));
    mount(&["-o", "remount,size=1m", &disk.0.join("")]);
    let reply = client.join().expect("a client");
    assert!(reply.whole && reply.body == world.layer().bytes);
    let log = world.front.log();
    let asked: Vec<_> = log.iter().filter(|seen| seen.method == "GET" && seen.path.contains(digest)).collect();
    let ranges: Vec<_> = asked.iter().map(|seen| seen.header("range").unwrap_or_default().to_owned()).collect();
    assert_eq!(asked.iter().map(|seen| seen.sent()).sum::<u64>(), 64 * MIB as u64, "{ranges:?}");
    assert_eq!((ranges.len(), ranges[0].starts_with("bytes=0-")), (2, true), "{ranges:?}");
    assert!(proxy.process.stderr.text().contains("the cache has no space for"), "{}", proxy.process.stderr.text());
}

/// A client that got the answer's beginning.
fn begun(at: SocketAddr, path: &str) -> TcpStream {
    let mut client = TcpStream::connect(at).expect("connects");
    write!(client, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sends");
    client.read_exact(&mut [0; 1000]).expect("it has begun");
    client
}

#[test]
fn it_ends_when_told_to_and_lets_pulls_end() {
    let world = World::new(&[4 * MIB]);
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(4 << 20)));
    pull_manifest(proxy.addr());
    let mut client = begun(proxy.addr(), &world.path());
    proxy.process.terminate();
    let mut rest = Vec::new();
    client.read_to_end(&mut rest).expect("to its end");
    assert!(rest.ends_with(&world.layer().bytes[MIB..]));
    let ProxyProcess { process, cache, .. } = proxy;
    process.finish(Duration::from_secs(10)).exits(0);
    assert_blobs_valid(&cache);
}

#[test]
fn killed_at_any_moment_it_has_whole_files_only() {
    let layers = [300_000; 12];
    let world = World::new(&layers);
    let upstream = format!("docker.io={}", world.front.addr());
    world.front.add(Rule::on("GET", "/blobs/", Fault::Throttle(8 << 20)));
    for tag in ["v2", "v3"] {
        Image::single(u64::from(tag.as_bytes()[1]), &[1000]).push(world.registry.addr(), "library/app", tag);
    }
    let mut cache = TempDir::new();
    let mut committed = Vec::new();
    for round in 0..50_u64 {
        let proxy = ProxyProcess::start_in(cache, &upstream, &["--tag-ttl", "0"]);
        assert_eq!(proxy.files("fills"), Vec::<String>::new(), "swept at the start");
        let here = proxy.files("blobs");
        assert!(committed.iter().all(|path| here.contains(path)), "lost what was committed");
        // Each round fetches some anew.
        for path in here.iter().skip(usize::try_from(round % 4).expect("small")).step_by(3) {
            std::fs::remove_file(proxy.cache.path().join("cache").join(path)).expect("removed");
        }
        // Manifests and tags too: those that are fetched for the first time, and those that are written anew.
        for path in [proxy.files("manifests"), proxy.files("tags")].concat() {
            if round % 3 != 0 {
                std::fs::remove_file(proxy.cache.path().join("cache").join(path)).expect("removed");
            }
        }
        let addr = proxy.addr();
        let tags = ["v1", "v2", "v3"].map(|tag| format!("/v2/library/app/manifests/{tag}"));
        for path in world.image.blobs.iter().map(path_of).chain(tags) {
            std::thread::spawn(move || http::try_send(addr, "GET", &path, &[], &[]));
        }
        std::thread::sleep(Duration::from_millis(round * 7 % 120));
        // What has a name at this moment must have it ever after.
        committed = proxy.files("blobs");
        cache = proxy.kill();
        assert_blobs_valid(&cache);
        for path in files(&cache, "tags") {
            let tag = std::fs::read(cache.path().join("cache").join(&path)).expect("a file");
            let tag: serde_json::Value = serde_json::from_slice(&tag).expect("no half one");
            assert!(
                tag["name"].as_str().is_some_and(|name| name.starts_with("docker.io library/app v")),
                "{path}: {tag}"
            );
        }
    }
    let proxy = ProxyProcess::start_in(cache, &upstream, &[]);
    for blob in &world.image.blobs {
        assert!(http::get(proxy.addr(), &path_of(blob)).expect(200).body == blob.bytes);
    }
}
