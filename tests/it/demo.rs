//! `transload demo`: it works anywhere, tells the truth, and leaves nothing behind.

use std::time::Duration;

use super::support::process::RUN_TIMEOUT;
use super::support::{Run, TempDir, Tool};

/// The program with a place for temporary files of its own, so that what stays behind shows.
fn demo(temporary: &TempDir) -> Tool {
    Tool::transload().env("TMPDIR", &temporary.join("")).args(&["demo"])
}

#[track_caller]
fn assert_empty(temporary: &TempDir) {
    let left: Vec<_> = std::fs::read_dir(temporary.path()).expect("a directory").flatten().collect();
    assert!(left.is_empty(), "left behind: {left:?}");
}

#[track_caller]
fn assert_held(run: &Run) {
    let lines = [
        "1. Copy hello-world, every platform of it",
        "  ok     library/hello-world:latest is sha256:3de4b202c249… at ACR as at the Hub",
        "  ok     each of the 13 blobs was read once and stored once",
        "  Hub    3 requests: 1 challenge, 1 token, 1 HEAD; no pull counted",
        "  ok     2 requests beside those for tokens, both HEAD, and no pull counted",
        "  ok     ACR lists the same referrer of the image",
        "  ok     all three happened in the middle of the copy",
        "  ok     library/hello-world:latest is sha256:3de4b202c249… at ACR 2 as at the Hub",
        "  ok     23 of 23 manifests and blobs came back byte for byte",
        "  transload copy hello-world myregistry.azurecr.io",
    ];
    let told: Vec<&str> = run.stdout.lines().collect();
    for line in lines {
        assert!(told.contains(&line), "no line {line:?} in\n{}", run.stdout);
    }
    assert!(run.stdout.contains("$ transload copy 127.0.0.1:"), "{}", run.stdout);
    assert!(!run.stdout.contains("FAILED") && !run.stdout.contains('\x1b'), "{}", run.stdout);
    assert_eq!(run.stderr, "");
}

#[test]
fn every_comparison_holds_and_nothing_stays_behind() {
    let temporary = TempDir::new();
    let run = demo(&temporary).run().ok();
    assert_held(&run);
    assert_empty(&temporary);
    // A second is usual; this machine may be busy.
    assert!(run.took < Duration::from_secs(15), "{:?}", run.took);
}

#[test]
fn neither_home_nor_proxies_nor_credentials_matter() {
    let (temporary, docker) = (TempDir::new(), TempDir::new());
    // Anyone who reads it fails, and anyone who writes to it changes it.
    docker.write("config.json", "no JSON at all");
    let nowhere = "http://127.0.0.1:9";
    for home in [None, Some("")] {
        let tool = demo(&temporary).without("HOME").without("XDG_RUNTIME_DIR").env("DOCKER_CONFIG", &docker.join(""));
        let tool = home.into_iter().fold(tool, |tool, home| tool.env("HOME", home));
        let tool = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"].iter().fold(tool, |t, n| t.env(n, nowhere));
        let tool = tool.env("TRANSLOAD_AUTH_FILE", "/nonexistent").env("TRANSLOAD_CA_FILE", "/nonexistent");
        assert_held(&tool.run().ok());
    }
    assert_eq!(docker.read("config.json"), "no JSON at all");
    assert_eq!(std::fs::read_dir(docker.path()).expect("a directory").count(), 1);
    assert_empty(&temporary);
}

#[test]
fn an_interrupt_leaves_nothing_behind() {
    let temporary = TempDir::new();
    let running = demo(&temporary).spawn();
    running.stdout.wait_line("1. Copy hello-world", RUN_TIMEOUT);
    running.terminate();
    let run = running.finish(RUN_TIMEOUT).exits(130);
    assert_eq!(run.stderr, "error: interrupted by SIGTERM\n");
    assert_empty(&temporary);
}

#[test]
fn for_machines_and_in_silence() {
    let temporary = TempDir::new();
    let told = demo(&temporary).args(&["--output", "json"]).run().ok().json();
    assert_eq!((&told["schema"], &told["held"]), (&1.into(), &true.into()));
    let steps = told["steps"].as_array().expect("steps");
    assert_eq!(steps.len(), 5);
    assert!(steps.iter().flat_map(|step| step["checks"].as_array().expect("checks")).all(|c| c["held"] == true));
    assert_eq!(steps[0]["pulls"], 7, "the index and its six children");
    assert_eq!(steps[1]["registries"]["Hub"]["requests"], 3);
    assert_eq!(steps[0]["registries"]["ACR"]["blobs_written"], 13);

    let run = demo(&temporary).args(&["--quiet"]).run().ok();
    assert_eq!((run.stdout.as_str(), run.stderr.as_str()), ("", ""));
    assert_empty(&temporary);
}

#[test]
fn no_place_for_temporary_files_is_said() {
    let run = Tool::transload().env("TMPDIR", "/nonexistent").args(&["demo"]).run().exits(1);
    assert!(run.stderr.contains("/nonexistent/transload-demo-") && run.stderr.contains("hint: set TMPDIR"), "{run:?}");
}
