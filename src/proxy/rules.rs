//! Rules: which repositories of an upstream clients may pull. No I/O.

use globset::{Glob, GlobBuilder, GlobMatcher};

use crate::error::{Error, Kind, Result};

/// A pattern of repository names: `*` and `?` match within one part of the path, `**` matches across parts,
/// `[abc]` and `{one,other}` work as in a shell.
#[derive(Clone, Debug)]
pub(crate) struct Pattern(GlobMatcher);

/// The rules of an upstream. Without rules every repository is allowed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rules {
    /// A repository must match one of these, if there are any.
    pub(crate) allow: Vec<Pattern>,
    /// A repository that matches one of these is denied.
    pub(crate) deny: Vec<Pattern>,
}

impl Rules {
    /// Whether clients may pull this repository. `repository` is its name at the upstream.
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
            Error::new(Kind::Usage, format!("invalid repository pattern {text:?}: {why}"))
                .hint("examples: library/*, or team/** for all repositories below team")
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
