//! Numbers from outside in calculations.
//!
//! Lifetimes, waits, offsets and sizes come from a registry. None may end the program, and none may make it wait or
//! keep something for ever.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::super::support::{FakeRegistry, FakeResponse, Fault, Front, Image, ProxyProcess, Registry, Rule, TempDir};
use super::super::support::{http, transload};

const MAX: &str = "18446744073709551615";

/// A registry with one tag that wants a token once, and whose token endpoint gives this document.
fn with_token(document: String) -> FakeRegistry {
    let challenged = AtomicBool::new(false);
    FakeRegistry::start(move |asked| match asked.target.as_str() {
        target if target.starts_with("/token") => FakeResponse::new(200, &document),
        _ if !challenged.swap(true, Ordering::Relaxed) => {
            let challenge = r#"Bearer realm="/token",service="registry""#;
            FakeResponse::new(401, "").with("www-authenticate", challenge)
        }
        _ => FakeResponse::json(&json!({"name": "app", "tags": ["v1"]})),
    })
}

/// A token that lives for a number of seconds that no clock can add, or for a negative or broken one.
#[test]
fn a_lifetime_of_a_token_may_be_any_number() {
    for life in
        [MAX, "9223372036854775807", "0", "-1", "-9223372036854775808", "1e300", "0.5", r#""3600""#, "null", "{}"]
    {
        let registry = with_token(format!(r#"{{"token":"x","expires_in":{life}}}"#));
        let run = transload(&["tags", &format!("{}/app", registry.addr())]).ok();
        assert_eq!((run.stdout.as_str(), registry.count("/token")), ("v1\n", 1), "{life}");
    }
}

/// The same by the token's own claims.
#[test]
fn an_end_of_a_token_may_be_any_number() {
    for claims in [
        format!(r#"{{"iat":0,"exp":{MAX}}}"#),
        format!(r#"{{"exp":{MAX}}}"#),
        format!(r#"{{"iat":{MAX},"exp":0}}"#),
        r#"{"iat":-9223372036854775808,"exp":9223372036854775807}"#.to_owned(),
        r#"{"exp":1e300}"#.to_owned(),
    ] {
        let token = format!("x.{}.y", URL_SAFE_NO_PAD.encode(&claims));
        let registry = with_token(json!({"access_token": token}).to_string());
        assert_eq!(transload(&["tags", &format!("{}/app", registry.addr())]).ok().stdout, "v1\n", "{claims}");
    }
}

/// In a list of images, one registry's token ended the run of all, without a report.
#[test]
fn a_lifetime_that_no_clock_can_add_does_not_end_a_mirror_run() {
    let (source, target, home) = (Registry::start(), Registry::start(), TempDir::new());
    Image::single(1, &[3000]).push(source.addr(), "good", "v1");
    let hostile = with_token(format!(r#"{{"token":"x","expires_in":{MAX}}}"#));
    let list = home.write("list", format!("{}/bad:v1\n{}/good:v1\n", hostile.addr(), source.addr()));
    let run = transload(&["mirror", &list, "--to", &target.addr().to_string(), "--output", "json"]).exits(3);
    let summary = &run.json()["summary"];
    assert_eq!((&summary["copied"], &summary["failed"]), (&json!(1), &json!(1)), "{summary}");
}

/// A registry asks to be left alone for longer than there is time.
#[test]
fn a_retry_after_may_be_any_number() {
    let waits = [MAX, "99999999999999999999999999", "Thu, 30 Dec 9999 20:00:00 GMT", "-5", "1e9", ""];
    std::thread::scope(|scope| waits.map(|wait| scope.spawn(move || is_asked_to_wait(wait))).map(|one| one.join()))
        .into_iter()
        .for_each(|one| one.expect("all of it holds"));
}

fn is_asked_to_wait(wait: &'static str) {
    let registry = FakeRegistry::start(move |asked| match asked.target.as_str() {
        target if target.contains("again") => FakeResponse::absent(),
        _ => FakeResponse::new(429, "").with("retry-after", wait),
    });
    if wait.len() > 9 {
        let run = transload(&["tags", &format!("{}/app", registry.addr())]).exits(1);
        assert!(run.stderr.contains("429"), "{wait}: {}", run.stderr);
        assert!(run.took < Duration::from_secs(20), "{wait}: {:?}", run.took);
    }
    let proxy = ProxyProcess::hub(registry.addr(), &["--upstream-timeout", "3"]);
    let reply = http::get(proxy.addr(), "/v2/library/app/manifests/v1").expect(503);
    let told = reply.header("retry-after").and_then(|told| told.parse::<u64>().ok());
    assert!(told.is_none_or(|told| told <= 24 * 3600), "{wait}: {told:?}");
}

/// Docker Hub's headers name a limit, a rest and a window that no sum can hold.
#[test]
fn a_pull_limit_may_be_any_number() {
    let (source, to) = (Registry::start(), Registry::start());
    Image::single(3, &[3000]).push(source.addr(), "app", "v1");
    for (limit, remaining) in
        [(format!("{MAX};w={MAX}"), MAX), (format!("{MAX};w=0"), "0"), ("0;w=-1".to_owned(), "-1")]
    {
        let front = Front::before(source.addr()).start();
        front.add(Rule::on("*", "/manifests/", Fault::Header("ratelimit-limit", Some(limit))));
        let run = transload(&["copy", &format!("{}/app:v1", front.host()), &to.addr().to_string(), "--force"]).ok();
        assert!(front.struck() > 0, "{remaining}: {}", run.stderr);
    }
}

/// A destination says that it has more bytes of an upload than there are numbers for.
#[test]
fn a_range_of_an_upload_may_be_any_number() {
    for range in ["0-18446744073709551615", "0-18446744073709551614", "5-1", "0-99999999999999999999999", "0--1"] {
        let (source, behind) = (Registry::start(), Registry::start());
        let image = Image::single(4, &[3 << 20]);
        image.push(source.addr(), "app", "v1");
        let rule = Rule::on("PATCH", "/uploads/", Fault::Header("range", Some(range.to_owned()))).nth(1..=1);
        let front = Front::before(behind.addr()).rule(rule).start();
        let from = format!("{}/app:v1", source.addr());
        transload(&["copy", &from, front.host(), "--chunk-size", "1MiB"]).ok();
        assert_eq!(front.struck(), 1);
        image.assert_at(behind.addr(), "app", "v1");
    }
}

/// A part of a blob that begins, or ends, where no byte is.
#[test]
fn a_content_range_may_be_any_number() {
    for range in [
        format!("bytes {MAX}-{MAX}/{MAX}"),
        format!("bytes 0-{MAX}/*"),
        format!("bytes {MAX}-0/0"),
        "bytes -1-5/9".to_owned(),
    ] {
        let (source, to) = (Registry::start(), Registry::start());
        let image = Image::single(5, &[2 << 20]);
        image.push(source.addr(), "app", "v1");
        let blob = &image.blobs[1].digest;
        let front = Front::before(source.addr()).start();
        // The first answer breaks off, so that the rest is asked for by a range.
        front.add(Rule::on("GET", blob, Fault::TruncateAt(1 << 20)).once());
        front.add(Rule::on("GET", blob, Fault::Header("content-range", Some(range))).nth(2..));
        let run = transload(&["copy", &format!("{}/app:v1", front.host()), &to.addr().to_string(), "--retries", "1"]);
        assert!(run.code == 1 && run.stderr.contains("cannot read blob"), "{run:?}");
    }
}

/// Layers whose sizes are larger than content can be, and whose sum is larger than a number.
#[test]
fn sizes_may_add_up_to_any_number() {
    let layer = |nth: u64, size: u64| {
        let digest = format!("sha256:{nth:064x}");
        json!({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "size": size, "digest": digest})
    };
    for (size, code) in [(u64::MAX, 1), (u64::MAX / 2 + 1, 1), (u64::MAX / 2, 0)] {
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let layers: Vec<_> = (1..6).map(|nth| layer(nth, size)).collect();
        let manifest = json!({"schemaVersion": 2, "mediaType": media_type, "config": layer(9, 2), "layers": layers});
        let registry = FakeRegistry::start(move |asked| match asked.target.as_str() {
            target if target.contains("/manifests/") => FakeResponse::json(&manifest).with("content-type", media_type),
            _ => FakeResponse::absent(),
        });
        let (image, to) = (format!("{}/app:v1", registry.addr()), Registry::start());
        for args in [&["inspect", &image][..], &["copy", &image, &to.addr().to_string(), "--dry-run"]] {
            let run = transload(args).exits(code);
            assert!(code == 0 || run.stderr.contains("more than content can have"), "{}", run.stderr);
        }
    }
}

/// A blob whose announced length is larger than any disk: the cache makes no room for it, and keeps what it has.
#[test]
fn an_announced_length_may_be_any_number() {
    let source = Registry::start();
    let image = Image::single(6, &[300_000]);
    image.push(source.addr(), "library/app", "v1");
    let digest = format!("sha256:{:064x}", 3);
    let front = Front::before(source.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &[]);
    let kept = format!("/v2/library/app/blobs/{}", image.blobs[1].digest);
    http::get(proxy.addr(), &kept).expect(200);
    for length in [MAX, "9223372036854775807", "9223372036854775808", "-1"] {
        let answer = Fault::Header("content-length", Some(length.to_owned()));
        front.clear_rules();
        front.add(Rule::on("HEAD", &digest, Fault::status(200)));
        front.add(Rule::on("HEAD", &digest, answer));
        let reply = http::get(proxy.addr(), &format!("/v2/library/app/blobs/{digest}"));
        assert!(reply.status >= 404, "{length}: {}", reply.status);
        front.reset_log();
        http::get(proxy.addr(), &kept).expect(200);
        assert_eq!(front.count("GET", &image.blobs[1].digest), 0, "{length}: it is still cached");
    }
}
