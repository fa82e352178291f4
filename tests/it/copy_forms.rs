//! `transload copy` of every form of image, and of what refers to images.

use std::net::SocketAddr;

use serde_json::{Value, json};

use super::copy_plain::{about, copy, copy_json};
use super::support::images::{Blob, DOCKER_LIST, DOCKER_MANIFEST, Document, OCI_INDEX, OCI_MANIFEST};
use super::support::layer::random_bytes;
use super::support::push::push_blob;
use super::support::{Fault, Front, Image, Registry, Rule, Run, TempDir, Tool, http};

/// Copies an image between two registries, and judges byte by byte.
fn copied(image: &Image) -> (Registry, Registry) {
    let (source, destination) = (Registry::start(), Registry::start());
    image.push(source.addr(), "app", "v1");
    copy(&[&format!("{}/app:v1", source.addr()), &destination.addr().to_string()]).ok();
    image.assert_at(destination.addr(), "app", "v1");
    let manifest = http::get(destination.addr(), "/v2/app/manifests/v1").expect(200);
    assert_eq!(manifest.header("content-type"), Some(image.media_type()));
    (source, destination)
}

#[test]
fn dockers_own_images_and_lists() {
    let image = Image::docker(1, &[4000, 50_000]);
    assert_eq!(image.media_type(), DOCKER_MANIFEST);
    copied(&image);
    let list = Image::docker_list(2, 3, &[4000]);
    assert_eq!(list.media_type(), DOCKER_LIST);
    copied(&list);
}

#[test]
fn indexes_within_indexes() {
    let inner = Image::nested(1);
    copied(&inner);
    // An image that is named at two levels.
    let leaf = Image::single(7, &[3000]);
    let middle = Image::index_of(vec![(leaf.clone(), json!({}))], false);
    copied(&Image::index_of(vec![(leaf, json!({})), (middle, json!({})), (inner, json!({}))], false));
}

#[test]
fn artifacts_of_any_type() {
    copied(&Image::artifact(1, "application/vnd.example.sbom", None));
    for (config, layer) in [
        ("application/vnd.cncf.helm.config.v1+json", "application/vnd.cncf.helm.chart.content.v1.tar+gzip"),
        ("application/vnd.wasm.config.v0+json", "application/wasm"),
        ("text/x-own", "text/plain; charset=utf-8"),
    ] {
        copied(&made_of(
            config,
            b"not json at all",
            &[(layer, random_bytes(2, 5000))],
            &json!({"annotations": {"a": "b"}}),
        ));
    }
}

/// Compressed otherwise: nothing is unpacked, packed or renamed on the way, and unknown fields stay.
#[test]
fn layers_are_left_as_they_are() {
    let layers = [
        ("application/vnd.oci.image.layer.v1.tar+zstd", random_bytes(1, 60_000)),
        ("application/vnd.oci.image.layer.v1.tar", vec![0; 100_000]),
        ("application/vnd.example.layer.v7+unknown", b"plain text, which compresses well".repeat(100)),
    ];
    let more = json!({"x-unknown": {"z": [1, 2.50, "3"], "a": null}});
    let image = made_of("application/vnd.oci.image.config.v1+json", b"{}", &layers, &more);
    let mut estargz: Value = serde_json::from_slice(image.bytes()).expect("a manifest is JSON");
    estargz["layers"][0]["annotations"] = json!({
        "containerd.io/snapshot/stargz/toc.digest": image.blobs[1].digest,
        "io.containers.estargz.uncompressed-size": "12345",
    });
    // White space and order are part of a manifest, too.
    let text = serde_json::to_string_pretty(&estargz).expect("it is JSON") + "\n";
    let digest = super::support::layer::sha256(text.as_bytes());
    let manifest = Document { digest, media_type: OCI_MANIFEST.to_owned(), bytes: text.into_bytes() };
    copied(&Image { blobs: image.blobs, manifests: vec![manifest] });
}

