//! Digests, media types, descriptors and platforms: the nouns of an image. No I/O.
//!
//! Parsing is lenient: registries and old tools write unusual JSON. Nothing is written: the bytes of manifests are passed
//! on unchanged.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::Digest as _;

use crate::error::{Error, Kind, Result};

/// The name of content: an algorithm and the hash of the bytes.
///
/// OCI image spec, "Digests": `sha256` and `sha512` are registered; lower-case hexadecimal only.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Digest {
    /// `sha256:` and 64 hexadecimal characters.
    Sha256([u8; 32]),
    /// `sha512:` and 128 hexadecimal characters.
    Sha512([u8; 64]),
}

impl Digest {
    /// The sha256 digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self::Sha256(sha2::Sha256::digest(bytes).into())
    }

    /// Whether `bytes` hash to this digest.
    pub fn matches(&self, bytes: &[u8]) -> bool {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finish() == *self
    }

    /// A hasher of this digest's algorithm.
    pub fn hasher(&self) -> Hasher {
        match self {
            Self::Sha256(_) => Hasher::Sha256(sha2::Sha256::new()),
            Self::Sha512(_) => Hasher::Sha512(Box::new(sha2::Sha512::new())),
        }
    }

    /// The algorithm's registered name: `sha256` or `sha512`.
    pub fn algorithm(&self) -> &'static str {
        match self {
            Self::Sha256(_) => "sha256",
            Self::Sha512(_) => "sha512",
        }
    }

    /// The hash in lower-case hexadecimal.
    pub fn hex(&self) -> String {
        // By a table, since a server formats several digests for each response.
        let digit = |half: u8| char::from(b"0123456789abcdef"[usize::from(half)]);
        self.bytes().iter().fold(String::with_capacity(128), |mut hex, byte| {
            hex.extend([digit(byte >> 4), digit(byte & 15)]);
            hex
        })
    }

    /// The first twelve characters of the hash, for people.
    pub fn short(&self) -> String {
        self.hex()[..12].to_owned()
    }

    /// The first byte of the hash. It names the directory of a cache.
    pub fn shard(&self) -> u8 {
        self.bytes()[0]
    }

    fn bytes(&self) -> &[u8] {
        match self {
            Self::Sha256(bytes) => bytes,
            Self::Sha512(bytes) => bytes,
        }
    }
}

impl FromStr for Digest {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| Error::new(Kind::Invalid, format!("{text:?} is not a digest: {why}"));
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| wrong("it has no ':'"))?;
        match algorithm {
            "sha256" => unhex(hex).map(Self::Sha256),
            "sha512" => unhex(hex).map(Self::Sha512),
            _ => return Err(wrong("only sha256 and sha512 are known")),
        }
        .ok_or_else(|| wrong("the hash is not lower-case hexadecimal of the right length"))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm(), self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// A running hash. A clone keeps the state, so that a blob can be resumed in the middle.
#[derive(Clone)]
pub enum Hasher {
    /// sha256
    Sha256(sha2::Sha256),
    /// sha512; boxed, since it is rare and twice as large
    Sha512(Box<sha2::Sha512>),
}

impl Hasher {
    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    /// The digest of all bytes so far.
    pub fn finish(self) -> Digest {
        match self {
            Self::Sha256(hasher) => Digest::Sha256(hasher.finalize().into()),
            Self::Sha512(hasher) => Digest::Sha512(hasher.finalize().into()),
        }
    }
}

/// The longest media type or artifact type that is read, in bytes: RFC 6838, section 4.2, allows a type and a subtype
/// of 127 characters each. A longer one is no media type, and would grow each list that repeats it.
pub const MAX_MEDIA_TYPE: usize = 255;

/// The most bytes that the annotations of one descriptor or manifest may have, keys and values together. The image
/// spec has no limit but that of the whole manifest (4 MiB); Kubernetes allows 256 KiB. Lists of referrers repeat a
/// manifest's annotations, so one of them must not fill a list.
pub const MAX_ANNOTATIONS: usize = 256 << 10;

/// A media type. Media types in documents have at most [`MAX_MEDIA_TYPE`] bytes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(transparent)]
pub struct MediaType(pub String);

impl MediaType {
    /// Docker's image manifest, version 2 schema 2.
    pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
    /// Docker's manifest list, the older name of an index.
    pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
    /// OCI image manifest.
    pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
    /// OCI image index.
    pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";

    /// OCI's artifact manifest, of the release candidates of version 1.1.
    pub const OCI_ARTIFACT: &str = "application/vnd.oci.artifact.manifest.v1+json";

