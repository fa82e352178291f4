//! Patterns of tags: globs, and regular expressions with the anchors that each tool adds.

use std::fmt;

use globset::{GlobBuilder, GlobMatcher};
use regex::{Regex, RegexBuilder};

use crate::error::{Error, Kind, Result};

/// A pattern of tags, known to be well formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    /// As it was written.
    written: String,
    /// As it is compiled: with the anchors that the tool adds.
    text: String,
    kind: Form,
    /// It matches what `text` doesn't.
    inverted: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Glob,
    Regex,
}

impl Pattern {
    /// `1.27*`, `[0-9]*-{alpine,slim}`: the whole tag must fit.
    pub fn glob(text: &str) -> Result<Self> {
        let pattern = Self::of(text, text.to_owned(), Form::Glob);
        if text.contains(['/', ':', '@']) {
            return Err(Error::new(Kind::Usage, format!("{text:?} fits no tag"))
                .hint("a pattern is for the tag alone; the repository stands in `source`"));
        }
        pattern.compile().map(|_| pattern)
    }

    /// `^v1\.2[0-9]`: a regular expression that is searched in the tag.
    pub fn regex(text: &str) -> Result<Self> {
        let pattern = Self::of(text, text.to_owned(), Form::Regex);
        pattern.compile().map(|_| pattern)
    }

    /// A regular expression between `^` and `$`, without a group: regsync puts them around each of its
    /// patterns. <https://regclient.org/usage/regsync/>
    pub fn enclosed(text: &str) -> Result<Self> {
        let pattern = Self::of(text, format!("^{text}$"), Form::Regex);
        pattern.compile().map(|_| pattern)
    }

    /// A regular expression that gets the `^` and `$` that it lacks, as dregsy does.
    /// <https://github.com/xelalexv/dregsy/blob/master/internal/pkg/util/regex.go>
    pub fn anchored(text: &str) -> Result<Self> {
        let begin = if text.starts_with('^') { "" } else { "^" };
        let end = if text.ends_with('$') { "" } else { "$" };
        let pattern = Self::of(text, format!("{begin}{text}{end}"), Form::Regex);
        pattern.compile().map(|_| pattern)
    }

    fn of(written: &str, text: String, kind: Form) -> Self {
        Self { written: written.to_owned(), text, kind, inverted: false }
    }

    /// What a `|` that stands in no group makes of a pattern with anchors, where that is hardly meant:
    /// `^1\.0|latest$` fits `1.0-alpine` too.
    pub(super) fn loose_alternatives(&self) -> Option<String> {
        let alternatives = if self.kind == Form::Regex { alternatives(&self.text) } else { return None };
        let begins = |text: &&&str| text.starts_with('^');
        let ends = |text: &&&str| text.ends_with('$') && !text.ends_with("\\$");
        let (begin, end) = (alternatives.iter().filter(begins).count(), alternatives.iter().filter(ends).count());
        let all = alternatives.len();
        if all < 2 || (begin, end) == (all, all) || (begin, end) == (0, 0) {
            return None;
        }
        let shown: Vec<String> = alternatives.iter().map(|text| format!("/{text}/")).collect();
        let bare = self.written.strip_prefix('^').unwrap_or(&self.written);
        let bare = bare.strip_suffix('$').unwrap_or(bare);
        Some(format!(
            "/{}/ is {}, each alone, so that it fits more than whole tags, as in the tool; where these are meant as \
             whole tags, write ({bare})",
            self.text,
            shown.join(" or ")
        ))
    }

    /// What this doesn't match.
    #[must_use]
    pub fn inverted(self) -> Self {
        Self { inverted: !self.inverted, ..self }
    }

    /// Whether the pattern matches a tag.
    #[cfg(test)]
    fn matches(&self, tag: &str) -> bool {
        self.compile().is_ok_and(|matcher| matcher.matches(tag))
    }

    pub(super) fn compile(&self) -> Result<Matcher> {
        let wrong = |error: &dyn fmt::Display, hint| {
            // Their own words span lines, with a caret under the place.
            let text = error.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ");
            Error::new(Kind::Usage, format!("{:?} is not a pattern: {last}", self.written)).hint(hint)
        };
        let engine = match self.kind {
            Form::Glob => GlobBuilder::new(&self.text)
                .build()
                .map(|glob| Engine::Glob(glob.compile_matcher()))
                .map_err(|error| wrong(&error.kind(), "a glob has *, ?, [abc] and {one,other}"))?,
            Form::Regex => RegexBuilder::new(&self.text)
                .size_limit(REGEX_BYTES)
                .build()
                .map(Engine::Regex)
                .map_err(|error| wrong(&error, "a regular expression as Go and Rust have them: no look-around"))?,
        };
        Ok(Matcher { engine, inverted: self.inverted })
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let not = if self.inverted { "not " } else { "" };
        match self.kind {
            Form::Glob => write!(f, "{not}{}", self.text),
            Form::Regex => write!(f, "{not}/{}/", self.text),
        }
    }
}

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Matcher {
    engine: Engine,
    inverted: bool,
}

