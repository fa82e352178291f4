//! `transload proxy ls`, `rm` and `verify`.

use std::time::{Duration, Instant};

use super::support::process::LIMIT;
use super::support::proxied::{assert_whole, files};
use super::support::{Image, Proxied, Registry, TempDir, http, transload};

const TAG: &str = "/v2/library/app/manifests/v1";

/// A proxy that has cached an image with a layer of 5000 bytes, and the layer's path at it.
fn filled() -> (Registry, Proxied, Image) {
    let registry = Registry::start();
    let image = Image::single(3, &[5000]);
    image.push(registry.addr(), "library/app", "v1");
    let proxy = Proxied::hub(registry.addr(), &[]);
    http::get(proxy.addr(), TAG).expect(200);
    http::get(proxy.addr(), &layer(&image)).expect(200);
    committed(&proxy);
    (registry, proxy, image)
}

/// Waits until the layer has its name: its last byte may be with the client a moment before.
#[track_caller]
fn committed(proxy: &Proxied) {
    let deadline = Instant::now() + LIMIT;
    while proxy.files("blobs").is_empty() {
        assert!(Instant::now() < deadline, "the layer was not committed");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn layer(image: &Image) -> String {
    format!("/v2/library/app/blobs/{}", digest(image))
}

fn digest(image: &Image) -> String {
    let manifest: serde_json::Value = serde_json::from_slice(image.bytes()).expect("JSON");
    manifest["layers"][0]["digest"].as_str().expect("a digest").to_owned()
}

/// Changes one byte of the layer on the disk.
fn corrupt(cache: &TempDir) {
    let blob = files(cache, "blobs").into_iter().find(|path| path.ends_with(".5000")).expect("the layer");
    let path = cache.path().join("cache").join(blob);
    let mut bytes = std::fs::read(&path).expect("a file");
    bytes[77] ^= 1;
    std::fs::write(&path, bytes).expect("written");
}

#[test]
fn ls_tells_what_is_cached_also_while_a_proxy_runs() {
    let (_registry, proxy, image) = filled();
    let dir = proxy.cache.join("cache");
    let found = transload(&["proxy", "ls", "--cache", &dir, "--output", "json"]).exits(0).json();
    assert_eq!(found["tags"][0]["name"], "docker.io/library/app:v1", "{found}");
    assert_eq!(found["tags"][0]["digest"], image.digest());
    assert!(found["tags"][0]["ageSeconds"].as_u64().expect("an age") < 100, "{found}");
    assert_eq!(found["blobs"], serde_json::json!({ "count": 1, "bytes": 5000 }));
    assert_eq!(found["manifests"]["bytes"], image.bytes().len());
    let text = transload(&["proxy", "ls", "--cache", &dir]).exits(0).stdout;
    assert!(text.contains("docker.io/library/app:v1") && text.contains("1 blob, 4.9 KiB"), "{text}");
    // A slip in the path is no empty cache.
    transload(&["proxy", "ls", "--cache", &proxy.cache.join("cach")]).exits(2);
}

#[test]
fn rm_takes_out_tags_and_digests_but_not_under_a_proxy() {
    let (_registry, proxy, image) = filled();
    let dir = proxy.cache.join("cache");
    let rm = |what: &str| transload(&["proxy", "rm", "--cache", &dir, what]);
    let refused = rm(&digest(&image)).exits(2);
    assert!(refused.stderr.contains("a proxy uses the cache"), "{}", refused.stderr);
    assert_eq!(proxy.files("blobs").len(), 1);
    let cache = proxy.kill();
    rm("docker.io/library/app:v1").exits(0);
    assert_eq!((files(&cache, "tags").len(), files(&cache, "manifests/sha256").len()), (0, 1));
    rm("app:v1").exits(1);
    rm(&digest(&image)).exits(0);
    assert_eq!(files(&cache, "blobs").len(), 0);
    rm(&format!("app@{}", image.digest())).exits(0);
    assert_eq!(files(&cache, "manifests/sha256").len(), 0);
    rm(&digest(&image)).exits(1);
}

#[test]
fn verify_drops_what_is_corrupt_and_the_running_proxy_fetches_it_again() {
    let (registry, proxy, image) = filled();
    let dir = proxy.cache.join("cache");
    let verify = || transload(&["proxy", "verify", "--cache", &dir, "--output", "json"]);
    let sound = verify().exits(0).json();
    assert_eq!((&sound["read"]["count"], &sound["dropped"]), (&2.into(), &serde_json::json!([])));
    corrupt(&proxy.cache);
    let found = verify().exits(3).json();
    assert_eq!(found["dropped"], serde_json::json!([digest(&image)]));
    assert_eq!(proxy.files("blobs").len(), 0);
    // The proxy has noticed nothing, and serves what is right.
    let whole = http::get(registry.addr(), &layer(&image)).expect(200).body;
    assert!(http::get(proxy.addr(), &layer(&image)).expect(200).body == whole);
    committed(&proxy);
    verify().exits(0);
    assert_eq!(assert_whole(&proxy.cache), 2);
}
