//! `transload proxy`: upstreams that are away for a while, refuse the proxy, crawl, or damage what they send.

use std::io::Write as _;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tokio::io::copy_bidirectional;
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::proxy_blobs::{World, path_of, wait_until};
use super::support::background::Background;
use super::support::proxied::{assert_metric_line, ops_addr};
use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, http};

/// How long an upstream is away in these tests.
const AWAY: Duration = Duration::from_secs(5);

/// An address that refuses connections until it is opened. It is bound all the time, so no other test gets it.
struct Door {
    addr: SocketAddr,
    open: Option<oneshot::Sender<()>>,
    _background: Background,
}

impl Door {
    /// Leads to `to`.
    fn closed(to: SocketAddr) -> Self {
        let (open, opened) = oneshot::channel();
        let (tell, told) = std::sync::mpsc::channel();
        let background = Background::spawn(move || async move {
            let socket = TcpSocket::new_v4().expect("a socket");
            socket.bind("127.0.0.1:0".parse().expect("an address")).expect("a free port");
            tell.send(socket.local_addr().expect("an address")).expect("someone waits");
            if opened.await.is_err() {
                return;
            }
            let listener = socket.listen(1024).expect("listens");
            let mut connections = JoinSet::new();
            while let Ok((mut client, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut server = TcpStream::connect(to).await?;
                    copy_bidirectional(&mut client, &mut server).await
                });
            }
        });
        Self { addr: told.recv().expect("an address"), open: Some(open), _background: background }
    }

    fn open(&mut self) {
        let _ = self.open.take().map(|open| open.send(()));
    }
}

/// Asks for all of an image at once, from when the upstream is away on, and has it come back after [`AWAY`].
/// All of it is answered, whole, before containerd 2.3 would give up (30 s).
fn pulls_through(proxy: SocketAddr, image: &Image, back: impl FnOnce()) {
    let begun = Instant::now();
    let mut paths = vec!["/v2/library/app/manifests/v1".to_owned()];
    paths.extend(image.blobs.iter().map(path_of));
    let clients: Vec<_> =
        paths.into_iter().map(|path| std::thread::spawn(move || (http::get(proxy, &path), path))).collect();
    std::thread::sleep(AWAY);
    back();
    for client in clients {
        let (reply, path) = client.join().expect("a client");
        let reply = reply.expect(200);
        let wanted =
            image.blobs.iter().find(|blob| path.contains(&blob.digest)).map_or(image.bytes(), |blob| &blob.bytes);
        assert!(reply.whole && reply.body == wanted, "{path}");
    }
    assert!(begun.elapsed() < Duration::from_secs(25), "{:?}", begun.elapsed());
}

/// A node's pull waits for its head for 30 s: an upstream that restarts within that costs it only time.
#[test]
fn an_upstream_that_refuses_connections_for_five_seconds_fails_no_pull() {
    let world = World::new(&[5000, 7000]);
    let mut door = Door::closed(world.front.addr());
    let proxy = ProxyProcess::hub(door.addr, &[]);
    pulls_through(proxy.addr(), &world.image, || door.open());
}

#[test]
fn an_upstream_that_resets_connections_for_five_seconds_fails_no_pull() {
    away_by(Fault::ResetRequestAfter(0));
}

#[test]
fn an_upstream_that_answers_500_for_five_seconds_fails_no_pull() {
    away_by(Fault::status(500));
}

#[test]
fn an_upstream_that_answers_503_for_five_seconds_fails_no_pull() {
    away_by(Fault::status(503));
}

#[test]
fn an_upstream_that_is_silent_for_five_seconds_fails_no_pull() {
    away_by(Fault::Stall);
}

fn away_by(fault: Fault) {
    let world = World::new(&[5000, 7000]);
    world.front.add(Rule::on("*", "/v2/", fault));
    let proxy = ProxyProcess::hub(world.front.addr(), &[]);
    pulls_through(proxy.addr(), &world.image, || world.front.clear_rules());
}

/// The first tier gives way to the next one at once, and if that has not what is asked for, it is asked again.
#[test]
fn when_all_tiers_fail_the_first_one_is_asked_again() {
    let original = Registry::start();
    let world = World::new(&[5000]);
    world.front.add(Rule::on("*", "/v2/", Fault::status(500)));
    let proxy = two_tiers(original.addr(), world.front.addr());
    pulls_through(proxy.addr(), &world.image, || world.front.clear_rules());
    // And one that has it answers for a first one that is down.
    world.front.add(Rule::on("*", "/v2/", Fault::status(500)));
    Image::single(8, &[900]).push(original.addr(), "library/other", "v1");
    let begun = Instant::now();
    http::get(proxy.addr(), "/v2/library/other/manifests/v1").expect(200);
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
}