#[test]
fn empty_blobs() {
    let image = Image::single(1, &[0, 3000, 0]);
    assert_eq!(image.blobs[1].bytes, b"");
    let (source, _) = copied(&image);
    // In chunks as well.
    let destination = Registry::start();
    copy(&[&format!("{}/app:v1", source.addr()), &destination.addr().to_string(), "--chunk-size", "1MiB"]).ok();
    image.assert_at(destination.addr(), "app", "v1");
}

#[test]
fn digests_by_sha512() {
    let image = Image::sha512(1);
    let (source, destination) = copied(&image);
    let start = destination.requests().into_iter().find(|seen| seen.1.contains("digest-algorithm=sha512"));
    assert_eq!(start.expect("the algorithm is announced").0, "POST");
    let directory = TempDir::new();
    let layout = format!("oci:{}", directory.join("images"));
    copy(&[&format!("{}/app:v1", source.addr()), &layout]).ok();
    copy(&[&layout, &format!("{}/back", destination.addr())]).ok();
    image.assert_at(destination.addr(), "back", "v1");
}

#[test]
fn foreign_layers_stay_or_come_along() {
    let image = Image::foreign(1);
    let (source, destination) = copied(&image);
    let manifest: Value = serde_json::from_slice(image.bytes()).expect("a manifest is JSON");
    let foreign = Blob::new(Image::docker(1, &[5000, 3000]).blobs[1].bytes.clone());
    assert_eq!(manifest["layers"][0]["digest"], foreign.digest.as_str());
    assert_eq!(about(&source, &foreign.digest) + about(&destination, &foreign.digest), 0);

    let (from, to) = (format!("{}/app:v1", source.addr()), format!("{}/other", destination.addr()));
    let document = copy_json(&[&from, &format!("{to}:without")]);
    assert_eq!(document["images"][0]["blobs_foreign"], 1);
    // The registry has it, as some do: then it can be copied.
    push_blob(source.addr(), "app", &foreign, &[]);
    let document = copy_json(&[&from, &format!("{to}:with"), "--include-foreign"]);
    // The config goes along unasked: a new tag has a new one nearly always.
    assert_eq!(
        (&document["images"][0]["blobs_foreign"], &document["images"][0]["blobs_uploaded"]),
        (&json!(0), &json!(2))
    );
    let mut whole = image.clone();
    whole.blobs.push(foreign);
    whole.assert_at(destination.addr(), "other", "with");
}

/// A foreign layer that the registry hasn't is had from its own address, without credentials.
#[test]
fn foreign_layers_come_from_their_own_address() {
    let (source, destination, vendor) = (Registry::start(), Registry::start(), Registry::start());
    let layer = Blob::new(Image::docker(1, &[5000, 3000]).blobs[1].bytes.clone());
    push_blob(vendor.addr(), "vendor", &layer, &[]);
    let mut image = Image::foreign_at(1, &format!("http://{}/v2/vendor/blobs/{}", vendor.addr(), layer.digest));
    image.push(source.addr(), "app", "v1");
    copy(&[&format!("{}/app:v1", source.addr()), &destination.addr().to_string(), "--include-foreign"]).ok();
    image.blobs.push(layer);
    image.assert_at(destination.addr(), "app", "v1");
}

#[test]
fn schema_1_is_refused_with_a_reason() {
    let (source, destination) = (Registry::start(), Registry::start());
    Image::single(1, &[3000]).push(source.addr(), "app", "v1");
    let old = Fault::Status {
        code: 200,
        retry_after: None,
        content_type: "application/vnd.docker.distribution.manifest.v1+prettyjws".to_owned(),
        body: r#"{"schemaVersion":1,"name":"app","tag":"v1","fsLayers":[],"signatures":[]}"#.to_owned(),
    };
    let front = Front::before(source.addr()).rule(Rule::on("GET", "/manifests/", old)).start();
    let run = copy(&[&format!("{}/app:v1", front.addr()), &destination.addr().to_string()]).exits(1);
    assert!(front.struck() > 0);
    let error = "error: source: cannot read manifest ";
    assert!(run.stderr.contains(error) && run.stderr.contains("Docker schema 1"), "{}", run.stderr);
    assert!(run.stderr.contains("\nhint: "), "{}", run.stderr);
}

