//! `fixtures/`: the images of the demo, what they are made of, and whether they are still that.
//!
//! `TRANSLOAD_WRITE_FIXTURES=1 cargo test --test it fixtures` writes the files anew.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use transload::demo::fixtures;

use super::support::images::{OCI_CONFIG, OCI_INDEX, OCI_MANIFEST};
use super::support::layer::{sha256, tar_of};
use super::support::{TempDir, skopeo};

#[test]
fn they_are_what_this_file_makes_of_them() {
    let made = hello_world();
    if std::env::var_os("TRANSLOAD_WRITE_FIXTURES").is_some() {
        drop(std::fs::remove_dir_all(directory()));
        for (path, bytes) in &made.0 {
            let path = directory().join(path);
            std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
            std::fs::write(path, bytes).expect("a file");
        }
    }
    let names = |files: &BTreeMap<String, Vec<u8>>| files.keys().cloned().collect::<Vec<_>>();
    let there = committed();
    assert_eq!(names(&there), names(&made.0));
    for (path, bytes) in &there {
        assert!(made.0[path] == *bytes, "{path} is not what is made");
    }
}

#[test]
fn each_blob_hashes_to_its_name() {
    let mut blobs = 0;
    for (path, bytes) in committed() {
        if let Some(hex) = path.strip_prefix("blobs/sha256/") {
            assert_eq!(sha256(&bytes), format!("sha256:{hex}"));
            blobs += 1;
        }
    }
    assert_eq!(blobs, 23);
}

#[test]
fn the_program_carries_all_of_them() {
    let carried: BTreeMap<String, Vec<u8>> =
        fixtures::HELLO_WORLD.iter().map(|file| (file.path.to_owned(), file.bytes.to_vec())).collect();
    assert_eq!(carried.len(), fixtures::HELLO_WORLD.len(), "none twice");
    assert!(carried == committed(), "src/demo/fixtures.rs lists other files than fixtures/hello-world has");
}

#[test]
fn skopeo_takes_them() {
    let image = format!("oci:{}:latest", directory().display());
    let raw = skopeo(&["inspect", "--raw", &image]).ok();
    assert_eq!(sha256(raw.stdout.as_bytes()), hello_world().1);
    let copy = TempDir::new();
    skopeo(&["copy", "--all", &image, &format!("dir:{}", copy.join("copy"))]).ok();
    for architecture in ["amd64", "arm64", "arm"] {
        let one = skopeo(&["--override-arch", architecture, "--override-os", "linux", "inspect", &image]).ok();
        assert_eq!(one.json()["Architecture"], architecture);
    }
}

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fixtures/hello-world")
}

/// The files below the directory, by their paths.
fn committed() -> BTreeMap<String, Vec<u8>> {
    let mut files = BTreeMap::new();
    let mut folders = vec![directory()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.strip_prefix(directory()).expect("below").to_str().expect("UTF-8").to_owned();
                files.insert(name, std::fs::read(&path).expect("a readable file"));
            }
        }
    }
    files
}

/// A layout under way: its files.
#[derive(Default)]
struct Layout(BTreeMap<String, Vec<u8>>);

impl Layout {
    /// Adds a blob; returns its descriptor.
    fn blob(&mut self, media_type: &str, bytes: Vec<u8>) -> Value {
        let digest = sha256(&bytes);
        let size = bytes.len();
        self.0.insert(format!("blobs/{}", digest.replace(':', "/")), bytes);
        json!({"mediaType": media_type, "digest": digest, "size": size})
    }

    /// Adds a document, indented to be read.
    fn document(&mut self, media_type: &str, document: &Value) -> Value {
        self.blob(media_type, pretty(document))
    }
}

/// hello-world for three platforms, each with an attestation, and an SBOM that refers to the
/// whole. Returns the files, and the digest of its index.
fn hello_world() -> (BTreeMap<String, Vec<u8>>, String) {
    let mut layout = Layout::default();
    let about = layout.blob(OCI_LAYER, tar_of("about.txt", ABOUT.as_bytes()));
    let images: Vec<Value> = PLATFORMS.iter().map(|platform| image(&mut layout, *platform, &about)).collect();
    let attestations: Vec<Value> = images.iter().map(|image| attestation(&mut layout, image)).collect();
    let children = [images, attestations].concat();
    let index = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": children});
    let index = layout.document(OCI_INDEX, &index);
    let sbom = sbom(&mut layout, &index);

    let mut named = index.clone();
    named["annotations"] = json!({
        "org.opencontainers.image.ref.name": "latest",
        "io.containerd.image.name": "docker.io/library/hello-world:latest",
    });
    let roots = json!({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [named, sbom]});
    layout.0.insert("index.json".into(), pretty(&roots));
    layout.0.insert("oci-layout".into(), b"{\"imageLayoutVersion\": \"1.0.0\"}\n".to_vec());
    (layout.0, index["digest"].as_str().expect("a digest").to_owned())
}

