//! Faults do what they say.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::OCTETS;
use crate::support::http::{Reply, get, send, try_send};
use crate::support::layer::random_bytes;
use crate::support::{Fault, Front, Image, Registry, Rule, SlowLink, Tool};

/// A front before a registry that holds one image, and the path of its layer.
fn faulty(size: usize, fault: Fault) -> (Registry, Front, Vec<u8>, String) {
    let registry = Registry::start();
    let image = Image::single(1, &[size]);
    image.push(registry.addr(), "a", "v1");
    let front = Front::before(registry.addr()).rule(Rule::on("GET", "/blobs/", fault).once()).start();
    let path = format!("/v2/a/blobs/{}", image.blobs[1].digest);
    (registry, front, image.blobs[1].bytes.clone(), path)
}

#[test]
fn a_rule_strikes_the_requests_it_names() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .rule(Rule::on("GET", "/v2/", Fault::status(503)).nth(2..=3))
        .rule(Rule::on("HEAD", "/v2/", Fault::page(502, "Bad Gateway")).host("elsewhere"))
        .rule(Rule::on("*", "mark", Fault::status(500)).when(|seen| seen.header("x-mark").is_some()))
        .start();
    let statuses: Vec<u16> = (0..4).map(|_| get(front.addr(), "/v2/").status).collect();
    assert_eq!(statuses, [200, 503, 503, 200]);
    send(front.addr(), "HEAD", "/v2/", &[], &[]).expect(200);
    send(front.addr(), "HEAD", "/v2/", &[("host", "elsewhere")], &[]).expect(502);
    get(front.addr(), "/v2/?mark").expect(200);
    send(front.addr(), "GET", "/v2/?mark", &[("x-mark", "1")], &[]).expect(500);
    assert_eq!(front.struck(), 4);
    assert_eq!(registry.count("GET", "/v2/"), 3);
}

