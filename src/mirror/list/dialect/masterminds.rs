//! skopeo's ranges: those of github.com/Masterminds/semver v3.
//!
//! Rules: <https://github.com/Masterminds/semver#checking-version-constraints>; how skopeo uses them:
//! <https://github.com/containers/skopeo/blob/main/docs/skopeo-sync.1.md#yaml-file-content-used-source-for---src-yaml>.
//!
//! A tag is a version if it has one to three numbers, and a suffix after a hyphen. A suffix makes it a
//! pre-release, which fits only where one of the comparisons that hold together names one. In a range a
//! number that is missing is a wildcard.

use semver::Prerelease;

use super::{Operator, Refused, Semver, refused, split_prerelease};

/// What skopeo takes as a version: `v1.2`, `01.2.3`, `1.21-alpine3.18`; not `1.2.3.4`, `3.14rc1`, `v1_amd64`.
pub(super) fn version(tag: &str) -> Option<Semver> {
    let bare = tag.strip_prefix('v').unwrap_or(tag);
    let (text, early) = split_prerelease(bare)?;
    let mut numbers = [0; 3];
    for (place, part) in text.split('.').enumerate() {
        *numbers.get_mut(place)? = number(part)?;
    }
    Some(Semver { numbers, early })
}

fn number(text: &str) -> Option<u64> {
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// Alternatives, each of comparisons that hold together.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::mirror::list) struct Constraints(Vec<Group>);

#[derive(Clone, Debug, PartialEq)]
struct Group {
    all: Vec<Comparison>,
    /// One of them names a pre-release.
    early: bool,
}

#[derive(Clone, Debug, PartialEq)]
struct Comparison {
    sign: Sign,
    with: Semver,
    open: Open,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Sign {
    Order(Operator),
    Tilde,
    Caret,
}

/// From which number on a comparison is open, by a wildcard or because it ends before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Open {
    Major,
    Minor,
    Patch,
    No,
}

impl Constraints {
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        text.split("||").map(Group::parse).collect::<Result<_, _>>().map(Self)
    }

    pub(super) fn contains(&self, version: &Semver) -> bool {
        let released = version.early.is_empty();
        self.0
            .iter()
            .any(|group| (released || group.early) && group.all.iter().all(|comparison| comparison.holds(version)))
    }
}

impl Group {
    fn parse(text: &str) -> Result<Self, Refused> {
        let mut all = Vec::new();
        let mut rest = text.trim_start_matches(is_space);
        if rest.is_empty() {
            return refused("there is nothing before or after a ||, or nothing at all", FORM);
        }
        loop {
            let (mut comparison, mut after) = Comparison::scan(rest)?;
            if let Some(to) = hyphen(after) {
                if comparison.sign != Sign::Order(Operator::Equal) || rest.starts_with('=') {
                    return refused("a range with a hyphen takes no other sign", "write 1.2 - 1.4, or >=1.2 <=1.4");
                }
                comparison.sign = Sign::Order(Operator::From);
                all.push(comparison);
                (comparison, after) = Comparison::scan(to)?;
                if to.starts_with(|c: char| SIGNS.contains(c)) {
                    return refused("a range with a hyphen takes no other sign", "write 1.2 - 1.4, or >=1.2 <=1.4");
                }
                comparison.sign = Sign::Order(Operator::UpTo);
            }
            all.push(comparison);
            let next = after.trim_start_matches(is_space);
            if next.is_empty() {
                break;
            }
            rest = match next.strip_prefix(',') {
                Some(next) => next.trim_start_matches(is_space),
                None if next.len() == after.len() => {
                    return refused(format!("{next:?} does not continue a version"), FORM);
                }
                None => next,
            };
        }
        let early = all.iter().any(|comparison| !comparison.with.early.is_empty());
        Ok(Self { all, early })
    }
}

/// What follows a hyphen between spaces.
fn hyphen(text: &str) -> Option<&str> {
    let after = text.trim_start_matches(is_space);
    let to = after.strip_prefix('-').filter(|to| after.len() < text.len() && to.starts_with(is_space))?;
    Some(to.trim_start_matches(is_space))
}

