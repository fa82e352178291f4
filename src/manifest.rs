//! From the verified bytes of a manifest to what it refers to, within bounds. No I/O.
//!
//! The bytes are kept as they came: writing them again would change the digest (key order, white
//! space, fields that nobody here knows).

mod spelling;

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Deserializer};

use crate::descriptor::{Descriptor, Digest, MediaType, annotations, artifact_type, map_weight};
use crate::error::{Error, Kind, Result};

/// The largest manifest that is read: 4 MiB, what the distribution spec asks every registry to
/// take at least, and what containerd and ACR accept at most.
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The most children or layers that one manifest may name.
pub const MAX_CHILDREN: usize = 10_000;
/// How deep indexes may nest.
pub const MAX_DEPTH: usize = 8;

/// A manifest or index: the bytes, their descriptor, and what they name.
///
/// Can only be made from bytes that hash to the digest. Clones share everything.
#[derive(Clone, Debug)]
pub struct Manifest(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    descriptor: Descriptor,
    bytes: Bytes,
    contents: Contents,
    weight: u64,
}

/// What a manifest names.
#[derive(Clone, Debug, Default)]
pub struct Contents {
    /// Child manifests (of an index).
    pub manifests: Vec<Descriptor>,
    /// Config and layers, an artifact's blobs, or the entries of an index that are no manifests, in the order of the
    /// manifest.
    pub blobs: Vec<Descriptor>,
    /// Which of the blobs is its config.
    pub config: Option<Digest>,
    /// The manifest that this one is about (a referrer's).
    pub subject: Option<Descriptor>,
    /// The kind of an artifact: its `artifactType`, else its config's media type.
    pub artifact_type: Option<String>,
    /// Annotations of the manifest itself.
    pub annotations: std::collections::BTreeMap<String, String>,
}

impl Manifest {
    /// Reads `bytes`, which `content_type` (a registry's header, where there is one) names, and
    /// which must hash to `digest` where one is expected.
    ///
    /// # Errors
    /// [`Kind::Mismatch`] for other bytes, [`Kind::Unsupported`] for schema 1, [`Kind::Invalid`]
    /// for what isn't a manifest or is past a bound.
    pub fn read(bytes: Bytes, content_type: Option<&str>, digest: Option<Digest>) -> Result<Self> {
        if bytes.len() as u64 > MAX_MANIFEST {
            return Err(Error::new(Kind::Invalid, format!("the manifest has more than {MAX_MANIFEST} bytes")));
        }
        let digest = match digest {
            Some(expected) if expected.matches(&bytes) => expected,
            Some(expected) => return Err(mismatch(expected, &bytes, content_type)),
            None => Digest::of(&bytes),
        };
        let raw: Raw =
            serde_json::from_slice(&bytes).and_then(|raw| spelling::check(&bytes).map(|()| raw)).map_err(|error| {
                let what = format!("{digest} is not a manifest");
                Error::new(Kind::Invalid, what).quoting(format!(": {error}")).caused_by(error)
            })?;
        let media_type = raw.media_type(content_type);
        if raw.schema_version == Some(1) || media_type.is_schema1() {
            return Err(schema1());
        }
        let contents = raw.contents(&media_type)?;
        let descriptor = Descriptor::new(media_type, digest, bytes.len() as u64);
        let weight = bytes.len() as u64 + contents.weight();
        Ok(Self(Arc::new(Parts { descriptor, bytes, contents, weight })))
    }

    /// Media type, digest and size.
    pub fn descriptor(&self) -> &Descriptor {
        &self.0.descriptor
    }

    /// The digest of the bytes.
    pub fn digest(&self) -> Digest {
        self.0.descriptor.digest
    }

    /// The bytes, verbatim.
    pub fn bytes(&self) -> &Bytes {
        &self.0.bytes
    }

    /// What it names.
    pub fn contents(&self) -> &Contents {
        &self.0.contents
    }

    /// About how many bytes of memory it takes: its bytes, and what was parsed of them.
    pub fn weight(&self) -> u64 {
        self.0.weight
    }

    /// Whether it is an index or manifest list.
    pub fn is_index(&self) -> bool {
        self.0.descriptor.media_type.is_index()
    }
}

impl Contents {
    /// About how many bytes of memory this takes.
    fn weight(&self) -> u64 {
        let parts = self.manifests.iter().chain(&self.blobs).chain(&self.subject);
        let own = map_weight(&self.annotations) + self.artifact_type.as_ref().map_or(0, String::len);
        parts.map(Descriptor::weight).sum::<u64>() + own as u64
    }
}