#[derive(Debug)]
enum Engine {
    Glob(GlobMatcher),
    Regex(Regex),
}

impl Matcher {
    pub(super) fn matches(&self, tag: &str) -> bool {
        let found = match &self.engine {
            Engine::Glob(glob) => glob.is_match(tag),
            Engine::Regex(regex) => regex.is_match(tag),
        };
        found != self.inverted
    }
}

/// The alternatives of a regular expression that stand in no group.
fn alternatives(text: &str) -> Vec<&str> {
    let (mut found, mut begin, mut depth, mut class) = (Vec::new(), 0, 0usize, None);
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        match (c, class) {
            ('\\', _) => _ = chars.next(),
            // `]` right after the beginning of a class is one of its characters.
            (']', Some(first)) if at > first => class = None,
            (_, Some(_)) => {}
            ('[', None) => class = Some(if text[at + 1..].starts_with('^') { at + 2 } else { at + 1 }),
            ('(', None) => depth += 1,
            (')', None) => depth = depth.saturating_sub(1),
            ('|', None) if depth == 0 => {
                found.push(&text[begin..at]);
                begin = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[begin..]);
    found
}

/// What a compiled regular expression may take; one of a list is tried on each tag.
const REGEX_BYTES: usize = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pattern() {
        for (error, why) in [
            (Pattern::glob("[a").err(), "unclosed"),
            (Pattern::glob("nginx:1.*").err(), "fits no tag"),
            (Pattern::regex("(?=a)").err(), "look-around"),
            (Pattern::regex("(((((((a{100}){100}){100})))))").err(), "size limit"),
        ] {
            let error = error.expect(why);
            assert!(error.to_string().contains(why), "{error}");
            assert!(!error.to_string().contains('\n'), "{error}");
            assert_eq!(error.exit_code(), 2);
        }
    }

    /// regsync compiles `^` + pattern + `$`; dregsy adds only what is missing.
    #[test]
    fn anchors_are_those_of_the_tool() {
        for (written, regsync, dregsy) in [
            (r"1\.0", r"/^1\.0$/", r"/^1\.0$/"),
            (r"^1\.0$", r"/^^1\.0$$/", r"/^1\.0$/"),
            (r"1\.0|latest", r"/^1\.0|latest$/", r"/^1\.0|latest$/"),
            ("^a|b$", "/^^a|b$$/", "/^a|b$/"),
        ] {
            assert_eq!(Pattern::enclosed(written).expect("a pattern").to_string(), regsync);
            assert_eq!(Pattern::anchored(written).expect("a pattern").to_string(), dregsy);
        }
        let loose = Pattern::enclosed(r"1\.0|latest").expect("a pattern");
        assert!(loose.matches("1.0-alpine") && loose.matches("my-latest") && !loose.matches("2"));
    }

    #[test]
    fn a_bare_alternative_is_found_where_it_is_a_mistake() {
        for loose in ["a|b", r"1\.0|latest", "[)]|b", "a(b|c)|d", r"\(|b", "[]|]|b", "^a$|b"] {
            let pattern = Pattern::enclosed(loose).expect("a pattern");
            assert!(pattern.loose_alternatives().is_some(), "{loose}");
        }
        for strict in ["(a|b)", "a", "[a|b]", r"a\|b", "[]|]", "(a|(b|c))d", "^a$|^b$", "(?:a|b)"] {
            let pattern = Pattern::enclosed(strict).expect("a pattern");
            assert_eq!(pattern.loose_alternatives(), None, "{strict}");
        }
        // Where nothing is anchored, nothing is promised.
        assert_eq!(Pattern::regex("a|b").expect("a pattern").loose_alternatives(), None);
        assert!(Pattern::regex("^a|b$").expect("a pattern").loose_alternatives().is_some());
        let said = Pattern::enclosed("1|2").expect("a pattern").loose_alternatives().expect("a remark");
        assert!(said.contains("/^1/ or /2$/") && said.ends_with("write (1|2)"), "{said}");
    }
}
