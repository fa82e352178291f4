//! The support proven by itself, so that the tests standing on it mean something.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde_json::json;

use super::support::http::{self, Reply, get, send, try_send};
use super::support::images::{Blob, DOCKER_LIST, OCI_INDEX};
use super::support::layer::{layer, noise};
use super::support::registry::PASSWORD;
use super::support::{Fault, Front, Image, Link, Registry, Rule, TempDir, Tool, skopeo};

const OCTETS: (&str, &str) = ("content-type", "application/octet-stream");

#[test]
fn registry_starts_counts_and_forgets() {
    let registry = Registry::start();
    send(registry.addr(), "GET", "/v2/a/manifests/none?x=1", &[], &[]).expect(404);
    send(registry.addr(), "POST", "/v2/a/blobs/uploads/", &[], &[]).expect(202);
    let wanted = [
        ("GET".to_owned(), "/v2/a/manifests/none?x=1".to_owned(), 404),
        ("POST".to_owned(), "/v2/a/blobs/uploads/".to_owned(), 202),
    ];
    assert_eq!(registry.requests(), wanted);
    assert_eq!(registry.count("GET", "/manifests/"), 1);
    registry.reset_log();
    assert_eq!(registry.requests(), []);
}

#[test]
fn registry_with_basic_lets_only_its_user_in() {
    let registry = Registry::with_basic("mirror");
    get(registry.addr(), "/v2/").expect(401);
    let image = Image::single(1, &[2000]);
    image.push_as(
        registry.addr(),
        "a",
        "v1",
        &[("authorization", &basic("mirror", PASSWORD))],
    );
    let wrong = basic("mirror", "wrong");
    send(
        registry.addr(),
        "GET",
        "/v2/",
        &[("authorization", &wrong)],
        &[],
    )
    .expect(401);
}

#[test]
fn registry_stops_on_drop() {
    let addr = Registry::start().addr();
    assert!(try_send(addr, "GET", "/v2/", &[], &[]).is_err());
}

#[test]
fn skopeo_takes_every_kind_of_image() {
    let registry = Registry::start();
    let at = registry.addr();
    let kinds = [
        ("single", Image::single(1, &[2000, 100_000, 1_000_000])),
        ("docker", Image::docker(2, &[5000])),
        ("tiny", Image::tiny(3)),
        ("list", Image::docker_list(4, 3, &[3000])),
        ("nested", Image::nested(5)),
    ];
    for (tag, image) in &kinds {
        image.push(at, "kinds", tag);
        image.assert_at(at, "kinds", tag);
    }
    let directory = TempDir::new();
    for (tag, image) in &kinds[..4] {
        let from = format!("docker://{at}/kinds:{tag}");
        let to = format!("dir:{}", directory.join(tag));
        skopeo(&[
            "copy",
            "--all",
            "--preserve-digests",
            "--src-tls-verify=false",
            "--insecure-policy",
            &from,
            &to,
        ])
        .ok();
        assert_eq!(
            directory.read(&format!("{tag}/manifest.json")).as_bytes(),
            image.bytes()
        );
    }
    // skopeo would compress a layer that is not gzip, and fail on one that is no good.
    let (from, to) = (
        format!("docker://{at}/kinds:single"),
        format!("oci:{}:x", directory.join("layout")),
    );
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        "--insecure-policy",
        &from,
        &to,
    ])
    .ok();
    let blob = kinds[0].1.blobs[2].digest.replace(':', "/");
    assert!(
        directory.path().join("layout/blobs").join(blob).exists(),
        "the layer was changed"
    );
}

#[test]
fn tiny_is_as_hello_world() {
    let tiny = Image::tiny(7);
    assert_eq!((tiny.blobs.len(), tiny.manifests.len()), (48, 25));
    assert!(
        (30_000..60_000).contains(&tiny.size()),
        "{} bytes",
        tiny.size()
    );
    assert_eq!(Image::tiny(7).digest(), tiny.digest());
    assert_ne!(Image::tiny(8).digest(), tiny.digest());
}