/// From registry to registry, neither of which has the API: by the tag schema on both sides.
#[test]
fn referrers_by_the_tag_schema() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::index(1, 2, &[3000]);
    image.push(source.addr(), "app", "v1");
    let child = Image { blobs: vec![], manifests: vec![image.manifests[0].clone()] };
    let sboms = [
        Image::artifact(2, "application/spdx+json", Some(&image)),
        Image::artifact(3, "application/vnd.example", Some(&image)),
    ];
    let of_child = Image::artifact(4, "application/vnd.child", Some(&child));
    // A signature of the first SBOM, and someone's word on that.
    let signature = Image::artifact(5, "application/vnd.signature", Some(&sboms[0]));
    let word = Image::artifact(6, "application/vnd.word", Some(&signature));
    Image::referrers(&sboms).push(source.addr(), "app", &image.referrers_tag());
    for (artifact, subject) in [(&of_child, &child), (&signature, &sboms[0]), (&word, &signature)] {
        Image::referrers(std::slice::from_ref(artifact)).push(source.addr(), "app", &subject.referrers_tag());
    }
    let (from, to) = (format!("{}/app:v1", source.addr()), format!("{}/app", destination.addr()));
    copy(&[&from, &to]).ok();
    let planned = copy_json(&[&from, &to, "--referrers", "--dry-run"]);
    assert_eq!(planned["images"][0]["referrers"], 5);
    assert_eq!(listed(destination.addr(), &image), Vec::<String>::new(), "only on request");

    // The image is there already; what refers to it is not.
    let document = copy_json(&[&from, &to, "--referrers"]);
    assert_eq!(document["images"][0]["status"], "unchanged");
    assert_eq!(document["images"][0]["referrers"], 5);
    for artifact in sboms.iter().chain([&of_child, &signature, &word]) {
        artifact.assert_at(destination.addr(), "app", artifact.digest());
    }
    let digests = |of: &[&Image]| of.iter().map(|artifact| artifact.digest().to_owned()).collect::<Vec<_>>();
    let mut found = listed(destination.addr(), &image);
    found.sort();
    let mut wanted = digests(&[&sboms[0], &sboms[1]]);
    wanted.sort();
    assert_eq!(found, wanted);
    assert_eq!(listed(destination.addr(), &child), digests(&[&of_child]));
    assert_eq!(listed(destination.addr(), &sboms[0]), digests(&[&signature]));
    assert_eq!(listed(destination.addr(), &signature), digests(&[&word]));
    let index = http::get(destination.addr(), &format!("/v2/app/manifests/{}", image.referrers_tag())).expect(200);
    assert_eq!(index.header("content-type"), Some(OCI_INDEX));
    for entry in index.json()["manifests"].as_array().expect("a list") {
        let of = sboms.iter().find(|sbom| entry["digest"] == sbom.digest()).expect("one of them");
        let manifest: Value = serde_json::from_slice(of.bytes()).expect("a manifest is JSON");
        assert_eq!((&entry["artifactType"], &entry["mediaType"]), (&manifest["artifactType"], &json!(OCI_MANIFEST)));
        assert_eq!(entry["size"], of.bytes().len());
    }

    // Once more: nothing is written.
    destination.reset_log();
    copy(&[&from, &to, "--referrers"]).ok();
    assert_eq!(writes(&destination), 0);
}

