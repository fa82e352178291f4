//! From the verified bytes of a manifest to what it refers to, within bounds. No I/O.
//!
//! The bytes are kept as they came: writing them again would change the digest (key order, white
//! space, fields that nobody here knows).

mod spelling;

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;

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
    /// Config and layers, or an artifact's blobs, in the order of the manifest.
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
                Error::new(Kind::Invalid, format!("{digest} is not a manifest")).quoting(format!(": {error}"))
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
    layers: Option<Vec<Descriptor>>,
    /// An OCI 1.1 release candidate's "artifact manifest".
    blobs: Option<Vec<Descriptor>>,
    manifests: Option<Vec<Descriptor>>,
    subject: Option<Descriptor>,
    #[serde(default, deserialize_with = "annotations")]
    annotations: std::collections::BTreeMap<String, String>,
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
            _ if self.manifests.is_some() => MediaType::OCI_INDEX.into(),
            _ => MediaType::OCI_MANIFEST.into(),
        }
    }

    fn contents(self, media_type: &MediaType) -> Result<Contents> {
        // The distribution spec's "confused deputy" case: a document that is both would be read
        // as one by us and as the other by a runtime.
        if self.manifests.is_some() && (self.layers.is_some() || self.config.is_some()) {
            return Err(Error::new(Kind::Invalid, "the manifest has both manifests and layers: it is ambiguous"));
        }
        if media_type.is_index() != self.manifests.is_some() && (media_type.is_index() || media_type.is_manifest()) {
            return Err(Error::new(
                Kind::Invalid,
                format!("the manifest calls itself {media_type} but has another form"),
            ));
        }
        if self.manifests.is_none() && self.layers.is_none() && self.config.is_none() && self.blobs.is_none() {
            return Err(Error::new(
                Kind::Invalid,
                format!("a document of type {media_type} names no layers, config or manifests"),
            ));
        }
        let manifests = self.manifests.unwrap_or_default();
        let artifact_type =
            self.artifact_type.or_else(|| self.config.as_ref().map(|config| config.media_type.0.clone()));
        let config = self.config.as_ref().map(|config| config.digest);
        let blobs: Vec<_> = self
            .config
            .into_iter()
            .chain(self.layers.unwrap_or_default())
            .chain(self.blobs.unwrap_or_default())
            .collect();
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
        let huge = format!(r#"{{"manifests":[{}]}}"#, descriptor("m", MAX_MANIFEST + 1));
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