#[test]
fn odd_images_are_what_they_claim() {
    let registry = Registry::start();
    let at = registry.addr();
    let subject = Image::single(1, &[2000]);
    let artifacts = [
        Image::artifact(2, "application/spdx+json", Some(&subject)),
        Image::artifact(3, "application/vnd.example", Some(&subject)),
    ];
    subject.push(at, "odd", "v1");
    Image::referrers(&artifacts).push(at, "odd", &subject.referrers_tag());
    let listed = get_manifest(at, "odd", &subject.referrers_tag()).json();
    assert_eq!(
        listed["manifests"][0]["artifactType"],
        "application/spdx+json"
    );
    assert_eq!(listed["mediaType"], OCI_INDEX);
    let first = get_manifest(at, "odd", artifacts[0].digest()).json();
    assert_eq!(first["subject"]["digest"], subject.digest());
    assert_eq!(
        first["config"]["mediaType"],
        "application/vnd.oci.empty.v1+json"
    );

    Image::signature(&subject).push(at, "odd", &subject.cosign_tag());
    let foreign = Image::foreign(4);
    foreign.push(at, "odd", "foreign");
    assert_eq!(foreign.blobs.len(), 2, "config and the second layer");
    let sha512 = Image::sha512(5);
    sha512.push(at, "odd", "sha512");
    sha512.assert_at(at, "odd", "sha512");
    assert!(sha512.blobs[1].digest.starts_with("sha512:"));
    assert_eq!(
        get_manifest(at, "odd", "foreign").json()["layers"][0]["urls"][0],
        "https://example.com/layer.tar.gz"
    );
    let list = Image::docker_list(6, 2, &[2000]);
    list.push(at, "odd", "list");
    assert_eq!(
        get_manifest(at, "odd", "list").header("content-type"),
        Some(DOCKER_LIST)
    );
}

#[test]
fn layers_have_their_size_and_are_real() {
    for size in [0, 100, 1561, 1600, 2047, 100_000, 1_000_003] {
        assert_eq!(layer(1, size).bytes.len(), size);
    }
    let directory = TempDir::new();
    let file = directory.write("layer.tar.gz", layer(9, 200_000).bytes);
    let listed = Tool::new("tar").args(&["-tvzf", &file]).run().ok();
    assert!(listed.stdout.contains("noise-9"), "{}", listed.stdout);
    assert_ne!(noise(1, 64), noise(2, 64));
}

#[test]
fn front_passes_and_logs() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).start();
    let image = Image::single(1, &[2000, 3_000_000]);
    image.push(front.addr(), "a/b", "v1");
    image.assert_at(registry.addr(), "a/b", "v1");
    image.assert_at(front.side(), "a/b", "v1");
    let put = front
        .log()
        .into_iter()
        .filter(|seen| seen.method == "PUT")
        .nth(2)
        .expect("the second layer");
    assert_eq!(
        (put.received(), put.status, put.side),
        (3_000_000, Some(201), false)
    );
    front.reset_log();
    let path = format!("/v2/a/b/blobs/{}", image.blobs[2].digest);
    let range = [("range", "bytes=10-19"), ("authorization", "Basic eDp5")];
    let reply = send(front.addr(), "GET", &path, &range, &[]).expect(206);
    assert_eq!(reply.body, image.blobs[2].bytes[10..20]);
    let head = send(front.addr(), "HEAD", &path, &[], &[]).expect(200);
    assert_eq!(head.header("content-length"), Some("3000000"));
    let log = front.log();
    assert_eq!(log.len(), 2);
    assert_eq!(
        (log[0].scheme(), log[0].header("range"), log[0].sent()),
        (Some("Basic"), Some("bytes=10-19"), 10)
    );
}

#[test]
fn front_speaks_tls_under_its_names() {
    let registry = Registry::start();
    Image::single(1, &[2000]).push(registry.addr(), "a", "v1");
    for h2 in [false, true] {
        let front = Front::before(registry.addr())
            .name("registry.example")
            .tls();
        let front = if h2 { front.h2() } else { front }.start();
        let url = format!(
            "https://registry.example:{}/v2/a/manifests/v1",
            front.addr().port()
        );
        let resolve = format!("registry.example:{}:127.0.0.1", front.addr().port());
        let ca = front.ca_file().expect("an authority");
        let curl = |more: &[&str]| {
            let accept = format!("accept: {}", http::ACCEPT);
            let base = [
                "-sS",
                "-H",
                &accept,
                "--fail",
                "-w",
                "%{http_version}",
                "-o",
                "/dev/null",
                &url,
            ];
            Tool::new("curl").args(&base).args(more).run()
        };
        let run = curl(&["--cacert", &ca, "--resolve", &resolve]).ok();
        assert_eq!(run.stdout, if h2 { "2" } else { "1.1" });
        assert_eq!(
            front.log()[0].host,
            format!("registry.example:{}", front.addr().port())
        );
        curl(&["--resolve", &resolve]).exits(60);
    }
}

// ---- faults ----

/// A front before a registry that holds one image, and the path of its layer.
fn faulty(size: usize, fault: Fault) -> (Registry, Front, Vec<u8>, String) {
    let registry = Registry::start();
    let image = Image::single(1, &[size]);
    image.push(registry.addr(), "a", "v1");
    let front = Front::before(registry.addr())
        .rule(Rule::on("GET", "/blobs/", fault).once())
        .start();
    let path = format!("/v2/a/blobs/{}", image.blobs[1].digest);
    (registry, front, image.blobs[1].bytes.clone(), path)
}

