//! The support proven by itself, so that the tests standing on it mean something.

mod acr;
mod faults;
mod hub;

use std::net::SocketAddr;
use std::time::Duration;

use super::support::http::{self, Reply, get, send, try_send};
use super::support::images::{DOCKER_LIST, OCI_INDEX};
use super::support::layer::{layer, random_bytes};
use super::support::registry::PASSWORD;
use super::support::{Front, Image, Registry, TempDir, Tool, skopeo};

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
    image.push_as(registry.addr(), "a", "v1", &[("authorization", &basic("mirror", PASSWORD))]);
    let wrong = basic("mirror", "wrong");
    send(registry.addr(), "GET", "/v2/", &[("authorization", &wrong)], &[]).expect(401);
}

#[test]
fn registry_stops_on_drop() {
    let addr = Registry::start().addr();
    assert!(try_send(addr, "GET", "/v2/", &[], &[]).is_err());
}

#[test]
fn tools_run_clean_and_not_for_ever() {
    let script = "echo $HOME; env | grep -ciE 'proxy|^CARGO'; cat; echo $X >&2; exit 3";
    let tool = Tool::new("sh").args(&["-c", script]).env("X", "y").stdin("in");
    let home = tool.home().path().display().to_string();
    let run = tool.run().exits(3);
    assert_eq!((run.stdout, run.stderr), (format!("{home}\n0\nin"), "y\n".to_owned()));
    assert!(!std::path::Path::new(&home).exists(), "HOME is left behind");
    let endless = || Tool::new("sleep").args(&["60"]).limit(Duration::from_millis(50)).run();
    assert!(std::panic::catch_unwind(endless).is_err());
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
        skopeo(&["copy", "--all", "--preserve-digests", "--src-tls-verify=false", "--insecure-policy", &from, &to])
            .ok();
        assert_eq!(directory.read(&format!("{tag}/manifest.json")).as_bytes(), image.bytes());
    }
    // skopeo would compress a layer that is not gzip, and fail on one that is no good.
    let (from, to) = (format!("docker://{at}/kinds:single"), format!("oci:{}:x", directory.join("layout")));
    skopeo(&["copy", "--src-tls-verify=false", "--insecure-policy", &from, &to]).ok();
    let blob = kinds[0].1.blobs[2].digest.replace(':', "/");
    assert!(directory.path().join("layout/blobs").join(blob).exists(), "the layer was changed");
}

#[test]
fn tiny_is_as_hello_world() {
    let tiny = Image::tiny(7);
    assert_eq!((tiny.blobs.len(), tiny.manifests.len()), (48, 25));
    assert!((30_000..60_000).contains(&tiny.size()), "{} bytes", tiny.size());
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
    assert_eq!(listed["manifests"][0]["artifactType"], "application/spdx+json");
    assert_eq!(listed["mediaType"], OCI_INDEX);
    let first = get_manifest(at, "odd", artifacts[0].digest()).json();
    assert_eq!(first["subject"]["digest"], subject.digest());
    assert_eq!(first["config"]["mediaType"], "application/vnd.oci.empty.v1+json");

    Image::signature(&subject).push(at, "odd", &subject.cosign_tag());
    let foreign = Image::foreign(4);
    foreign.push(at, "odd", "foreign");
    assert_eq!(foreign.blobs.len(), 2, "config and the second layer");
    let sha512 = Image::sha512(5);
    sha512.push(at, "odd", "sha512");
    sha512.assert_at(at, "odd", "sha512");
    assert!(sha512.blobs[1].digest.starts_with("sha512:"));
    assert_eq!(get_manifest(at, "odd", "foreign").json()["layers"][0]["urls"][0], "https://example.com/layer.tar.gz");
    let list = Image::docker_list(6, 2, &[2000]);
    list.push(at, "odd", "list");
    assert_eq!(get_manifest(at, "odd", "list").header("content-type"), Some(DOCKER_LIST));
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
    assert_ne!(random_bytes(1, 64), random_bytes(2, 64));
}

#[test]
fn front_passes_and_logs() {
    let registry = Registry::start();
    let front = Front::before(registry.addr()).start();
    let image = Image::single(1, &[2000, 3_000_000]);
    image.push(front.addr(), "a/b", "v1");
    image.assert_at(registry.addr(), "a/b", "v1");
    image.assert_at(front.side(), "a/b", "v1");
    let put = front.log().into_iter().filter(|seen| seen.method == "PUT").nth(2).expect("the second layer");
    assert_eq!((put.received(), put.status, put.side), (3_000_000, Some(201), false));
    front.reset_log();
    let path = format!("/v2/a/b/blobs/{}", image.blobs[2].digest);
    let range = [("range", "bytes=10-19"), ("authorization", "Basic eDp5")];
    let reply = send(front.addr(), "GET", &path, &range, &[]).expect(206);
    assert_eq!(reply.body, image.blobs[2].bytes[10..20]);
    let head = send(front.addr(), "HEAD", &path, &[], &[]).expect(200);
    assert_eq!(head.header("content-length"), Some("3000000"));
    let log = front.log();
    assert_eq!(log.len(), 2);
    assert_eq!((log[0].scheme(), log[0].header("range"), log[0].sent()), (Some("Basic"), Some("bytes=10-19"), 10));
}

#[test]
fn front_speaks_tls_under_its_names() {
    let registry = Registry::start();
    Image::single(1, &[2000]).push(registry.addr(), "a", "v1");
    for h2 in [false, true] {
        let front = Front::before(registry.addr()).name("registry.example").tls();
        let front = if h2 { front.h2() } else { front }.start();
        let url = format!("https://registry.example:{}/v2/a/manifests/v1", front.addr().port());
        let resolve = format!("registry.example:{}:127.0.0.1", front.addr().port());
        let ca = front.ca_file().expect("an authority");
        let curl = |more: &[&str]| {
            let accept = format!("accept: {}", http::ACCEPT);
            let base = ["-sS", "-H", &accept, "--fail", "-w", "%{http_version}", "-o", "/dev/null", &url];
            Tool::new("curl").args(&base).args(more).run()
        };
        let run = curl(&["--cacert", &ca, "--resolve", &resolve]).ok();
        assert_eq!(run.stdout, if h2 { "2" } else { "1.1" });
        assert_eq!(front.log()[0].host, format!("registry.example:{}", front.addr().port()));
        curl(&["--resolve", &resolve]).exits(60);
    }
}

fn basic(user: &str, password: &str) -> String {
    use base64::Engine as _;
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}")))
}

fn get_manifest(at: SocketAddr, repository: &str, reference: &str) -> Reply {
    let path = format!("/v2/{repository}/manifests/{reference}");
    http::get(at, &path).expect(200)
}

/// A token of the front's Hub or ACR, by GET.
fn token(front: &Front, service: &str, scope: &str, credentials: Option<(&str, &str)>) -> Reply {
    let realm = if service.starts_with("registry.docker") { "/token" } else { "/oauth2/token" };
    let path = format!("{realm}?service={service}&scope={scope}");
    let header = credentials.map(|(user, password)| basic(user, password));
    let headers: Vec<(&str, &str)> = header.iter().map(|value| ("authorization", value.as_str())).collect();
    send(front.addr(), "GET", &path, &headers, &[])
}

fn bearer(reply: Reply) -> String {
    format!("Bearer {}", reply.expect(200).json()["access_token"].as_str().expect("a token"))
}
