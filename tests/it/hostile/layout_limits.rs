//! Content that makes a layout unreadable, or that costs memory out of proportion to its size.

use std::path::Path;

use serde_json::{Value, json};

use crate::support::images::{Document, OCI_MANIFEST};
use crate::support::{Image, ServeProcess, TempDir, Tool, http, layout};

/// As large as a manifest may be, nearly all of it this text.
const HUGE: usize = (4 << 20) - 2000;

/// An image whose manifest calls itself by a type of some 4 MiB.
fn of_huge_type(seed: u64) -> Image {
    let mut image = Image::single(seed, &[100]);
    let mut body: Value = serde_json::from_slice(image.bytes()).expect("a manifest is JSON");
    let media_type = format!("application/x-{}", "x".repeat(HUGE));
    body["mediaType"] = json!(media_type);
    image.manifests = vec![Document::new(&media_type, &body)];
    image
}

/// Copies an image out of a layout, which shows that it is whole.
#[track_caller]
fn assert_readable(layout: &Path, tag: &str) {
    let (from, out) = (format!("oci:{}:{tag}", layout.display()), TempDir::new());
    Tool::transload().args(&["copy", &from, &format!("oci:{}:x", out.join("out"))]).run().ok();
}

fn put(to: &ServeProcess, repository: &str, manifest: &Document, content_type: &str) -> http::Reply {
    let path = format!("/v2/{repository}/manifests/{}", manifest.digest);
    http::send(to.addr(), "PUT", &path, &[("content-type", content_type)], &manifest.bytes)
}

/// An image has 15 children, each with a media type of 4 MiB. All of them stand in `index.json` until their index is
/// written, beside 5 MiB of other entries: that is more than the 64 MiB that are read. (The manifests themselves are below
/// the 64 MiB that an image's manifests may take, so that the media type is what is refused.)
#[test]
fn a_copy_of_children_with_huge_media_types_leaves_the_other_images_of_a_layout_readable() {
    let dir = TempDir::new();
    let mut target = layout::write(&dir, "good", &Image::single(1, &[5000]), "good");
    target = target.canonicalize().expect("there");
    let index = target.join("index.json");
    let mut entries: Value = serde_json::from_slice(&std::fs::read(&index).expect("a file")).expect("JSON");
    let good = entries["manifests"][0].clone();
    for nth in 0..20 {
        let mut entry = good.clone();
        entry["annotations"] =
            json!({"org.opencontainers.image.ref.name": format!("good{nth}"), "x": "y".repeat(255 << 10)});
        entries["manifests"].as_array_mut().expect("entries").push(entry);
    }
    std::fs::write(&index, entries.to_string()).expect("written");
    let children: Vec<_> = (0..15).map(|nth| (of_huge_type(100 + nth), json!({}))).collect();
    let mut hostile = Image::index_of(children, false);
    // The index names them by types that it can hold.
    let mut body: Value = serde_json::from_slice(hostile.bytes()).expect("JSON");
    body["manifests"]
        .as_array_mut()
        .expect("children")
        .iter_mut()
        .for_each(|child| child["mediaType"] = json!(OCI_MANIFEST));
    let root = Document::new("application/vnd.oci.image.index.v1+json", &body);
    drop(hostile.manifests.pop());
    hostile.manifests.push(root);
    let source = layout::write(&dir, "hostile", &hostile, "v1");

    let to = format!("oci:{}:hostile", target.display());
    let run = Tool::transload().args(&["copy", &format!("oci:{}:v1", source.display()), &to]).run();
    assert_ne!(run.code, 0, "{}", run.stderr);
    assert!(run.stderr.contains("255"), "the limit is named: {}", run.stderr);
    assert_readable(&target, "good");
}

/// Whoever can connect pushes 18 manifests with a media type of 4 MB each to a server that takes pushes.
#[test]
fn pushes_of_huge_media_types_leave_the_other_images_of_a_server_readable() {
    let dir = TempDir::new();
    let serving = ServeProcess::start(&dir.path().join("images"), &["--writable", "--keep-free", "0"]);
    let good = Image::single(1, &[5000]);
    good.push(serving.addr(), "good/app", "v1");
    for nth in 0..18 {
        let hostile = of_huge_type(100 + nth);
        Image { manifests: Vec::new(), ..hostile.clone() }.blobs.iter().for_each(|blob| {
            crate::support::push::push_blob(serving.addr(), "hostile/app", blob, &[]);
        });
        assert_eq!(
            put(&serving, "hostile/app", hostile.root(), "application/json").expect(400).json()["errors"][0]["code"],
            "MANIFEST_INVALID"
        );
    }
    good.assert_at(serving.addr(), "good/app", "v1");
    Image::single(2, &[500]).push(serving.addr(), "good/app", "v2");
}

/// An index has nearly 64 MiB, as much as is read. One more image would make it unreadable.
#[test]
fn an_index_never_grows_beyond_what_is_read() {
    let dir = TempDir::new();
    let image = Image::single(1, &[5000]);
    let layout = layout::write(&dir, "images", &image, "v1");
    let mut entry = image.descriptor();
    entry["annotations"] = json!({"org.opencontainers.image.ref.name": "v1"});
    let index =
        |padding: usize| json!({"schemaVersion": 2, "padding": "x".repeat(padding), "manifests": [entry]}).to_string();
    let full = index((64 << 20) - index(0).len() - 100);
    std::fs::write(layout.join("index.json"), &full).expect("written");

    let other = layout::write(&dir, "other", &Image::single(2, &[500]), "v1");
    let copy = ["copy", &format!("oci:{}:v1", other.display()), &format!("oci:{}:v2", layout.display())];
    let run = Tool::transload().args(&copy).run();
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("index.json") && run.stderr.contains("67108864"), "{}", run.stderr);
    assert!(std::fs::read(layout.join("index.json")).expect("there") == full.as_bytes(), "it is as it was");
    assert_readable(&layout, "v1");

    let serving = ServeProcess::start(&layout, &["--writable", "--keep-free", "0"]);
    let pushed = Image::single(3, &[500]);
    pushed.blobs.iter().for_each(|blob| crate::support::push::push_blob(serving.addr(), "images", blob, &[]));
    let refused = put(&serving, "images", pushed.root(), OCI_MANIFEST).expect(403);
    assert_eq!(refused.json()["errors"][0]["code"], "DENIED");
    image.assert_at(serving.addr(), "images", "v1");
}

