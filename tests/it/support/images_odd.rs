//! Images that copiers trip over: artifacts, signatures, foreign layers, other digests.

use serde_json::{Value, json};
use sha2::{Digest as _, Sha512};

use super::Image;
use super::images::{Blob, DOCKER_MANIFEST, Document, OCI_CONFIG, OCI_MANIFEST, config};
use super::layer::{self, hex};

const FOREIGN_LAYER: &str = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
const EMPTY: &str = "application/vnd.oci.empty.v1+json";

impl Image {
    /// An OCI artifact with the empty config, pointing at a subject if one is given.
    pub fn artifact(seed: u64, artifact_type: &str, subject: Option<&Self>) -> Self {
        let config = Blob::new(b"{}".to_vec());
        let content = Blob::new(layer::random_bytes(seed, 700));
        let mut manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "artifactType": artifact_type,
            "config": config.descriptor(EMPTY),
            "layers": [content.descriptor("application/octet-stream")],
        });
        if let Some(subject) = subject {
            manifest["subject"] = subject.descriptor();
        }
        Self::of(vec![config, content], Document::new(OCI_MANIFEST, &manifest))
    }

    /// A cosign signature, to be pushed at [`Self::cosign_tag`] of what it signs.
    pub fn signature(signed: &Self) -> Self {
        let payload = json!({
            "critical": {
                "identity": {"docker-reference": ""},
                "image": {"docker-manifest-digest": signed.digest()},
                "type": "cosign container image signature",
            },
            "optional": null,
        });
        let payload = Blob::new(payload.to_string().into_bytes());
        let config = config(&[payload.digest.as_str()], ("", "", ""), 0);
        let mut layer = payload.descriptor("application/vnd.dev.cosign.simplesigning.v1+json");
        layer["annotations"] = json!({"dev.cosignproject.cosign/signature": "bm90IG9uZQ=="});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(OCI_CONFIG),
            "layers": [layer],
        });
        Self::of(vec![config, payload], Document::new(OCI_MANIFEST, &manifest))
    }

    /// The index that stands for the Referrers API where there is none, to be pushed at
    /// [`Self::referrers_tag`] of the subject. It brings the referrers along.
    pub fn referrers(referrers: &[Self]) -> Self {
        let child = |image: &Self| {
            let manifest: Value = serde_json::from_slice(image.bytes()).expect("a manifest is JSON");
            (image.clone(), json!({"artifactType": manifest["artifactType"]}))
        };
        Self::index_of(referrers.iter().map(child).collect(), false)
    }

    /// A Docker image whose first layer is foreign: it has `urls` and is in no registry.
    pub fn foreign(seed: u64) -> Self {
        Self::foreign_at(seed, "https://example.com/layer.tar.gz")
    }

    /// The same, with the foreign layer's own address.
    pub fn foreign_at(seed: u64, url: &str) -> Self {
        let image = Self::docker(seed, &[5000, 3000]);
        let mut manifest: Value = serde_json::from_slice(image.bytes()).expect("a manifest is JSON");
        manifest["layers"][0]["mediaType"] = json!(FOREIGN_LAYER);
        manifest["layers"][0]["urls"] = json!([url]);
        let absent = manifest["layers"][0]["digest"].clone();
        let blobs = image.blobs.into_iter().filter(|blob| absent != blob.digest.as_str()).collect();
        Self::of(blobs, Document::new(DOCKER_MANIFEST, &manifest))
    }

    /// An OCI image that says when it was made.
    pub fn made(seed: u64, created: &str) -> Self {
        let image = Self::single(seed, &[2000]);
        let mut blobs = image.blobs.clone();
        let mut config: Value = serde_json::from_slice(&blobs[0].bytes).expect("a config is JSON");
        config["created"] = json!(created);
        blobs[0] = super::images::Blob::new(config.to_string().into_bytes());
        let mut manifest: Value = serde_json::from_slice(image.bytes()).expect("a manifest is JSON");
        manifest["config"] = blobs[0].descriptor(OCI_CONFIG);
        Self::of(blobs, Document::new(OCI_MANIFEST, &manifest))
    }

    /// An OCI image whose layer is named by sha512.
    pub fn sha512(seed: u64) -> Self {
        let image = Self::single(seed, &[3000]);
        let mut blobs = image.blobs.clone();
        let mut manifest: Value = serde_json::from_slice(image.bytes()).expect("a manifest is JSON");
        let named = format!("sha512:{}", hex(&Sha512::digest(&blobs[1].bytes)));
        manifest["layers"][0]["digest"] = json!(named);
        blobs[1].digest = named;
        Self::of(blobs, Document::new(OCI_MANIFEST, &manifest))
    }

    /// What BuildKit adds to each platform.
    pub(super) fn attestation(seed: u64, image: &Self) -> Self {
        let statement = json!({
            "_type": "https://in-toto.io/Statement/v0.1",
            "predicateType": "https://spdx.dev/Document",
            "subject": [{"name": "pkg:docker/hello-world@latest", "digest": {"sha256": &image.digest()[7..]}}],
            "predicate": {"seed": seed},
        });
        let statement = Blob::new(statement.to_string().into_bytes());
        let config = config(&[statement.digest.as_str()], ("unknown", "unknown", ""), seed);
        let mut layer = statement.descriptor("application/vnd.in-toto+json");
        layer["annotations"] = json!({"in-toto.io/predicate-type": "https://spdx.dev/Document"});
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": config.descriptor(OCI_CONFIG),
            "layers": [layer],
        });
        Self::of(vec![config, statement], Document::new(OCI_MANIFEST, &manifest))
    }
}
