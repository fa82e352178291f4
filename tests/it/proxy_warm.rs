//! `transload proxy warm`: a running proxy, filled with a list.

use serde_json::Value;

use super::support::Run;
use super::support::proxied::assert_blobs_valid;
use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, TempDir, Tool, http, transload};

/// Runs it on a list, at the proxy.
fn warm(proxy: &ProxyProcess, list: &str, flags: &[&str]) -> Run {
    let (dir, at) = (TempDir::new(), proxy.addr().to_string());
    let list = dir.write("list", list);
    let args = [&["proxy", "warm", list.as_str(), "--proxy", &at, "--output", "json"], flags].concat();
    transload(&args)
}

fn sums(run: &Run) -> (Value, Value, Value) {
    let summary = &run.json()["summary"];
    (summary["blobs_uploaded"].clone(), summary["bytes_uploaded"].clone(), summary["blobs_present"].clone())
}

#[test]
fn a_list_is_there_before_anyone_pulls_it_and_each_blob_comes_once() {
    let registry = Registry::start();
    let (app, multi) = (Image::single(1, &[700_000, 5000]), Image::index(2, 2, &[3000]));
    app.push(registry.addr(), "library/app", "v1");
    // The same blobs in another repository.
    app.push(registry.addr(), "team/app", "v2");
    multi.push(registry.addr(), "team/multi", "1.0.0");
    multi.push(registry.addr(), "team/multi", "2.0.0");
    let front = Front::before(registry.addr()).start();
    let proxy = ProxyProcess::hub(front.addr(), &[]);
    let list = "images:\n  - source: docker.io/app:v1\n  - source: docker.io/team/app:v2\n  \
                - source: docker.io/team/multi\n    semver: '>=2'\n";
    let run = warm(&proxy, list, &[]).exits(0);
    let blobs = app.blobs.len() + multi.blobs.len();
    let bytes: usize = app.blobs.iter().chain(&multi.blobs).map(|blob| blob.bytes.len()).sum();
    assert_eq!(sums(&run), (blobs.into(), bytes.into(), app.blobs.len().into()), "{}", run.stdout);
    assert_eq!(run.json()["images"][0]["source"], "docker.io/library/app:v1");
    let gets = |front: &Front| {
        front.log().iter().filter(|request| request.method == "GET" && request.path.contains("/blobs/")).count()
    };
    assert_eq!(gets(&front), blobs);
    assert_eq!(assert_blobs_valid(&proxy.cache), blobs + app.manifests.len() + multi.manifests.len());

    // All of it is there: nothing is moved, neither from the registry nor from the proxy.
    let again = warm(&proxy, list, &[]).exits(0);
    assert_eq!(sums(&again), (0.into(), 0.into(), (blobs + app.blobs.len()).into()), "{}", again.stdout);
    assert_eq!(again.json()["summary"]["unchanged"], 3);
    assert_eq!(gets(&front), blobs);
    drop(front);
    app.assert_at(proxy.addr(), "team/app", "v2");
    multi.assert_at(proxy.addr(), "team/multi", "2.0.0");
}

#[test]
fn platforms_narrow_it_and_what_fails_stops_no_other() {
    let registry = Registry::start();
    let (multi, bad) = (Image::index(3, 3, &[3000]), Image::single(4, &[8000]));
    multi.push(registry.addr(), "library/multi", "v1");
    bad.push(registry.addr(), "library/bad", "v1");
    let broken = Rule::on("GET", "/v2/library/bad/blobs/", Fault::FlipByteAt(3));
    let front = Front::before(registry.addr()).rule(broken).start();
    let proxy = ProxyProcess::hub(front.addr(), &[]);
    let list = "docker.io/multi:v1\ndocker.io/bad:v1\ndocker.io/none:v1\n127.0.0.1:5001/a:v1\nghcr.io/o/a:v1\n";
    let run = warm(&proxy, list, &["--platform", "linux/amd64"]).exits(3);
    let document = run.json();
    let statuses: Vec<&str> = document["images"]
        .as_array()
        .expect("images")
        .iter()
        .map(|image| image["status"].as_str().expect("one"))
        .collect();
    assert_eq!(statuses, ["copied", "failed", "failed", "failed", "failed"], "{}", run.stdout);
    // The index, its one image; and the manifest of the bad one.
    assert_eq!(proxy.files("manifests/sha256").len(), 3);
    assert_blobs_valid(&proxy.cache);
    warm(&proxy, "docker.io/none:v1\n", &[]).exits(1);
}

/// That all was read says nothing if the cache could not keep it.
#[test]
fn what_the_cache_has_no_room_for_has_failed() {
    let registry = Registry::start();
    let image = Image::single(5, &[600_000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = ProxyProcess::hub(registry.addr(), &["--cache-size", "100KiB"]);
    let run = warm(&proxy, "docker.io/app:v1\n", &[]).exits(1);
    assert!(run.stdout.contains("did not keep blob"), "{}", run.stdout);
}

/// Lists come by a pipe too, and a proxy says of each blob whether it has it.
#[test]
fn by_stdin_and_the_proxys_own_word() {
    let registry = Registry::start();
    let image = Image::single(6, &[5000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = ProxyProcess::hub(registry.addr(), &[]);
    let head = |proxy: &ProxyProcess| {
        let path = format!("/v2/library/app/blobs/{}", image.blobs[0].digest);
        let reply = http::send(proxy.addr(), "HEAD", &path, &[], &[]).expect(200);
        reply.header("cache-status").expect("one").to_owned()
    };
    assert_eq!(head(&proxy), "transload; fwd=miss");
    let url = format!("http://{}/", proxy.addr());
    let run = Tool::transload().args(&["proxy", "warm", "-", "--proxy", &url]).stdin("app:v1\n").run().exits(0);
    assert!(run.stdout.starts_with("copied     docker.io/library/app:v1"), "{}", run.stdout);
    assert_eq!(head(&proxy), "transload; hit");
}
