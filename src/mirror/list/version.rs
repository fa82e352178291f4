//! Tags as versions: `v1.27.3`, `1.27`, `1.27-alpine`, `3.14.0rc1`; and the order of tags by age.
//!
//! Registries have no versions and no times of tags. The age of a tag is estimated from its name.

use crate::reference::Tag;
use std::cmp::Ordering;

use semver::Prerelease;

/// A tag as a version.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Version {
    /// How many numbers are written.
    pub(super) written: usize,
    /// The numbers; missing ones are 0.
    pub(super) numbers: [u64; MAX_NUMBERS],
    /// The text after the numbers.
    pub(super) suffix: Suffix,
}

/// The text after a version's numbers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Suffix {
    /// Nothing.
    None,
    /// A pre-release: `-rc1`, `-beta.2`, `rc1`.
    Early(Prerelease),
    /// Another build of the version: `-alpine`, `-bookworm-slim`.
    Variant(Prerelease),
}

/// Reads a tag as a version: an optional `v`, one to four numbers with dots, and a suffix.
///
/// A suffix begins with `-`, `_` or `+`. A pre-release may follow the numbers without them, as in Python's images
/// (`3.14.0rc1`).
pub(super) fn version(tag: &str) -> Option<Version> {
    let bare = tag.strip_prefix(['v', 'V']).unwrap_or(tag);
    let (numbers, written, rest) = numbers(bare)?;
    let suffix = match rest.strip_prefix(['-', '_', '+']) {
        None if rest.is_empty() => Suffix::None,
        None if is_prerelease(rest) => Suffix::Early(identifiers(rest)?),
        Some(rest) if is_prerelease(rest) => Suffix::Early(identifiers(rest)?),
        Some(rest) if !rest.is_empty() => Suffix::Variant(identifiers(rest)?),
        _ => return None,
    };
    Some(Version { written, numbers, suffix })
}

/// The leading numbers, how many there are, and the rest.
pub(super) fn numbers(text: &str) -> Option<([u64; MAX_NUMBERS], usize, &str)> {
    let (mut numbers, mut written, mut rest) = ([0; MAX_NUMBERS], 0, text);
    loop {
        let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        // A version has no fifth number, and no number that does not fit into a u64.
        *numbers.get_mut(written)? = rest[..end].parse().ok()?;
        written += 1;
        rest = &rest[end..];
        match rest.strip_prefix('.') {
            Some(more) if more.starts_with(|c: char| c.is_ascii_digit()) => rest = more,
            _ => return Some((numbers, written, rest)),
        }
    }
}

/// A suffix as semver's identifiers of a pre-release. Characters that semver does not allow are replaced.
pub(super) fn identifiers(text: &str) -> Option<Prerelease> {
    let smooth = |part: &str| {
        let digits = part.bytes().all(|b| b.is_ascii_digit());
        let part = if digits { part.trim_start_matches('0') } else { part };
        match part {
            "" if digits => "0".to_owned(),
            part => part.replace(|c: char| !c.is_ascii_alphanumeric(), "-"),
        }
    };
    let parts: Vec<String> = text.split('.').filter(|part| !part.is_empty()).map(smooth).collect();
    Prerelease::new(&parts.join(".")).ok()
}

/// Whether a suffix marks a pre-release, by its first word.
fn is_prerelease(suffix: &str) -> bool {
    let word: String = suffix.chars().take_while(char::is_ascii_alphabetic).map(|c| c.to_ascii_lowercase()).collect();
    let numbered = suffix[word.len()..].starts_with(|c: char| c.is_ascii_digit());
    PRERELEASE_WORDS.contains(&word.as_str()) || (numbered && ["a", "b", "m"].contains(&word.as_str()))
}

/// A tag in the order of age: the greatest is the newest.
///
/// Versions are newer than other tags. Versions are ordered by their numbers; then a pre-release is older than the
/// version and its variants, and the version is newer than its variants. Of equal versions (`1.27` and `1.27.0`) the
/// longer one is newer. Other tags are in natural order, with digits by their value: `r9` < `r10`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Age {
    version: Option<Version>,
    tag: Tag,
}

impl Age {
    pub(super) fn of(tag: Tag) -> Self {
        Self { version: version(&tag), tag }
    }

    pub(super) fn into_tag(self) -> Tag {
        self.tag
    }
}

impl Ord for Age {
    fn cmp(&self, other: &Self) -> Ordering {
        let rank = |version: &Version| match version.suffix {
            Suffix::Early(_) => 0,
            Suffix::Variant(_) => 1,
            Suffix::None => 2,
        };
        let by_version = match (&self.version, &other.version) {
            (Some(a), Some(b)) => a
                .numbers
                .cmp(&b.numbers)
                .then_with(|| rank(a).cmp(&rank(b)))
                .then_with(|| match (&a.suffix, &b.suffix) {
                    // Not semver's order, in which `rc10` is before `rc2`.
                    (Suffix::Early(a), Suffix::Early(b)) => natural_order(a, b),
                    _ => Ordering::Equal,
                })
                .then_with(|| a.written.cmp(&b.written)),
            (a, b) => a.is_some().cmp(&b.is_some()),
        };
        by_version.then_with(|| natural_order(&self.tag, &other.tag)).then_with(|| self.tag.cmp(&other.tag))
    }
}