/// The JSON of either kind, read leniently.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    schema_version: Option<u64>,
    media_type: Option<MediaType>,
    #[serde(default, deserialize_with = "artifact_type")]
    artifact_type: Option<String>,
    config: Option<Descriptor>,
    #[serde(default)]
    layers: List,
    /// An OCI 1.1 release candidate's "artifact manifest".
    #[serde(default)]
    blobs: List,
    #[serde(default)]
    manifests: List,
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: std::collections::BTreeMap<String, String>,
}

/// A list of descriptors. Go programs write `null` for an empty one, and read it so.
#[derive(Default)]
enum List {
    #[default]
    Absent,
    Null,
    Given(Vec<Descriptor>),
}

impl List {
    fn is_given(&self) -> bool {
        matches!(self, Self::Given(_))
    }

    fn is_mentioned(&self) -> bool {
        !matches!(self, Self::Absent)
    }

    fn into_vec(self) -> Vec<Descriptor> {
        match self {
            Self::Given(listed) => listed,
            Self::Absent | Self::Null => Vec::new(),
        }
    }
}

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Ok(Option::deserialize(deserializer)?.map_or(Self::Null, Self::Given))
    }
}

impl Raw {
    /// The body's own `mediaType`, else the header's, else what the fields say (OCI made the field
    /// optional at first).
    fn media_type(&self, content_type: Option<&str>) -> MediaType {
        if let Some(own) = self.media_type.as_ref().filter(|own| !own.0.is_empty()) {
            return MediaType::from(own.0.as_str());
        }
        match content_type.map(MediaType::from) {
            Some(header) if header.is_index() || header.is_manifest() || header.is_schema1() => header,
            _ if self.manifests.is_given() => MediaType::OCI_INDEX.into(),
            _ if self.manifests.is_mentioned() && !self.is_image() => MediaType::OCI_INDEX.into(),
            _ => MediaType::OCI_MANIFEST.into(),
        }
    }

    /// Whether it has what an image has.
    fn is_image(&self) -> bool {
        self.layers.is_given() || self.config.is_some()
    }

    /// Whether it is a manifest at all: it names something, or its own `mediaType` says that it is one that may name
    /// nothing. A config may not be missing in an image.
    fn is_something(&self) -> bool {
        let own = self.media_type.as_ref();
        let may_be_empty =
            own.is_some_and(|own| own.is_index() || (own.names_manifest() && !own.is_manifest() && !own.0.is_empty()));
        self.is_image() || self.blobs.is_given() || self.manifests.is_mentioned() || may_be_empty
    }

    fn contents(self, media_type: &MediaType) -> Result<Contents> {
        // The distribution spec's "confused deputy" case: a document that is both would be read
        // as one by us and as the other by a runtime.
        if self.manifests.is_given() && self.is_image() {
            return Err(Error::new(Kind::Invalid, "the manifest has both manifests and layers: it is ambiguous"));
        }
        let is_list = self.manifests.is_given() || (media_type.is_index() && !self.is_image());
        if media_type.is_index() != is_list && (media_type.is_index() || media_type.is_manifest()) {
            return Err(Error::new(
                Kind::Invalid,
                format!("the manifest calls itself {media_type} but has another form"),
            ));
        }
        if !self.is_something() {
            return Err(Error::new(
                Kind::Invalid,
                format!("a document of type {media_type} names no layers, config or manifests"),
            ));
        }
        // What an entry of an index is, its media type says.
        let (manifests, listed): (Vec<_>, Vec<_>) =
            self.manifests.into_vec().into_iter().partition(|entry| entry.media_type.names_manifest());
        let artifact_type =
            self.artifact_type.or_else(|| self.config.as_ref().map(|config| config.media_type.0.clone()));
        let config = self.config.as_ref().map(|config| config.digest);
        let blobs: Vec<_> =
            self.config.into_iter().chain(self.layers.into_vec()).chain(self.blobs.into_vec()).chain(listed).collect();
        if manifests.len().max(blobs.len()) > MAX_CHILDREN {
            return Err(Error::new(Kind::Invalid, format!("the manifest names more than {MAX_CHILDREN} parts")));
        }
        if let Some(child) = manifests.iter().find(|child| child.size > MAX_MANIFEST) {
            return Err(Error::new(
                Kind::Invalid,
                format!("child manifest {} claims {} bytes", child.digest, child.size),
            ));
        }
        Ok(Contents { manifests, blobs, config, subject: self.subject, artifact_type, annotations: self.annotations })
    }
}

