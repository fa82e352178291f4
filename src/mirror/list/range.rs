//! Ranges of versions in transload's own lists: `>=1.25`, `^1.2 || ~2.1`, `1.2 - 1.4`, `1.x`.
//!
//! The grammar is npm's: alternatives with `||`; comparisons that must all hold, with spaces or commas; `=`, `!=`,
//! `>`, `>=`, `<`, `<=`, `~`, `^`, `x` and `*`. A missing number may have any value (`=1.2` is `1.2.x`). A
//! pre-release is in a range only if the range names a pre-release. `dialect` has the ranges of other tools.

use std::ops::Bound;

use semver::Prerelease;

use super::version::{MAX_NUMBERS, Suffix, Version, identifiers, numbers};
use crate::error::{Error, Kind, Result};

/// A range of versions.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Range {
    alternatives: Vec<Alternative>,
}

/// Spans that must all contain a version.
#[derive(Clone, Debug, PartialEq)]
struct Alternative {
    spans: Vec<Span>,
    /// Whether the range names a pre-release, as `>=1.2.0-0` does.
    early: bool,
}

/// All versions between two bounds; with `not`, all others.
#[derive(Clone, Debug, PartialEq)]
struct Span {
    low: Bound<Point>,
    high: Bound<Point>,
    not: bool,
}

/// A point without a pre-release is above those with one, as in semver. The derived order does that.
type Point = ([u64; MAX_NUMBERS], Prerelease);

impl Range {
    /// Reads a range.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let alternatives = text.split("||").map(alternative).collect::<Option<Vec<_>>>();
        let alternatives = alternatives.ok_or_else(|| {
            Error::new(Kind::Usage, format!("{text:?} is not a range of versions"))
                .hint("write such as \">=1.25 <2\", \"^1.2\", \"~1.2.3\", \"1.2 - 1.4\", \"1.x || 2.x\"")
        })?;
        Ok(Self { alternatives })
    }

    /// Whether a version is in the range. `named`: a pattern selected the tag too, so that a variant (`1.27-alpine`)
    /// counts as the version that it is built from.
    pub(super) fn contains(&self, version: &Version, named: bool) -> bool {
        self.alternatives.iter().any(|alternative| {
            let by_order = alternative.early;
            let early = match &version.suffix {
                Suffix::None => Prerelease::EMPTY,
                Suffix::Early(early) | Suffix::Variant(early) if by_order => early.clone(),
                Suffix::Variant(_) if named => Prerelease::EMPTY,
                _ => return false,
            };
            let point = (version.numbers, early);
            alternative.spans.iter().all(|span| span.contains(&point))
        })
    }
}

impl Span {
    fn contains(&self, point: &Point) -> bool {
        use std::ops::RangeBounds as _;
        (self.low.as_ref(), self.high.as_ref()).contains(point) != self.not
    }
}

/// A version in a range: numbers, of which some may be wildcards or missing, and a pre-release.
#[derive(Clone, Debug)]
struct PartialVersion {
    numbers: [u64; MAX_NUMBERS],
    written: usize,
    early: Prerelease,
}

fn alternative(text: &str) -> Option<Alternative> {
    // `>= 1.2` is one comparison, `>=1.2 <2` are two.
    let mut words: Vec<String> = Vec::new();
    for word in text.split([' ', '\t', ',']).filter(|word| !word.is_empty()) {
        match words.last_mut() {
            Some(last) if OPERATORS.contains(&last.as_str()) => last.push_str(word),
            _ => words.push(word.to_owned()),
        }
    }
    let mut spans = Vec::new();
    let mut early = false;
    let mut rest = words.as_slice();
    while let Some((word, after)) = rest.split_first() {
        if let [dash, to, after @ ..] = after
            && dash == "-"
        {
            let (from, to) = (parse_partial(word)?, parse_partial(to)?);
            early |= !from.early.is_empty() || !to.early.is_empty();
            spans.push(Span { low: Bound::Included(from.low()), high: to.end(), not: false });
            rest = after;
            continue;
        }
        let at = word.find(|c: char| !"=!<>~^".contains(c)).unwrap_or(word.len());
        let version = parse_partial(&word[at..])?;
        early |= !version.early.is_empty();
        spans.push(span(&word[..at], &version)?);
        rest = after;
    }
    // npm's empty range contains everything. In a list it is probably a mistake, and `*` says the same.
    (!spans.is_empty()).then_some(Alternative { spans, early })
}