#[test]
fn a_rule_strikes_the_requests_it_names() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .rule(Rule::on("GET", "/v2/", Fault::status(503)).nth(2..=3))
        .rule(Rule::on("HEAD", "/v2/", Fault::page(502, "Bad Gateway")).host("elsewhere"))
        .rule(
            Rule::on("*", "mark", Fault::status(500)).when(|seen| seen.header("x-mark").is_some()),
        )
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
        .rule(Rule::on(
            "GET",
            "/v2/b",
            Fault::Redirect("http://elsewhere.example/x".to_owned()),
        ))
        .rule(Rule::on(
            "GET",
            "/v2/c",
            Fault::CountDown(Duration::from_millis(1300)),
        ))
        .rule(Rule::on("POST", "/v2/d", Fault::without("location")))
        .start();
    let limited = get(front.addr(), "/v2/a").expect(429);
    assert_eq!(limited.header("retry-after"), Some("7"));
    assert_eq!(limited.json()["errors"][0]["code"], "TOOMANYREQUESTS");
    let moved = get(front.addr(), "/v2/b").expect(307);
    assert_eq!(moved.header("location"), Some("http://elsewhere.example/x"));
    let started = Instant::now();
    assert_eq!(
        get(front.addr(), "/v2/c").expect(429).header("retry-after"),
        Some("2")
    );
    let mut told = vec![2];
    while let Some(seconds) = get(front.addr(), "/v2/c").header("retry-after") {
        told.push(seconds.parse().expect("seconds"));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(
        told.is_sorted_by(|a, b| a >= b) && told.last() == Some(&1),
        "{told:?}"
    );
    assert!(
        started.elapsed() > Duration::from_millis(1250),
        "{:?}",
        started.elapsed()
    );
    let session = send(front.addr(), "POST", "/v2/d/blobs/uploads/", &[], &[]).expect(202);
    assert_eq!(session.header("location"), None);
}

#[test]
fn a_truncated_body_ends_exactly_there() {
    let (_registry, front, bytes, path) = faulty(2_000_000, Fault::TruncateAt(1_234_567));
    let reply = get(front.addr(), &path).expect(200);
    assert!(!reply.whole);
    assert_eq!(reply.header("content-length"), Some("2000000"));
    assert!(
        reply.body == bytes[..1_234_567],
        "{} bytes",
        reply.body.len()
    );
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
        let args = [
            "-sS",
            "-o",
            "/dev/null",
            "-w",
            "%{size_download}",
            "--max-time",
            seconds,
            &url,
        ];
        Tool::new("curl").args(&args).run()
    };
    let (_registry, front, _, path) = faulty(50_000, Fault::Stall);
    assert_eq!(curl(&front, &path, "0.3").exits(28).stdout, "0");
    let (_registry, front, _, path) = faulty(50_000, Fault::StallAfter(20_000));
    assert_eq!(curl(&front, &path, "0.5").exits(28).stdout, "20000");
    let (_registry, front, _, path) = faulty(50_000, Fault::Delay(Duration::from_millis(300)));
    let run = curl(&front, &path, "30").ok();
    assert!(run.took >= Duration::from_millis(300), "{:?}", run.took);
    let (_registry, front, _, path) = faulty(50_000, Fault::Throttle(100_000));
    let run = curl(&front, &path, "30").ok();
    assert!(
        (450..1500).contains(&run.took.as_millis()),
        "{:?}",
        run.took
    );
}

#[test]
fn a_lost_response_has_reached_the_registry() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .rule(Rule::on("POST", "/uploads/", Fault::LoseResponse).once())
        .start();
    assert!(try_send(front.addr(), "POST", "/v2/a/blobs/uploads/", &[], &[]).is_err());
    assert_eq!(registry.count("POST", "/uploads/"), 1);
    assert_eq!(front.log()[0].status, None);
}