#[test]
fn statuses_redirects_and_headers() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .rule(Rule::on("GET", "/v2/a", Fault::too_many(7)))
        .rule(Rule::on("GET", "/v2/b", Fault::Redirect("http://elsewhere.example/x".to_owned())))
        .rule(Rule::on("GET", "/v2/c", Fault::CountDown(Duration::from_millis(1300))))
        .rule(Rule::on("POST", "/v2/d", Fault::without("location")))
        .start();
    let limited = get(front.addr(), "/v2/a").expect(429);
    assert_eq!(limited.header("retry-after"), Some("7"));
    assert_eq!(limited.json()["errors"][0]["code"], "TOOMANYREQUESTS");
    let moved = get(front.addr(), "/v2/b").expect(307);
    assert_eq!(moved.header("location"), Some("http://elsewhere.example/x"));
    let started = Instant::now();
    assert_eq!(get(front.addr(), "/v2/c").expect(429).header("retry-after"), Some("2"));
    let mut told = vec![2];
    while let Some(seconds) = get(front.addr(), "/v2/c").header("retry-after") {
        told.push(seconds.parse().expect("seconds"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(told.is_sorted_by(|a, b| a >= b) && told.last() == Some(&1), "{told:?}");
    assert!(started.elapsed() > Duration::from_millis(1250), "{:?}", started.elapsed());
    let session = send(front.addr(), "POST", "/v2/d/blobs/uploads/", &[], &[]).expect(202);
    assert_eq!(session.header("location"), None);
}

#[test]
fn a_truncated_body_ends_exactly_there() {
    let (_registry, front, bytes, path) = faulty(2_000_000, Fault::TruncateAt(1_234_567));
    let reply = get(front.addr(), &path).expect(200);
    assert!(!reply.whole);
    assert_eq!(reply.header("content-length"), Some("2000000"));
    assert!(reply.body == bytes[..1_234_567], "{} bytes", reply.body.len());
    assert!(get(front.addr(), &path).expect(200).body == bytes);
}

#[test]
fn a_reset_body_breaks_off() {
    let (_registry, front, bytes, path) = faulty(2_000_000, Fault::ResetAfter(100_000));
    let reply = get(front.addr(), &path).expect(200);
    assert!(!reply.whole);
    assert!(reply.body.len() <= 100_000 && bytes.starts_with(&reply.body));
    assert_eq!(front.log()[0].sent(), 100_000);
}

#[test]
fn a_flipped_byte_and_nothing_else() {
    let (_registry, front, mut bytes, path) = faulty(300_000, Fault::FlipByteAt(200_001));
    let reply = get(front.addr(), &path).expect(200);
    bytes[200_001] = !bytes[200_001];
    assert!(reply.whole && reply.body == bytes);
}

#[test]
fn a_wrong_length_is_a_correct_message() {
    for by in [-3, 5] {
        let (_registry, front, bytes, path) = faulty(50_000, Fault::WrongLength(by));
        let reply = get(front.addr(), &path).expect(200);
        assert!(reply.whole);
        let length = if by < 0 { 49_997 } else { 50_005 };
        assert_eq!(reply.body.len(), length);
        let same = bytes.len().min(length);
        assert!(reply.body[..same] == bytes[..same]);
    }
}

#[test]
fn stalls_delays_and_throttles_take_their_time() {
    let curl = |front: &Front, path: &str, seconds: &str| {
        let url = format!("http://{}{path}", front.addr());
        let args = ["-sS", "-o", "/dev/null", "-w", "%{size_download}", "--max-time", seconds, &url];
        Tool::new("curl").args(&args).run()
    };
    let (_registry, front, _, path) = faulty(50_000, Fault::Stall);
    assert_eq!(curl(&front, &path, "0.3").exits(28).stdout, "0");
    let (_registry, front, _, path) = faulty(50_000, Fault::StallAfter(20_000));
    assert_eq!(curl(&front, &path, "1.5").exits(28).stdout, "20000");
    let (_registry, front, _, path) = faulty(50_000, Fault::Delay(Duration::from_millis(300)));
    let run = curl(&front, &path, "30").ok();
    assert!(run.took >= Duration::from_millis(300), "{:?}", run.took);
    let (_registry, front, _, path) = faulty(50_000, Fault::Throttle(100_000));
    let run = curl(&front, &path, "30").ok();
    assert!((450..5000).contains(&run.took.as_millis()), "{:?}", run.took);
}

#[test]
fn a_lost_response_has_reached_the_registry() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).rule(Rule::on("POST", "/uploads/", Fault::LoseResponse).once()).start();
    assert!(try_send(front.addr(), "POST", "/v2/a/blobs/uploads/", &[], &[]).is_err());
    assert_eq!(registry.count("POST", "/uploads/"), 1);
    assert_eq!(front.log()[0].status, None);
}

