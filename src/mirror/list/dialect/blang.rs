//! dregsy's ranges: those of github.com/blang/semver v4, with tags read tolerantly.
//!
//! Rules: <https://pkg.go.dev/github.com/blang/semver/v4#ParseRange>,
//! <https://pkg.go.dev/github.com/blang/semver/v4#ParseTolerant>; how dregsy uses them:
//! <https://github.com/xelalexv/dregsy#tag-filtering>.
//!
//! A tag is a version if it has one to three numbers; a suffix needs all three. Versions of a range need all
//! three, save for `x` in the place of the last ones. Order alone decides, also for pre-releases.

use semver::Prerelease;

use super::{Operator, Refused, Semver, refused, split_prerelease};

/// What dregsy takes as a version: `v1.2`, `1.2.3-rc.1`, `01.2`; not `1.2-alpine`, `1.2.3.4`, `V1`.
pub(in crate::mirror::list) fn version(tag: &str) -> Option<Semver> {
    let tag = tag.trim();
    let parts: Vec<&str> = tag.strip_prefix('v').unwrap_or(tag).splitn(3, '.').collect();
    if parts.len() < 3 && parts.last().is_some_and(|last| last.contains(['+', '-'])) {
        return None;
    }
    // `04` is 4, and so is `04-rc1` in the third place.
    let plain = |part: &&str| match part.trim_start_matches('0') {
        rest if part.len() > 1 && !rest.starts_with(|c: char| c.is_ascii_digit()) => format!("0{rest}"),
        rest if part.len() > 1 => rest.to_owned(),
        _ => (*part).to_owned(),
    };
    let mut parts: Vec<String> = parts.iter().map(plain).collect();
    parts.resize(3, "0".to_owned());
    strict(&parts.join("."))
}

/// A version with all that semver 2.0.0 wants of it.
fn strict(text: &str) -> Option<Semver> {
    let (numbers, early) = split_prerelease(text)?;
    let mut read = numbers.split('.').map(number);
    let numbers = [read.next()??, read.next()??, read.next()??];
    read.next().is_none().then_some(Semver { numbers, early })
}

/// A number without leading zeros.
fn number(text: &str) -> Option<u64> {
    let plain = text.bytes().all(|b| b.is_ascii_digit()) && (text.len() == 1 || !text.starts_with('0'));
    plain.then(|| text.parse().ok()).flatten()
}

/// A range: alternatives, each of comparisons that hold together.
#[derive(Clone, Debug, PartialEq)]
pub(in crate::mirror::list) struct Range(Vec<Vec<Comparison>>);

type Comparison = (Operator, Semver);

impl Range {
    pub(super) fn parse(text: &str) -> Result<Self, Refused> {
        let mut alternatives = vec![Vec::new()];
        for word in words(text) {
            if word == "||" {
                alternatives.push(Vec::new());
            } else if let Some(last) = alternatives.last_mut() {
                comparisons(&word, last)?;
            }
        }
        if alternatives.iter().any(Vec::is_empty) {
            return refused("there is nothing before or after a ||, or nothing at all", FORM);
        }
        Ok(Self(alternatives))
    }

    pub(super) fn contains(&self, version: &Semver) -> bool {
        let holds = |(operator, other): &Comparison| operator.holds(version.cmp(other));
        self.0.iter().any(|all| all.iter().all(holds))
    }
}

/// The range by its spaces; those after `<`, `>` and `=` separate nothing.
fn words(text: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut last = ' ';
    for c in text.chars() {
        match (c, words.last_mut()) {
            (' ', _) if ['<', '>', '='].contains(&last) => {}
            (' ', Some(word)) if !word.is_empty() => words.push(String::new()),
            (' ', _) => {}
            (_, Some(word)) => word.push(c),
            (_, None) => {}
        }
        if c != ' ' {
            last = c;
        }
    }
    words.retain(|word| !word.is_empty());
    words
}