/// The destination's own referrers stay listed beside those that come.
#[test]
fn a_destinations_referrers_are_kept() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[3000]);
    let (theirs, ours) = (
        Image::artifact(2, "application/vnd.theirs", Some(&image)),
        Image::artifact(3, "application/vnd.ours", Some(&image)),
    );
    image.push(source.addr(), "app", "v1");
    image.push(destination.addr(), "app", "v1");
    Image::referrers(std::slice::from_ref(&theirs)).push(destination.addr(), "app", &image.referrers_tag());
    Image::referrers(std::slice::from_ref(&ours)).push(source.addr(), "app", &image.referrers_tag());
    copy(&[&format!("{}/app:v1", source.addr()), &destination.addr().to_string(), "--referrers"]).ok();
    assert_eq!(listed(destination.addr(), &image), [theirs.digest(), ours.digest()]);
}

/// A referrer that is there, but that nobody listed (a run that was stopped between the two).
#[test]
fn an_unlisted_referrer_is_listed() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[3000]);
    let sbom = Image::artifact(2, "application/spdx+json", Some(&image));
    image.push(source.addr(), "app", "v1");
    Image::referrers(std::slice::from_ref(&sbom)).push(source.addr(), "app", &image.referrers_tag());
    image.push(destination.addr(), "app", "v1");
    sbom.push(destination.addr(), "app", "stray");
    copy(&[&format!("{}/app:v1", source.addr()), &destination.addr().to_string(), "--referrers"]).ok();
    assert_eq!(listed(destination.addr(), &image), [sbom.digest()]);
}

/// ACR has the API at both ends: pages are followed, and no tag is made for the list.
#[test]
fn referrers_by_the_api() {
    let (front_registry, behind) = (Registry::start(), Registry::start());
    let source = Front::before(front_registry.addr()).acr(|acr| acr.referrers_page = Some(2)).start();
    let destination = Front::before(behind.addr()).acr(|_| {}).start();
    let image = Image::single(1, &[3000]);
    let header = [("authorization", ADMIN_BASIC)];
    image.push_as(source.addr(), "app", "v1", &header);
    let artifacts: Vec<Image> =
        (2..=6).map(|seed| Image::artifact(seed, "application/spdx+json", Some(&image))).collect();
    for artifact in &artifacts {
        artifact.push_as(source.addr(), "app", "x", &header);
    }
    let signature = Image::artifact(9, "application/vnd.signature", Some(&artifacts[4]));
    signature.push_as(source.addr(), "app", "x", &header);

    let run = as_admin(&source, &destination, &["--referrers", "--output", "json"]).ok();
    assert_eq!(run.json()["images"][0]["referrers"], 6);
    image.assert_at(behind.addr(), "app", "v1");
    for artifact in artifacts.iter().chain([&signature]) {
        artifact.assert_at(behind.addr(), "app", artifact.digest());
    }
    let tags = http::get(behind.addr(), "/v2/app/tags/list").expect(200).json();
    assert_eq!(tags["tags"], json!(["v1"]));
    let path = format!("/v2/app/referrers/{}", image.digest());
    let known = http::send(destination.addr(), "GET", &path, &header, &[]).expect(200).json();
    assert_eq!(known["manifests"].as_array().map(Vec::len), Some(5));

    // From the API to the tag schema.
    let plain = Registry::start();
    let from = format!("{}/app:v1", source.addr());
    let tool = Tool::transload().args(&["copy", &from, &plain.addr().to_string(), "--referrers"]);
    tool.env(&variable(source.addr()), ADMIN).run().ok();
    assert_eq!(listed(plain.addr(), &image).len(), 5);
    assert_eq!(listed(plain.addr(), &artifacts[4]), [signature.digest()]);
}

