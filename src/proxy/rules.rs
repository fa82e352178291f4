//! Which repositories of an upstream may be asked for. No I/O.

use globset::{Glob, GlobBuilder, GlobMatcher};

use crate::error::{Error, Kind, Result};

/// A pattern of repositories' names: `*` and `?` stay within one part of the path, `**` does not,
/// `[abc]` and `{one,other}` are as in a shell.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(GlobMatcher);

/// What may be asked for. Without any rule, everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// Only what fits one of these; everything, if there is none.
    pub(crate) allow: Vec<Pattern>,
    /// And nothing that fits one of these.
    pub(crate) deny: Vec<Pattern>,
}

impl Rules {
    /// Whether this repository, as the upstream names it, may be asked for.
    pub(crate) fn allows(&self, repository: &str) -> bool {
        let fits = |patterns: &[Pattern]| patterns.iter().any(|pattern| pattern.0.is_match(repository));
        (self.allow.is_empty() || fits(&self.allow)) && !fits(&self.deny)
    }
}

impl Pattern {
    fn glob(&self) -> &Glob {
        self.0.glob()
    }
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.glob() == other.glob()
    }
}

impl Eq for Pattern {}

impl std::fmt::Display for Pattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.glob().glob())
    }
}

impl std::str::FromStr for Pattern {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let wrong = |why: &str| {
            Error::new(Kind::Usage, format!("{text:?} is no pattern of repositories: {why}"))
                .hint("write such as library/*, or team/** for whatever is below team")
        };
        if text.is_empty() {
            return Err(wrong("it is empty"));
        }
        let glob = GlobBuilder::new(text).literal_separator(true).backslash_escape(true).build();
        glob.map(|glob| Self(glob.compile_matcher())).map_err(|error| wrong(&error.kind().to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn patterns(texts: &[&str]) -> Vec<Pattern> {
        texts.iter().map(|text| text.parse().expect(text)).collect()
    }

    #[test]
    fn allowed_and_not_denied() {
        let rules = Rules { allow: patterns(&["library/*", "team/**"]), deny: patterns(&["team/secret*", "*/nginx"]) };
        for (name, allowed) in [
            ("library/redis", true),
            ("library/nginx", false),
            ("library/a/b", false),
            ("team/a/b/c", true),
            ("team/secrets", false),
            ("team/secrets/x", true),
            ("other/x", false),
            ("library", false),
        ] {
            assert_eq!(rules.allows(name), allowed, "{name}");
        }
        assert!(Rules::default().allows("anything/at/all"));
        assert!(!Rules { allow: Vec::new(), deny: patterns(&["**"]) }.allows("a/b"));
        for wrong in ["", "[a", "{a"] {
            assert_eq!(wrong.parse::<Pattern>().expect_err(wrong).kind(), Kind::Usage);
        }
    }
}
