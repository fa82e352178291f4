//! `keep: latest N` of dregsy: how many tags it leaves, and which.
//!
//! Rules: <https://github.com/xelalexv/dregsy#tag-set-pruning-feature>, and
//! <https://github.com/xelalexv/dregsy/blob/master/internal/pkg/tags/tagset.go>. Of the tags that are versions
//! the N newest stay; tags that are none all stay. Only where no tag at all is a version, the last N in the
//! order of their bytes stay. Tags that the file names count as those that were found; a tag that is both
//! counts twice.

use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap, HashSet};
use std::fmt;

use super::SelectedImage;
use super::dialect::{Semver, blang};
use crate::reference::Tag;

/// A limit on the number of tags.
#[derive(Clone, Debug, PartialEq)]
pub struct Latest {
    /// How many.
    pub count: usize,
    /// Images that the file names, which are there whether the repository lists them or not.
    pub named: BTreeSet<SelectedImage>,
}

impl Latest {
    /// What is left where nothing else is chosen.
    pub(super) fn of_named(&self) -> BTreeSet<SelectedImage> {
        Held::new(self).finish().into_iter().collect()
    }
}

impl fmt::Display for Latest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let named: Vec<String> = self.named.iter().map(written).collect();
        if !named.is_empty() {
            write!(f, "and {}, ", named.join(", "))?;
        }
        write!(f, "of the versions the latest {}", self.count)
    }
}

/// What is known so far of the tags that stay.
#[derive(Debug)]
pub(super) struct Held {
    count: usize,
    named: BTreeSet<SelectedImage>,
    /// Tags that the list pins to a digest.
    pinned: HashSet<Tag>,
    /// The oldest first. Versions that are equal (`1.2`, `v1.2.0`) are in the order of their text; dregsy's is
    /// left to chance.
    versions: BinaryHeap<Reverse<(Semver, String, SelectedImage)>>,
    /// Tags that are no versions, kept only until the first that is: then all of them stay.
    others: Vec<SelectedImage>,
}

impl Held {
    pub(super) fn new(latest: &Latest) -> Self {
        let pinned = latest.named.iter().filter(|exact| exact.digest.is_some());
        let mut held = Self {
            count: latest.count,
            named: latest.named.clone(),
            pinned: pinned.filter_map(|exact| exact.tag.clone()).collect(),
            versions: BinaryHeap::new(),
            others: Vec::new(),
        };
        for exact in &latest.named {
            let text = written(exact);
            held.hold(exact.clone(), blang::version(&text), text);
        }
        held
    }

    /// Offers what was found in the repository; returns what stays whatever follows.
    pub(super) fn offer(&mut self, exact: SelectedImage) -> Option<SelectedImage> {
        // One that the file pins must not be overwritten by what its tag is now.
        if exact.tag.as_ref().is_some_and(|tag| self.pinned.contains(tag)) {
            return None;
        }
        let text = written(&exact);
        let version = blang::version(&text);
        if version.is_none() && !self.versions.is_empty() {
            return (!self.named.contains(&exact)).then_some(exact);
        }
        self.hold(exact, version, text);
        None
    }

    fn hold(&mut self, exact: SelectedImage, version: Option<Semver>, text: String) {
        match version {
            Some(version) => {
                self.versions.push(Reverse((version, text, exact)));
                if self.versions.len() > self.count {
                    self.versions.pop();
                }
            }
            None => self.others.push(exact),
        }
    }

    /// What stays of what was held back, each once.
    pub(super) fn finish(mut self) -> Vec<SelectedImage> {
        if self.versions.is_empty() {
            self.others.sort_by_cached_key(written);
            self.others.drain(..self.others.len().saturating_sub(self.count));
        }
        let versions = self.versions.into_sorted_vec().into_iter().map(|Reverse((_, _, exact))| exact);
        let mut seen = BTreeSet::new();
        versions.chain(self.others).filter(|exact| seen.insert(exact.clone())).collect()
    }
}

