//! Which tags of a repository: by pattern, by range of versions, the newest of them.
//!
//! The lists of referrers (`sha256-<hex>`) and cosign's tags (`sha256-<hex>.sig`) are no images, and no
//! pattern picks them.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;

use super::dialect::{Dialect, Range};
use super::latest::{Held, Latest};
use super::pattern::{Matcher, Pattern};
use super::version::Age;
use super::{ImageSelection, SelectedImage};
use crate::error::Result;
use crate::reference::{Artifact, Tag};

/// Which tags, by what they look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TagFilter {
    /// A tag fits if it's in any of these; without one, each does.
    pub sets: Vec<TagSet>,
    /// And if all of these match it.
    pub keep: Vec<Pattern>,
    /// And none of these.
    pub exclude: Vec<Pattern>,
    /// Of those that fit, so many, the newest; all if 0.
    ///
    /// Versions are newer than tags that are none; then the higher is newer, and a version newer than its
    /// variants (`1.27-alpine`), those than its early versions (`1.27-rc1`). Each tag counts.
    pub newest: usize,
    /// Or so many as dregsy's `keep: latest` leaves.
    pub latest: Option<Latest>,
}

/// A set of tags.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TagSet {
    /// Any of these must match; without one, none need to.
    pub patterns: Vec<Pattern>,
    /// And any of these ranges must hold the tag's version; without one, it need be none.
    ///
    /// What is a version follows each range's [`Dialect`]. In transload's own, `1.27` is 1.27.0, and `v1` is 1.0.0. What comes before a version (`-rc1`) is in a range only if
    /// that names such a one (`>=1.27.0-0`). Other suffixes are variants (`-alpine`): they are in a range
    /// only if `patterns` name them too, and count as the version that they are built of.
    pub versions: Vec<Versions>,
    /// And none of these may match.
    pub exclude: Vec<Pattern>,
}

/// A range of versions, known to be well formed.
#[derive(Clone, Debug, PartialEq)]
pub struct Versions {
    text: String,
    range: Range,
}

impl Versions {
    /// Reads a range, such as `>=1.25 <2`.
    pub fn parse(text: &str, dialect: Dialect) -> Result<Self> {
        Ok(Self { text: text.to_owned(), range: Range::parse(text, dialect)? })
    }
}

impl fmt::Display for Versions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Display for TagFilter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let each = |set: &TagSet| match set.to_string() {
            text if self.sets.len() > 1 && text.contains(' ') => format!("({text})"),
            text => text,
        };
        // A set without conditions has all.
        let all = self.sets.is_empty() || self.sets.contains(&TagSet::default());
        let sets: Vec<String> = self.sets.iter().map(each).collect();
        let mut parts = vec![if all { "all tags".to_owned() } else { sets.join(" or ") }];
        parts.extend((!self.keep.is_empty()).then(|| format!("that fit {}", join(&self.keep, " and "))));
        parts.extend((!self.exclude.is_empty()).then(|| format!("without {}", join(&self.exclude, ", "))));
        parts.extend((self.newest > 0).then(|| format!("the newest {}", self.newest)));
        parts.extend(self.latest.as_ref().map(Latest::to_string));
        f.write_str(&parts.join(", "))
    }
}

impl fmt::Display for TagSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut parts = Vec::new();
        parts.extend((!self.patterns.is_empty()).then(|| join(&self.patterns, " or ")));
        parts.extend((!self.versions.is_empty()).then(|| format!("versions {}", join(&self.versions, " or "))));
        let mut text = parts.join(" in ");
        if !self.exclude.is_empty() {
            text = format!("{} but {}", if text.is_empty() { "all" } else { &text }, join(&self.exclude, ", "));
        }
        f.write_str(&text)
    }
}

fn join<T: fmt::Display>(items: &[T], between: &str) -> String {
    items.iter().map(T::to_string).collect::<Vec<_>>().join(between)
}

impl ImageSelection {
    /// Whether the repository's tags must be listed to know what is picked.
    pub fn needs_tag_list(&self) -> bool {
        self.select.is_some()
    }