#[test]
fn a_reset_request_reaches_the_registry_in_part() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .rule(Rule::on("PATCH", "", Fault::ResetRequestAfter(70_000)).once())
        .start();
    let session = send(front.addr(), "POST", "/v2/a/blobs/uploads/", &[], &[]).expect(202);
    let location = path_of(&session);
    assert!(
        try_send(
            front.addr(),
            "PATCH",
            &location,
            &[OCTETS],
            &noise(1, 200_000)
        )
        .is_err()
    );
    let directory = registry.storage().join("registry");
    let deadline = Instant::now() + Duration::from_secs(10);
    // distribution notices the broken connection in its own time.
    while uploaded_bytes(&directory) != 70_000 {
        assert!(
            Instant::now() < deadline,
            "{} bytes",
            uploaded_bytes(&directory)
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn a_link_takes_its_time() {
    let registry = Registry::start();
    let image = Image::single(1, &[300_000]);
    image.push(registry.addr(), "a", "v1");
    let rtt = Duration::from_millis(100);
    let link = Link::start(registry.addr(), rtt, 1_000_000);
    // One round trip for the handshake, one for the request.
    let started = Instant::now();
    get(link.addr(), "/v2/").expect(200);
    let took = started.elapsed();
    assert!(took >= rtt * 2 && took < rtt * 4, "{took:?}");
    let started = Instant::now();
    let path = format!("/v2/a/blobs/{}", image.blobs[1].digest);
    assert!(get(link.addr(), &path).expect(200).body == image.blobs[1].bytes);
    let took = started.elapsed().as_millis();
    assert!((480..1200).contains(&took), "{took} ms");
}

// ---- Docker Hub ----

/// A token of the front's Hub or ACR, by GET.
fn token(front: &Front, service: &str, scope: &str, credentials: Option<(&str, &str)>) -> Reply {
    let realm = if service.starts_with("registry.docker") {
        "/token"
    } else {
        "/oauth2/token"
    };
    let path = format!("{realm}?service={service}&scope={scope}");
    let header = credentials.map(|(user, password)| basic(user, password));
    let headers: Vec<(&str, &str)> = header
        .iter()
        .map(|value| ("authorization", value.as_str()))
        .collect();
    send(front.addr(), "GET", &path, &headers, &[])
}

fn bearer(reply: Reply) -> String {
    format!(
        "Bearer {}",
        reply.expect(200).json()["access_token"]
            .as_str()
            .expect("a token")
    )
}

#[test]
fn hub_wants_a_token_that_fits() {
    let registry = Registry::start();
    let image = Image::single(1, &[5000]);
    image.push(registry.addr(), "library/nginx", "latest");
    let front = Front::before(registry.addr()).hub(|_| {}).start();
    let at = front.addr();
    let manifest = "/v2/library/nginx/manifests/latest";
    let challenge = get(at, manifest).expect(401);
    let wanted = format!(
        "Bearer realm=\"http://{at}/token\",service=\"registry.docker.io\",scope=\"repository:library/nginx:pull\""
    );
    assert_eq!(challenge.header("www-authenticate"), Some(wanted.as_str()));

    let reply = token(
        &front,
        "registry.docker.io",
        "repository:library/nginx:pull,push",
        None,
    )
    .expect(200);
    assert_eq!(reply.json()["expires_in"], 300);
    let auth = bearer(reply);
    let with = |path: &str, method: &str| send(at, method, path, &[("authorization", &auth)], &[]);
    assert_eq!(with(manifest, "GET").expect(200).body, image.bytes());
    // Granted less than was asked for, without an error.
    let push = with("/v2/library/nginx/blobs/uploads/", "POST").expect(401);
    assert!(
        push.header("www-authenticate")
            .expect("a challenge")
            .contains("error=\"insufficient_scope\"")
    );
    with("/v2/library/redis/manifests/latest", "GET").expect(401);
    token(
        &front,
        "registry.docker.io",
        "repository:x:pull",
        Some(("alice", "wrong")),
    )
    .expect(401);

    front.persona().advance(Duration::from_secs(301));
    let expired = with(manifest, "GET").expect(401);
    assert!(
        expired
            .header("www-authenticate")
            .expect("a challenge")
            .contains("error=\"invalid_token\"")
    );
}

#[test]
fn hub_lets_an_account_push_to_its_own() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).hub(|_| {}).start();
    let scope = "repository:alice/app:pull,push";
    let auth = bearer(token(
        &front,
        "registry.docker.io",
        scope,
        Some(("alice", "wonderland")),
    ));
    let image = Image::single(1, &[5000]);
    image.push_as(front.addr(), "alice/app", "v1", &[("authorization", &auth)]);
    image.assert_at(registry.addr(), "alice/app", "v1");
    let mount = "/v2/alice/app/blobs/uploads/?mount=sha256:00&from=library/nginx";
    let refused = send(
        front.addr(),
        "POST",
        mount,
        &[("authorization", &auth)],
        &[],
    )
    .expect(401);
    let challenge = refused
        .header("www-authenticate")
        .expect("a challenge")
        .to_owned();
    assert!(
        challenge
            .contains("scope=\"repository:alice/app:pull,push repository:library/nginx:pull\"")
    );
}