fn two_tiers(original: SocketAddr, first: SocketAddr) -> ProxyProcess {
    let upstream = format!("{original}={first},{original}");
    let flags = ["--listen-ops", "127.0.0.1:0", "--negative-ttl", "0", "--tag-ttl", "0"];
    ProxyProcess::start(&upstream, &flags)
}

/// Each of many clients fails, and the log has one line for the outage and one for its end.
#[test]
fn an_outage_is_two_lines_in_the_log() {
    let world = World::new(&[5000]);
    let mut door = Door::closed(world.front.addr());
    let proxy = ProxyProcess::hub(door.addr, &["--upstream-timeout", "5"]);
    let addr = proxy.addr();
    let clients: Vec<_> = (0..60)
        .map(|nth| std::thread::spawn(move || http::get(addr, &format!("/v2/library/app/manifests/t{nth}")).status))
        .collect();
    for client in clients {
        let status = client.join().expect("a client");
        assert!(matches!(status, 502 | 504), "{status}");
    }
    door.open();
    http::get(addr, "/v2/library/app/manifests/v1").expect(200);
    proxy.process.stderr.wait_line("circuit closed for ", Duration::from_secs(10));
    let log = proxy.process.stderr.text();
    let count = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!((count("circuit open for"), count("circuit closed for")), (1, 1), "{log}");
    let lines = log.lines().filter(|line| line.contains("WARN") || line.contains("ERROR")).count();
    assert_eq!(lines, 2, "{log}");
}

/// The identity of the proxy lost its role: clients are served by the original, so it must be said.
#[test]
fn a_tier_that_refuses_the_proxy_is_reported_once_and_counted_and_shown() {
    for (code, reason) in [(401, "unauthorized"), (403, "denied")] {
        let (original, first) = (Registry::start(), Registry::start());
        for seed in 0..4 {
            for to in [&original, &first] {
                Image::single(seed, &[900]).push(to.addr(), &format!("library/app{seed}"), "v1");
            }
        }
        let front = Front::before(first.addr()).rule(Rule::on("*", "/v2/", Fault::status(code))).start();
        let proxy = two_tiers(original.addr(), front.addr());
        let pull = |nth: u8| http::get(proxy.addr(), &format!("/v2/library/app{nth}/manifests/v1")).expect(200);
        (0..4).for_each(|nth| drop(pull(nth)));
        let log = || proxy.process.stderr.text();
        let count = |what: &str| log().lines().filter(|line| line.contains(what)).count();
        let told = format!("refuses this proxy ({reason})");
        assert_eq!(count(&told), 1, "{}", log());
        assert_eq!(count("WARN") + count("ERROR"), 1, "{}", log());
        let (at, name) = (ops_addr(&proxy), front.addr().to_string());
        assert_metric_line(
            at,
            &format!("transload_proxy_upstream_refusals_total{{registry=\"{name}\",reason=\"{reason}\"}} 4"),
        );
        let status = || http::get(at, "/status.json").expect(200).json();
        let refusals = |status: &serde_json::Value| {
            let all = status["upstreams"].as_array().expect("a list").clone();
            all.into_iter().find(|upstream| upstream["registry"] == name.as_str()).expect("is there")["refusals"]
                .clone()
        };
        assert_eq!(refusals(&status()), serde_json::json!({ reason: 4 }));
        // Once it is let in again, that is said too, and the next time is another one.
        front.clear_rules();
        (0..4).for_each(|nth| drop(pull(nth)));
        assert_eq!(refusals(&status()), serde_json::json!({}));
        assert_eq!((count(&told), count("no longer refuses this proxy")), (1, 1), "{}", log());
        front.add(Rule::on("*", "/v2/", Fault::status(code)));
        pull(0);
        assert_eq!(count(&told), 2, "{}", log());
    }
}

/// How many fills of one registry there may be at once, if the configuration says nothing.
const PLACES: usize = 64;