/// `1.2.3-rc.1`, `v1.2`, `1.x`, `*`.
fn parse_partial(text: &str) -> Option<PartialVersion> {
    let bare = text.strip_prefix(['v', 'V']).unwrap_or(text);
    if WILDCARDS.contains(&bare) {
        return Some(PartialVersion { numbers: [0; MAX_NUMBERS], written: 0, early: Prerelease::EMPTY });
    }
    let (numbers, written, rest) = numbers(bare)?;
    let is_wild = |rest: &str| rest.split('.').skip(1).all(|part| WILDCARDS.contains(&part));
    let early = match rest.strip_prefix('-') {
        Some(early) if !early.is_empty() => identifiers(early)?,
        // `1.x`, `1.2.*`
        None if rest.is_empty() || (rest.starts_with('.') && is_wild(rest)) => Prerelease::EMPTY,
        _ => return None,
    };
    Some(PartialVersion { numbers, written, early })
}

impl PartialVersion {
    fn low(&self) -> Point {
        (self.numbers, self.early.clone())
    }

    /// Whether numbers are missing that may have any value.
    fn is_open(&self) -> bool {
        self.written == 0 || (self.written < 3 && self.early.is_empty())
    }

    /// The bound below the next version when the number at `at` is raised. Its pre-releases are excluded too, or `^1`
    /// would contain `2.0.0-rc1`.
    fn raised(&self, at: usize) -> Bound<Point> {
        let mut numbers = [0; MAX_NUMBERS];
        numbers[..=at].copy_from_slice(&self.numbers[..=at]);
        numbers[at] = numbers[at].saturating_add(1);
        Bound::Excluded((numbers, identifiers("0").unwrap_or(Prerelease::EMPTY)))
    }

    /// The upper bound of all versions that it may mean.
    fn end(&self) -> Bound<Point> {
        match self.written {
            0 => Bound::Unbounded,
            written if self.is_open() => self.raised(written - 1),
            _ => Bound::Included(self.low()),
        }
    }
}

fn span(operator: &str, version: &PartialVersion) -> Option<Span> {
    let open = version.is_open();
    let low = || Bound::Included(version.low());
    let (low, high) = match operator {
        "" | "=" | "==" | "!=" | "!" => (low(), version.end()),
        ">" if open => match version.end() {
            // `>1.2` begins after all `1.2.x`. No version is above `*`.
            Bound::Excluded((numbers, _)) => (Bound::Included((numbers, Prerelease::EMPTY)), Bound::Unbounded),
            _ => return None,
        },
        ">" => (Bound::Excluded(version.low()), Bound::Unbounded),
        ">=" | "=>" => (low(), Bound::Unbounded),
        "<" => (Bound::Unbounded, Bound::Excluded(version.low())),
        "<=" | "=<" => (Bound::Unbounded, version.end()),
        "~" | "~>" => (low(), tilde(version)),
        "^" => (low(), caret(version)),
        _ => return None,
    };
    Some(Span { low, high, not: operator.starts_with('!') })
}

/// `~1.2.3` and `~1.2` allow other patches, `~1` other minor versions.
fn tilde(version: &PartialVersion) -> Bound<Point> {
    match version.written {
        0 => Bound::Unbounded,
        1 => version.raised(0),
        _ => version.raised(1),
    }
}

/// `^1.2.3` allows changes after the first number that isn't 0.
fn caret(version: &PartialVersion) -> Bound<Point> {
    if version.written == 0 {
        return Bound::Unbounded;
    }
    let last = version.written.min(3) - 1;
    let first = version.numbers[..3].iter().position(|number| *number != 0);
    version.raised(first.unwrap_or(last).min(last))
}

const OPERATORS: [&str; 12] = ["=", "==", "!=", "!", ">", ">=", "=>", "<", "<=", "=<", "~", "^"];

