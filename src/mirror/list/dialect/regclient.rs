//! regsync's ranges, those of regclient itself.
//!
//! Rules: <https://regclient.org/usage/regsync/> (`semverRange`), and
//! <https://github.com/regclient/regclient/blob/main/internal/semver/semver.go>.
//!
//! A tag is a version if all before its first hyphen are numbers with dots, however many. Numbers that are
//! missing are 0, in tags and in ranges. Order alone decides, so that `2-alpine` is below 2.0.0.

use std::cmp::Ordering;

use super::{Operator, Refused, refused};

/// A version: its numbers, and what follows the first hyphen.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Version {
    numbers: Vec<u64>,
    early: String,
}

/// What regsync takes as a version: `v1`, `1.2.3.4`, `2-alpine`, `20240101`; not `3.14rc1`, `v1_amd64`.
pub(super) fn version(text: &str) -> Option<Version> {
    let bare = text.strip_prefix('v').unwrap_or(text);
    let bare = bare.split_once('+').map_or(bare, |(bare, _)| bare);
    let (numbers, early) = bare.split_once('-').unwrap_or((bare, ""));
    let number = |part: &str| {
        let digits = part.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| part.parse().ok()).flatten().filter(|number| i64::try_from(*number).is_ok())
    };
    let numbers = numbers.split('.').map(number).collect::<Option<_>>()?;
    Some(Version { numbers, early: early.to_owned() })
}

impl Version {
    fn at(&self, place: usize) -> u64 {
        self.numbers.get(place).copied().unwrap_or(0)
    }

    fn order(&self, other: &Self) -> Ordering {
        let places = self.numbers.len().max(other.numbers.len());
        let numbers = (0..places).map(|place| self.at(place).cmp(&other.at(place)));
        numbers.fold(Ordering::Equal, Ordering::then).then_with(|| match (&self.early[..], &other.early[..]) {
            (a, b) if a == b => Ordering::Equal,
            ("", _) => Ordering::Greater,
            (_, "") => Ordering::Less,
            (a, b) => early_order(a, b),
        })
    }
}

/// Words between dots in turn, and in each word text and numbers in turn: `rc9` is before `rc10`. Two words
/// that end in the same text without a number end the comparison.
fn early_order(a: &str, b: &str) -> Ordering {
    for (mut a, mut b) in a.split('.').zip(b.split('.')) {
        while !a.is_empty() && !b.is_empty() {
            let ((text_a, number_a, rest_a), (text_b, number_b, rest_b)) = (cut(a), cut(b));
            let by_number = match (number_a, number_b) {
                (None, None) => return text_a.cmp(text_b),
                (a, b) => a.cmp(&b),
            };
            let order = text_a.cmp(text_b).then(by_number);
            if order.is_ne() {
                return order;
            }
            (a, b) = (rest_a, rest_b);
        }
        // What is left over makes it greater.
        let order = a.len().cmp(&b.len());
        if order.is_ne() {
            return order;
        }
    }
    a.split('.').count().cmp(&b.split('.').count())
}

/// The text at the beginning, the number after it, and the rest.
fn cut(word: &str) -> (&str, Option<u64>, &str) {
    let (text, rest) = word.split_at(word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len()));
    let (number, rest) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len()));
    (text, number.parse().ok(), rest)
}

/// Comparisons that hold together.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::mirror::list) struct Constraint(Vec<(Operator, Version)>);

impl Constraint {
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let mut all = Vec::new();
        for word in text.split_whitespace() {
            comparisons(word, &mut all)?;
        }
        if all.is_empty() { refused("it is empty", FORM) } else { Ok(Self(all)) }
    }

    pub(super) fn contains(&self, version: &Version) -> bool {
        self.0.iter().all(|(operator, other)| operator.holds(version.order(other)))
    }
}

fn comparisons(word: &str, all: &mut Vec<(Operator, Version)>) -> Result<(), Refused> {
    let operators: [(&str, Operator); 5] = [
        (">=", Operator::From),
        ("<=", Operator::UpTo),
        (">", Operator::Above),
        ("<", Operator::Below),
        ("=", Operator::Equal),
    ];
    let read = |text: &str| version(text).map_or_else(|| Err(explain(word, text)), Ok);
    let end = |numbers: [u64; 3]| (Operator::Below, Version { numbers: numbers.to_vec(), early: String::new() });
    if let Some(text) = word.strip_prefix('^') {
        let from = read(text)?;
        let (major, minor, patch) = (from.at(0), from.at(1), from.at(2));
        // Numbers that are missing are 0 here too: ^0 ends below 0.0.1.
        let below = match (major, minor) {
            (0, 0) => [0, 0, patch.saturating_add(1)],
            (0, _) => [0, minor.saturating_add(1), 0],
            _ => [major.saturating_add(1), 0, 0],
        };
        all.extend([(Operator::From, from), end(below)]);
        return Ok(());
    }
    if let Some(text) = word.strip_prefix('~') {
        let from = read(text)?;
        let below = [from.at(0), from.at(1).saturating_add(1), 0];
        all.extend([(Operator::From, from), end(below)]);
        return Ok(());
    }
    let found = operators.iter().find_map(|(sign, operator)| Some((*operator, word.strip_prefix(sign)?)));
    let (operator, text) = found.unwrap_or((Operator::Equal, word));
    all.push((operator, read(text)?));
    Ok(())
}