    /// Chooses among tags as their list arrives. What [`Self::exact`] names isn't chosen again.
    ///
    /// # Errors
    /// Only for patterns that weren't checked when they were made: none of a list that was read.
    pub fn chooser(&self) -> Result<TagChooser<'_>> {
        let rules = self.select.as_ref().map(CompiledFilter::of).transpose()?;
        let latest = self.select.as_ref().and_then(|select| select.latest.as_ref()).map(Held::new);
        Ok(TagChooser { pick: self, rules, newest: BinaryHeap::new(), latest })
    }

    /// All images that are selected of a repository with these tags.
    #[cfg(test)]
    pub(super) fn choose(&self, tags: impl IntoIterator<Item = Tag>) -> Result<Vec<SelectedImage>> {
        let mut chooser = self.chooser()?;
        let mut chosen: Vec<SelectedImage> = self.exact.iter().cloned().collect();
        chosen.extend(tags.into_iter().filter_map(|tag| chooser.offer(tag)));
        chosen.extend(chooser.finish());
        Ok(chosen)
    }
}

/// Chooses tags one by one: those that fit come back at once, save where the newest are wanted, which
/// are known at the end. Holds no more tags than that number.
#[derive(Debug)]
pub struct TagChooser<'a> {
    pick: &'a ImageSelection,
    rules: Option<CompiledFilter<'a>>,
    /// The oldest of them first.
    newest: BinaryHeap<Reverse<Age>>,
    /// Where `keep: latest` of dregsy chooses among them.
    latest: Option<Held>,
}

impl TagChooser<'_> {
    /// Offers a tag; returns what is chosen already.
    pub fn offer(&mut self, tag: Tag) -> Option<SelectedImage> {
        let rules = self.rules.as_ref().filter(|rules| rules.matches(&tag))?;
        // In their order, the first with a tag is the one without a digest.
        let exact = SelectedImage { tag: Some(tag.clone()), digest: None };
        if self.pick.exact.range(&exact..).next().is_some_and(|known| known.tag == exact.tag) {
            return None;
        }
        if let Some(latest) = &mut self.latest {
            return latest.offer(exact);
        }
        if rules.newest == 0 {
            return Some(exact);
        }
        let age = Reverse(Age::of(tag));
        if self.newest.len() < rules.newest {
            self.newest.push(age);
        } else if let Some(mut oldest) = self.newest.peek_mut()
            && age.0 > oldest.0
        {
            *oldest = age;
        }
        None
    }

    /// What was held back: the newest tags, the newest first.
    pub fn finish(self) -> Vec<SelectedImage> {
        let held = self.latest.map_or(Vec::new(), Held::finish);
        let ages = self.newest.into_sorted_vec();
        let newest = ages.into_iter().map(|Reverse(age)| SelectedImage { tag: Some(age.into_tag()), digest: None });
        newest.chain(held).collect()
    }
}

/// [`TagFilter`], compiled: kept only while one repository's tags are gone through.
#[derive(Debug)]
struct CompiledFilter<'a> {
    sets: Vec<CompiledTagSet<'a>>,
    keep: Vec<Matcher>,
    exclude: Vec<Matcher>,
    newest: usize,
}

#[derive(Debug)]
struct CompiledTagSet<'a> {
    patterns: Vec<Matcher>,
    versions: &'a [Versions],
    exclude: Vec<Matcher>,
}

impl<'a> CompiledFilter<'a> {
    fn of(select: &'a TagFilter) -> Result<Self> {
        let compile = |patterns: &[Pattern]| patterns.iter().map(Pattern::compile).collect::<Result<Vec<_>>>();
        let sets = select.sets.iter().map(|set| {
            Ok(CompiledTagSet {
                patterns: compile(&set.patterns)?,
                versions: &set.versions,
                exclude: compile(&set.exclude)?,
            })
        });
        Ok(Self {
            sets: sets.collect::<Result<_>>()?,
            keep: compile(&select.keep)?,
            exclude: compile(&select.exclude)?,
            newest: select.newest,
        })
    }

    fn matches(&self, tag: &str) -> bool {
        Artifact::of(tag).is_none()
            && (self.sets.is_empty() || self.sets.iter().any(|set| set.matches(tag)))
            && self.keep.iter().all(|pattern| pattern.matches(tag))
            && !self.exclude.iter().any(|pattern| pattern.matches(tag))
    }
}

