//! A mirror that stays: what it says of itself, lists that change, and how it ends.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::docs::{self, metrics_on};
use super::support::process::RUN_TIMEOUT;
use super::support::{Image, Process, Registry, Run, TempDir, Tool, http};

struct Stage {
    source: Registry,
    target: Registry,
    dir: TempDir,
}

impl Stage {
    fn new() -> Self {
        let stage = Self { source: Registry::start(), target: Registry::start(), dir: TempDir::new() };
        for (tag, seed) in [("1", 1), ("2", 2)] {
            Image::single(seed, &[3000]).push(stage.source.addr(), "app", tag);
        }
        stage
    }

    fn list(&self, lines: &[&str]) -> String {
        let lines: Vec<String> = lines.iter().map(|line| format!("{}/{line}\n", self.source.addr())).collect();
        self.dir.write("list", lines.concat())
    }

    fn mirror(&self, list: &str, more: &[&str]) -> Tool {
        Tool::transload().args(&["mirror", list, "--to", &self.target.addr().to_string()]).args(more)
    }

    fn has(&self, tag: &str) -> bool {
        http::get(self.target.addr(), &format!("/v2/app/manifests/{tag}")).status == 200
    }
}

fn ops(process: &Process) -> SocketAddr {
    let line = process.stderr.wait_line("/metrics on http://", RUN_TIMEOUT);
    line.split("http://").nth(1).and_then(|address| address.trim().parse().ok()).expect("an address")
}

/// Asks until the answer is as wanted: what leads to it is another program's doing.
#[track_caller]
fn until(at: SocketAddr, path: &str, wanted: impl Fn(u16, &str) -> bool) -> String {
    let begun = Instant::now();
    loop {
        let reply = http::get(at, path);
        if wanted(reply.status, &reply.text()) {
            return reply.text();
        }
        assert!(begun.elapsed() < RUN_TIMEOUT, "{path}: still {} {}", reply.status, reply.text());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn it_tells_how_it_goes_and_reads_its_list_again() {
    let stage = Stage::new();
    let list = stage.list(&["app:1"]);
    let process = stage.mirror(&list, &["--interval", "6h", "--listen-ops", "127.0.0.1:0"]).spawn();
    let at = ops(&process);
    assert_eq!(http::get(at, "/healthz").expect(200).text(), "ok\n");
    until(at, "/readyz", |status, _| status == 200);
    assert!(stage.has("1") && !stage.has("2"));
    let metrics = http::get(at, "/metrics").expect(200).text();
    for line in [
        "transload_mirror_runs_total 1".to_owned(),
        "transload_mirror_images_total{status=\"copied\"} 1".to_owned(),
        "transload_mirror_list_valid 1".to_owned(),
        format!("transload_registry_pulls_total{{registry=\"{}\"}} 1", stage.source.addr()),
    ] {
        assert!(metrics.lines().any(|shown| shown == line), "no {line} in\n{metrics}");
    }
    assert!(metrics.contains("\ntransload_mirror_next_run_timestamp_seconds "), "{metrics}");
    // docs/reference/metrics.md lists them all, and no others: dashboards and alerts are held to it.
    assert_eq!(metrics_on(&metrics, "transload_mirror_"), docs::metrics("transload_mirror_"));
    let told = metrics_on(&metrics, "transload_registry_");
    assert!(told.len() == 2 && told.is_subset(&docs::metrics("transload_registry_")), "{told:?}");

    stage.list(&["app:1", "app:2"]);
    process.hang_up();
    until(at, "/metrics", |_, text| text.contains("\ntransload_mirror_runs_total 2\n"));
    assert!(stage.has("2"));

    stage.list(&["app:1", "not a reference at all"]);
    process.hang_up();
    let why = until(at, "/readyz", |status, _| status == 503);
    assert!(why.contains("the list as it is now is not taken") && why.contains("list:2"), "{why}");
    process.terminate();
    let run = process.finish(RUN_TIMEOUT).exits(0);
    assert!(run.stderr.contains("the last good one is kept"), "{}", run.stderr);
    assert!(
        run.stdout.contains("1 copied") && run.stdout.contains("1 unchanged"),
        "a report for each run: {}",
        run.stdout
    );
}

/// Without a signal too, once the file is settled.
#[test]
fn a_changed_file_is_seen() {
    let stage = Stage::new();
    let list = stage.list(&["app:1"]);
    let process = stage.mirror(&list, &["--interval", "6h", "--listen-ops", "127.0.0.1:0"]).spawn();
    let at = ops(&process);
    until(at, "/readyz", |status, _| status == 200);
    stage.list(&["app:2"]);
    until(at, "/metrics", |_, text| text.contains("\ntransload_mirror_runs_total 2\n"));
    assert!(stage.has("2"));
    process.interrupt();
    process.finish(RUN_TIMEOUT).exits(0);
}

#[test]
fn what_cannot_stay_says_why() {
    let stage = Stage::new();
    let list = stage.list(&["app:1"]);
    let fails = |run: Run, why: &str| assert!(run.stderr.contains(why), "{}", run.stderr);
    fails(stage.mirror("-", &["--interval", "6h"]).stdin("app:1").run().exits(2), "stdin can't give");
    fails(stage.mirror(&list, &["--interval", "soon"]).run().exits(2), "is not a duration");
    fails(stage.mirror(&list, &["--listen-ops", "127.0.0.1:0"]).run().exits(2), "--interval");
    let bad = stage.list(&["not a reference at all"]);
    fails(stage.mirror(&bad, &["--interval", "6h"]).run().exits(2), "list:1");
}