impl Comparison {
    /// Reads one at the beginning of a text; returns what follows it.
    fn scan(text: &str) -> Result<(Self, &str), Refused> {
        let signs = [
            ("!=", Sign::Order(Operator::Other)),
            (">=", Sign::Order(Operator::From)),
            ("=>", Sign::Order(Operator::From)),
            ("<=", Sign::Order(Operator::UpTo)),
            ("=<", Sign::Order(Operator::UpTo)),
            ("~>", Sign::Tilde),
            ("=", Sign::Order(Operator::Equal)),
            (">", Sign::Order(Operator::Above)),
            ("<", Sign::Order(Operator::Below)),
            ("~", Sign::Tilde),
            ("^", Sign::Caret),
        ];
        let found = signs.iter().find_map(|(text_of, sign)| Some((*sign, text.strip_prefix(text_of)?)));
        let (sign, rest) = found.unwrap_or((Sign::Order(Operator::Equal), text));
        let rest = rest.trim_start_matches(is_space);
        let end = rest.find(|c: char| is_space(c) || c == ',').unwrap_or(rest.len());
        let (word, after) = rest.split_at(end);
        let Some((with, open)) = partial(word) else {
            let why =
                if word.is_empty() { "a version is missing".to_owned() } else { format!("{word:?} is no version") };
            return refused(why, FORM);
        };
        Ok((Self { sign, with, open }, after))
    }

    fn holds(&self, version: &Semver) -> bool {
        let (with, open) = (&self.with, self.open);
        let [major, minor, patch] = with.numbers;
        let [is_major, is_minor, is_patch] = version.numbers;
        match self.sign {
            Sign::Order(operator) if open == Open::No => operator.holds(version.cmp(with)),
            Sign::Order(Operator::Equal) | Sign::Tilde => {
                let any = with.numbers == [0; 3] && matches!(open, Open::Major | Open::No);
                version >= with && (any || (is_major == major && (is_minor == minor || open == Open::Minor)))
            }
            Sign::Order(Operator::Other) => match open {
                Open::Minor => is_major != major,
                Open::Patch if is_major == major && is_minor == minor => version.early != with.early,
                Open::Patch => true,
                Open::Major | Open::No => version != with,
            },
            Sign::Order(Operator::Above) => match open {
                Open::Minor => is_major > major,
                Open::Patch => (is_major, is_minor) > (major, minor),
                Open::Major | Open::No => version > with,
            },
            Sign::Order(Operator::UpTo) => match open {
                Open::Minor => is_major <= major,
                // Of * this leaves the first versions only: the library knows no other end than 0.0.
                Open::Major | Open::Patch | Open::No => (is_major, is_minor) <= (major, minor),
            },
            Sign::Order(operator @ (Operator::Below | Operator::From)) => operator.holds(version.cmp(with)),
            Sign::Caret => {
                version >= with
                    && match (major, minor) {
                        _ if major > 0 || open == Open::Minor => is_major == major,
                        _ if minor > 0 || open == Open::Patch => (is_major, is_minor) == (0, minor),
                        // Of ^* this leaves 0.0.0 only, as in the library.
                        _ => (is_major, is_minor, is_patch) == (0, 0, patch),
                    }
            }
        }
    }
}

/// A version of a range: its numbers may be wildcards, or fewer than three.
fn partial(word: &str) -> Option<(Semver, Open)> {
    let bare = word.strip_prefix('v').unwrap_or(word);
    let (text, early) = split_prerelease(bare)?;
    let parts: Vec<&str> = text.split('.').collect();
    let wild = |place: usize| parts.get(place).is_none_or(|part| ["x", "X", "*"].contains(part));
    let well_formed = parts.len() <= 3
        && parts.iter().all(|part| number(part).is_some() || ["x", "X", "*"].contains(part))
        && parts.iter().all(|part| !part.is_empty());
    if !well_formed {
        return None;
    }
    let open = [(0, Open::Major), (1, Open::Minor), (2, Open::Patch)].into_iter().find(|(place, _)| wild(*place));
    let (known, open) = open.unwrap_or((3, Open::No));
    let mut numbers = [0; 3];
    for (place, part) in parts.iter().take(known).enumerate() {
        numbers[place] = number(part)?;
    }
    // A wildcard in the first place leaves nothing of the rest.
    let early = if open == Open::Major { Prerelease::EMPTY } else { early };
    Some((Semver { numbers, early }, open))
}

fn is_space(c: char) -> bool {
    matches!(c, ' ' | '\t' | '\n' | '\r' | '\u{c}')
}

const SIGNS: &str = "=!<>~^";

const FORM: &str = "write such as >=1.25 <2, ^1.2, ~1.2.3, 1.2 - 1.4, 1.x || 2.x";

#[cfg(test)]
mod tests {
    use super::super::tests::check_range;
    use super::*;