fn comparisons(word: &str, all: &mut Vec<Comparison>) -> Result<(), Refused> {
    // dregsy drops words of one character, so that these would mean something else without a sign.
    if word == "-" {
        return refused("it has no ranges with a hyphen", "write >=1.2.0 <=1.4.0");
    }
    if word.len() == 1 {
        return refused(format!("it overlooks {word:?}"), FORM);
    }
    let at = word.find(|c: char| c.is_ascii_digit()).unwrap_or(word.len());
    let (operator, version) = word.split_at(at);
    match operator {
        "" | "=" | "==" | "!" | "!=" | "<" | "<=" | ">" | ">=" => {}
        "~" | "^" | "~>" => return refused(format!("it has no {operator}"), "write >=1.2.0 <2.0.0, or 1.x"),
        _ if operator.ends_with('v') => return refused("its versions have no v here", "write >=1.2.0"),
        _ if operator.contains(['*', 'x', 'X']) => return refused("a version begins with a number", ANY),
        _ => return refused(format!("{operator:?} compares nothing"), FORM),
    }
    if version.contains(',') {
        return refused("it takes spaces, not commas", "write >=1.2.0 <2.0.0");
    }
    if version.contains(['*', 'X']) {
        return refused("its wildcard is x", "write 1.2.x");
    }
    if version.contains(".x") {
        return wildcard(operator, version, all);
    }
    let Some(version) = strict(version) else {
        return refused(
            format!("{version:?} has not three numbers"),
            "write them all, as 1.2.0, or an x in the place of the last, as 1.2.x",
        );
    };
    let operator = match operator {
        "<" => Operator::Below,
        "<=" => Operator::UpTo,
        ">" => Operator::Above,
        ">=" => Operator::From,
        "!" | "!=" => Operator::Other,
        _ => Operator::Equal,
    };
    all.push((operator, version));
    Ok(())
}

/// `1.x` is from 1.0.0 up to below 2.0.0, `1.2.x` from 1.2.0 up to below 1.3.0; and `1.x.x` ends below 1.1.0,
/// because blang/semver counts the places.
fn wildcard(operator: &str, text: &str, all: &mut Vec<Comparison>) -> Result<(), Refused> {
    let parts: Vec<&str> = text.split('.').collect();
    let numbers: Vec<u64> = parts.iter().map_while(|part| number(part)).collect();
    let wild = parts[numbers.len()..].iter().all(|part| *part == "x");
    let (2 | 3, true, Some(&major)) = (parts.len(), wild, numbers.first()) else {
        return refused(format!("{text:?} has a wildcard that is not at its end"), "write 1.x or 1.2.x");
    };
    let minor = numbers.get(1).copied().unwrap_or(0);
    let at = |major: u64, minor: u64| Semver { numbers: [major, minor, 0], early: Prerelease::EMPTY };
    let begin = at(major, minor);
    let end = if parts.len() == 2 { at(major.saturating_add(1), 0) } else { at(major, minor.saturating_add(1)) };
    match operator {
        ">" => all.push((Operator::From, end)),
        ">=" => all.push((Operator::From, begin)),
        "<" => all.push((Operator::Below, begin)),
        "<=" => all.push((Operator::Below, end)),
        // As in blang/semver, both must hold, so that no version is in it.
        "!" | "!=" => all.extend([(Operator::Below, begin), (Operator::From, end)]),
        _ => all.extend([(Operator::From, begin), (Operator::Below, end)]),
    }
    Ok(())
}

const FORM: &str = "write such as >=1.20.0 <2.0.0, 1.20.x, or 1.20.0 || 1.21.x";

const ANY: &str = "write >=0.0.0, or regex: .* for all tags";

#[cfg(test)]
mod tests {
    use super::super::tests::check_range;
    use super::*;