    /// The `Accept` header of a request for any manifest.
    pub const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
        application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json, \
        */*;q=0.1";

    /// Whether it is an OCI index or a Docker manifest list.
    pub fn is_index(&self) -> bool {
        matches!(self.0.as_str(), Self::OCI_INDEX | Self::DOCKER_LIST)
    }

    /// Whether it is the manifest of a single image or artifact.
    pub fn is_manifest(&self) -> bool {
        matches!(self.0.as_str(), Self::OCI_MANIFEST | Self::DOCKER_MANIFEST)
    }

    /// Whether it is Docker's obsolete schema 1, signed or not. The digest of such a manifest is not the digest of its bytes.
    pub fn is_schema1(&self) -> bool {
        self.0.starts_with("application/vnd.docker.distribution.manifest.v1")
    }

    /// Whether it is OCI's artifact manifest.
    pub fn is_artifact(&self) -> bool {
        self.0 == Self::OCI_ARTIFACT
    }

    /// Whether an entry of an index with this type is a manifest and not a blob.
    ///
    /// An entry is a manifest if it has no type, or if its type contains the word manifest or index, such as
    /// `application/vnd.cncf.oras.artifact.manifest.v1+json`. All others are blobs, as in go-containerregistry and
    /// regclient: BuildKit's cache is an index whose entries are layers.
    pub fn names_manifest(&self) -> bool {
        let named = |word: &str| self.0.split(['.', '/', '+', '-']).any(|part| part == word);
        self.0.is_empty() || named("manifest") || named("index")
    }

    /// Whether it is a layer that must not be distributed: Docker's "foreign" and OCI's (deprecated) "nondistributable"
    /// layers, such as Windows base layers.
    pub fn is_foreign_layer(&self) -> bool {
        self.0.starts_with("application/vnd.docker.image.rootfs.foreign.")
            || self.0.starts_with("application/vnd.oci.image.layer.nondistributable.")
    }
}

impl<'de> Deserialize<'de> for MediaType {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text: String = null_is_empty(deserializer)?;
        check_type(&text).map_err(serde::de::Error::custom)?;
        Ok(Self(text))
    }
}

fn check_type(text: &str) -> Result<(), String> {
    if text.len() <= MAX_MEDIA_TYPE {
        return Ok(());
    }
    Err(format!("a media type of {} bytes; the limit is {MAX_MEDIA_TYPE}", text.len()))
}

/// Reads an artifact type, which has the form of a media type. `null` means none.
pub(crate) fn artifact_type<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<String>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    text.as_deref().map_or(Ok(()), check_type).map_err(serde::de::Error::custom)?;
    Ok(text)
}

/// Reads annotations of at most [`MAX_ANNOTATIONS`] bytes. `null` means none.
pub(crate) fn annotations<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, String>, D::Error> {
    let read: BTreeMap<String, Option<String>> = null_is_empty(deserializer)?;
    let read: BTreeMap<String, String> =
        read.into_iter().map(|(key, value)| (key, value.unwrap_or_default())).collect();
    let size: usize = read.iter().map(|(key, value)| key.len() + value.len()).sum();
    if size > MAX_ANNOTATIONS {
        let what = format!("annotations of {size} bytes; the limit is {MAX_ANNOTATIONS}");
        return Err(serde::de::Error::custom(what));
    }
    Ok(read)
}

impl fmt::Display for MediaType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<&str> for MediaType {
    fn from(text: &str) -> Self {
        // Parameters (`; charset=utf-8`) do not matter for the kind of content. A header that is too long to be a media
        // type counts as none.
        let text = text.split(';').next().unwrap_or(text).trim();
        Self(if text.len() <= MAX_MEDIA_TYPE { text.to_owned() } else { String::new() })
    }
}

/// A reference to content: media type, digest, size and optional fields.
///
/// OCI image spec, "Content Descriptors".
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// The content's media type.
    #[serde(default)]
    pub media_type: MediaType,
    /// The content's digest.
    pub digest: Digest,
    /// The content's size in bytes. A reader never reads more. At most [`MAX_SIZE`].
    #[serde(deserialize_with = "deserialize_size")]
    pub size: u64,
    /// The platform of the content (entries of an index).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    /// The kind of an artifact (entries of a referrers list).
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "artifact_type")]
    pub artifact_type: Option<String>,
    /// Free key-value pairs.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "annotations")]
    pub annotations: BTreeMap<String, String>,
    /// Other addresses of the content (foreign layers).
    #[serde(default, skip_serializing_if = "Vec::is_empty", deserialize_with = "null_is_empty")]
    pub urls: Vec<String>,
}

impl Descriptor {
    /// A descriptor with only the three required fields.
    pub fn new(media_type: impl Into<MediaType>, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            platform: None,
            artifact_type: None,
            annotations: BTreeMap::new(),
            urls: Vec::new(),
        }
    }
}

impl Descriptor {
    /// The approximate memory in bytes.
    pub(crate) fn weight(&self) -> u64 {
        let texts = self.platform.iter().flat_map(|platform| {
            let Platform { os, architecture, variant, os_version } = platform;
            [Some(os), Some(architecture), variant.as_ref(), os_version.as_ref()].into_iter().flatten()
        });
        let texts = texts.chain(&self.artifact_type).chain(&self.urls).chain([&self.media_type.0]);
        let texts: usize = texts.map(|text| text.len() + ALLOCATION).sum();
        (size_of::<Self>() + texts + map_weight(&self.annotations)) as u64
    }
}

/// The approximate memory of a map's entries in bytes, without the map itself.
pub(crate) fn map_weight(map: &BTreeMap<String, String>) -> usize {
    // The nodes of a tree are at least half full.
    map.iter().map(|(key, value)| 2 * (2 * size_of::<String>() + ALLOCATION) + key.len() + value.len()).sum()
}

/// The memory of a text in addition to its bytes: its fields, and the rounding of the allocator.
const ALLOCATION: usize = size_of::<String>() + 16;

/// Operating system and architecture, in Go's names (OCI image index spec).
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Platform {
    /// `linux`, `windows`, …
    #[serde(default, deserialize_with = "null_is_empty")]
    pub os: String,
    /// `amd64`, `arm64`, …
    #[serde(default, deserialize_with = "null_is_empty")]
    pub architecture: String,
    /// `v7` of `arm/v7`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// Windows' build number.
    #[serde(default, rename = "os.version", skip_serializing_if = "Option::is_none")]
    pub os_version: Option<String>,
}

impl Platform {
    /// Whether an image for the platform `offered` matches a request for `self`.
    ///
    /// A field that the request lacks matches any value. But `arm64` and `amd64` without a variant mean their base variant
    /// (`v8`, `v1`), as in containerd.
    pub fn accepts(&self, offered: &Self) -> bool {
        let base = |platform: &Self| match (platform.architecture.as_str(), platform.variant.as_deref()) {
            ("arm64", Some("v8")) | ("amd64", Some("v1")) => None,
            (_, variant) => variant.map(str::to_owned),
        };
        let variant_fits = match (self.architecture.as_str(), base(self)) {
            ("arm64" | "amd64", asked) => asked == base(offered),
            (_, None) => true,
            (_, asked) => asked == base(offered),
        };
        self.os == offered.os
            && self.architecture == offered.architecture
            && variant_fits
            && self
                .os_version
                .as_ref()
                .is_none_or(|asked| offered.os_version.as_ref().is_some_and(|o| o.starts_with(asked)))
    }

    /// Whether this is `unknown/unknown`, which BuildKit gives to attestations.
    pub fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }
}

impl FromStr for Platform {
    type Err = Error;

    /// Parses `os/architecture[/variant][:os-version]`. Other common names (`x86_64`, `aarch64`) are accepted.
    fn from_str(text: &str) -> Result<Self> {
        let wrong = || {
            Error::new(Kind::Usage, format!("{text:?} is not a platform"))
                .hint("write os/architecture[/variant], such as linux/amd64 or linux/arm/v7")
        };
        let (text, os_version) = match text.split_once(':') {
            Some((rest, version)) => (rest, Some(version.to_owned())),
            None => (text, None),
        };
        let mut parts = text.split('/');
        let (Some(os), Some(architecture), variant, None) = (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(wrong());
        };
        let well_formed =
            |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if ![Some(os), Some(architecture), variant].into_iter().flatten().all(well_formed) {
            return Err(wrong());
        }
        let (architecture, implied) = match architecture.to_ascii_lowercase().as_str() {
            "x86_64" | "x86-64" => ("amd64".to_owned(), None),
            "aarch64" => ("arm64".to_owned(), None),
            "armhf" => ("arm".to_owned(), Some("v7")),
            "armel" => ("arm".to_owned(), Some("v6")),
            "i386" | "i686" => ("386".to_owned(), None),
            other => (other.to_owned(), None),
        };
        Ok(Self {
            os: os.to_ascii_lowercase(),
            architecture,
            variant: variant.or(implied).map(str::to_ascii_lowercase),
            os_version,
        })
    }
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(f, "/{variant}")?;
        }
        if let Some(version) = &self.os_version {
            write!(f, ":{version}")?;
        }
        Ok(())
    }
}

fn unhex<const N: usize>(hex: &str) -> Option<[u8; N]> {
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if hex.len() != 2 * N {
        return None;
    }
    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(bytes)
}

/// The largest size of content, in bytes: the image spec has sizes as int64 ("Descriptor Properties").
pub const MAX_SIZE: u64 = i64::MAX as u64;

/// The sum of sizes from outside, which ends at the largest number.
pub(crate) fn total(sizes: impl IntoIterator<Item = u64>) -> u64 {
    sizes.into_iter().fold(0, u64::saturating_add)
}

fn deserialize_size<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
    let size = u64::deserialize(deserializer)?;
    if size > MAX_SIZE {
        return Err(serde::de::Error::custom(format!("a size of {size} bytes is more than content can have")));
    }
    Ok(size)
}

/// Go writes `null` for an empty slice or map.
pub(crate) fn null_is_empty<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(
    deserializer: D,
) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_and_annotations_have_limits() {
        let read = |media_type: &str, artifact: &str, annotation: &str| {
            let digest = Digest::of(b"");
            let text = serde_json::json!({
                "mediaType": media_type, "digest": digest, "size": 0, "artifactType": artifact, "annotations": {"k": annotation},
            });
            serde_json::from_value::<Descriptor>(text)
        };
        let (long, longer) = ("x".repeat(MAX_MEDIA_TYPE), "x".repeat(MAX_MEDIA_TYPE + 1));
        let most = "y".repeat(MAX_ANNOTATIONS - 1);
        assert!(read(&long, &long, &most).is_ok());
        for (media_type, artifact, annotation) in
            [(&*longer, "", ""), ("", &longer, ""), ("", "", &*format!("{most}y"))]
        {
            let error = read(media_type, artifact, annotation).expect_err("too long").to_string();
            assert!(error.contains("the limit is"), "{error}");
        }
        assert_eq!(MediaType::from(longer.as_str()).0, "");
        let null = format!(r#"{{"digest":"{}","size":0,"artifactType":null,"annotations":null}}"#, Digest::of(b""));
        assert!(serde_json::from_str::<Descriptor>(&null).is_ok_and(|read| read.artifact_type.is_none()));
    }

    /// RFC 6234's test vector for "abc".
    #[test]
    fn digest_of_known_text() {
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert!(digest.matches(b"abc") && !digest.matches(b"abd"));
        assert_eq!(digest.to_string().parse::<Digest>().ok(), Some(digest));
    }

    #[test]
    fn digests_are_strict() {
        for wrong in [
            "",
            "sha256",
            "sha256:",
            "sha256:BA78",
            "md5:d41d8cd98f00b204e9800998ecf8427e",
            &format!("sha256:{}", "g".repeat(64)),
        ] {
            assert!(wrong.parse::<Digest>().is_err(), "{wrong}");
        }
        assert!(format!("sha256:{}", "A".repeat(64)).parse::<Digest>().is_err());
    }

    #[test]
    fn referrers_tag_is_cut_for_sha512() {
        let digest = Digest::Sha512([0xab; 64]);
        assert_eq!(*digest.referrers_tag(), *format!("sha512-{}", "ab".repeat(32)));
    }

    #[test]
    fn platforms_match_as_users_mean() {
        let p = |text: &str| text.parse::<Platform>().expect("a platform");
        assert!(p("linux/arm64").accepts(&p("linux/arm64/v8")));
        assert!(p("linux/aarch64").accepts(&p("linux/arm64")));
        assert!(p("linux/amd64/v1").accepts(&p("linux/amd64")));
        assert!(!p("linux/amd64").accepts(&p("linux/amd64/v3")));
        assert!(p("linux/arm").accepts(&p("linux/arm/v7")));
        assert!(!p("linux/arm/v6").accepts(&p("linux/arm/v7")));
        assert!(p("windows/amd64:10.0.17763").accepts(&p("windows/amd64:10.0.17763.1234")));
        for wrong in ["linux", "linux/", "/amd64", "linux/amd64/v1/x", "li nux/amd64"] {
            assert!(wrong.parse::<Platform>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn go_null_is_an_empty_list() {
        let text =
            format!(r#"{{"mediaType":"x","digest":"{}","size":3,"urls":null,"annotations":null}}"#, Digest::of(b"abc"));
        let read: Descriptor = serde_json::from_str(&text).expect("a descriptor");
        assert!(read.urls.is_empty() && read.annotations.is_empty());
    }
}
