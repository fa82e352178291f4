//! Images made from a seed.
//!
//! The same seed gives the same digests; another seed shares nothing with it.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use super::layer::{self, Layer, sha256};

pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const DOCKER_LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// The platforms of [`Image::tiny`], as many as the real hello-world has.
pub const PLATFORMS: [(&str, &str, &str); 12] = [
    ("linux", "amd64", ""),
    ("linux", "arm", "v5"),
    ("linux", "arm", "v6"),
    ("linux", "arm", "v7"),
    ("linux", "arm64", "v8"),
    ("linux", "386", ""),
    ("linux", "mips64le", ""),
    ("linux", "ppc64le", ""),
    ("linux", "riscv64", ""),
    ("linux", "s390x", ""),
    ("windows", "amd64", ""),
    ("linux", "loong64", ""),
];

/// A blob with its digest.
#[derive(Debug, Clone)]
pub struct Blob {
    pub digest: String,
    pub bytes: Vec<u8>,
}

/// A manifest as it is stored, with its digest.
#[derive(Debug, Clone)]
pub struct Document {
    pub digest: String,
    pub media_type: String,
    pub bytes: Vec<u8>,
}

/// An image, an index or an artifact with everything below it.
#[derive(Debug, Clone)]
pub struct Image {
    /// Every blob below, each once.
    pub blobs: Vec<Blob>,
    /// Every manifest, children before parents; the last is the image itself.
    pub manifests: Vec<Document>,
}

impl Image {
    /// An OCI image with layers of these sizes.
    pub fn single(seed: u64, layers: &[usize]) -> Self {
        Self::platform(seed, layers, ("linux", "amd64", ""), false)
    }

    /// A Docker schema 2 image.
    pub fn docker(seed: u64, layers: &[usize]) -> Self {
        Self::platform(seed, layers, ("linux", "amd64", ""), true)
    }

    /// Like hello-world: 12 platforms and an attestation for each, 24 children with 48 blobs,
    /// some 40 KiB in all.
    pub fn tiny(seed: u64) -> Self {
        let images: Vec<Self> = PLATFORMS
            .iter()
            .zip(0..)
            .map(|(&platform, nth)| Self::platform(seed * 1000 + nth, &[layer::MIN_LAYER], platform, false))
            .collect();
        let mut children: Vec<(Self, Value)> = Vec::new();
        for (image, platform) in images.iter().zip(PLATFORMS) {
            children.push((image.clone(), json!({"platform": platform_json(platform)})));
        }
        for (image, nth) in images.iter().zip(0..) {
            let extra = json!({
                "platform": {"architecture": "unknown", "os": "unknown"},
                "annotations": {
                    "vnd.docker.reference.digest": image.digest(),
                    "vnd.docker.reference.type": "attestation-manifest",
                },
            });
            children.push((Self::attestation(seed * 1000 + nth, image), extra));
        }
        Self::index_of(children, false)
    }

    /// An OCI index of one image for each of `n` platforms, with layers of these sizes.
    pub fn index(seed: u64, n: usize, layers: &[usize]) -> Self {
        Self::list(seed, n, layers, false)
    }

    /// A Docker manifest list, likewise.
    pub fn docker_list(seed: u64, n: usize, layers: &[usize]) -> Self {
        Self::list(seed, n, layers, true)
    }

    /// An index that holds an index and an image.
    pub fn nested(seed: u64) -> Self {
        let inner = Self::index(seed * 10 + 1, 2, &[3000]);
        let image = Self::single(seed * 10 + 2, &[4000]);
        let platform = json!({"platform": platform_json(("linux", "amd64", ""))});
        Self::index_of(vec![(inner, json!({})), (image, platform)], false)
    }

    /// An index over these, each with further fields for its descriptor.
    pub fn index_of(children: Vec<(Self, Value)>, docker: bool) -> Self {
        let media_type = if docker { DOCKER_LIST } else { OCI_INDEX };
        let mut entries = Vec::new();
        let mut whole = Self { blobs: Vec::new(), manifests: Vec::new() };
        let mut known = BTreeSet::new();
        for (child, extra) in children {
            let mut entry = child.descriptor();
            for (name, value) in extra.as_object().into_iter().flatten() {
                entry[name] = value.clone();
            }
            entries.push(entry);
            whole.blobs.extend(child.blobs.into_iter().filter(|blob| known.insert(blob.digest.clone())));
            let new = |manifest: &Document| known.insert(manifest.digest.clone());
            whole.manifests.extend(child.manifests.into_iter().filter(new));
        }
        let index = json!({"schemaVersion": 2, "mediaType": media_type, "manifests": entries});
        whole.manifests.push(Document::new(media_type, &index));
        whole
    }

