//! Nothing is sent twice: what is known to be at the destination is mounted or left alone.

use serde_json::{Value, json};

use super::copy_plain::{copy, copy_json};
use super::support::images::{Blob, Document, OCI_MANIFEST};
use super::support::layer::{layer, sha256};
use super::support::{Fault, Front, Image, Registry, Rule, Tool};

/// Images with a large layer in common, and one of their own each.
fn family(n: u64) -> Vec<Image> {
    let common = Blob::new(layer(1, 300_000).bytes);
    let member = |nth: u64| {
        let blobs = vec![
            Blob::new(format!("{{\"n\":{nth}}}").into_bytes()),
            common.clone(),
            Blob::new(layer(100 + nth, 9_000).bytes),
        ];
        let types = ["config.v1+json", "layer.v1.tar+gzip", "layer.v1.tar+gzip"];
        let descriptors: Vec<Value> = types
            .iter()
            .zip(&blobs)
            .map(|(kind, blob)| {
                let media_type = format!("application/vnd.oci.image.{kind}");
                json!({"mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len()})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": descriptors[0], "layers": descriptors[1..],
        });
        Image { blobs, manifests: vec![Document::new(OCI_MANIFEST, &manifest)] }
    };
    (1..=n).map(member).collect()
}

fn common() -> String {
    sha256(&layer(1, 300_000).bytes)
}

#[test]
fn tags_that_share_a_layer_send_it_once() {
    let (source, destination) = (Registry::start(), Registry::start());
    let images = family(5);
    for (image, tag) in images.iter().zip(["a", "b", "c", "d", "e"]) {
        image.push(source.addr(), "app", tag);
    }
    source.reset_log();
    let document = copy_json(&[&format!("{}/app", source.addr()), &destination.addr().to_string(), "--all-tags"]);
    for (image, tag) in images.iter().zip(["a", "b", "c", "d", "e"]) {
        image.assert_at(destination.addr(), "app", tag);
    }
    assert_eq!(source.count("GET", &common()), 1);
    assert_eq!(destination.count("PUT", &digest_in_query(&common())), 1);
    assert_eq!(source.count("GET", "/blobs/"), 11);
    assert_eq!(destination.count("POST", "/blobs/uploads/"), 11);
    let summary = &document["summary"];
    assert_eq!(
        (&summary["blobs_uploaded"], &summary["blobs_present"], &summary["blobs_mounted"]),
        (&json!(11), &json!(4), &json!(0))
    );
    assert_eq!(summary["bytes_skipped"], 4 * 300_000);
}

#[test]
fn what_one_repository_has_is_mounted_in_the_others() {
    let (source, destination) = (Registry::start(), Registry::start());
    let image = Image::index(1, 2, &[20_000, 200_000]);
    image.push(source.addr(), "app", "v1");
    source.reset_log();
    let goals: Vec<String> = ["x", "y/z", "w"].iter().map(|name| format!("{}/{name}", destination.addr())).collect();
    let from = format!("{}/app:v1", source.addr());
    let document = copy_json(&[&from, &goals[0], &goals[1], &goals[2]]);
    for name in ["x", "y/z", "w"] {
        image.assert_at(destination.addr(), name, "v1");
    }
    let summary = &document["summary"];
    assert_eq!((&summary["blobs_uploaded"], &summary["blobs_mounted"]), (&json!(6), &json!(12)));
    assert_eq!(source.count("GET", "/blobs/"), 6, "each blob is read once");
    assert_eq!(destination.count("PUT", "/blobs/uploads/"), 6);
    let mounts: Vec<_> = destination.requests().into_iter().filter(|seen| seen.1.contains("mount=sha256:")).collect();
    assert_eq!(mounts.len(), 12);
    assert!(mounts.iter().all(|seen| seen.2 == 201 && seen.1.contains("&from=")), "{mounts:?}");
    assert_eq!(destination.count("HEAD", "/blobs/"), 0, "nothing is asked of new repositories");
}

/// 202 to a mount is an upload session: it is used, and no other is begun.
#[test]
fn a_refused_mount_becomes_the_upload() {
    let (source, behind) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[20_000, 200_000]);
    image.push(source.addr(), "app", "v1");
    let acr = Front::before(behind.addr()).acr(|acr| acr.refuse_mounts = true).start();
    let goals = ["x", "y"].map(|name| format!("{}/{name}", acr.addr()));
    let from = format!("{}/app:v1", source.addr());
    let variable = format!("TRANSLOAD_AUTH_{}", acr.addr().to_string().replace(['.', ':'], "_"));
    let args = ["copy", &from, &goals[0], &goals[1], "--output", "json"];
    let document = Tool::transload().args(&args).env(&variable, "admin:admin-secret").run().ok().json();
    for name in ["x", "y"] {
        image.assert_at(behind.addr(), name, "v1");
    }
    assert_eq!((&document["summary"]["blobs_uploaded"], &document["summary"]["blobs_mounted"]), (&json!(6), &json!(0)));
    let posts: Vec<_> =
        acr.log().into_iter().filter(|seen| seen.method == "POST" && seen.status == Some(202)).collect();
    assert_eq!(posts.len(), 6);
    assert_eq!(posts.iter().filter(|seen| seen.query.contains("mount=")).count(), 3);
    assert_eq!(acr.count("DELETE", ""), 0);
}

/// Nor is a mount that is not allowed the end of it: the blob is sent.
#[test]
fn a_denied_mount_becomes_an_upload() {
    let (source, behind) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[20_000, 200_000]);
    image.push(source.addr(), "app", "v1");
    for code in [403, 404] {
        let front = Front::before(behind.addr()).rule(Rule::on("POST", "mount=", Fault::status(code))).start();
        let goals = ["x", "y"].map(|name| format!("{}/{name}{code}", front.addr()));
        let document = copy_json(&[&format!("{}/app:v1", source.addr()), &goals[0], &goals[1]]);
        assert_eq!(front.struck(), 3);
        assert_eq!(document["summary"]["blobs_uploaded"], 6);
        for name in ["x", "y"] {
            image.assert_at(behind.addr(), &format!("{name}{code}"), "v1");
        }
    }
}