#[test]
fn hub_serves_blobs_from_a_cdn_that_wants_no_authorization() {
    let registry = Registry::start();
    let image = Image::single(1, &[50_000]);
    image.push(registry.addr(), "library/nginx", "latest");
    let front = Front::before(registry.addr()).hub(|_| {}).start();
    let auth = bearer(token(
        &front,
        "registry.docker.io",
        "repository:library/nginx:pull",
        None,
    ));
    let header = [("authorization", auth.as_str())];
    let path = format!("/v2/library/nginx/blobs/{}", image.blobs[1].digest);
    let moved = send(front.addr(), "GET", &path, &header, &[]).expect(307);
    let prefix = format!("http://{}", front.side());
    let link = moved
        .header("location")
        .and_then(|to| to.strip_prefix(&prefix))
        .expect("the CDN")
        .to_owned();

    send(front.side(), "GET", &link, &header, &[]).expect(400);
    assert_eq!(
        get(front.side(), &link).expect(200).body,
        image.blobs[1].bytes
    );
    let part = send(
        front.side(),
        "GET",
        &link,
        &[("range", "bytes=49990-")],
        &[],
    )
    .expect(206);
    assert_eq!(part.body, image.blobs[1].bytes[49_990..]);
    get(front.side(), &link.replace("signature=", "signature=x")).expect(403);
    front.persona().advance(Duration::from_secs(601));
    get(front.side(), &link).expect(403);

    let auth = bearer(token(
        &front,
        "registry.docker.io",
        "repository:library/nginx:pull",
        None,
    ));
    let missing = format!("/v2/library/nginx/blobs/sha256:{}", "0".repeat(64));
    let missing = send(
        front.addr(),
        "GET",
        &missing,
        &[("authorization", &auth)],
        &[],
    )
    .expect(404);
    assert_eq!(missing.json()["errors"][0]["code"], "BLOB_UNKNOWN");
}

#[test]
fn hub_counts_pulls_and_stops_them() {
    let registry = Registry::start();
    Image::single(1, &[2000]).push(registry.addr(), "library/nginx", "latest");
    let front = Front::before(registry.addr())
        .hub(|config| config.anonymous_pulls = Some(2))
        .start();
    let auth = bearer(token(
        &front,
        "registry.docker.io",
        "repository:library/nginx:pull",
        None,
    ));
    let ask = |method: &str, reference: &str| {
        let path = format!("/v2/library/nginx/manifests/{reference}");
        send(
            front.addr(),
            method,
            &path,
            &[("authorization", &auth)],
            &[],
        )
    };
    let left = |reply: Reply| reply.header("ratelimit-remaining").map(str::to_owned);
    assert_eq!(
        left(ask("HEAD", "latest").expect(200)).as_deref(),
        Some("2;w=21600")
    );
    assert_eq!(
        left(ask("GET", "latest").expect(200)).as_deref(),
        Some("1;w=21600")
    );
    ask("GET", "none").expect(404);
    assert_eq!(
        left(ask("GET", "latest").expect(200)).as_deref(),
        Some("0;w=21600")
    );
    let refused = ask("GET", "latest").expect(429);
    assert_eq!(refused.json()["errors"][0]["code"], "TOOMANYREQUESTS");
    assert!(
        refused
            .text()
            .contains("You have reached your pull rate limit")
    );
    ask("HEAD", "latest").expect(200);
    assert_eq!(
        front.hub().pulls(),
        ["library/nginx:latest", "library/nginx:latest"]
    );
    front.hub().refill();
    ask("GET", "latest").expect(200);

    let front = Front::before(registry.addr())
        .hub(|config| config.abuse_after = Some(1))
        .start();
    get(front.addr(), "/v2/").expect(401);
    assert_eq!(
        get(front.addr(), "/v2/").expect(429).text(),
        "Too Many Requests (HAP429)\n"
    );
}

#[test]
fn tokens_can_be_revoked_in_mid_run() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .hub(|_| {})
        .rule(Rule::on("GET", "/v2/", Fault::ExpireTokens).nth(2..=2))
        .start();
    let auth = bearer(token(&front, "registry.docker.io", "", None));
    let ping = || {
        send(
            front.addr(),
            "GET",
            "/v2/",
            &[("authorization", &auth)],
            &[],
        )
    };
    ping().expect(200);
    ping().expect(401);
    let auth = bearer(token(&front, "registry.docker.io", "", None));
    send(
        front.addr(),
        "GET",
        "/v2/",
        &[("authorization", &auth)],
        &[],
    )
    .expect(200);
}

// ---- ACR ----

const ADMIN: (&str, &str) = ("admin", "admin-secret");

fn acr_token(front: &Front, scope: &str, credentials: (&str, &str)) -> String {
    bearer(token(front, front.host(), scope, Some(credentials)))
}

/// A started upload: the headers for it, and its location.
fn acr_session(front: &Front) -> (String, String) {
    let auth = acr_token(front, "repository:a:pull,push", ADMIN);
    let session = send(
        front.addr(),
        "POST",
        "/v2/a/blobs/uploads/",
        &[("authorization", &auth)],
        &[],
    )
    .expect(202);
    let location = session.header("location").expect("a location").to_owned();
    (auth, location)
}