/// An index of 20 MB, in several shapes: many entries, entries with much in them, and fields that nobody knows. Parsed
/// in full, such documents cost more than ten times their size.
#[test]
fn a_large_index_costs_memory_in_proportion_to_its_size() {
    let image = Image::single(1, &[500]);
    let entry = |name: &str| {
        let mut entry = image.descriptor();
        entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        entry.to_string()
    };
    let size = 20 << 20;
    let many =
        (0..size / (entry("v000000").len() + 1)).map(|nth| entry(&format!("v{nth:06}"))).collect::<Vec<_>>().join(",");
    let deep = format!(r#"{},{{"x":[{}0]}}"#, entry("v000000"), "0,".repeat(size / 2));
    let field = format!(r#"{}],"x":[{}0"#, entry("v000000"), "{},".repeat(size / 3));
    for (what, manifests) in [("many entries", many), ("an entry with many values", deep), ("an unknown field", field)]
    {
        let dir = TempDir::new();
        let layout = layout::write(&dir, "images", &image, "v1");
        std::fs::write(layout.join("index.json"), format!(r#"{{"schemaVersion":2,"manifests":[{manifests}]}}"#))
            .expect("written");
        let serving = ServeProcess::start(&layout, &[]);
        image.assert_at(serving.addr(), "images", "v000000");
        assert!(serving.peak() < 160, "{what}: {} MiB", serving.peak());
    }
}

/// An index of 60 MB has 20 million entries: `{},{},{},…`.
#[test]
fn an_index_of_too_many_entries_is_refused_before_it_costs_memory() {
    let dir = TempDir::new();
    let layout = layout::write(&dir, "images", &Image::single(1, &[500]), "v1");
    let entries = "{},".repeat(20_000_000);
    std::fs::write(layout.join("index.json"), format!(r#"{{"manifests":[{entries}{{}}]}}"#)).expect("written");
    let serving = ServeProcess::start(&layout, &[]);
    http::get(serving.addr(), "/v2/images/tags/list").expect(500);
    assert!(serving.peak() < 250, "{} MiB", serving.peak());
    let log = serving.process.stderr.wait_line("500000", crate::support::process::RUN_TIMEOUT);
    assert!(log.contains("index.json"), "{log}");
}

/// Each referrer's annotations stand in the list of its subject's referrers. Enough of them make a list that no client
/// reads any more, so that the signatures of an image are lost.
#[test]
fn a_list_of_referrers_never_grows_beyond_what_clients_read() {
    let dir = TempDir::new();
    let serving = ServeProcess::start(&dir.path().join("images"), &["--writable", "--keep-free", "0"]);
    let subject = Image::single(1, &[500]);
    subject.push(serving.addr(), "app", "v1");
    let referrer = |nth: u64, bytes: usize| {
        let mut artifact = Image::artifact(nth, "application/x-hostile", Some(&subject));
        let mut body: Value = serde_json::from_slice(artifact.bytes()).expect("JSON");
        body["annotations"] = json!({"x": "y".repeat(bytes)});
        artifact.manifests = vec![Document::new(OCI_MANIFEST, &body)];
        artifact.blobs.iter().for_each(|blob| crate::support::push::push_blob(serving.addr(), "app", blob, &[]));
        put(&serving, "app", artifact.root(), OCI_MANIFEST).status
    };
    assert_eq!(referrer(1, 300 << 10), 400, "more than 256 KiB of annotations");
    let statuses: Vec<u16> = (2..24).map(|nth| referrer(nth, 200 << 10)).collect();
    assert!(statuses[0] == 201 && statuses[21] == 403, "{statuses:?}");
    let list = http::get(serving.addr(), &format!("/v2/app/referrers/{}", subject.digest())).expect(200);
    assert!(list.body.len() <= 4 << 20, "{} bytes", list.body.len());
    let taken = statuses.iter().filter(|status| **status == 201).count();
    assert_eq!(list.json()["manifests"].as_array().map(Vec::len), Some(taken));
}

/// Media types and artifact types of 256 bytes, one more than RFC 6838 allows, at each place of a manifest.
#[test]
fn types_longer_than_the_standard_allows_are_refused_wherever_they_stand() {
    let dir = TempDir::new();
    let serving = ServeProcess::start(&dir.path().join("images"), &["--writable", "--keep-free", "0"]);
    let image = Image::artifact(1, "application/x", None);
    image.push(serving.addr(), "app", "v1");
    let set = |body: &mut Value, place: &str, length: usize| {
        *body.pointer_mut(place).expect("there") = json!("x".repeat(length));
    };
    for place in ["/artifactType", "/config/mediaType", "/layers/0/mediaType"] {
        for (length, status) in [(255, 201), (256, 400)] {
            let mut body: Value = serde_json::from_slice(image.bytes()).expect("JSON");
            set(&mut body, place, length);
            let manifest = Document::new(OCI_MANIFEST, &body);
            assert_eq!(put(&serving, "app", &manifest, OCI_MANIFEST).status, status, "{place}: {length}");
        }
    }
}