/// Sends the request for a blob, and leaves its answer unread.
fn begin(proxy: SocketAddr, path: &str) -> std::net::TcpStream {
    let mut client = std::net::TcpStream::connect(proxy).expect("connects");
    write!(client, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("sends");
    client
}

/// All places for fills are taken by one registry that sends 300 bytes a second. Another registry has places of its
/// own, while the clients of the first one wait and after they have left.
#[test]
fn a_registry_that_crawls_takes_no_place_of_another_one() {
    let (behind, image) = (Registry::start(), Image::single(7, &[30_000; PLACES]));
    image.push(behind.addr(), "app", "v1");
    let crawling = Front::before(behind.addr()).rule(Rule::on("GET", "/blobs/", Fault::Throttle(300))).start();
    let healthy = World::new(&[100_000, 100_000]);
    let (crawls, is_well) = (format!("crawling.test={}", crawling.addr()), healthy.front.addr());
    let proxy = ProxyProcess::hub(is_well, &["--upstream", &crawls]);
    let prompt = |layer: usize| {
        let (blob, begun) = (&healthy.image.blobs[layer], Instant::now());
        let reply = http::get(proxy.addr(), &path_of(blob)).expect(200);
        assert!(reply.whole && reply.body == blob.bytes);
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
        // As a fill: it has a place, and is cached.
        let name = blob.digest.trim_start_matches("sha256:");
        wait_until("it is cached", || proxy.files("blobs").iter().any(|file| file.contains(name)));
    };
    let of = |digest: &str| format!("/v2/crawling.test/app/blobs/{digest}");
    let clients: Vec<_> = image.blobs[1..].iter().map(|blob| begin(proxy.addr(), &of(&blob.digest))).collect();
    wait_until("all are being fetched", || crawling.count("GET", "/blobs/") == PLACES);
    prompt(1);
    drop(clients);
    prompt(2);
    assert_eq!(crawling.struck(), PLACES);
    assert!(proxy.files("fills").len() >= PLACES, "they crawl on: {:?}", proxy.files("fills"));
}

/// The client notices nothing: what came of the blob is right, and the second request asks for the rest.
#[test]
fn a_fill_that_crawls_is_given_up_and_goes_on_with_another_request() {
    let world = World::new(&[2_000_000]);
    world.front.add(Rule::on("GET", &world.layer().digest, Fault::Throttle(50_000)).once());
    let proxy = ProxyProcess::hub(world.front.addr(), &["--min-rate", "200KiB", "--min-rate-window", "1"]);
    let reply = http::get(proxy.addr(), &world.path()).expect(200);
    assert!(reply.whole && reply.body == world.layer().bytes);
    assert_eq!(world.front.struck(), 1);
    let log = world.front.log();
    let ranges: Vec<_> =
        log.iter().filter(|seen| seen.method == "GET").map(|seen| seen.header("range").map(str::to_owned)).collect();
    let [None, Some(rest)] = &ranges[..] else { panic!("{ranges:?}") };
    let from: usize = rest.trim_start_matches("bytes=").trim_end_matches('-').parse().expect("a range");
    assert!((1..1_000_000).contains(&from), "{rest}");
    proxy.process.stderr.wait_line("less than 204800 a second", Duration::from_secs(10));
}

/// Of a large blob several parts are fetched at once: each of them has to come at the rate.
#[test]
fn a_part_of_a_large_blob_that_crawls_is_fetched_again() {
    let world = World::new(&[64 << 20]);
    world.front.add(Rule::on("GET", &world.layer().digest, Fault::Throttle(50_000)).nth(2..=2));
    let proxy = ProxyProcess::hub(world.front.addr(), &["--min-rate", "200KiB", "--min-rate-window", "1"]);
    super::proxy_blobs::pull_manifest(proxy.addr());
    let begun = Instant::now();
    let reply = http::get(proxy.addr(), &world.path()).expect(200);
    assert!(reply.whole && reply.body == world.layer().bytes);
    assert_eq!(world.front.struck(), 1);
    // A part has more than the crawling one would bring in this time.
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    proxy.process.stderr.wait_line("less than 204800 a second", Duration::from_secs(10));
}

/// A blob that is damaged where the upstream stores it. The first pull fetches it three times, and fails within seconds;
/// those after it fail at once, are told why, and cost the upstream nothing. Once it is mended, it is served.
#[test]
fn a_blob_that_an_upstream_always_damages_fails_soon_and_then_at_once() {
    let world = World::new(&[900_000, 20_000]);
    let layer = world.layer().digest.clone();
    world.front.add(Rule::on("GET", &layer, Fault::FlipByteAt(1000)));
    let proxy = ProxyProcess::hub(world.front.addr(), &["--negative-ttl", "6"]);
    super::proxy_blobs::pull_manifest(proxy.addr());
    let begun = Instant::now();
    if let Ok(reply) = http::try_send(proxy.addr(), "GET", &world.path(), &[], &[]) {
        assert!(!reply.whole && reply.body.len() < 900_000, "{}", reply.status);
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?}", begun.elapsed());
    assert_eq!(world.front.count("GET", &layer), 3);
    let begun = Instant::now();
    for _ in 0..20 {
        let reply = http::get(proxy.addr(), &world.path()).expect(502);
        let said = reply.text();
        assert!(said.contains(&layer) && said.contains("do not have that digest (3 times)"), "{said}");
    }
    assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    assert_eq!(world.front.count("GET", &layer), 3, "it is not asked again");
    // Other blobs of the same repository are.
    http::get(proxy.addr(), &path_of(&world.image.blobs[2])).expect(200);
    world.front.clear_rules();
    wait_until("it is asked for again", || http::get(proxy.addr(), &world.path()).status == 200);
    assert!(http::get(proxy.addr(), &world.path()).expect(200).body == world.layer().bytes);
    assert_eq!(world.front.count("GET", &layer), 4);
}