#[test]
fn a_reset_request_reaches_the_registry_in_part() {
    let registry = Registry::start();
    let front =
        Front::before(registry.addr()).rule(Rule::on("PATCH", "", Fault::ResetRequestAfter(70_000)).once()).start();
    let session = send(front.addr(), "POST", "/v2/a/blobs/uploads/", &[], &[]).expect(202);
    let location = path_of(&session);
    assert!(try_send(front.addr(), "PATCH", &location, &[OCTETS], &random_bytes(1, 200_000)).is_err());
    let directory = registry.storage().join("registry");
    let deadline = Instant::now() + Duration::from_secs(10);
    // distribution notices the broken connection in its own time.
    while uploaded_bytes(&directory) != 70_000 {
        assert!(Instant::now() < deadline, "{} bytes", uploaded_bytes(&directory));
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_link_takes_its_time() {
    let registry = Registry::start();
    let image = Image::single(1, &[300_000]);
    image.push(registry.addr(), "a", "v1");
    let rtt = Duration::from_millis(100);
    let link = SlowLink::start(registry.addr(), rtt, 1_000_000);
    // One round trip for the handshake, one for the request.
    let started = Instant::now();
    get(link.addr(), "/v2/").expect(200);
    let took = started.elapsed();
    assert!(took >= rtt * 2 && took < rtt * 20, "{took:?}");
    let started = Instant::now();
    let path = format!("/v2/a/blobs/{}", image.blobs[1].digest);
    assert!(get(link.addr(), &path).expect(200).body == image.blobs[1].bytes);
    let took = started.elapsed().as_millis();
    assert!((480..5000).contains(&took), "{took} ms");
}

fn path_of(reply: &Reply) -> String {
    let location = reply.header("location").expect("a location");
    location[location.find("/v2/").expect("a path")..].to_owned()
}

/// Bytes in the only upload under way.
fn uploaded_bytes(registry: &str) -> u64 {
    let mut total = 0;
    let mut open = vec![std::path::PathBuf::from(registry)];
    while let Some(directory) = open.pop() {
        for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
            if entry.path().is_dir() {
                open.push(entry.path());
            } else if entry.file_name() == "data" {
                total += entry.metadata().map_or(0, |metadata| metadata.len());
            }
        }
    }
    total
}

#[test]
fn a_body_cut_under_tls_is_seen_as_cut() {
    let registry = Registry::start();
    let image = Image::single(1, &[500_000]);
    image.push(registry.addr(), "a", "v1");
    for (h2, code) in [(false, 18), (true, 92)] {
        let rule = Rule::on("GET", "/blobs/", Fault::TruncateAt(123_456));
        let front = Front::before(registry.addr()).rule(rule).tls();
        let front = if h2 { front.h2() } else { front }.start();
        let path = format!("v2/a/blobs/{}", image.blobs[1].digest);
        let url = format!("https://localhost:{}/{path}", front.addr().port());
        let ca = front.ca_file().expect("an authority");
        let args = ["-sS", "--cacert", &ca, "-o", "/dev/null", "-w", "%{size_download}", &url];
        let run = Tool::new("curl").args(&args).run();
        assert!(run.code == code || run.code == 56, "{run:?}");
        assert_eq!(run.stdout, "123456");
    }
}

#[test]
fn an_early_answer_is_seen_unless_the_front_is_abrupt() {
    let registry = Registry::start();
    let body = random_bytes(1, 8_000_000);
    let rule = || Rule::on("PUT", "", Fault::page(413, "413 Request Entity Too Large"));
    let front = Front::before(registry.addr()).rule(rule()).start();
    send(front.addr(), "PUT", "/v2/a/blobs/uploads/1", &[], &body).expect(413);
    let front = Front::before(registry.addr()).rule(rule()).abrupt().start();
    // Whether the answer or the reset is seen is up to the kernel; the body is not read anyway.
    drop(try_send(front.addr(), "PUT", "/v2/a/blobs/uploads/1", &[], &body));
    assert_eq!(front.log()[0].received(), 0);
}

/// What a client gets that begins to read late: bytes of the answer, and how it ended.
fn read_late(front: &Front, path: &str) -> (usize, std::io::Result<usize>) {
    let mut stream = TcpStream::connect(front.addr()).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a timeout");
    write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\n\r\n").expect("a request sent");
    // By now the kernel's buffers are full and the front waits for us.
    std::thread::sleep(Duration::from_millis(300));
    let mut answer = Vec::new();
    let end = stream.read_to_end(&mut answer);
    let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").map_or(answer.len(), |at| at + 4);
    (answer.len() - head, end)
}

#[test]
fn a_truncation_loses_nothing_before_it_and_a_reset_is_one() {
    let registry = Registry::start();
    let image = Image::single(1, &[7_000_000]);
    image.push(registry.addr(), "a", "v1");
    let path = format!("/v2/a/blobs/{}", image.blobs[1].digest);
    // Some of these fill the kernel's buffers, but not hyper's, which drops its own on an error.
    std::thread::scope(|scope| {
        for at in (1_000_001..7_000_000).step_by(300_000) {
            let (registry, path) = (&registry, &path);
            scope.spawn(move || {
                let rule = Rule::on("GET", "/blobs/", Fault::TruncateAt(at as u64));
                let front = Front::before(registry.addr()).rule(rule).start();
                let (bytes, end) = read_late(&front, path);
                assert_eq!((bytes, end.is_ok()), (at, true));
            });
        }
    });
    let (_registry, front, _, path) = faulty(300_000, Fault::ResetAfter(200_000));
    let (bytes, end) = read_late(&front, &path);
    assert!(bytes <= 200_000);
    assert_eq!(end.expect_err("a reset").kind(), std::io::ErrorKind::ConnectionReset);
}
