//! What `transload proxy` says of itself: metrics, probes, and the page for people in a real browser.

use std::net::SocketAddr;
use std::process::Command;
use std::time::{Duration, Instant};

use super::support::{Image, Registry, TempDir, Tool, http};

const TAG: &str = "/v2/library/app/manifests/v1";

/// The address at the end of a line that the program told.
fn address(line: &str) -> SocketAddr {
    line.rsplit("http://").next().and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| panic!("{line}"))
}

#[test]
fn metrics_probes_and_page_tell_what_was_pulled() {
    let (registry, cache) = (Registry::start(), TempDir::new());
    let image = Image::single(3, &[50_000]);
    image.push(registry.addr(), "library/app", "v1");
    let upstream = format!("docker.io={}", registry.addr());
    let proxy = Tool::transload()
        .args(&["proxy", "--listen", "127.0.0.1:0", "--listen-ops", "127.0.0.1:0", "--upstream", &upstream])
        .args(&["--cache", &cache.join("cache")])
        .spawn();
    let limit = Duration::from_secs(20);
    let ops = address(&proxy.stderr.wait_line("/metrics on http://", limit));
    let clients = address(&proxy.stderr.wait_line("proxying docker.io on http://", limit));
    http::get(ops, "/healthz").expect(200);
    http::get(ops, "/readyz").expect(200);
    for _ in 0..2 {
        http::get(clients, TAG).expect(200);
        http::get(clients, &format!("/v2/library/app/blobs/{}", image.blobs[1].digest)).expect(200);
        // The last byte leaves when its digest matched, a moment before the file has its name.
        let begun = Instant::now();
        while !http::get(ops, "/metrics").expect(200).text().contains("transload_proxy_fills 0\n") {
            assert!(begun.elapsed() < limit, "the fetch doesn't end");
        }
    }
    let metrics = http::get(ops, "/metrics").expect(200).text();
    let counted = |what: &str, how: &str| {
        format!("transload_proxy_requests_total{{upstream=\"docker.io\",what=\"{what}\",how=\"{how}\"}} 1")
    };
    for line in
        [counted("manifest", "miss"), counted("manifest", "hit"), counted("blob", "miss"), counted("blob", "hit")]
    {
        assert!(metrics.contains(&line), "{line} is not in {metrics}");
    }
    let bytes = format!("transload_proxy_upstream_bytes_total{{registry=\"{}\"}} 50000", registry.addr());
    assert!(metrics.contains(&bytes), "{metrics}");

    let status = http::get(ops, "/status.json").expect(200).json();
    assert_eq!(status["hit_ratio"], 0.5, "{status}");
    assert_eq!(status["most_pulled"][0]["image"], "docker.io/library/app");
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