const WILDCARDS: [&str; 3] = ["x", "X", "*"];

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::version::version;
    use super::*;

    fn fits(range: &str, tag: &str, named: bool) -> bool {
        let range = Range::parse(range).unwrap_or_else(|error| panic!("{range}: {error}"));
        version(tag).is_some_and(|version| range.contains(&version, named))
    }

    #[test]
    fn ranges_as_npm_has_them() {
        for (range, inside, outside) in [
            (">=1.25", "1.25 1.25.0 v1.26 2 1.25.0.1", "1.24.9 1 1.26-alpine 1.26-rc1 latest"),
            (">= 1.25, <1.27", "1.25 1.26.9", "1.27 1.27.0 1.24"),
            (">1.25", "1.26 2.0", "1.25 1.25.3"),
            (">1.25.0", "1.25.1", "1.25.0 1.25"),
            ("<=1.25", "1.25 1.25.9 1", "1.26 1.26.0-rc1"),
            ("<1.25", "1.24.99", "1.25 1.25-alpine"),
            ("1.25", "1.25 1.25.7", "1.24 1.26"),
            ("=1.25.0", "1.25.0 1.25 v1.25.0", "1.25.1"),
            ("!=1.25", "1.24 1.26", "1.25 1.25.1"),
            ("~1.2.3", "1.2.3 1.2.9", "1.2.2 1.3.0"),
            ("~1", "1.0 1.9", "2.0 0.9"),
            ("~>1.2", "1.2 1.2.9", "1.3"),
            ("^1.2.3", "1.2.3 1.9", "1.2.2 2.0.0"),
            ("^0.2.3", "0.2.3 0.2.9", "0.3.0 1.0"),
            ("^0.0.3", "0.0.3", "0.0.4 0.0.2"),
            ("^0", "0.1 0.9", "1.0"),
            ("^0.0", "0.0.9", "0.1"),
            ("1.2 - 1.4", "1.2 1.3 1.4 1.4.9", "1.1.9 1.5"),
            ("1.2 - 1.4.5 || 3.x", "1.4.5 3.0 3.9.1", "1.4.6 2.0 4.0"),
            ("1.2.*", "1.2 1.2.9", "1.3"),
            ("*", "0 1.2 99", "1.0-rc1 latest"),
            (">=1.27.0-0", "1.27.0-rc1 1.27 1.27-alpine", "1.26"),
            ("<2.0.0", "1.9", "2.0.0-rc1"),
        ] {
            for tag in inside.split(' ') {
                assert!(fits(range, tag, false), "{tag} is in {range}");
            }
            for tag in outside.split(' ') {
                assert!(!fits(range, tag, false), "{tag} is not in {range}");
            }
        }
    }

    #[test]
    fn variants_where_a_pattern_names_them() {
        assert!(fits(">=1.25", "1.26-alpine", true));
        assert!(fits("<=1.26.0", "1.26-alpine", true), "as the version that it is built of");
        assert!(!fits(">=1.25", "1.26-rc1", true), "early is early");
        assert!(!fits(">=1.27", "1.26-alpine", true));
    }

    #[test]
    fn what_is_no_range() {
        for wrong in
            ["", "||", "1.2 ||", "latest", ">=", ">=1.2 &&", "1.2.3.4.5", "=>=1", "1.2.y", ">*", "1 -", "[1,2)"]
        {
            let error = Range::parse(wrong).err().unwrap_or_else(|| panic!("{wrong:?} is no range"));
            assert_eq!(error.exit_code(), 2);
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[0-9x*.<>=!~^| ,vr-]{0,24}") {
            let _ = Range::parse(&text);
        }

        #[test]
        fn opposites(a in 0u64..9, b in 0u64..9, c in 0u64..9, x in 0u64..9, y in 0u64..9, z in 0u64..9) {
            let tag = format!("{x}.{y}.{z}");
            let fits = |operator: &str| fits(&format!("{operator}{a}.{b}.{c}"), &tag, false);
            prop_assert_eq!(fits(">="), !fits("<"));
            prop_assert_eq!(fits(">"), !fits("<="));
            prop_assert_eq!(fits("="), !fits("!="));
            prop_assert_eq!(fits(">"), (x, y, z) > (a, b, c));
            // A caret range stays in its major version. A tilde range is in the caret range, except for `^0.0.z`.
            prop_assert!(!fits("^") || (x == a && fits(">=")));
            prop_assert!(!fits("~") || fits("^") || (a, b) == (0, 0));
        }
    }
}
