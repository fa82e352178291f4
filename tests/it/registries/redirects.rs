//! Writes that a registry sends on to another host.

use crate::support::registry::PASSWORD;
use crate::support::{Fault, Front, Image, Registry, Rule, Run, SeenRequest, ServeProcess, TempDir, Tool};

const MIB: usize = 1 << 20;

/// A source with `app:v1`.
fn source(image: &Image) -> Registry {
    let source = Registry::start();
    image.push(source.addr(), "app", "v1");
    source.reset_log();
    source
}

/// Copies `app:v1` to the registry behind `front`.
fn copy(source: &Registry, front: &Front, more: &[&str]) -> Run {
    let (from, to) = (format!("{}/app:v1", source.addr()), format!("{}/app:v1", front.addr()));
    Tool::transload().args(&["copy", &from, &to]).args(more).run()
}

fn assert_unsigned(log: &[SeenRequest]) {
    let signed: Vec<_> = log.iter().filter(|seen| seen.header("authorization").is_some()).collect();
    assert!(signed.is_empty(), "credentials went to another host: {signed:#?}");
}

/// A front answers the beginning of an upload, all writes, or everything by 307 or 308. The other registry's Location is
/// relative, and meant from there. No credentials go there.
#[test]
fn writes_are_sent_on_with_method_and_body_and_without_credentials() {
    let image = Image::single(511, &[900_000, 3000]);
    for (status, methods) in [(307, &["POST"][..]), (308, &["POST"]), (308, &["POST", "PUT"]), (307, &["*"])] {
        let source = source(&image);
        let directory = TempDir::new();
        let other = ServeProcess::start(directory.path(), &["--writable"]);
        let other = Front::before(other.addr()).start();
        let first = Front::before(other.addr()).start();
        for method in methods {
            first.add(Rule::on(method, "", Fault::SendOn(status, format!("http://{}", other.addr()))));
        }
        copy(&source, &first, &[]).ok();
        image.assert_at(other.addr(), "app", "v1");
        assert!(first.struck() > 0);
        assert_unsigned(&other.log());
    }
}

/// The registry asks for a password, and sends blobs on to another host: the password stays where it belongs.
#[test]
fn the_password_stays_at_the_registry_that_asks_for_it() {
    let image = Image::single(512, &[500_000]);
    let (source, registry, other) = (source(&image), Registry::with_basic("carol"), Registry::start());
    let other = Front::before(other.addr()).start();
    let first = Front::before(registry.addr())
        .rule(
            Rule::on("POST", "", Fault::SendOn(307, format!("http://{}", other.addr())))
                .when(|seen| seen.scheme().is_some()),
        )
        .start();
    let (from, to) = (format!("{}/app:v1", source.addr()), format!("{}/app:v1", first.addr()));
    let variable = format!("TRANSLOAD_AUTH_{}", first.addr().to_string().replace(['.', ':'], "_"));
    // The blobs are at the other host then, so the manifest is refused: that is how such a front would be set up wrongly.
    let run = Tool::transload().args(&["copy", &from, &to]).env(&variable, &format!("carol:{PASSWORD}")).run().exits(1);
    assert!(run.stderr.contains("blob unknown"), "{}", run.stderr);
    assert!(other.count("POST", "/v2/app/blobs/uploads/") > 0, "{}", run.stderr);
    assert_unsigned(&other.log());
}

/// A chunk that is streamed is redirected: the source is opened again at that offset, and the next chunks go there at
/// once.
#[test]
fn a_redirected_chunk_is_read_again_from_the_source() {
    let image = Image::single(513, &[5 * MIB / 2]);
    for status in [307, 308] {
        let (from, registry) = (source(&image), Registry::start());
        let front = Front::before(registry.addr()).start();
        let side = format!("http://{}", front.side());
        front.add(Rule::on("PATCH", "", Fault::SendOn(status, side)).when(|seen| !seen.side));
        let run = copy(&from, &front, &["--chunk-size", "1MiB", "-v"]).ok();
        image.assert_at(registry.addr(), "app", "v1");
        let redirected = front.log().iter().filter(|seen| seen.method == "PATCH" && !seen.side).count();
        assert_eq!(redirected, 1, "{}", run.stderr);
        let taken: Vec<_> = front.log().into_iter().filter(|seen| seen.method == "PATCH" && seen.side).collect();
        let ranges: Vec<_> = taken.iter().filter_map(|seen| seen.header("content-range")).collect();
        assert_eq!(ranges, ["0-1048575", "1048576-2097151", "2097152-2621439"], "{taken:#?}");
        assert_eq!(from.count("GET", &image.blobs[1].digest), 2, "the source was opened again");
    }
}