/// Schema 1's digest leaves its signatures out, so a mismatch of such a document is no corruption.
fn mismatch(expected: Digest, bytes: &[u8], content_type: Option<&str>) -> Error {
    if content_type.is_some_and(|header| MediaType::from(header).is_schema1()) {
        return schema1();
    }
    let got =
        if matches!(expected, Digest::Sha256(_)) { Digest::of(bytes).to_string() } else { "something else".into() };
    Error::new(Kind::Mismatch, format!("the manifest's digest is wrong: expected {expected}, its bytes have {got}"))
        .hint("the registry, or something between, changed the content: report it to whoever runs it")
}

fn schema1() -> Error {
    Error::new(Kind::Unsupported, "the image has a Docker schema 1 manifest, which is obsolete and not copied")
        .hint("pull and push it once with Docker 20.10 or older, or skopeo copy --format v2s2, to convert it")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, content_type: Option<&str>) -> Result<Manifest> {
        Manifest::read(Bytes::copy_from_slice(text.as_bytes()), content_type, None)
    }

    fn descriptor(media_type: &str, size: u64) -> String {
        format!(r#"{{"mediaType":"{media_type}","digest":"{}","size":{size}}}"#, Digest::of(media_type.as_bytes()))
    }

    #[test]
    fn an_image_keeps_config_then_layers() {
        let text = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{},{}],"unknown":1}}"#,
            descriptor("c", 1),
            descriptor("l1", 2),
            descriptor("l2", 3)
        );
        let manifest =
            read(&text, Some("application/vnd.docker.distribution.manifest.v2+json; charset=utf-8")).expect("reads");
        assert_eq!(manifest.descriptor().media_type.0, MediaType::DOCKER_MANIFEST);
        assert_eq!(manifest.contents().blobs.iter().map(|b| b.size).collect::<Vec<_>>(), [1, 2, 3]);
        assert_eq!(manifest.bytes(), text.as_bytes());
    }

    #[test]
    fn wrong_documents_are_refused() {
        let both = format!(r#"{{"manifests":[],"config":{},"layers":[]}}"#, descriptor("c", 1));
        let huge = format!(r#"{{"manifests":[{}]}}"#, descriptor(MediaType::OCI_MANIFEST, MAX_MANIFEST + 1));
        let posing =
            format!(r#"{{"mediaType":"{}","config":{},"layers":[]}}"#, MediaType::OCI_INDEX, descriptor("c", 1));
        // To a Go program the second list, or the second digest, is the image's.
        let twice = format!(r#"{{"config":{0},"layers":[],"Layers":[{0}]}}"#, descriptor("c", 1));
        let twins =
            format!(r#"{{"layers":[{}]}}"#, descriptor("c", 1).replace("\"size\"", "\"Digest\":\"x\",\"size\""));
        for wrong in [
            "",
            "[]",
            &twice,
            &twins,
            "{}",
            "null",
            r#"{"schemaVersion":2}"#,
            r#"{"layers":null}"#,
            r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json"}"#,
            r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#,
            r#"{"mediaType":"text/html"}"#,
            r#"{"manifests":[null]}"#,
            r#"{"manifests":[{"digest":"sha256:x","size":1}]}"#,
            r#"{"layers":[{"size":-1}]}"#,
            &both,
            &huge,
            &posing,
        ] {
            assert_eq!(read(wrong, None).expect_err(wrong).kind(), Kind::Invalid, "{wrong}");
        }
        assert_eq!(read(r#"{"schemaVersion":1,"fsLayers":[]}"#, None).expect_err("schema 1").kind(), Kind::Unsupported);
    }

    #[test]
    fn null_is_an_empty_list() {
        let config = descriptor("c", 1);
        for (text, media_type, blobs) in [
            (r#"{"manifests":null}"#.to_owned(), MediaType::OCI_INDEX, 0),
            (format!(r#"{{"mediaType":"{}","manifests":null}}"#, MediaType::DOCKER_LIST), MediaType::DOCKER_LIST, 0),
            (format!(r#"{{"mediaType":"{}","schemaVersion":2}}"#, MediaType::OCI_INDEX), MediaType::OCI_INDEX, 0),
            (
                format!(r#"{{"mediaType":null,"config":{config},"layers":null,"manifests":null}}"#),
                MediaType::OCI_MANIFEST,
                1,
            ),
            (
                format!(r#"{{"config":{config},"layers":[],"annotations":null,"subject":null}}"#),
                MediaType::OCI_MANIFEST,
                1,
            ),
            (format!(r#"{{"config":{config},"annotations":{{"a":null}}}}"#), MediaType::OCI_MANIFEST, 1),
        ] {
            let manifest = read(&text, None).expect(&text);
            assert_eq!(manifest.descriptor().media_type.0, media_type, "{text}");
            assert_eq!((manifest.contents().blobs.len(), manifest.contents().manifests.len()), (blobs, 0), "{text}");
        }
        let nulls = descriptor("m", 1).replace(r#""m""#, "null").replace(
            r#""size""#,
            r#""platform":{"os":null,"architecture":null},"annotations":null,"urls":null,"size""#,
        );
        let manifest = read(&format!(r#"{{"manifests":[{nulls}]}}"#), None).expect(&nulls);
        assert_eq!(manifest.contents().manifests.len(), 1, "without a type an entry is a manifest");
    }

    #[test]
    fn artifact_manifests_may_have_no_blobs() {
        let subject = descriptor(MediaType::OCI_MANIFEST, 7);
        for (blobs, count) in
            [("".to_owned(), 0), (r#","blobs":null"#.to_owned(), 0), (format!(r#","blobs":[{subject}]"#), 1)]
        {
            for media_type in [MediaType::OCI_ARTIFACT, "application/vnd.cncf.oras.artifact.manifest.v1+json"] {
                let text = format!(r#"{{"mediaType":"{media_type}","artifactType":"a/b","subject":{subject}{blobs}}}"#);
                let manifest = read(&text, Some(media_type)).expect(&text);
                assert_eq!(manifest.contents().blobs.len(), count, "{text}");
                assert_eq!(manifest.contents().artifact_type.as_deref(), Some("a/b"));
                assert!(manifest.contents().subject.is_some() && !manifest.is_index(), "{text}");
            }
        }
    }

    /// BuildKit exports a cache as an index of layers and a config of its own.
    #[test]
    fn the_media_type_says_whether_an_entry_is_a_manifest() {
        let manifests = [
            MediaType::OCI_MANIFEST,
            MediaType::OCI_INDEX,
            MediaType::DOCKER_MANIFEST,
            MediaType::DOCKER_LIST,
            MediaType::OCI_ARTIFACT,
            "application/vnd.cncf.oras.artifact.manifest.v1+json",
            "application/vnd.docker.distribution.manifest.v1+prettyjws",
            "",
        ];
        let blobs = [
            "application/vnd.oci.image.layer.v1.tar+gzip",
            "application/vnd.docker.image.rootfs.diff.tar.gzip",
            "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
            "application/vnd.buildkit.cacheconfig.v0",
            "application/vnd.oci.image.config.v1+json",
            "application/vnd.docker.container.image.v1+json",
            "application/octet-stream",
            "x",
        ];
        let listed: Vec<String> = blobs.iter().chain(&manifests).map(|media_type| descriptor(media_type, 9)).collect();
        let manifest = read(&format!(r#"{{"manifests":[{}]}}"#, listed.join(",")), None).expect("an index");
        let types = |found: &[Descriptor]| found.iter().map(|entry| entry.media_type.0.clone()).collect::<Vec<_>>();
        assert_eq!(types(&manifest.contents().manifests), manifests);
        assert_eq!(types(&manifest.contents().blobs), blobs);
        assert!(manifest.is_index() && manifest.contents().config.is_none());
        let large = format!(r#"{{"manifests":[{}]}}"#, descriptor(blobs[0], MAX_MANIFEST + 1));
        assert!(read(&large, None).is_ok(), "a layer may be larger than a manifest");
    }

    #[test]
    fn other_bytes_are_a_mismatch() {
        let error = Manifest::read(Bytes::from_static(b"{}"), None, Some(Digest::of(b"other"))).expect_err("mismatch");
        assert_eq!(error.kind(), Kind::Mismatch);
        let error = Manifest::read(
            Bytes::from_static(b"{}"),
            Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            Some(Digest::of(b"other")),
        );
        assert_eq!(error.expect_err("schema 1").kind(), Kind::Unsupported);
    }
}