    #[test]
    fn tags_that_are_versions() {
        for (tag, numbers, early) in [
            ("1", [1, 0, 0], ""),
            ("v1.2", [1, 2, 0], ""),
            ("22.04", [22, 4, 0], ""),
            ("2-alpine", [2, 0, 0], "alpine"),
            ("1.21-alpine3.18", [1, 21, 0], "alpine3.18"),
        ] {
            let read = version(tag).unwrap_or_else(|| panic!("{tag} is a version"));
            assert_eq!((read.numbers, read.early.as_str()), (numbers, early), "{tag}");
        }
        for tag in [
            "latest",
            "",
            "v",
            "V1",
            "1.2.3.4",
            "3.14rc1",
            "v1_amd64",
            "1.2.3-01",
            "1.2-a_b",
            "1.2-",
            "1.",
            "1..2",
            "99999999999999999999",
        ] {
            assert_eq!(version(tag), None, "{tag}");
        }
    }

    /// The forms of the library's documentation, and what they are equal to by it.
    #[test]
    fn ranges() {
        for (range, inside, outside) in [
            (">= 3.12.0", "3.12.0 3.12 4 v3.13", "3.11 3.13-rc1 edge 20240101-a 3.12.0.1"),
            (">= 1.2, < 3.0.0 || >= 4.2.3", "1.2 2.9 4.2.3", "1.1 3.0.0 4.2.2"),
            (">=1.2 <3.0.0", "1.2 2.9", "3.0.0"),
            ("1.2.x", "1.2.0 1.2.9", "1.3.0 1.1.9"),
            (">= 1.2.x", "1.2.0 2", "1.1.9"),
            ("<= 2.x", "2.9.9 0.1", "3.0.0"),
            ("<2.x", "1.9", "2.0.0"),
            (">11", "12.0", "11.1.0 11"),
            (">11.1", "11.2.0", "11.1.1"),
            ("*", "0.0.0 1 99.9", "latest 1.0-rc1"),
            (">*", "0.0.1 1", "0.0.0"),
            ("<=*", "0.0.9", "0.1 1"),
            ("!=1.2", "1.3 2", "1.2.0 1.2.9"),
            ("!=1", "0.9 2", "1.9"),
            ("!=1.2.3", "1.2.4", "1.2.3"),
            ("1.2 - 1.4.5", "1.2 1.4.5", "1.4.6 1.1"),
            ("2.3.4 - 4.5", "2.3.4 4.5.9", "4.6 2.3.3"),
            ("~1.2.3", "1.2.3 1.2.9", "1.3.0 1.2.2"),
            ("~1", "1.0 1.9", "2.0"),
            ("~2.3", "2.3.0 2.3.9", "2.4"),
            ("~1.x", "1.0 1.9", "2"),
            ("~0.0.0", "0.0.0 9.9", "a"),
            ("^1.2.3", "1.2.3 1.9", "2.0.0 1.2.2"),
            ("^0.2.3", "0.2.3 0.2.9", "0.3.0"),
            ("^0.0.3", "0.0.3", "0.0.4"),
            ("^0.0", "0.0.9", "0.1.0"),
            ("^0", "0.9.9", "1.0.0"),
            ("^*", "0.0.0", "1.0.0"),
            ("1.2.3", "1.2.3 v1.2.3", "1.2.4"),
            ("=1.2", "1.2.9", "1.3"),
            (">=1.2.3-0", "1.2.3-beta 1.2.4-alpha 1.3.0 1.3-alpine", "1.2.2"),
            (">=1.2 <2.0.0-0", "1.9-rc1 1.2", "2.0.0-rc1"),
            ("=>1.2,=<1.4", "1.2 1.4.9", "1.5"),
        ] {
            let read = Constraints::parse(range).unwrap_or_else(|error| panic!("{range}: {error:?}"));
            check_range(range, inside, outside, |tag| version(tag).is_some_and(|version| read.contains(&version)));
        }
    }

    #[test]
    fn what_skopeo_refuses() {
        for range in [
            "",
            " ",
            "||",
            "1 ||",
            "latest",
            ">=",
            ">=1.2 &&",
            "1.2.3.4",
            "==1.2",
            "!1.2",
            "1.2.y",
            ">1.2<2",
            "1 -",
            "[1,2)",
            "~^1",
            ">1.2 - 1.4",
            "1.2 - >1.4",
            "1.2,,1.3",
            "1.2,",
            "1.2-01",
        ] {
            assert!(Constraints::parse(range).is_err(), "{range:?} is taken");
        }
    }
}
