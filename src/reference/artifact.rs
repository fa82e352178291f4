//! Tags that are named after the digest of a manifest.

use std::collections::BTreeSet;

use super::Tag;
use crate::descriptor::Digest;
use crate::error::Result;

impl Digest {
    /// The tag that lists the referrers of this digest at a registry without the referrers API: `sha256-<hex>`. The hash is
    /// cut to 64 characters (distribution spec, "Referrers Tag Schema").
    pub fn referrers_tag(&self) -> Tag {
        Tag::known(format!("{}-{}", self.algorithm(), &self.hex()[..64]))
    }

    /// The tag of a cosign artifact about this digest, such as `sha256-<hex>.sig`.
    ///
    /// # Errors
    /// If the result is not a valid tag.
    pub fn cosign_tag(&self, suffix: &str) -> Result<Tag> {
        format!("{}{suffix}", self.referrers_tag()).parse()
    }
}

/// A parsed tag such as `sha256-<hex>` (the list of referrers of the distribution spec) or `sha256-<hex>.sig` (cosign's
/// signatures, attestations and SBOMs).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Artifact<'a> {
    algorithm: &'a str,
    /// At least 64 characters. The tag schema cuts those of a sha512.
    hex: &'a str,
    suffix: &'a str,
}

impl<'a> Artifact<'a> {
    /// Parses a tag. `None` if it may be the tag of an image.
    pub fn of(tag: &'a str) -> Option<Self> {
        let (algorithm, rest) = tag.split_once('-').filter(|(name, _)| matches!(*name, "sha256" | "sha512"))?;
        let is_hex = |byte: &u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(byte);
        let (hex, suffix) = rest.split_at(rest.bytes().take_while(is_hex).count());
        let ends = suffix.is_empty() || suffix.starts_with(['.', '-']);
        (hex.len() >= 64 && ends).then_some(Self { algorithm, hex, suffix })
    }

    /// Whether it is the list of referrers of the tag schema.
    pub fn is_list(&self) -> bool {
        self.suffix.is_empty()
    }

    /// Whether it is about this manifest.
    pub fn is_about(&self, digest: &Digest) -> bool {
        self.algorithm == digest.algorithm() && digest.hex().starts_with(self.hex)
    }

    /// The prefix of all tags about a manifest.
    pub fn name(digest: &Digest) -> String {
        format!("{}-{}", digest.algorithm(), digest.hex())
    }

    /// Whether it is about one of the manifests with these [names](Self::name).
    pub fn is_about_any(&self, names: &BTreeSet<String>) -> bool {
        let begin = format!("{}-{}", self.algorithm, self.hex);
        names.range(begin.clone()..).next().is_some_and(|name| name.starts_with(&begin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn artifacts_are_recognized_by_their_form() {
        let hex = "0a".repeat(32);
        for list in [format!("sha256-{hex}"), format!("sha512-{hex}")] {
            assert!(Artifact::of(&list).is_some_and(|artifact| artifact.is_list()), "{list}");
        }
        for other in [format!("sha256-{hex}.sig"), format!("sha512-{hex}{hex}.att"), format!("sha256-{hex}-x.sbom")] {
            assert!(Artifact::of(&other).is_some_and(|artifact| !artifact.is_list()), "{other}");
        }
        let upper = hex.to_uppercase();
        for image in
            ["1.27", "sha256-abc", &format!("md5-{hex}"), &format!("sha256-{upper}"), &hex, &format!("sha256-{hex}x")]
        {
            assert_eq!(Artifact::of(image), None, "{image}");
        }
    }

    #[test]
    fn an_artifact_is_about_one_digest() {
        let (short, long) = (Digest::Sha256([7; 32]), Digest::Sha512([7; 64]));
        for digest in [short, long] {
            let (tag, other) = (digest.referrers_tag(), if digest == short { long } else { short });
            let artifact = Artifact::of(&tag).expect("a list");
            let names = |digests: &[Digest]| digests.iter().map(Artifact::name).collect();
            assert!(artifact.is_about_any(&names(&[short, long])) && !artifact.is_about_any(&names(&[other])), "{tag}");
            assert!(artifact.is_about(&digest) && !artifact.is_about(&other), "{tag}");
        }
    }
}
