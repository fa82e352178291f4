//! Which tags are versions, and which versions a range holds: each tool by its own rules.
//!
//! Every tool that takes ranges uses another library, and those disagree: on what a version is, on numbers
//! that are missing, on wildcards, on pre-releases. `docs/foreign-lists.md` has the differences in one
//! table; a test below holds it to this code.
//!
//! | dialect | tool | rules of |
//! | --- | --- | --- |
//! | [`Native`](Dialect::Native) | transload's own lists | `range`: npm's grammar, and variants of images |
//! | [`Skopeo`](Dialect::Skopeo) | skopeo sync | `masterminds`: github.com/Masterminds/semver v3 |
//! | [`Dregsy`](Dialect::Dregsy) | dregsy | `blang`: github.com/blang/semver v4 |
//! | [`Regsync`](Dialect::Regsync) | regsync | `regclient`: regclient's own |

pub(super) mod blang;
mod masterminds;
mod regclient;

use std::cmp::Ordering;

use semver::Prerelease;

use super::range::Range as Native;
use super::version::version;
use crate::error::{Error, Kind, Result};

/// Whose rules a range of versions follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// transload's own lists: a range that lacks numbers means all that they could be (`=1.2` is `1.2.x`), and
    /// early versions fit only where the range names one.
    Native,
    /// `images-by-semver` of skopeo sync.
    Skopeo,
    /// `semver:` of dregsy.
    Dregsy,
    /// `semverRange` of regsync.
    Regsync,
}

/// A range of versions, by the rules of its dialect.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Range {
    Native(Native),
    Skopeo(masterminds::Constraints),
    Dregsy(blang::Range),
    Regsync(regclient::Constraint),
}

impl Range {
    /// Reads a range.
    pub(super) fn parse(text: &str, dialect: Dialect) -> Result<Self> {
        let (tool, read) = match dialect {
            Dialect::Native => return Native::parse(text).map(Self::Native),
            Dialect::Skopeo => ("skopeo", masterminds::Constraints::parse(text).map(Self::Skopeo)),
            Dialect::Dregsy => ("dregsy", blang::Range::parse(text).map(Self::Dregsy)),
            Dialect::Regsync => ("regsync", regclient::Constraint::parse(text).map(Self::Regsync)),
        };
        read.map_err(|Refused(why, hint)| {
            Error::new(Kind::Usage, format!("{text:?} is not a range of versions for {tool}: {why}")).hint(hint)
        })
    }

    /// Whether a tag is a version of the range. `named`: a pattern picked the tag too; only
    /// [`Dialect::Native`] makes a difference of it.
    pub(super) fn contains(&self, tag: &str, named: bool) -> bool {
        match self {
            Self::Native(range) => version(tag).is_some_and(|version| range.contains(&version, named)),
            Self::Skopeo(constraints) => {
                masterminds::version(tag).is_some_and(|version| constraints.contains(&version))
            }
            Self::Dregsy(range) => blang::version(tag).is_some_and(|version| range.contains(&version)),
            Self::Regsync(constraint) => regclient::version(tag).is_some_and(|version| constraint.contains(&version)),
        }
    }
}

/// Why a range is refused, and what to write.
#[derive(Debug)]
struct Refused(String, String);

fn refused<T>(why: impl Into<String>, hint: impl Into<String>) -> std::result::Result<T, Refused> {
    Err(Refused(why.into(), hint.into()))
}

/// A comparison of two versions.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Operator {
    Equal,
    Other,
    Below,
    UpTo,
    Above,
    From,
}

impl Operator {
    /// Whether the comparison holds, `order` being that of the left version to the right one.
    fn holds(self, order: Ordering) -> bool {
        match self {
            Self::Equal => order.is_eq(),
            Self::Other => order.is_ne(),
            Self::Below => order.is_lt(),
            Self::UpTo => order.is_le(),
            Self::Above => order.is_gt(),
            Self::From => order.is_ge(),
        }
    }
}

/// The numbers and the pre-release of a version without `v`. Build metadata (`+…`) is dropped.
fn split_prerelease(text: &str) -> Option<(&str, Prerelease)> {
    let text = text.split_once('+').map_or(text, |(version, _)| version);
    match text.split_once('-') {
        Some((_, "")) => None,
        Some((numbers, early)) => Some((numbers, Prerelease::new(early).ok()?)),
        None => Some((text, Prerelease::EMPTY)),
    }
}