/// Before OCI 1.1, cosign's names for what belongs to an image were tags.
#[test]
fn cosigns_tags() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::index(1, 2, &[3000]);
    let signature = Image::signature(&image);
    let attestation = Image::artifact(2, "application/vnd.dsse.envelope.v1+json", None);
    let sbom = Image::artifact(3, "text/spdx", None);
    let child = Image { blobs: vec![], manifests: vec![image.manifests[1].clone()] };
    let of_child = Image::signature(&child);
    let signed_sbom = Image::signature(&sbom);
    let tag = |of: &Image, suffix: &str| format!("{}.{suffix}", of.referrers_tag());
    let all = [
        (&signature, tag(&image, "sig")),
        (&attestation, tag(&image, "att")),
        (&sbom, tag(&image, "sbom")),
        (&of_child, tag(&child, "sig")),
        (&signed_sbom, tag(&sbom, "sig")),
    ];
    image.push(source.addr(), "app", "v1");
    for (artifact, tag) in &all {
        artifact.push(source.addr(), "app", tag);
    }
    let (from, to) = (format!("{}/app:v1", source.addr()), destination.addr().to_string());
    let document = copy_json(&[&from, &to, "--referrers"]);
    assert_eq!(document["images"][0]["referrers"], 5);
    for (artifact, tag) in &all {
        artifact.assert_at(destination.addr(), "app", tag);
    }
    // A new signature under the same tag replaces the old one.
    let again = Image::artifact(8, "application/vnd.again", None);
    again.push(source.addr(), "app", &all[0].1);
    copy(&[&from, &to, "--referrers"]).ok();
    again.assert_at(destination.addr(), "app", &all[0].1);

    // By way of a directory.
    let directory = TempDir::new();
    let layout = format!("oci:{}", directory.join("images"));
    copy(&[&from, &layout, "--referrers"]).ok();
    let last = Registry::start();
    copy(&[&format!("{layout}:v1"), &format!("{}/app", last.addr()), "--referrers"]).ok();
    for (artifact, tag) in &all[1..] {
        artifact.assert_at(last.addr(), "app", tag);
    }
}

/// An image whose blobs have these types, and a manifest with further fields.
fn made_of(config: &str, content: &[u8], layers: &[(&str, Vec<u8>)], more: &Value) -> Image {
    let mut blobs = vec![Blob::new(content.to_vec())];
    blobs.extend(layers.iter().map(|(_, bytes)| Blob::new(bytes.clone())));
    let types = [config].into_iter().chain(layers.iter().map(|(media_type, _)| *media_type));
    let descriptors: Vec<Value> = types
        .zip(&blobs)
        .map(|(media_type, blob)| json!({"mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len()}))
        .collect();
    let mut manifest = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": descriptors[0],
        "layers": descriptors[1..],
    });
    for (name, value) in more.as_object().into_iter().flatten() {
        manifest[name] = value.clone();
    }
    Image { blobs, manifests: vec![Document::new(OCI_MANIFEST, &manifest)] }
}

/// What the tag schema's index lists as referring to an image.
fn listed(at: SocketAddr, subject: &Image) -> Vec<String> {
    let reply = http::get(at, &format!("/v2/app/manifests/{}", subject.referrers_tag()));
    if reply.status == 404 {
        return Vec::new();
    }
    let entries = reply.expect(200).json()["manifests"].as_array().expect("a list").clone();
    entries.iter().map(|entry| entry["digest"].as_str().expect("a digest").to_owned()).collect()
}

fn writes(registry: &Registry) -> usize {
    registry.requests().iter().filter(|seen| !["GET", "HEAD"].contains(&seen.0.as_str())).count()
}

/// Copies `app:v1` from one look-alike of ACR to another, as the admin of both.
fn as_admin(from: &Front, to: &Front, more: &[&str]) -> Run {
    let (source, destination) = (format!("{}/app:v1", from.addr()), format!("{}/app", to.addr()));
    let tool = Tool::transload().args(&["copy", &source, &destination]).args(more);
    tool.env(&variable(from.addr()), ADMIN).env(&variable(to.addr()), ADMIN).run()
}

fn variable(at: SocketAddr) -> String {
    format!("TRANSLOAD_AUTH_{}", at.to_string().replace(['.', ':'], "_"))
}

const ADMIN: &str = "admin:admin-secret";
/// The same in base64.
const ADMIN_BASIC: &str = "Basic YWRtaW46YWRtaW4tc2VjcmV0";