/// An image as dregsy has it in its list of tags: `1.2`, `1.2@sha256:…`, `sha256:…`.
fn written(exact: &SelectedImage) -> String {
    match (&exact.tag, &exact.digest) {
        (None, Some(digest)) => digest.to_string(),
        _ => exact.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn exact(tag: &str) -> SelectedImage {
        SelectedImage { tag: Some(tag.into()), digest: None }
    }

    fn left(named: &str, found: &str, count: usize) -> Vec<String> {
        let named = named.split_whitespace().map(exact).collect();
        let mut held = Held::new(&Latest { count, named });
        let mut all: Vec<SelectedImage> = found.split_whitespace().filter_map(|tag| held.offer(exact(tag))).collect();
        all.extend(held.finish());
        let mut all: Vec<String> = all.iter().map(SelectedImage::to_string).collect();
        all.sort();
        all
    }

    /// Tags and what stays of them, by the rules of dregsy's documentation.
    #[test]
    fn what_stays() {
        for (named, found, count, expected) in [
            ("", "latest edge 1.0.0 2.0.0 3.0.0 1.5-alpine", 2, "1.5-alpine 2.0.0 3.0.0 edge latest"),
            ("", "3.0.0 1.0.0 latest 2.0.0", 1, "3.0.0 latest"),
            ("", "1.10.0 1.9.0 1.9.1-rc1", 2, "1.10.0 1.9.1-rc1"),
            ("", "a c b", 2, "b c"),
            ("", "r10 r9", 1, "r9"),
            ("", "a", 5, "a"),
            ("", "1.0.0", 5, "1.0.0"),
            ("glibc-tests", "1.34.0 1.35.0 1.36.0", 2, "1.35.0 1.36.0 glibc-tests"),
            ("2.0.0", "1.0.0 3.0.0", 1, "3.0.0"),
            ("2.0.0", "1.0.0", 1, "2.0.0"),
            ("z", "a b", 1, "z"),
            ("a", "b c", 2, "b c"),
            // Counted twice, as in dregsy.
            ("3.0.0", "2.0.0 3.0.0", 2, "3.0.0"),
            ("latest", "latest 1.0.0 2.0.0", 1, "2.0.0 latest"),
            ("latest", "1.0.0 latest", 1, "1.0.0 latest"),
        ] {
            let expected: Vec<&str> = expected.split(' ').collect();
            assert_eq!(left(named, found, count), expected, "{named} + {found}, {count}");
        }
    }

    #[test]
    fn what_is_pinned_is_no_version_and_stays() {
        let digest = format!("sha256:{}", "0a".repeat(32)).parse().ok();
        let pinned = SelectedImage { tag: Some("1.0.0".into()), digest };
        let nameless = SelectedImage { tag: None, digest };
        let mut held = Held::new(&Latest { count: 1, named: [pinned.clone(), nameless.clone()].into() });
        assert_eq!(held.offer(exact("1.0.0")), None, "not what its tag is now");
        assert_eq!(held.offer(exact("2.0.0")), None);
        assert_eq!(held.offer(exact("3.0.0")), None);
        let left: BTreeSet<SelectedImage> = held.finish().into_iter().collect();
        assert_eq!(left, [pinned, nameless, exact("3.0.0")].into());
    }

    #[test]
    fn a_large_repository_needs_little_memory() {
        let mut held = Held::new(&Latest { count: 3, named: [exact("1.0.0")].into() });
        for number in 0..50_000u32 {
            held.offer(exact(&format!("1.{}.0", number.wrapping_mul(7919) % 50_000)));
            held.offer(exact(&format!("build-{number}")));
            assert!(held.versions.len() <= 3 && held.others.is_empty());
        }
        let left: Vec<String> = held.finish().iter().map(SelectedImage::to_string).collect();
        assert_eq!(left, ["1.49999.0", "1.49998.0", "1.49997.0"]);
    }
}