/// A blob that fails on its way to one repository is brought by whoever waits for it.
#[test]
fn a_failed_upload_is_taken_over() {
    let (source, behind) = (Registry::start(), Registry::start());
    let image = Image::single(1, &[20_000, 200_000]);
    image.push(source.addr(), "app", "v1");
    // Nothing may be written to one of the two.
    let front = Front::before(behind.addr()).rule(Rule::on("POST", "/v2/x/blobs/", Fault::status(403))).start();
    let goals = ["x", "y"].map(|name| format!("{}/{name}", front.addr()));
    copy(&[&format!("{}/app:v1", source.addr()), &goals[0], &goals[1]]).exits(3);
    assert!(front.struck() > 0);
    image.assert_at(behind.addr(), "y", "v1");
}

/// What the destination has from elsewhere is found, not sent.
#[test]
fn what_is_there_is_not_sent() {
    let (source, destination) = (Registry::start(), Registry::start());
    let images = family(2);
    images[0].push(destination.addr(), "app", "old");
    images[1].push(source.addr(), "app", "new");
    source.reset_log();
    let document = copy_json(&[&format!("{}/app:new", source.addr()), &destination.addr().to_string()]);
    images[1].assert_at(destination.addr(), "app", "new");
    let summary = &document["summary"];
    assert_eq!((&summary["blobs_uploaded"], &summary["blobs_present"]), (&json!(2), &json!(1)));
    assert_eq!(source.count("GET", &common()), 0);
}

/// One layer named twice in a manifest, and the same one in two children.
#[test]
fn a_blob_named_twice_is_one_blob() {
    let (source, destination) = (Registry::start(), Registry::start());
    let [one, two] = family(2).try_into().expect("two images");
    let index = Image::index_of(vec![(one.clone(), json!({})), (two, json!({}))], false);
    index.push(source.addr(), "app", "v1");
    let mut twice: Value = serde_json::from_slice(one.bytes()).expect("a manifest is JSON");
    let first = twice["layers"][0].clone();
    twice["layers"].as_array_mut().expect("a list").push(first);
    let twice = Image { blobs: one.blobs, manifests: vec![Document::new(OCI_MANIFEST, &twice)] };
    twice.push(source.addr(), "twice", "v1");
    source.reset_log();
    for name in ["app", "twice"] {
        copy(&[&format!("{}/{name}:v1", source.addr()), &destination.addr().to_string()]).ok();
    }
    index.assert_at(destination.addr(), "app", "v1");
    twice.assert_at(destination.addr(), "twice", "v1");
    assert_eq!(source.count("GET", &common()), 2, "once in each run");
}

/// As a digest stands in the registry's log of a PUT.
fn digest_in_query(digest: &str) -> String {
    format!("digest={}", digest.replace(':', "%3A"))
}

/// Within one registry nothing is read or sent: the source's own repository is mounted from.
#[test]
fn within_a_registry_all_is_mounted() {
    let registry = Registry::start();
    let image = Image::index(1, 2, &[300_000, 4000]);
    image.push(registry.addr(), "dev/app", "v1");
    registry.reset_log();
    let (from, to) = (format!("{}/dev/app:v1", registry.addr()), format!("{}/prod/app:v1", registry.addr()));
    let planned = copy_json(&[&from, &to, "--dry-run"]);
    let document = copy_json(&[&from, &to]);
    image.assert_at(registry.addr(), "prod/app", "v1");
    let mounted = json!(image.blobs.len());
    assert_eq!((&planned["summary"]["blobs_mounted"], &document["summary"]["blobs_mounted"]), (&mounted, &mounted));
    assert_eq!(
        (&document["summary"]["blobs_uploaded"], &document["summary"]["bytes_uploaded"]),
        (&json!(0), &json!(0))
    );
    // The judge reads what is at the destination; of the source no blob was read.
    assert_eq!(registry.count("GET", "/v2/dev/app/blobs/"), 0);
}
