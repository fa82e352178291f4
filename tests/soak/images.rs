//! The truth: what each repository holds, byte by byte.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use super::support::Image;
use super::support::images::Document;

/// A tag and the images that it may name: more than one if it moves.
pub(crate) struct Tagged {
    pub(crate) repository: &'static str,
    pub(crate) tag: &'static str,
    pub(crate) images: Vec<Image>,
}

impl Tagged {
    /// The image of this digest, if the tag may name it.
    pub(crate) fn named(&self, digest: &str) -> Option<&Image> {
        self.images.iter().find(|image| image.digest() == digest)
    }
}

/// All images of the source.
pub(crate) struct Truth {
    pub(crate) tags: Vec<Tagged>,
    manifests: BTreeMap<String, Document>,
}

impl Truth {
    pub(crate) fn new() -> Self {
        let one = |repository, tag, image| Tagged { repository, tag, images: vec![image] };
        let moving = (0..6).map(|nth| Image::single(700 + nth, &[3_000 + nth as usize, 90_000])).collect();
        let tags = vec![
            one("library/app", "v1", Image::single(1, &[5_000, 200_000, 1_500_000])),
            one("library/app", "v2", Image::single(2, &[5_000, 40_000])),
            Tagged { repository: "library/app", tag: MOVING, images: moving },
            one("library/list", "v1", Image::index(3, 3, &[30_000, 2_000])),
            one("library/docker", "v1", Image::docker_list(4, 2, &[20_000])),
            one("library/tiny", "v1", Image::tiny(5)),
            one("team/nested", "v1", Image::nested(6)),
            one("team/big", "v1", Image::single(7, &[6 << 20, 700_000])),
            one("team/large", "v1", Image::single(8, &[LARGE])),
        ];
        let images = || tags.iter().flat_map(|tagged| &tagged.images);
        let manifests = images().flat_map(|image| &image.manifests);
        let manifests = manifests.map(|manifest| (manifest.digest.clone(), manifest.clone()));
        Self { manifests: manifests.collect(), tags }
    }

    /// Puts all of it into the source.
    pub(crate) fn push(&self, to: SocketAddr) {
        for tagged in &self.tags {
            for image in tagged.images.iter().rev() {
                image.push(to, tagged.repository, tagged.tag);
            }
        }
    }

    pub(crate) fn manifest(&self, digest: &str) -> Option<&[u8]> {
        self.manifests.get(digest).map(|manifest| &manifest.bytes[..])
    }

    pub(crate) fn moving(&self) -> &Tagged {
        self.tags.iter().find(|tagged| tagged.tag == MOVING).expect("a tag that moves")
    }
}

/// The tag that moves.
pub(crate) const MOVING: &str = "moving";

/// A blob that proxies fetch by several requests at once.
pub(crate) const LARGE: usize = 66 << 20;