/// One platform's image: a layer of its own, and one that all have in common.
fn image(layout: &mut Layout, (architecture, variant): (&str, &str), about: &Value) -> Value {
    let mut platform = json!({"architecture": architecture, "os": "linux"});
    let mut name = format!("linux/{architecture}");
    if !variant.is_empty() {
        platform["variant"] = json!(variant);
        name = format!("{name}/{variant}");
    }
    let own = layout.blob(OCI_LAYER, tar_of("hello.txt", hello(&name).as_bytes()));
    let mut config = platform.clone();
    config["created"] = json!(CREATED);
    config["config"] = json!({"Labels": {"org.opencontainers.image.title": "hello-world"}});
    // A layer that isn't compressed is the very file that its diff_id means.
    config["rootfs"] = json!({"type": "layers", "diff_ids": [about["digest"], own["digest"]]});
    let config = layout.document(OCI_CONFIG, &config);
    let layers = [about, &own];
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": layers});
    let mut image = layout.document(OCI_MANIFEST, &manifest);
    image["platform"] = platform;
    image
}

/// What buildx adds for each platform: an in-toto statement of where it comes from, in an image
/// for the platform "unknown".
fn attestation(layout: &mut Layout, image: &Value) -> Value {
    let digest = image["digest"].as_str().expect("a digest");
    let subject = json!({
        "name": "pkg:docker/hello-world@latest",
        "digest": {"sha256": digest.trim_start_matches("sha256:")},
    });
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v0.1",
        "predicateType": PROVENANCE,
        "subject": [subject],
        "predicate": {"builder": {"id": "tests/it/fixtures.rs"}, "buildType": "by hand"},
    });
    let mut statement = layout.document("application/vnd.in-toto+json", &statement);
    let unknown = json!({"architecture": "unknown", "os": "unknown"});
    let mut config = unknown.clone();
    config["config"] = json!({});
    config["rootfs"] = json!({"type": "layers", "diff_ids": [statement["digest"]]});
    let config = layout.document(OCI_CONFIG, &config);
    statement["annotations"] = json!({"in-toto.io/predicate-type": PROVENANCE});
    let manifest = json!({"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": config, "layers": [statement]});
    let mut attestation = layout.document(OCI_MANIFEST, &manifest);
    attestation["annotations"] = json!({
        "vnd.docker.reference.digest": digest,
        "vnd.docker.reference.type": "attestation-manifest",
    });
    attestation["platform"] = unknown;
    attestation
}

/// An artifact that has the index as its subject (OCI 1.1): a list of what is in the image.
fn sbom(layout: &mut Layout, index: &Value) -> Value {
    let package = json!({
        "name": "hello-world", "SPDXID": "SPDXRef-hello-world", "downloadLocation": "NOASSERTION",
        "licenseConcluded": "Apache-2.0",
    });
    let spdx = json!({
        "spdxVersion": "SPDX-2.3", "dataLicense": "CC0-1.0", "SPDXID": "SPDXRef-DOCUMENT", "name": "hello-world",
        "documentNamespace": "https://example.com/spdx/hello-world",
        "creationInfo": {"created": CREATED, "creators": ["Tool: tests/it/fixtures.rs"]},
        "packages": [package],
    });
    let spdx = layout.document(SPDX, &spdx);
    let empty = layout.blob("application/vnd.oci.empty.v1+json", b"{}".to_vec());
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": SPDX, "config": empty, "layers": [spdx],
        "subject": index, "annotations": {"org.opencontainers.image.created": CREATED},
    });
    let mut sbom = layout.document(OCI_MANIFEST, &manifest);
    sbom["artifactType"] = json!(SPDX);
    sbom
}

fn pretty(document: &Value) -> Vec<u8> {
    let mut bytes = serde_json::to_vec_pretty(document).expect("JSON");
    bytes.push(b'\n');
    bytes
}

fn hello(platform: &str) -> String {
    format!(
        "Hello from transload!\n\nThis is the image for {platform}. If you can read this, its layer arrived as it\n\
         left: the tar file around this text has the digest that the manifest names.\n"
    )
}

const PLATFORMS: [(&str, &str); 3] = [("amd64", ""), ("arm64", "v8"), ("arm", "v7")];
const ABOUT: &str = "A layer that the images of all platforms share, so it is sent once.\n";
const CREATED: &str = "2026-11-01T00:00:00Z";
const PROVENANCE: &str = "https://slsa.dev/provenance/v0.2";
const SPDX: &str = "application/spdx+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