impl PartialOrd for Age {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// Natural order: runs of digits by their value, other bytes as they are.
fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.as_bytes(), b.as_bytes());
    loop {
        let (Some(&x), Some(&y)) = (a.first(), b.first()) else { return a.len().cmp(&b.len()) };
        let ordering;
        if x.is_ascii_digit() && y.is_ascii_digit() {
            let ((m, rest_a), (n, rest_b)) = (digits(a), digits(b));
            ordering = m.len().cmp(&n.len()).then_with(|| m.cmp(n));
            (a, b) = (rest_a, rest_b);
        } else {
            ordering = x.cmp(&y);
            (a, b) = (&a[1..], &b[1..]);
        }
        if ordering.is_ne() {
            return ordering;
        }
    }
}

/// The leading digits without leading zeros, and the rest.
fn digits(text: &[u8]) -> (&[u8], &[u8]) {
    let end = text.iter().position(|b| !b.is_ascii_digit()).unwrap_or(text.len());
    let (run, rest) = text.split_at(end);
    let zeros = run.iter().position(|b| *b != b'0').unwrap_or(run.len());
    (&run[zeros..], rest)
}

/// The most numbers of a version.
pub(super) const MAX_NUMBERS: usize = 4;

/// First words of suffixes that mark a pre-release.
const PRERELEASE_WORDS: [&str; 14] = [
    "alpha",
    "beta",
    "rc",
    "cr",
    "pre",
    "preview",
    "prerelease",
    "dev",
    "devel",
    "snapshot",
    "nightly",
    "canary",
    "next",
    "ea",
];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn age(tag: &str) -> Age {
        Age::of(tag.into())
    }

    #[test]
    fn tags_as_versions() {
        for (tag, numbers, written) in [
            ("1", [1, 0, 0, 0], 1),
            ("v1.27", [1, 27, 0, 0], 2),
            ("1.27.3", [1, 27, 3, 0], 3),
            ("22.04", [22, 4, 0, 0], 2),
            ("V2.0.0.17", [2, 0, 0, 17], 4),
            ("1.27-alpine", [1, 27, 0, 0], 2),
            ("3.14.0rc1", [3, 14, 0, 0], 3),
        ] {
            let read = version(tag).unwrap_or_else(|| panic!("{tag} is a version"));
            assert_eq!((read.numbers, read.written), (numbers, written), "{tag}");
        }
        for tag in ["latest", "8u392", "1.2.3.4.5", "1.", "1.27-", "v", "", "bookworm", "99999999999999999999", "1..2"]
        {
            assert_eq!(version(tag), None, "{tag}");
        }
    }

    #[test]
    fn early_versions_and_variants() {
        for early in
            ["1.0-rc1", "1.0-RC.2", "1.0-beta", "1.0rc1", "3.14.0a1", "1.0-dev-alpine", "1.0-m3", "2.0-preview.1"]
        {
            assert!(matches!(version(early).map(|v| v.suffix), Some(Suffix::Early(_))), "{early}");
        }
        for variant in
            ["1.0-alpine", "1.0-bookworm", "1.0_build7", "1.0-debian-12-r3", "1.0-0", "1.0-arm64", "1.0-beats"]
        {
            assert!(matches!(version(variant).map(|v| v.suffix), Some(Suffix::Variant(_))), "{variant}");
        }
    }

    #[test]
    fn from_the_oldest_to_the_newest() {
        let order = [
            "bookworm",
            "latest",
            "r9",
            "r10",
            "r010a",
            "1",
            "1.2",
            "1.9.9",
            "1.10-rc2",
            "v1.10-rc10",
            "1.10-rc10.1",
            "1.10-alpine",
            "1.10-bookworm",
            "1.10",
            "1.10.0",
            "1.10.1",
            "v2.0.0-alpha",
            "v2.0.0",
            "2.0.0.1",
            "20240101",
        ];
        for pair in order.windows(2) {
            assert!(age(pair[0]) < age(pair[1]), "{} is older than {}", pair[0], pair[1]);
        }
    }

    const TAG: &str = "[v0-9a-c][v0-9a-c.-]{0,7}";

    proptest! {
        #[test]
        fn the_order_is_total(a in TAG, b in TAG, c in TAG) {
            let (a, b, c) = (age(&a), age(&b), age(&c));
            prop_assert_eq!(a.cmp(&b), b.cmp(&a).reverse());
            prop_assert_eq!(a.cmp(&b) == Ordering::Equal, a == b);
            if a <= b && b <= c {
                prop_assert!(a <= c);
            }
        }

        #[test]
        fn numbers_decide(a in 0u64..2000, b in 0u64..2000, c in 0u64..2000, d in 0u64..2000) {
            let (x, y) = (age(&format!("v{a}.{b}")), age(&format!("{c}.{d}")));
            if (a, b) != (c, d) {
                prop_assert_eq!(x.cmp(&y), (a, b).cmp(&(c, d)));
            }
        }
    }
}