/// A blob goes in one PUT, which is redirected.
#[test]
fn a_redirected_blob_is_read_again_from_the_source() {
    let image = Image::single(514, &[700_000]);
    let (from, registry) = (source(&image), Registry::start());
    let front = Front::before(registry.addr()).start();
    let side = format!("http://{}", front.side());
    front.add(Rule::on("PUT", "/blobs/uploads/", Fault::SendOn(307, side)).when(|seen| !seen.side));
    copy(&from, &front, &[]).ok();
    image.assert_at(registry.addr(), "app", "v1");
    let puts = front.log().into_iter().filter(|seen| seen.side && seen.method == "PUT");
    let queries: Vec<String> = puts.map(|seen| seen.query).collect();
    assert!(queries.iter().all(|query| query.matches("digest=").count() == 1), "{queries:?}");
}

/// Two hosts send a chunk to each other. That ends after a few requests, whatever the budget.
#[test]
fn redirects_of_a_chunk_that_never_end_are_an_error() {
    let image = Image::single(515, &[3 * MIB / 2]);
    let (from, registry) = (source(&image), Registry::start());
    let front = Front::before(registry.addr()).start();
    for (side, to) in [(true, front.addr()), (false, front.side())] {
        let fault = Fault::SendOn(307, format!("http://{to}"));
        front.add(Rule::on("PATCH", "", fault).when(move |seen| seen.side == side));
    }
    let run = copy(&from, &front, &["--chunk-size", "1MiB", "--retries", "50"]).exits(1);
    assert!(run.stderr.contains("redirects an upload more than 5 times"), "{}", run.stderr);
    assert_eq!(front.count("PATCH", ""), 6, "{}", run.stderr);
}

/// Redirects lead to where nothing may be asked: a metadata service, another repository of the registry with the
/// credentials, an address that is none, or a status that would make a GET of a write. The error says where to.
#[test]
fn a_redirect_that_is_refused_says_where_it_leads() {
    let image = Image::single(516, &[3000]);
    let cases = [
        ("POST", Fault::SendOn(307, "http://169.254.169.254".to_owned()), "169.254.169.254"),
        ("PUT", Fault::SendOn(308, "ftp://files.example".to_owned()), "ftp://files.example"),
        ("POST", Fault::SendOn(302, "http://other.example".to_owned()), "http://other.example by 302"),
        ("POST", Fault::SendOn(307, "http://[".to_owned()), "to an invalid URL"),
    ];
    for (method, fault, says) in cases {
        let (from, registry) = (source(&image), Registry::start());
        let front = Front::before(registry.addr()).rule(Rule::on(method, "", fault)).start();
        let run = copy(&from, &front, &["--retries", "0"]).exits(1);
        assert!(run.stderr.contains(says), "{says}: {}", run.stderr);
    }
    let (from, registry) = (source(&image), Registry::start());
    let front = Front::before(registry.addr()).start();
    let victim = format!("http://{}/v2/victim/manifests/latest", front.addr());
    front.add(Rule::on("PUT", "/v2/app/manifests/", Fault::Redirect(victim)));
    let run = copy(&from, &front, &[]).exits(1);
    assert!(run.stderr.contains("/v2/victim/manifests/latest"), "{}", run.stderr);
    assert_eq!(registry.count("PUT", "/v2/victim/"), 0);
}

/// A proxy that ends TLS stands before a registry, which calls itself `http://HOST:PORT` in the Location of an upload.
/// Nothing is sent in clear.
#[test]
fn a_location_that_names_the_own_host_by_http_is_asked_by_https() {
    let image = Image::single(517, &[900_000]);
    let (from, registry) = (source(&image), Registry::start());
    let front = Front::before(registry.addr()).tls().name("reg.example.test").start();
    let to = format!("reg.example.test:{}/app:v1", front.addr().port());
    let flags = front.flags_only("reg.example.test");
    Tool::transload().args(&["copy", &format!("{}/app:v1", from.addr()), &to]).args(&flags).run().ok();
    image.assert_at(registry.addr(), "app", "v1");
}