    /// The image's own digest.
    pub fn digest(&self) -> &str {
        &self.root().digest
    }

    /// The image's own manifest.
    pub fn bytes(&self) -> &[u8] {
        &self.root().bytes
    }

    pub fn media_type(&self) -> &str {
        &self.root().media_type
    }

    pub fn root(&self) -> &Document {
        self.manifests.last().expect("an image has a manifest")
    }

    /// Bytes of all blobs and manifests.
    pub fn size(&self) -> usize {
        let blobs: usize = self.blobs.iter().map(|blob| blob.bytes.len()).sum();
        blobs + self.manifests.iter().map(|manifest| manifest.bytes.len()).sum::<usize>()
    }

    pub fn descriptor(&self) -> Value {
        let root = self.root();
        json!({"mediaType": root.media_type, "digest": root.digest, "size": root.bytes.len()})
    }

    /// Where cosign keeps the signature of this.
    pub fn cosign_tag(&self) -> String {
        format!("{}.sig", self.referrers_tag())
    }

    /// Where the referrers of this are listed, without the API.
    pub fn referrers_tag(&self) -> String {
        self.digest().replace(':', "-")
    }

    /// An OCI image of these layers. `seed` only names it: images of several may share layers.
    pub fn layered(seed: u64, layers: &[Layer]) -> Self {
        let diff_ids: Vec<&str> = layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        Self::with_config(config(&diff_ids, ("linux", "amd64", ""), seed), layers, false)
    }

    /// An OCI image whose config tells `seed` only, so that several may share it.
    pub fn labelled(seed: u64, layers: &[Layer]) -> Self {
        Self::with_config(config(&[], ("linux", "amd64", ""), seed), layers, false)
    }

    fn platform(seed: u64, layers: &[usize], platform: (&str, &str, &str), docker: bool) -> Self {
        let made: Vec<Layer> =
            layers.iter().zip(0_u64..).map(|(&size, nth)| layer::layer(seed * 100 + nth, size)).collect();
        let diff_ids: Vec<&str> = made.iter().map(|layer| layer.diff_id.as_str()).collect();
        Self::with_config(config(&diff_ids, platform, seed), &made, docker)
    }

    fn with_config(config: Blob, layers: &[Layer], docker: bool) -> Self {
        let mut blobs = vec![config];
        blobs.extend(layers.iter().map(|layer| Blob::new(layer.bytes.clone())));
        let (manifest, config, layer) = match docker {
            true => (DOCKER_MANIFEST, DOCKER_CONFIG, DOCKER_LAYER),
            false => (OCI_MANIFEST, OCI_CONFIG, OCI_LAYER),
        };
        let layers: Vec<Value> = blobs[1..].iter().map(|blob| blob.descriptor(layer)).collect();
        let body = json!({
            "schemaVersion": 2,
            "mediaType": manifest,
            "config": blobs[0].descriptor(config),
            "layers": layers,
        });
        Self::of(blobs, Document::new(manifest, &body))
    }

    fn list(seed: u64, n: usize, layers: &[usize], docker: bool) -> Self {
        let child = |(&platform, nth): (&(&str, &str, &str), u64)| {
            let image = Self::platform(seed * 1000 + nth, layers, platform, docker);
            (image, json!({"platform": platform_json(platform)}))
        };
        Self::index_of(PLATFORMS.iter().take(n).zip(0_u64..).map(child).collect(), docker)
    }

    pub fn of(blobs: Vec<Blob>, manifest: Document) -> Self {
        Self { blobs, manifests: vec![manifest] }
    }
}

impl Blob {
    pub fn new(bytes: Vec<u8>) -> Self {
        Self { digest: sha256(&bytes), bytes }
    }

    pub fn descriptor(&self, media_type: &str) -> Value {
        json!({"mediaType": media_type, "digest": self.digest, "size": self.bytes.len()})
    }
}

impl Document {
    pub fn new(media_type: &str, body: &Value) -> Self {
        let bytes = body.to_string().into_bytes();
        Self { digest: sha256(&bytes), media_type: media_type.to_owned(), bytes }
    }
}

pub(super) fn config(diff_ids: &[&str], platform: (&str, &str, &str), seed: u64) -> Blob {
    let mut config = platform_json(platform);
    config["config"] = json!({"Labels": {"seed": seed.to_string()}});
    config["rootfs"] = json!({"type": "layers", "diff_ids": diff_ids});
    Blob::new(config.to_string().into_bytes())
}

fn platform_json((os, architecture, variant): (&str, &str, &str)) -> Value {
    let mut platform = json!({"architecture": architecture, "os": os});
    if !variant.is_empty() {
        platform["variant"] = json!(variant);
    }
    platform
}
