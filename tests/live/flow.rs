//! Copies `hello-world`, copies it again, and pulls it through a proxy.

use std::panic::{AssertUnwindSafe, catch_unwind};

use serde_json::Value;

use crate::Live;
use crate::support::http::{self, Reply};
use crate::support::layer::sha256;
use crate::support::process::RUN_TIMEOUT;
use crate::support::{Run, TempDir};

/// Runs it; returns what failed.
pub fn run(live: &Live) -> Vec<String> {
    guarded(live, "copy and pull", || {
        let digest = copy(live);
        copy_again(live, &digest);
        pull(live, &digest);
    })
}

/// Runs a part; returns the message of its failure, without secrets.
pub fn guarded(live: &Live, what: &str, part: impl FnOnce()) -> Vec<String> {
    let Err(panic) = catch_unwind(AssertUnwindSafe(part)) else { return Vec::new() };
    let text = panic.downcast_ref::<String>().map(String::as_str).or(panic.downcast_ref::<&str>().copied());
    let failure = live.scrub(&format!("{what} failed: {}", text.unwrap_or("a panic")));
    live.say(&failure);
    vec![failure]
}

/// Copies the image; returns its digest.
fn copy(live: &Live) -> String {
    let repository = live.repository(NAME);
    let first = transload_copy(live);
    let image = &first["images"][0];
    assert_eq!(image["status"], "copied", "{}", live.scrub(&first.to_string()));
    let digest = image["digest"].as_str().expect("a digest").to_owned();
    let index = read(live, &repository, &digest);
    for child in index.json()["manifests"].as_array().into_iter().flatten() {
        let child = child["digest"].as_str().expect("a digest");
        live.wrote(&format!("/v2/{repository}/manifests/{child}"));
    }
    // Removed before its children.
    live.wrote(&format!("/v2/{repository}/manifests/{digest}"));
    live.say(&format!("copied: {digest}; {}", first["summary"]));
    digest
}

/// Nothing is to be done: no blob and no manifest moves.
fn copy_again(live: &Live, digest: &str) {
    let again = transload_copy(live);
    let image = &again["images"][0];
    assert_eq!(image["status"], "unchanged", "{}", live.scrub(&again.to_string()));
    assert_eq!(image["digest"], digest);
    for count in ["manifests_written", "blobs_uploaded", "bytes_uploaded", "pulls"] {
        assert_eq!(image[count], 0, "{count}");
    }
    live.say(&format!("copied again, unchanged: {}", again["summary"]));
}

fn transload_copy(live: &Live) -> Value {
    let to = format!("{}/{}:latest", live.acr(), live.repository(NAME));
    let source = if live.uses_hub() { "docker.io/library/hello-world:latest" } else { "mcr.microsoft.com/hello-world" };
    let run: Run = live.transload(&["copy", "--output", "json", source, &to]).run();
    assert!(run.code == 0, "transload copy exits with {}: {}{}", run.code, run.stdout, run.stderr);
    run.json()
}

/// Pulls one platform of the image through a proxy of the registry, twice, and compares each digest.
fn pull(live: &Live, digest: &str) {
    let cache = TempDir::new();
    let directory = cache.join("cache");
    let args =
        ["proxy", "--listen", "127.0.0.1:0", "--keep-free", "0", "--upstream", live.acr(), "--cache", &directory];
    let proxy = live.transload(&args).spawn();
    let line = proxy.stderr.wait_line("proxying ", RUN_TIMEOUT);
    let address = line.split(" on http://").nth(1).and_then(|address| address.trim().parse().ok());
    let address = address.expect("an address in the log");
    let get = |kind: &str, reference: &str| {
        let path = format!("/v2/{}/{kind}/{reference}?ns={}", live.repository(NAME), live.acr());
        http::get(address, &path).expect(200)
    };
    for times in ["first", "second"] {
        let mut manifest = get("manifests", "latest");
        assert_eq!(sha256(&manifest.body), digest, "through the proxy");
        if let Some(child) = manifest.json()["manifests"][0]["digest"].as_str() {
            manifest = get("manifests", child);
            assert_eq!(sha256(&manifest.body), child, "through the proxy");
        }
        let manifest = manifest.json();
        let layers = manifest["layers"].as_array().into_iter().flatten();
        let mut bytes = 0;
        for blob in layers.chain([&manifest["config"]]) {
            let blob = blob["digest"].as_str().expect("a digest");
            let body = get("blobs", blob).body;
            assert_eq!(sha256(&body), blob, "through the proxy");
            bytes += body.len();
        }
        live.say(&format!("pulled through a proxy for the {times} time: {bytes} bytes of blobs, digests right"));
    }
}

/// A manifest of the registry.
pub fn read(live: &Live, repository: &str, reference: &str) -> Reply {
    let path = format!("/v2/{repository}/manifests/{reference}");
    live.ask("GET", &path, &[("accept", http::ACCEPT)], b"").expect("an answer").expect(200)
}

pub const NAME: &str = "hello-world";