fn patch(front: &Front, auth: &str, at: &str, start: usize, bytes: &[u8]) -> Reply {
    let range = format!("{start}-{}", start + bytes.len() - 1);
    let headers = [("authorization", auth), ("content-range", &range), OCTETS];
    send(front.addr(), "PATCH", at, &headers, bytes)
}

#[test]
fn acr_takes_an_upload_in_chunks() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).acr(|_| {}).start();
    let (auth, first) = acr_session(&front);
    assert!(
        first.starts_with("/v2/a/blobs/uploads/"),
        "relative: {first}"
    );
    assert!(first.contains("?_nouploadcache=false&_state="));
    let blob = Blob::new(noise(1, 300_000));
    let second = patch(&front, &auth, &first, 0, &blob.bytes[..200_000]).expect(202);
    assert_eq!(second.header("range"), Some("0-199999"));
    let second = second.header("location").expect("a location").to_owned();
    assert_ne!(first, second);

    // Out of order, the old state, a wrong format: all refused, and the session lives on.
    let wrong = patch(&front, &auth, &second, 100, b"x").expect(416);
    assert_eq!(wrong.header("range"), Some("0-199999"));
    patch(&front, &auth, &first, 200_000, b"x").expect(404);
    let format = [
        ("authorization", auth.as_str()),
        ("content-range", "bytes 200000-200000/*"),
        OCTETS,
    ];
    send(front.addr(), "PATCH", &second, &format, b"x").expect(400);
    let state = send(
        front.addr(),
        "GET",
        &first,
        &[("authorization", &auth)],
        &[],
    )
    .expect(204);
    assert_eq!(
        (state.header("range"), state.header("location")),
        (Some("0-199999"), Some(second.as_str()))
    );

    let third = patch(&front, &auth, &second, 200_000, &blob.bytes[200_000..]).expect(202);
    let finish = format!(
        "{}&digest={}",
        third.header("location").expect("a location"),
        blob.digest
    );
    let done = send(
        front.addr(),
        "PUT",
        &finish,
        &[("authorization", &auth), OCTETS],
        &[],
    )
    .expect(201);
    assert_eq!(
        done.header("location"),
        Some(format!("/v2/a/blobs/{}", blob.digest).as_str())
    );
    assert_eq!(
        get(registry.addr(), &format!("/v2/a/blobs/{}", blob.digest))
            .expect(200)
            .body,
        blob.bytes
    );
}

#[test]
fn acr_refuses_chunked_encoding_and_large_bodies() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .acr(|config| config.body_limit = 100_000)
        .start();
    let (auth, location) = acr_session(&front);
    let chunked = [
        ("authorization", auth.as_str()),
        ("transfer-encoding", "chunked"),
        OCTETS,
    ];
    let refused = send(front.addr(), "PATCH", &location, &chunked, b"hello").expect(400);
    assert_eq!(
        refused.json()["errors"][0]["code"],
        "CONTENT_LENGTH_INVALID"
    );

    let body = noise(1, 100_001);
    let refused = patch(&front, &auth, &location, 0, &body).expect(413);
    assert!(
        refused.text().contains("413 Request Entity Too Large")
            && refused.text().contains("AzureContainerRegistry")
    );
    let put = format!("{location}&digest={}", Blob::new(body.clone()).digest);
    send(
        front.addr(),
        "PUT",
        &put,
        &[("authorization", &auth), OCTETS],
        &body,
    )
    .expect(413);
    send(front.addr(), "PUT", &put, &chunked, &body).expect(413);
    assert_eq!(registry.count("PATCH", "") + registry.count("PUT", ""), 0);
    patch(&front, &auth, &location, 0, &body[..100_000]).expect(202);
    let bare = location.split('?').next().expect("a path");
    send(front.addr(), "PUT", bare, &[("authorization", &auth)], b"").expect(404);
}

#[test]
fn acr_sessions_after_a_reset() {
    use transload::demo::persona::AfterReset::{Kept, Lost404, Lost416, Partial};
    let registry = Registry::start();
    for (after, status, range) in [
        (Kept, 204, Some("0-0")),
        (Partial, 204, Some("0-69999")),
        (Lost404, 404, None),
        (Lost416, 416, Some("0-0")),
    ] {
        let front = Front::before(registry.addr())
            .acr(move |config| config.after_reset = after)
            .rule(Rule::on("PATCH", "", Fault::ResetRequestAfter(70_000)).once())
            .start();
        let (auth, location) = acr_session(&front);
        let body = noise(1, 200_000);
        let headers = [
            ("authorization", auth.as_str()),
            ("content-range", "0-199999"),
            OCTETS,
        ];
        assert!(
            try_send(front.addr(), "PATCH", &location, &headers, &body).is_err(),
            "{after:?}"
        );
        let state = send(
            front.addr(),
            "GET",
            &location,
            &[("authorization", &auth)],
            &[],
        )
        .expect(status);
        assert_eq!(state.header("range"), range, "{after:?}");
        if status == 204 {
            let from = if after == Partial { 70_000 } else { 0 };
            let at = state.header("location").expect("a location").to_owned();
            let more = patch(&front, &auth, &at, from, &body[from..]).expect(202);
            let digest = Blob::new(body.clone()).digest;
            let finish = format!(
                "{}&digest={digest}",
                more.header("location").expect("a location")
            );
            send(
                front.addr(),
                "PUT",
                &finish,
                &[("authorization", &auth), OCTETS],
                &[],
            )
            .expect(201);
        }
    }
}

