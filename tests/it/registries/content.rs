//! Images that are not what most images are, and how a directory's images are named.

use serde_json::{Value, json};

use crate::support::images::{Blob, DOCKER_LIST, Document, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use crate::support::{Image, Registry, ServeProcess, TempDir, Tool, layout, skopeo, transload};

const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const CACHE_CONFIG: &str = "application/vnd.buildkit.cacheconfig.v0";
const ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

/// What BuildKit exports as a cache: an index whose entries are layers, and its own config.
fn cache(index: &str, layer: &str) -> Image {
    let layers: Vec<Blob> = (0..2).map(|nth| Blob::new(vec![nth; 5000])).collect();
    let config = Blob::new(br#"{"layers":[],"records":[]}"#.to_vec());
    let mut entries: Vec<Value> = layers.iter().map(|blob| blob.descriptor(layer)).collect();
    entries[0]["annotations"] = json!({"buildkit/createdat": "2021-07-02T17:08:09Z"});
    entries.push(config.descriptor(CACHE_CONFIG));
    let body = json!({"schemaVersion": 2, "mediaType": index, "manifests": entries});
    Image::of(layers.into_iter().chain([config]).collect(), Document::new(index, &body))
}

/// BuildKit's cache is copied byte for byte: between registries, through a directory, and to our own server.
#[test]
fn an_index_of_layers_is_copied() {
    for (index, layer) in [(OCI_INDEX, OCI_LAYER), (DOCKER_LIST, DOCKER_LAYER)] {
        let (from, to, directory) = (Registry::start(), Registry::start(), TempDir::new());
        let image = cache(index, layer);
        image.push(from.addr(), "cache", "latest");
        let source = format!("{}/cache:latest", from.addr());
        transload(&["copy", &source, &format!("{}/cache:latest", to.addr())]).ok();
        image.assert_at(to.addr(), "cache", "latest");
        // Again, with nothing to do; with a platform, which no entry has; and by force.
        for more in [&[][..], &["--platform", "linux/amd64"], &["--force"]] {
            let goal = format!("{}/cache:latest", to.addr());
            Tool::transload().args(&["copy", &source, &goal]).args(more).run().ok();
        }
        let stored = format!("oci:{}", directory.join("cache"));
        transload(&["copy", &source, &format!("{stored}:latest")]).ok();
        let shelf = TempDir::new();
        let served = ServeProcess::start(shelf.path(), &["--writable"]);
        transload(&["copy", &stored, &format!("{}/cache:latest", served.addr())]).ok();
        image.assert_at(served.addr(), "cache", "latest");
        let shown = transload(&["inspect", &source]).ok().stdout;
        assert_eq!(shown.matches("\nblob ").count(), 3, "{shown}");
        let document = transload(&["inspect", &source, "--output", "json"]).ok().json();
        assert_eq!(document["blobs"].as_array().map(Vec::len), Some(3), "{document}");
    }
}

/// A push of an index whose layers are missing is refused by our own server, as that of an image is.
#[test]
fn the_server_takes_no_index_of_layers_that_are_missing() {
    let (directory, image) = (TempDir::new(), cache(OCI_INDEX, OCI_LAYER));
    let served = ServeProcess::start(directory.path(), &["--writable"]);
    let put = |root: &Document| {
        let headers = [("content-type", root.media_type.as_str())];
        crate::support::http::send(served.addr(), "PUT", "/v2/cache/manifests/latest", &headers, &root.bytes)
    };
    let reply = put(image.root()).expect(404);
    assert!(reply.text().contains("MANIFEST_BLOB_UNKNOWN"), "{}", reply.text());
}

/// A signature or SBOM as an artifact manifest, with blobs, with none, and with `null`.
#[test]
fn artifact_manifests_are_copied_with_and_without_blobs() {
    let subject = Image::single(541, &[900]);
    let content = Blob::new(b"an SBOM".to_vec());
    for blobs in [json!([content.descriptor("text/plain")]), json!([]), Value::Null] {
        let (here, there) = (TempDir::new(), TempDir::new());
        let (from, to) =
            (ServeProcess::start(here.path(), &["--writable"]), ServeProcess::start(there.path(), &["--writable"]));
        let body = json!({"mediaType": ARTIFACT, "artifactType": "a/b", "blobs": blobs, "subject": subject.descriptor(),
            "annotations": null});
        let artifact = Image::of(vec![content.clone()], Document::new(ARTIFACT, &body));
        subject.push(from.addr(), "app", "v1");
        artifact.push(from.addr(), "app", "sbom");
        let (source, goal) = (format!("{}/app", from.addr()), format!("{}/app", to.addr()));
        transload(&["copy", &format!("{source}:v1"), &format!("{goal}:v1"), "--referrers"]).ok();
        transload(&["copy", &format!("{source}:sbom"), &format!("{goal}:sbom")]).ok();
        let shown = transload(&["inspect", &format!("{goal}:v1"), "--referrers"]).ok().stdout;
        assert!(shown.contains(artifact.digest()) && shown.contains("a/b"), "{shown}");
    }
}

/// Go writes `null` for an empty list or map. Configs may be of any type.
#[test]
fn null_lists_and_unknown_configs_are_copied_byte_for_byte() {
    let config = Blob::new(b"{}".to_vec());
    let nulls = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": null, "annotations": null,
        "config": {"mediaType": "application/vnd.acme.rocket.config.v9+json", "digest": config.digest, "size": 2,
            "annotations": null, "urls": null, "platform": null}});
    let empty = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": null, "annotations": null});
    let noted = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "layers": [], "annotations": {"a": null},
        "config": config.descriptor(OCI_CONFIG)});
    for (media_type, body) in [(OCI_MANIFEST, nulls), (OCI_INDEX, empty), (OCI_MANIFEST, noted)] {
        let (here, there) = (TempDir::new(), TempDir::new());
        let (from, to) =
            (ServeProcess::start(here.path(), &["--writable"]), ServeProcess::start(there.path(), &["--writable"]));
        let image = Image::of(vec![config.clone()], Document::new(media_type, &body));
        image.push(from.addr(), "app", "v1");
        transload(&["copy", &format!("{}/app:v1", from.addr()), &format!("{}/app:v1", to.addr())]).ok();
        let reply = crate::support::http::get(to.addr(), "/v2/app/manifests/v1").expect(200);
        assert_eq!(reply.body, image.bytes());
        transload(&["inspect", &format!("{}/app:v1", to.addr())]).ok();
    }
}