impl CompiledTagSet<'_> {
    fn matches(&self, tag: &str) -> bool {
        let any = |patterns: &[Matcher]| patterns.iter().any(|pattern| pattern.matches(tag));
        let named = !self.patterns.is_empty();
        let in_range = || self.versions.iter().any(|versions| versions.range.contains(tag, named));
        (!named || any(&self.patterns)) && (self.versions.is_empty() || in_range()) && !any(&self.exclude)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TAGS: &str = "latest 1 1.25 1.26 1.27 1.27.3 1.27.3-alpine 1.28-rc1 1.28-alpine bookworm stable-alpine v1.29";

    fn hex(length: usize) -> String {
        "0a".repeat(length / 2)
    }

    fn chosen(select: TagFilter, tags: &str) -> String {
        let pick = ImageSelection { exact: [].into(), select: Some(select) };
        let mut chosen = pick.choose(tags.split(' ').map(Tag::from)).expect("patterns");
        // What isn't by age is in the order of the list.
        chosen.iter_mut().filter_map(|exact| exact.tag.take()).collect::<Vec<_>>().join(" ")
    }

    fn globs(patterns: &[&str]) -> TagSet {
        let patterns = patterns.iter().map(|text| Pattern::glob(text).expect("a glob")).collect();
        TagSet { patterns, ..TagSet::default() }
    }

    fn versions(range: &str) -> TagSet {
        let versions = vec![Versions::parse(range, Dialect::Native).expect("a range")];
        TagSet { versions, ..TagSet::default() }
    }

    fn one(set: TagSet) -> TagFilter {
        TagFilter { sets: vec![set], ..TagFilter::default() }
    }

    #[test]
    fn by_pattern() {
        assert_eq!(chosen(TagFilter::default(), TAGS), TAGS);
        assert_eq!(chosen(one(globs(&["1.27*"])), TAGS), "1.27 1.27.3 1.27.3-alpine");
        assert_eq!(
            chosen(one(globs(&["1.2?", "*-{alpine,slim}"])), TAGS),
            "1.25 1.26 1.27 1.27.3-alpine 1.28-alpine stable-alpine"
        );
        assert_eq!(chosen(one(globs(&["[bs]*"])), TAGS), "bookworm stable-alpine");
        let regex = |text: &str| TagSet { patterns: vec![Pattern::regex(text).expect("a regex")], ..TagSet::default() };
        assert_eq!(chosen(one(regex(r"2[67]$")), TAGS), "1.26 1.27");
        let whole =
            |text: &str| TagSet { patterns: vec![Pattern::enclosed(text).expect("a regex")], ..TagSet::default() };
        assert_eq!(chosen(one(whole(r"(1\.2[67]|latest)")), TAGS), "latest 1.26 1.27");
        let not = TagSet {
            patterns: vec![Pattern::enclosed(r"(1.*|v1.*)").expect("a regex").inverted()],
            ..TagSet::default()
        };
        assert_eq!(chosen(one(not), TAGS), "latest bookworm stable-alpine");
    }

    #[test]
    fn by_version_and_variants_by_name() {
        assert_eq!(chosen(one(versions(">=1.26")), TAGS), "1.26 1.27 1.27.3 v1.29");
        let alpine = TagSet { patterns: globs(&["*-alpine"]).patterns, ..versions(">=1.26") };
        assert_eq!(chosen(one(alpine), TAGS), "1.27.3-alpine 1.28-alpine");
        let all = TagSet { patterns: globs(&["*"]).patterns, ..versions(">=1.28") };
        assert_eq!(chosen(one(all), TAGS), "1.28-alpine v1.29");
    }

    #[test]
    fn sets_keep_and_exclude() {
        let select = TagFilter {
            sets: vec![versions(">=1.27"), globs(&["latest", "*alpine"])],
            keep: vec![Pattern::enclosed("[^v].*").expect("a regex")],
            exclude: vec![Pattern::glob("stable*").expect("a glob")],
            ..TagFilter::default()
        };
        assert_eq!(
            select.to_string(),
            "(versions >=1.27) or (latest or *alpine), that fit /^[^v].*$/, without stable*"
        );
        assert_eq!(chosen(select, TAGS), "latest 1.27 1.27.3 1.27.3-alpine 1.28-alpine");
        let set = TagSet { exclude: globs(&["*.3*"]).patterns, ..globs(&["1.27*"]) };
        assert_eq!(set.to_string(), "1.27* but *.3*");
        assert_eq!(chosen(one(set), TAGS), "1.27");
    }

    #[test]
    fn the_newest() {
        let newest =
            |set: Option<TagSet>, newest| TagFilter { sets: set.into_iter().collect(), newest, ..TagFilter::default() };
        assert_eq!(chosen(newest(None, 3), TAGS), "v1.29 1.28-alpine 1.28-rc1");
        assert_eq!(chosen(newest(Some(versions("*")), 2), TAGS), "v1.29 1.27.3");
        assert_eq!(chosen(newest(Some(globs(&["[a-z]*m*", "latest"])), 9), TAGS), "latest bookworm");
        assert_eq!(newest(None, 3).to_string(), "all tags, the newest 3");
    }

    #[test]
    fn exact_ones_come_first_and_once() {
        let exact = |tag: &str| SelectedImage { tag: Some(tag.into()), digest: None };
        let select = TagFilter { newest: 2, ..one(versions("*")) };
        let pick = ImageSelection { exact: [exact("1.29.0"), exact("gone")].into(), select: Some(select) };
        let tags = ["1.27", "1.29.0", "1.28"].map(Tag::from);
        assert_eq!(pick.choose(tags).expect("patterns"), ["1.29.0", "gone", "1.28", "1.27"].map(exact));
        assert!(pick.needs_tag_list());
        assert!(!ImageSelection { select: None, ..pick }.needs_tag_list());
    }

    #[test]
    fn lists_of_referrers_and_signatures_are_no_images() {
        let hex = hex(64);
        for artifact in [
            format!("sha256-{hex}"),
            format!("sha256-{hex}.sig"),
            format!("sha256-{hex}.att"),
            format!("sha256-{hex}.sbom"),
            format!("sha512-{hex}"),
        ] {
            assert_eq!(chosen(TagFilter::default(), &artifact), "", "{artifact}");
        }
        for image in ["sha256-1234", "sha-0123456789abcdef", &format!("v1-{hex}"), &format!("sha256-{hex}x")] {
            assert_eq!(chosen(TagFilter::default(), image), image);
        }
    }

    #[test]
    fn a_large_repository_needs_little_memory() {
        let pick = ImageSelection { exact: [].into(), select: Some(TagFilter { newest: 3, ..TagFilter::default() }) };
        let mut chooser = pick.chooser().expect("patterns");
        for number in 0..100_000u32 {
            // In an order that is neither rising nor falling.
            assert_eq!(chooser.offer(format!("1.{}", number.wrapping_mul(7919) % 100_000).as_str().into()), None);
            assert!(chooser.newest.len() <= 3);
        }
        let tags: Vec<Tag> = chooser.finish().into_iter().filter_map(|exact| exact.tag).collect();
        assert_eq!(tags, ["1.99999", "1.99998", "1.99997"]);
    }

    proptest! {
        #[test]
        fn the_newest_are_those_of_the_sorted_list(tags in proptest::collection::hash_set("[v0-9a-c][v0-9a-c.-]{0,5}", 0..40), count in 1usize..12) {
            let mut sorted: Vec<Age> = tags.iter().map(|tag| Age::of(tag.as_str().into())).collect();
            sorted.sort();
            let expected: Vec<Tag> = sorted.into_iter().rev().take(count).map(Age::into_tag).collect();
            let pick = ImageSelection { exact: [].into(), select: Some(TagFilter { newest: count, ..TagFilter::default() }) };
            let tags = tags.iter().map(|tag| Tag::from(tag.as_str()));
            let chosen: Vec<Tag> =
                pick.choose(tags).expect("patterns").into_iter().filter_map(|exact| exact.tag).collect();
            prop_assert_eq!(chosen, expected);
        }
    }
}