    /// Each tag, and the numbers that ParseTolerant reads from it.
    #[test]
    fn tags_that_are_versions() {
        for (tag, numbers, early) in [
            ("1", [1, 0, 0], ""),
            ("v1.2", [1, 2, 0], ""),
            ("22.04", [22, 4, 0], ""),
            ("1.02.003", [1, 2, 3], ""),
            ("00.1.2", [0, 1, 2], ""),
            ("1.2.03-rc1", [1, 2, 3], "rc1"),
            ("1.36.0-uclibc", [1, 36, 0], "uclibc"),
            ("1.2.3-4.alpine-3", [1, 2, 3], "4.alpine-3"),
            ("20240101", [20_240_101, 0, 0], ""),
        ] {
            let read = version(tag).unwrap_or_else(|| panic!("{tag} is a version"));
            assert_eq!((read.numbers, read.early.as_str()), (numbers, early), "{tag}");
        }
        for tag in [
            "latest",
            "",
            "v",
            "V1.2.3",
            "vv1",
            "1-alpine",
            "1.21-alpine3.18",
            "2-alpine",
            "3.9-slim",
            "1.2.3.4",
            "3.14rc1",
            "v1_amd64",
            "1.2.3_4",
            "1.2.3-",
            "1.2.3-01",
            "1.2.3-a..b",
            "1.2.",
            "1..2",
            "1.2.3-a_b",
            "99999999999999999999",
        ] {
            assert_eq!(version(tag), None, "{tag}");
        }
    }

    /// Inputs and results by the rules of ParseRange's documentation.
    #[test]
    fn ranges() {
        for (range, inside, outside) in [
            (">=1.31.0 <1.31.9", "1.31.0 1.31.8 v1.31.1 1.31 1.31.9-rc1", "1.30.9 1.31.9 1.32 1.31.0-uclibc"),
            (">= 1.31.0  < 1.32.0", "1.31.5", "1.32.0"),
            ("1.20.0", "1.20 v1.20.0", "1.20.1"),
            ("==1.20.0", "1.20", "1.20.0-a"),
            ("1.20.x", "1.20.0 1.20.9 1.21.0-rc1", "1.19.9 1.21.0 1.20.0-rc1"),
            ("1.x", "1.0.0 1.99 2.0.0-rc1", "2.0.0 0.9"),
            ("1.x.x", "1.0.0 1.0.9", "1.1.0"),
            (">1.20.x", "1.21.0", "1.20.9 1.21.0-rc1"),
            ("<=1.20.x", "1.20.9 0.1", "1.21.0"),
            ("<1.x", "0.9", "1.0.0"),
            (">=1.x", "1.0.0 2.0", "0.9"),
            ("!=1.x", "", "0.9 1.0 2.0"),
            (">1.0.0 !1.2.0", "1.1.0 1.2.1", "1.2.0"),
            ("<2.0.0 || >=3.0.0", "1.9 3.0", "2.5"),
            (">1.0.0 <2.0.0 || >3.0.0 !4.2.1", "1.2.3 1.9.9 3.1.1", "4.2.1 2.1.1"),
            (">=12.19.x || >=14.15.x", "12.19.0 13.0.0", "12.18.9"),
        ] {
            let read = Range::parse(range).unwrap_or_else(|error| panic!("{range}: {error:?}"));
            check_range(range, inside, outside, |tag| version(tag).is_some_and(|version| read.contains(&version)));
        }
    }

    #[test]
    fn what_dregsy_refuses() {
        for (range, why) in [
            ("", "nothing"),
            ("||", "nothing"),
            ("1.0.0 ||", "nothing"),
            ("|| 1.0.0", "nothing"),
            (">=1.20", "three numbers"),
            ("5", "overlooks"),
            ("x", "overlooks"),
            ("~1.2.0", "no ~"),
            ("^1.2.0", "no ^"),
            ("~1.2.x", "no ~"),
            ("1.2.0 - 1.4.0", "hyphen"),
            (">=v1.2.0", "no v"),
            (">=1.2.0,<2.0.0", "commas"),
            ("1.2.*", "wildcard is x"),
            ("1.2.X", "wildcard is x"),
            ("*.*", "begins with a number"),
            ("1.x.3", "not at its end"),
            ("1.2.3.x", "not at its end"),
            ("=>1.2.0", "compares nothing"),
            ("1.02.3", "three numbers"),
            ("1.0.0||2.0.0", "three numbers"),
        ] {
            let Err(Refused(said, hint)) = Range::parse(range) else { panic!("{range:?} is taken") };
            assert!(said.contains(why), "{range:?}: {said}");
            assert!(hint.starts_with("write"), "{hint}");
        }
    }
}