/// Why a word is refused, and how regsync has it.
fn explain(word: &str, version: &str) -> Refused {
    let (why, hint) = if word.contains("||") {
        ("it has no ||".to_owned(), "write each alternative as an item of its own under semverRange")
    } else if word == "-" {
        ("it has no ranges with a hyphen".to_owned(), "write >=1.2 <=1.4")
    } else if version.is_empty() {
        (format!("there is no version after {word:?}"), "write the version at once after the sign, as >=1.2")
    } else if word.contains(',') {
        ("it takes spaces, not commas".to_owned(), "write >=1.2 <2")
    } else if version.contains(['x', 'X', '*']) {
        ("it has no wildcards".to_owned(), "write >=1.2 <1.3, or ~1.2")
    } else if word.starts_with('!') {
        ("it has no !".to_owned(), "name what is not wanted under deny, as a regular expression")
    } else {
        (format!("{version:?} is no version"), FORM)
    };
    Refused(why, hint.to_owned())
}

const FORM: &str = "write such as >=1.20 <2, ^1.20, ~1.20";

#[cfg(test)]
mod tests {
    use super::super::tests::check_range;
    use super::*;

    #[test]
    fn tags_that_are_versions() {
        for (tag, numbers, early) in [
            ("1", &[1][..], ""),
            ("v1.2.3.4.5", &[1, 2, 3, 4, 5], ""),
            ("22.04", &[22, 4], ""),
            ("2-alpine", &[2], "alpine"),
            ("1.21-alpine3.18", &[1, 21], "alpine3.18"),
            ("1.2.3-", &[1, 2, 3], ""),
            ("1.2.3-a_b", &[1, 2, 3], "a_b"),
        ] {
            let read = version(tag).unwrap_or_else(|| panic!("{tag} is a version"));
            assert_eq!((&read.numbers[..], &read.early[..]), (numbers, early), "{tag}");
        }
        for tag in ["latest", "", "v", "V1", "3.14rc1", "v1_amd64", "1.2.", "1..2", "-1", "99999999999999999999"] {
            assert_eq!(version(tag), None, "{tag}");
        }
    }

    #[test]
    fn ranges() {
        for (range, inside, outside) in [
            (">=1.0.0 <2.0.0", "1.0 1.9.9 2.0.0-rc1 2-alpine 1.2.3.4", "0.9 2 2.0.0 1.0.0-rc1"),
            ("^1.20", "1.20 1.21-alpine3.18 2-alpine 1.99.0", "1.19 2.0 1.20-alpine"),
            ("^0.2.3", "0.2.3 0.2.9", "0.3.0"),
            ("^0.0.3", "0.0.3", "0.0.4"),
            ("^0", "0 0.0.1-rc1", "0.0.1 0.1"),
            ("~1.2", "1.2 1.2.9 1.3-rc1", "1.3"),
            ("~1", "1.0.9", "1.1"),
            ("1.2", "1.2 1.2.0 v1.2.0.0", "1.2.1"),
            ("=1.2", "1.2.0", "1.2.1"),
            (">1.2", "1.2.1", "1.2 1.2.0-rc1"),
            ("<=v1.2", "1.2 1.2-rc1", "1.2.1"),
            (">=1.0-rc9", "1.0-rc10 1.0-rc9 1.0", "1.0-rc8 1.0-beta"),
            (">=1.0-rc.2", "1.0-rc.3 1.0-rc.10 1.0-rc.1", "1.0-ra"),
        ] {
            let read = Constraint::parse(range).unwrap_or_else(|error| panic!("{range}: {error:?}"));
            check_range(range, inside, outside, |tag| version(tag).is_some_and(|version| read.contains(&version)));
        }
    }

    #[test]
    fn what_regsync_refuses() {
        for (range, why) in [
            ("", "empty"),
            ("  ", "empty"),
            ("1.2.x", "no wildcards"),
            ("*", "no wildcards"),
            (">= 1.2", "no version after"),
            ("1.0 || 2.0", "no ||"),
            ("1.0||2.0", "no ||"),
            ("1.0 - 2.0", "hyphen"),
            (">=1.0, <2.0", "commas"),
            ("!=1.0", "no !"),
            ("==1.0", "is no version"),
            ("=>1.0", "is no version"),
            ("~>1.0", "is no version"),
            ("latest", "is no version"),
        ] {
            let Err(Refused(said, hint)) = Constraint::parse(range) else { panic!("{range:?} is taken") };
            assert!(said.contains(why), "{range:?}: {said}");
            assert!(!hint.is_empty());
        }
    }
}
