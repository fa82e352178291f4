//! `transload proxy`: what it tells those who operate it.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

use serde_json::json;

use super::docs::{self, metrics_on};
use super::proxy_blobs::wait_until;
use super::support::proxied::{assert_metric_line, ops_addr};
use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, TempDir, http};

#[test]
fn what_was_pulled_is_counted() {
    let registry = Registry::start();
    let image = Image::single(1, &[5000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &["--listen-ops", "127.0.0.1:0"]);
    let ops = ops_addr(&proxy);
    http::get(ops, "/healthz").expect(200);
    http::get(ops, "/readyz").expect(200);
    let bytes: usize = image.blobs.iter().map(|blob| blob.bytes.len()).sum();
    let blobs = image.blobs.len();
    image.assert_at(proxy.addr(), "library/app", "v1");
    // Until a fill is over, who asks for its blob joins it: no hit.
    assert_metric_line(ops, &format!("transload_proxy_fills_completed_total{{result=\"ok\"}} {blobs}"));
    for _ in 0..2 {
        image.assert_at(proxy.addr(), "library/app", "v1");
    }
    http::get(proxy.addr(), "/v2/library/app/manifests/v9").expect(404);
    assert_metric_line(ops, &format!("transload_proxy_cache_blobs {blobs}"));
    assert_metric_line(ops, &format!("transload_proxy_cache_bytes {bytes}"));
    assert_metric_line(ops, "transload_proxy_fills_in_progress 0");
    assert_metric_line(ops, &format!("transload_proxy_upstream_bytes_total{{registry=\"{}\"}} {bytes}", front.addr()));
    assert_metric_line(ops, &format!("transload_proxy_upstream_up{{registry=\"{}\"}} 1", front.addr()));
    let page = http::get(ops, "/metrics").text();
    let sent = |from: &str| -> usize {
        let name = format!("transload_proxy_sent_bytes_total{{source=\"{from}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    assert!(sent("fill") >= bytes && sent("fill") + sent("disk") == 3 * bytes, "{page}");
    let counted = |what: &str, how: &str| {
        let name =
            format!("transload_proxy_requests_total{{upstream=\"docker.io\",kind=\"{what}\",outcome=\"{how}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    assert_eq!((counted("blob", "miss"), counted("manifest", "miss"), counted("manifest", "not-found")), (blobs, 1, 1));
    // Whoever comes before the file has its name reads along.
    let again = counted("blob", "hit") + counted("blob", "coalesced");
    assert!(again >= blobs && counted("manifest", "hit") >= 2, "{page}");
    // docs/reference/metrics.md lists them all, and no others: dashboards and alerts are held to it.
    let mut listed = docs::metrics("transload_proxy_");
    assert!(listed.remove("transload_proxy_write_back_images"), "which the tests of writing back see");
    assert!(listed.remove("transload_proxy_upstream_refusals"), "which the test of refusals sees");
    assert_eq!(metrics_on(&page, "transload_proxy_"), listed);
}

/// Also what never came as far as to an upstream, and without names that clients make up.
#[test]
fn every_answer_is_counted() {
    let registry = Registry::start();
    let image = Image::single(2, &[5000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = ProxyProcess::hub(registry.addr(), &["--listen-ops", "127.0.0.1:0"]);
    let (at, ops) = (proxy.addr(), ops_addr(&proxy));
    let blob = format!("/v2/library/app/blobs/{}", image.blobs[0].digest);
    for (method, path, status) in [
        ("GET", "/v2/", 200),
        ("HEAD", &blob, 200),
        ("GET", "/v2/library/app/tags/list", 200),
        ("GET", &format!("/v2/library/app/referrers/{}", image.digest()), 200),
        ("GET", "/v2/a/manifests/v1?ns=made-up.io", 404),
        ("HEAD", &format!("{blob}?ns=other.io"), 404),
        ("PUT", "/v2/library/app/manifests/v1", 405),
        ("GET", "/v2/library/app/manifests/", 404),
    ] {
        http::send(at, method, path, &[], &[]).expect(status);
    }
    for (status, count) in [(200, 4), (404, 3), (405, 1)] {
        assert_metric_line(ops, &format!("transload_proxy_responses_total{{status=\"{status}\"}} {count}"));
    }
    for (upstream, kind, how) in [
        ("docker.io", "head", "uncached"),
        ("docker.io", "tags", "uncached"),
        ("docker.io", "referrers", "uncached"),
        ("unknown", "manifest", "not-found"),
        ("unknown", "head", "not-found"),
    ] {
        let labels = format!("upstream=\"{upstream}\",kind=\"{kind}\",outcome=\"{how}\"");
        assert_metric_line(ops, &format!("transload_proxy_requests_total{{{labels}}} 1"));
    }
    assert!(!http::get(ops, "/metrics").text().contains("made-up"));
}

/// What registries answer, how long that takes, and what they say is left.
#[test]
fn what_upstreams_do_is_counted() {
    let registry = Registry::start();
    Image::single(4, &[5000]).push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).hub(|hub| hub.anonymous_pulls = Some(50)).start();
    let proxy = ProxyProcess::hub(front.addr(), &["--listen-ops", "127.0.0.1:0"]);
    let (at, ops, name) = (proxy.addr(), ops_addr(&proxy), front.addr());
    front.add(Rule::on("GET", "/manifests/v1", Fault::Delay(Duration::from_millis(600))));
    http::get(at, "/v2/library/app/manifests/v1").expect(200);
    assert_metric_line(ops, &format!("transload_proxy_upstream_requests_total{{registry=\"{name}\",result=\"ok\"}} 1"));
    assert_metric_line(
        ops,
        &format!("transload_proxy_upstream_request_duration_seconds_bucket{{le=\"0.5\",registry=\"{name}\"}} 0"),
    );
    assert_metric_line(
        ops,
        &format!("transload_proxy_upstream_request_duration_seconds_count{{registry=\"{name}\"}} 1"),
    );
    assert_metric_line(ops, &format!("transload_registry_pulls_left{{registry=\"{name}\"}} 49"));
    assert_metric_line(ops, &format!("transload_registry_pulls_limit{{registry=\"{name}\"}} 50"));
    // A question is asked three times at once before it has failed; asked again it is answered.
    front.add(Rule::on("*", "/manifests/ill", Fault::status(500)).nth(1..=3));
    http::get(at, "/v2/library/app/manifests/ill").expect(404);
    assert_eq!(front.count("*", "/manifests/ill"), 4);
    front.add(Rule::on("*", "/manifests/busy", Fault::too_many(60)));
    http::get(at, "/v2/library/app/manifests/busy").expect(503);
    for result in ["registry", "limited"] {
        assert_metric_line(
            ops,
            &format!("transload_proxy_upstream_requests_total{{registry=\"{name}\",result=\"{result}\"}} 1"),
        );
    }
    assert_metric_line(ops, &format!("transload_proxy_upstream_up{{registry=\"{name}\"}} 0"));
}

/// What is on its way, what went wrong, how much there is, and who isn't well.
#[test]
fn the_page_shows_what_goes_on() {
    let registry = Registry::start();
    let image = Image::single(5, &[400_000, 300_000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &["--listen-ops", "127.0.0.1:0", "--cache-size", "7MiB"]);
    let (at, ops) = (proxy.addr(), ops_addr(&proxy));
    let status = || http::get(ops, "/status.json").expect(200).json();
    http::get(at, "/v2/library/app/manifests/v1").expect(200);
    let [slow, wrong] = [&image.blobs[1], &image.blobs[2]];
    front.add(Rule::on("GET", &slow.digest, Fault::StallAfter(100_000)));
    front.add(Rule::on("GET", &wrong.digest, Fault::FlipByteAt(7)));
    let path = |digest: &str| format!("/v2/library/app/blobs/{digest}");
    let mut client = std::net::TcpStream::connect(at).expect("connects");
    write!(client, "GET {} HTTP/1.1\r\nhost: x\r\n\r\n", path(&slow.digest)).expect("sends");
    wait_until("it fills", || status()["filling"][0]["got"].as_u64().is_some_and(|got| got > 0));
    let shown = status();
    assert_eq!((&shown["filling"][0]["digest"], &shown["filling"][0]["size"]), (&json!(slow.digest), &json!(400_000)));
    assert_eq!(shown["filling"].as_array().map(Vec::len), Some(1), "{shown}");
    let _ = http::try_send(at, "GET", &path(&wrong.digest), &[], &[]);
    let short = &wrong.digest[7..15];
    wait_until("it's told", || status()["errors"].to_string().contains(short));
    // The configuration is fetched well.
    let config = &image.blobs[0];
    http::get(at, &path(&config.digest)).expect(200);
    wait_until("it's there", || status()["blobs"] == 1);
    let shown = status();
    assert_eq!((&shown["bytes"], &shown["bound"]), (&json!(config.bytes.len()), &json!(7 << 20)), "{shown}");
    assert_eq!(shown["upstreams"], json!([{"registry": front.addr().to_string(), "well": true, "refusals": {}}]));
    front.add(Rule::on("*", "/manifests/v2", Fault::too_many(60)));
    http::get(at, "/v2/library/app/manifests/v2").expect(503);
    let shown = status();
    assert_eq!(shown["upstreams"][0]["well"], false, "{shown}");
    assert!(shown["errors"][0]["what"].as_str().is_some_and(|what| what.ends_with(": limited")), "{shown}");
}

/// The page shows what was pulled, in a real browser too.
#[test]
fn the_page_shows_what_was_pulled() {
    let registry = Registry::start();
    let image = Image::single(3, &[50_000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = ProxyProcess::hub(registry.addr(), &["--listen-ops", "127.0.0.1:0"]);
    let ops = ops_addr(&proxy);
    for _ in 0..2 {
        http::get(proxy.addr(), "/v2/library/app/manifests/v1").expect(200);
    }
    let status = http::get(ops, "/status.json").expect(200).json();
    assert_eq!((&status["hit_ratio"], &status["requests"]), (&0.5.into(), &2.into()), "{status}");
    let pulled = &status["most_pulled"][0];
    assert_eq!((&pulled["image"], &pulled["times"]), (&"docker.io/library/app".into(), &2.into()));
    let page = http::get(ops, "/").expect(200);
    assert!(page.header("content-security-policy").is_some_and(|policy| policy.starts_with("default-src 'none'")));
    looked_at(&format!("http://{ops}/"));
}

/// The page in Debian's browser: its script must have run, within the policy, and filled in the figures.
#[expect(clippy::print_stderr, reason = "whoever reads the tests must know that it was not looked at")]
fn looked_at(url: &str) {
    let profile = TempDir::new();
    let run = Command::new("chromium")
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", "--virtual-time-budget=4000"])
        .arg(format!("--user-data-dir={}", profile.join("profile")))
        .arg(url)
        .env("HOME", profile.path())
        .output();
    let Ok(run) = run else {
        eprintln!("NOT TESTED: the status page in a browser: there is no chromium");
        return;
    };
    let dom = String::from_utf8_lossy(&run.stdout);
    for shown in ["50.0 %", "docker.io/library/app", "answers", "as of "] {
        assert!(dom.contains(shown), "{shown:?} is not on the page: {dom}\n{}", String::from_utf8_lossy(&run.stderr));
    }
}

/// Somebody removes the cache's directory: it is created again. Where that cannot be done, the proxy is not ready.
#[test]
fn a_proxy_that_cannot_cache_is_not_ready() {
    let registry = Registry::start();
    let image = Image::single(3, &[5000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = ProxyProcess::hub(registry.addr(), &["--listen-ops", "127.0.0.1:0"]);
    let ops = ops_addr(&proxy);
    let dir = proxy.cache.join("cache");
    std::fs::remove_dir_all(&dir).expect("removed");
    image.assert_at(proxy.addr(), "library/app", "v1");
    assert_metric_line(ops, &format!("transload_proxy_cache_blobs {}", image.blobs.len()));
    assert_metric_line(ops, "transload_proxy_cache_recreated_total 1");
    http::get(ops, "/readyz").expect(200);
    std::fs::remove_dir_all(&dir).expect("removed");
    std::fs::write(&dir, "in the way").expect("written");
    wait_until("not ready", || http::get(ops, "/readyz").status == 503);
    assert!(http::get(ops, "/readyz").text().contains("nothing can be cached"));
    image.assert_at(proxy.addr(), "library/app", "v1");
    std::fs::remove_file(&dir).expect("removed");
    wait_until("ready again", || http::get(ops, "/readyz").status == 200);
}