#[test]
fn acr_keeps_a_session_whose_answer_was_lost() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .acr(|_| {})
        .rule(Rule::on("PATCH", "", Fault::LoseResponse).once())
        .start();
    let (auth, location) = acr_session(&front);
    let headers = [
        ("authorization", auth.as_str()),
        ("content-range", "0-4"),
        OCTETS,
    ];
    assert!(try_send(front.addr(), "PATCH", &location, &headers, b"hello").is_err());
    let state = send(
        front.addr(),
        "GET",
        &location,
        &[("authorization", &auth)],
        &[],
    )
    .expect(204);
    assert_eq!(state.header("range"), Some("0-4"));
    patch(
        &front,
        &auth,
        state.header("location").expect("a location"),
        5,
        b" world",
    )
    .expect(202);
}

#[test]
fn acr_redirects_blobs_to_storage_and_counts_writes() {
    let registry = Registry::start();
    let image = Image::single(1, &[3000]);
    image.push(registry.addr(), "a", "v1");
    let front = Front::before(registry.addr())
        .acr(|config| {
            config.writes = Some(1);
            config.chunk_min = Some(100);
        })
        .start();
    let auth = acr_token(&front, "repository:a:pull,push", ADMIN);
    let header = [("authorization", auth.as_str())];
    let path = format!("/v2/a/blobs/{}", image.blobs[1].digest);
    let moved = send(front.addr(), "GET", &path, &header, &[]).expect(307);
    let link = moved
        .header("location")
        .expect("a link")
        .split(&front.side().to_string())
        .nth(1)
        .expect("the storage");
    let refused = send(front.side(), "GET", link, &header, &[]).expect(400);
    assert!(refused.text().contains("InvalidAuthenticationInfo"));
    assert_eq!(
        get(front.side(), link).expect(200).body,
        image.blobs[1].bytes
    );
    front.persona().advance(Duration::from_secs(1201));
    get(front.side(), link).expect(403);

    let start = send(front.addr(), "POST", "/v2/a/blobs/uploads/", &header, &[]).expect(202);
    assert_eq!(start.header("oci-chunk-min-length"), Some("100"));
    let limited = send(front.addr(), "POST", "/v2/a/blobs/uploads/", &header, &[]).expect(429);
    let wait: u64 = limited
        .header("retry-after")
        .expect("a wait")
        .parse()
        .expect("seconds");
    assert!((50..=60).contains(&wait), "{wait}");
    front.persona().advance(Duration::from_secs(wait));
    send(front.addr(), "POST", "/v2/a/blobs/uploads/", &header, &[]).expect(202);
}

#[test]
fn acr_exchanges_an_entra_token() {
    let registry = Registry::start();
    Image::single(1, &[2000]).push(registry.addr(), "a", "v1");
    let front = Front::before(registry.addr()).acr(|_| {}).start();
    let form = |path: &str, body: &str| {
        send(
            front.addr(),
            "POST",
            path,
            &[("content-type", "application/x-www-form-urlencoded")],
            body.as_bytes(),
        )
    };
    let entra = "/entra/11111111-2222-3333-4444-555555555555/oauth2/v2.0/token";
    let client = "grant_type=client_credentials&client_id=99999999-8888-7777-6666-555555555555\
                  &scope=https%3A%2F%2Fcontainerregistry.azure.net%2F.default";
    form(entra, &format!("{client}&client_secret=wrong")).expect(401);
    let reply = form(entra, &format!("{client}&client_secret=entra-secret"))
        .expect(200)
        .json();
    assert_eq!(reply["expires_in"], 3600);
    let assertion =
        "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer";
    let federated = |token: &str| {
        form(
            entra,
            &format!("{client}&{assertion}&client_assertion={token}"),
        )
    };
    federated("federated-token-1").expect(200);
    front.acr().entra().rotate("federated-token-2");
    federated("federated-token-1").expect(401);
    federated("federated-token-2").expect(200);

    let service = front.host();
    let entra_token = reply["access_token"].as_str().expect("a token");
    let exchange = format!("grant_type=access_token&service={service}&tenant=t&access_token=");
    form("/oauth2/exchange", &format!("{exchange}forged")).expect(401);
    let refresh = form("/oauth2/exchange", &format!("{exchange}{entra_token}"))
        .expect(200)
        .json();
    let refresh = refresh["refresh_token"]
        .as_str()
        .expect("a token")
        .to_owned();
    let ask = format!(
        "grant_type=refresh_token&service={service}&scope=repository%3Aa%3Apull&refresh_token={refresh}"
    );
    let access = form("/oauth2/token", &ask).expect(200);
    assert_eq!(
        access.json().as_object().map(|all| all.len()),
        Some(1),
        "no expires_in"
    );
    let manifest = |auth: &str| {
        send(
            front.addr(),
            "GET",
            "/v2/a/manifests/v1",
            &[("authorization", auth)],
            &[],
        )
    };
    manifest(&bearer(access)).expect(200);
    manifest(&basic("00000000-0000-0000-0000-000000000000", &refresh)).expect(200);
    manifest(&format!("Bearer {entra_token}")).expect(401);
}