/// An index with two images for linux/arm and two for windows/amd64.
fn several() -> Image {
    let image = |seed: u64, platform: Value| (Image::single(seed, &[900]), json!({"platform": platform}));
    let arm = |variant: &str| json!({"os": "linux", "architecture": "arm", "variant": variant});
    let windows = |version: &str| json!({"os": "windows", "architecture": "amd64", "os.version": version});
    Image::index_of(
        vec![
            image(551, arm("v6")),
            image(552, arm("v7")),
            image(553, windows("10.0.17763.1")),
            image(554, windows("10.0.20348.1")),
            image(555, json!({"os": "linux", "architecture": "arm64"})),
        ],
        false,
    )
}

/// A platform that several images fit: without `--flatten` all of them are copied; with it that is an error which says
/// how to tell them apart.
#[test]
fn a_platform_of_several_images_copies_all_and_flattens_none() {
    let from = Registry::start();
    let image = several();
    image.push(from.addr(), "app", "v1");
    let source = format!("{}/app:v1", from.addr());
    for (platform, wanted, parts) in [
        ("linux/arm", &image.manifests[..2], ["linux/arm/v6", "linux/arm/v7"]),
        ("windows/amd64", &image.manifests[2..4], ["windows/amd64:10.0.17763.1", "windows/amd64:10.0.20348.1"]),
    ] {
        let directory = TempDir::new();
        let to = ServeProcess::start(directory.path(), &["--writable"]);
        let goal = format!("{}/app:v1", to.addr());
        transload(&["copy", &source, &goal, "--platform", platform]).ok();
        for manifest in &image.manifests[..5] {
            let path = format!("/v2/app/manifests/{}", manifest.digest);
            let there = wanted.iter().any(|other| other.digest == manifest.digest);
            crate::support::http::get(to.addr(), &path).expect(if there { 200 } else { 404 });
        }
        let flat = format!("{}/flat:v1", to.addr());
        let run = transload(&["copy", &source, &flat, "--platform", platform, "--flatten"]).exits(2);
        assert!(parts.iter().all(|part| run.stderr.contains(part)), "{}", run.stderr);
        assert!(run.stderr.contains(&format!("--platform {}", parts[0])), "{}", run.stderr);
        for (part, manifest) in parts.iter().zip(wanted) {
            transload(&["copy", &source, &flat, "--platform", part, "--flatten"]).ok();
            let reply = crate::support::http::get(to.addr(), "/v2/flat/manifests/v1").expect(200);
            assert_eq!(reply.body, manifest.bytes, "{part}");
        }
    }
}

/// skopeo names an image in a directory `nginx:1.13`. Our hint says to write `oci:DIR:nginx:1.13`, so that works, also
/// with slashes, with a port, and where the directory's name has a colon.
#[test]
fn images_of_a_directory_are_chosen_by_names_with_colons() {
    let (from, to, directory) = (Registry::start(), Registry::start(), TempDir::new());
    let names = ["nginx:1.13", "redis:1.13", "docker.io/library/app:1.13", "r.io:5000/a/b:v1"];
    for (name, seed) in names.iter().zip(561..) {
        let image = Image::single(seed, &[3000]);
        image.push(from.addr(), "app", &format!("v{seed}"));
        let source = format!("docker://{}/app:v{seed}", from.addr());
        let goal = format!("oci:{}:{name}", directory.join("lay"));
        skopeo(&["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &source, &goal]).ok();
    }
    std::fs::rename(directory.join("lay"), directory.join("lay:1")).expect("renamed");
    layout::write(&directory, "lay", &Image::single(560, &[3000]), "1");
    let goal = format!("{}/out:x", to.addr());
    let run = transload(&["copy", &format!("oci:{}", directory.join("lay:1")), &goal]).exits(2);
    assert!(run.stderr.contains(&format!("oci:{}:nginx:1.13", directory.join("lay:1"))), "{}", run.stderr);
    for (name, seed) in names.iter().zip(561..) {
        let source = format!("oci:{}:{name}", directory.join("lay:1"));
        transload(&["copy", &source, &goal]).ok();
        Image::single(seed, &[3000]).assert_at(to.addr(), "out", "x");
        transload(&["inspect", &source]).ok();
    }
    // A destination that is there is found in the same way.
    let into = format!("oci:{}:nginx:1.14", directory.join("lay:1"));
    transload(&["copy", &format!("{}/app:v561", from.addr()), &into]).ok();
    transload(&["copy", &into, &goal]).ok();
    Image::single(561, &[3000]).assert_at(to.addr(), "out", "x");
}
