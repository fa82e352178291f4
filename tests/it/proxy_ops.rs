//! `transload proxy`: what it tells those who operate it.

use std::process::Command;

use super::readme::{self, metrics_on};
use super::support::proxied::{ops, shows};
use super::support::{Front, Image, Proxied, Registry, TempDir, http};

#[test]
fn what_was_pulled_is_counted() {
    let registry = Registry::start();
    let image = Image::single(1, &[5000]);
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr()).start();
    let proxy = Proxied::hub(front.addr(), &["--listen-ops", "127.0.0.1:0"]);
    let ops = ops(&proxy);
    http::get(ops, "/healthz").expect(200);
    http::get(ops, "/readyz").expect(200);
    let bytes: usize = image.blobs.iter().map(|blob| blob.bytes.len()).sum();
    let blobs = image.blobs.len();
    image.assert_at(proxy.addr(), "library/app", "v1");
    // Until a fill is over, who asks for its blob joins it: no hit.
    shows(ops, &format!("transload_proxy_ended_fills_total{{result=\"ok\"}} {blobs}"));
    for _ in 0..2 {
        image.assert_at(proxy.addr(), "library/app", "v1");
    }
    http::get(proxy.addr(), "/v2/library/app/manifests/v9").expect(404);
    shows(ops, &format!("transload_proxy_cache_blobs {blobs}"));
    shows(ops, &format!("transload_proxy_cache_bytes {bytes}"));
    shows(ops, "transload_proxy_fills 0");
    shows(ops, &format!("transload_proxy_upstream_bytes_total{{registry=\"{}\"}} {bytes}", front.addr()));
    shows(ops, &format!("transload_proxy_upstream_up{{registry=\"{}\"}} 1", front.addr()));
    let page = http::get(ops, "/metrics").text();
    let sent = |from: &str| -> usize {
        let name = format!("transload_proxy_sent_bytes_total{{from=\"{from}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    assert!(sent("fill") >= bytes && sent("fill") + sent("disk") == 3 * bytes, "{page}");
    let counted = |what: &str, how: &str| {
        let name = format!("transload_proxy_requests_total{{upstream=\"docker.io\",kind=\"{what}\",how=\"{how}\"}} ");
        page.lines().find_map(|line| line.strip_prefix(&name)).and_then(|count| count.parse().ok()).unwrap_or(0)
    };
    assert_eq!((counted("blob", "miss"), counted("manifest", "miss"), counted("manifest", "absent")), (blobs, 1, 1));
    // Whoever comes before the file has its name reads along.
    let again = counted("blob", "hit") + counted("blob", "coalesced");
    assert!(again >= blobs && counted("manifest", "hit") >= 2, "{page}");
    // The README lists them all, and no others: dashboards and alerts are held to it.
    let mut listed = readme::metrics("transload_proxy_");
    assert!(listed.remove("transload_proxy_write_back"), "which the tests of writing back see");
    assert_eq!(metrics_on(&page, "transload_proxy_"), listed);
}

/// The page shows what was pulled, in a real browser too.
#[test]
fn the_page_shows_what_was_pulled() {
    let registry = Registry::start();
    let image = Image::single(3, &[50_000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = Proxied::hub(registry.addr(), &["--listen-ops", "127.0.0.1:0"]);
    let ops = ops(&proxy);
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