#[test]
fn imds_wants_its_header() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).acr(|_| {}).start();
    let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https://containerregistry.azure.net";
    get(front.addr(), path).expect(400);
    let reply = send(front.addr(), "GET", path, &[("metadata", "true")], &[])
        .expect(200)
        .json();
    assert_eq!(
        (&reply["token_type"], &reply["expires_in"]),
        (&json!("Bearer"), &json!("3600"))
    );
}

#[test]
fn acr_narrows_denies_and_refuses() {
    let registry = Registry::start();
    let front = Front::before(registry.addr())
        .acr(|config| config.abac = true)
        .start();
    let at = front.addr();
    let reader = ("reader", "reader-secret");
    // A token narrowed without an error, then refused; Basic straight away is 403.
    let auth = acr_token(&front, "repository:public/a:pull,push", reader);
    let start = "/v2/public/a/blobs/uploads/";
    let refused = send(at, "POST", start, &[("authorization", &auth)], &[]).expect(401);
    assert!(
        refused
            .header("www-authenticate")
            .expect("a challenge")
            .contains("insufficient_scope")
    );
    let denied = send(
        at,
        "POST",
        start,
        &[("authorization", &basic(reader.0, reader.1))],
        &[],
    )
    .expect(403);
    assert_eq!(denied.json()["errors"][0]["code"], "DENIED");
    send(
        at,
        "POST",
        start,
        &[("authorization", &basic(ADMIN.0, ADMIN.1))],
        &[],
    )
    .expect(202);
    token(&front, front.host(), "repository:*:pull", Some(ADMIN)).expect(401);
    token(&front, front.host(), "repository:a:pull", None).expect(401);

    let long = format!("Bearer {}", "x".repeat(8200));
    let refused = send(at, "GET", "/v2/", &[("authorization", &long)], &[]).expect(400);
    assert!(
        refused
            .text()
            .contains("Request Header Or Cookie Too Large")
    );
}

#[test]
fn skopeo_copies_from_hub_to_acr() {
    // A second opinion on the personas: skopeo pulls from the Hub look-alike, redirects and all.
    let registry = Registry::start();
    let image = Image::single(1, &[40_000]);
    image.push(registry.addr(), "library/nginx", "latest");
    let front = Front::before(registry.addr()).hub(|_| {}).start();
    let directory = TempDir::new();
    let from = format!("docker://{}/library/nginx:latest", front.host());
    let to = format!("dir:{}", directory.join("out"));
    skopeo(&[
        "copy",
        "--src-tls-verify=false",
        "--insecure-policy",
        "--preserve-digests",
        &from,
        &to,
    ])
    .ok();
    assert_eq!(
        directory.read("out/manifest.json").as_bytes(),
        image.bytes()
    );
    assert!(
        front
            .log()
            .iter()
            .any(|seen| seen.side && seen.scheme().is_none()),
        "by way of the CDN"
    );
    assert_eq!(front.hub().pulls().len(), 1);

    // And pushes to the ACR look-alike, which must be told to take streams for that.
    let acr = Front::before(registry.addr())
        .acr(|config| config.refuse_streamed = false)
        .start();
    let to = format!("docker://{}/copied/nginx:v1", acr.host());
    let from = format!("dir:{}", directory.join("out"));
    let args = [
        "copy",
        "--dest-tls-verify=false",
        "--insecure-policy",
        "--preserve-digests",
    ];
    skopeo(
        &[
            &args[..],
            &["--dest-creds", "admin:admin-secret", &from, &to],
        ]
        .concat(),
    )
    .ok();
    image.assert_at(registry.addr(), "copied/nginx", "v1");
}

// ---- helpers ----

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!(
        "Basic {}",
        base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"))
    )
}

fn get_manifest(at: SocketAddr, repository: &str, reference: &str) -> Reply {
    let path = format!("/v2/{repository}/manifests/{reference}");
    http::get(at, &path).expect(200)
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