/// A version of three numbers in the order of semver 2.0.0: the derived one, since an empty [`Prerelease`]
/// is above all others. <https://semver.org/#spec-item-11>
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Semver {
    numbers: [u64; 3],
    early: Prerelease,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Asserts which of these tags, separated by spaces, are in the range.
    pub(super) fn check_range(range: &str, inside: &str, outside: &str, contains: impl Fn(&str) -> bool) {
        for tag in inside.split(' ').filter(|tag| !tag.is_empty()) {
            assert!(contains(tag), "{tag} is in {range}");
        }
        for tag in outside.split(' ') {
            assert!(!contains(tag), "{tag} is not in {range}");
        }
    }

    /// Tags as repositories have them; the table in docs/foreign-lists.md is over these.
    fn fits(range: &str, dialect: Dialect, tag: &str) -> bool {
        Range::parse(range, dialect).unwrap_or_else(|error| panic!("{range}: {error}")).contains(tag, false)
    }

    const COLUMNS: [Dialect; 4] = [Dialect::Native, Dialect::Skopeo, Dialect::Dregsy, Dialect::Regsync];

    /// The rows of a table of the page: cells without their backquotes.
    fn rows(head: &str) -> Vec<Vec<String>> {
        let page = include_str!("../../../../docs/foreign-lists.md");
        let table = page.split(&format!("\n| {head} |")).nth(1).unwrap_or_else(|| panic!("no table of {head}"));
        let rows = table.lines().skip(2).take_while(|line| line.starts_with('|'));
        // A `|` in a cell is written `\|`.
        let cells = |row: &str| {
            let row = row.replace("\\|", "\u{0}");
            row.trim_matches('|').split('|').map(|cell| cell.trim().replace('\u{0}', "|")).collect()
        };
        rows.map(cells).collect()
    }

    /// What stands between the first backquotes.
    fn quoted(cell: &str) -> Vec<&str> {
        cell.split('`').skip(1).step_by(2).collect()
    }

    #[test]
    fn the_page_is_right_about_what_a_version_is() {
        let all = ["*", ">=0.0.0-0", ">=0.0.0-0", ">=0-0"];
        let rows = rows("tag");
        assert!(rows.len() >= 12, "{} rows", rows.len());
        for row in rows {
            let tag = quoted(&row[0])[0];
            for (column, (dialect, all)) in COLUMNS.into_iter().zip(all).enumerate() {
                let is = match dialect {
                    Dialect::Native => version(tag).is_some(),
                    _ => fits(all, dialect, tag),
                };
                assert_eq!(row[column + 1].starts_with("yes"), is, "{tag} for {dialect:?}");
            }
        }
    }

    #[test]
    fn the_page_is_right_about_ranges() {
        let rows = rows("range");
        assert!(rows.len() >= 15, "{} rows", rows.len());
        for row in rows {
            let range = quoted(&row[0])[0];
            for (column, dialect) in COLUMNS.into_iter().enumerate() {
                let cell = &row[column + 1];
                let parsed = Range::parse(range, dialect);
                if cell == "refused" {
                    assert!(parsed.is_err(), "{range} for {dialect:?} is taken");
                    continue;
                }
                let parsed = parsed.unwrap_or_else(|error| panic!("{range} for {dialect:?}: {error}"));
                let chosen: Vec<&str> = TAGS.split(' ').filter(|tag| parsed.contains(tag, false)).collect();
                assert_eq!(quoted(cell), chosen, "{range} for {dialect:?}");
            }
        }
        let page = include_str!("../../../../docs/foreign-lists.md");
        assert!(page.contains(&TAGS.split(' ').map(|tag| format!("`{tag}`")).collect::<Vec<_>>().join(", ")));
    }

    /// The repository that the page's ranges are tried on.
    const TAGS: &str = "1.2.0 1.2.3 1.2.4-rc1 1.3 1.3-alpine 1.3.1-alpine 2 2-alpine 2.0.0-rc1 2.1.0 1.2.3.4 latest";

    proptest! {
        #[test]
        fn no_text_panics(range in "[0-9x*.<>=!~^| ,vr-]{0,24}", tag in "[0-9v.a-c_-]{0,16}") {
            for dialect in COLUMNS {
                if let Ok(range) = Range::parse(&range, dialect) {
                    let _ = range.contains(&tag, false);
                }
            }
        }

        /// Where no pre-release and no wildcard is about, all agree.
        #[test]
        fn on_plain_versions_all_agree(a in 0u64..5, b in 0u64..5, c in 0u64..5, x in 0u64..5, y in 0u64..5, z in 0u64..5) {
            for operator in [">=", ">", "<", "<=", "="] {
                let range = format!("{operator}{a}.{b}.{c}");
                let tag = format!("{x}.{y}.{z}");
                let own = fits(&range, Dialect::Native, &tag);
                for dialect in COLUMNS {
                    prop_assert_eq!(fits(&range, dialect, &tag), own, "{} in {} for {:?}", tag, range, dialect);
                }
            }
        }
    }
}
