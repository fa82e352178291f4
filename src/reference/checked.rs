//! Types for checked texts: tags, repository names, registry names.
//!
//! A value of these types can only be created by parsing. So text from a registry, a layout, a list or a client cannot
//! become part of a URL, a path or a reference unless it is valid.

use std::borrow::Borrow;
use std::fmt;
use std::ops::Deref;
use std::path::Path;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::{check_name, check_tag, registry_name};
use crate::error::{Error, Kind, Result};

/// A tag (distribution spec, "Pulling manifests": `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(String);

/// A repository's name (distribution spec, "Pulling manifests"; at most 255 characters).
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName(String);

/// A registry: a host and, where needed, a port, in the form that [`registry_name`] gives.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RegistryName(String);

/// The name of an image in the index of a layout that is not a tag, such as `registry/repository:tag`.
///
/// Image spec, annotations.md: `org.opencontainers.image.ref.name` may be a path of components. No registry accepts it as a
/// tag.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LayoutName(String);

impl Tag {
    /// The tag `latest`.
    pub fn latest() -> Self {
        Self("latest".to_owned())
    }

    /// A tag that the caller knows to be valid.
    pub(super) fn known(text: String) -> Self {
        debug_assert!(check_tag(&text).is_ok(), "{text:?}");
        Self(text)
    }
}

impl FromStr for Tag {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        check_tag(text).map(|()| Self(text.to_owned()))
    }
}

impl RepositoryName {
    /// Checks `name`, which is a part of `text`.
    ///
    /// # Errors
    /// [`Kind::Usage`], which quotes `text`.
    pub fn within(text: &str, name: String) -> Result<Self> {
        check_name(text, &name).map(|()| Self(name))
    }

    /// The name with `prefix` and a slash before it; without a prefix, the name.
    ///
    /// # Errors
    /// [`Kind::Usage`] if the result is not a repository name, for example because it is too long.
    pub fn below(&self, prefix: &str) -> Result<Self> {
        if prefix.is_empty() {
            return Ok(self.clone());
        }
        format!("{prefix}/{self}").parse()
    }

    /// The name `image`, for an image without a better name.
    pub fn image() -> Self {
        Self("image".to_owned())
    }

    /// The empty name of [`super::Repository::none`].
    pub(super) fn none() -> Self {
        Self(String::new())
    }
}

impl FromStr for RepositoryName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        check_name(text, text).map(|()| Self(text.to_owned()))
    }
}

impl RegistryName {
    /// Docker Hub.
    pub fn docker_hub() -> Self {
        Self(super::DOCKER_HUB.to_owned())
    }

    /// The pseudo registry of a directory: `oci:DIR`. No registry has this name, and the client refuses it.
    pub fn of_directory(directory: &Path) -> Self {
        Self(format!("oci:{}", directory.display()))
    }

    /// A placeholder in checks and messages for a registry that is not chosen yet. The client refuses it.
    pub fn not_chosen() -> Self {
        Self("DESTINATION".to_owned())
    }
}

impl FromStr for RegistryName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        registry_name(text).map(Self)
    }
}

impl FromStr for LayoutName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let alphanumeric = |byte: Option<u8>| byte.is_some_and(|byte| byte.is_ascii_alphanumeric());
        let good = text.len() <= MAX_LAYOUT_NAME
            && text.split('/').all(|component| {
                // One separator between letters or digits. Only the hyphen may be doubled.
                let bytes = component.as_bytes();
                let separated = bytes.windows(2).enumerate().all(|(at, pair)| {
                    let tripled = pair == b"--" && bytes.get(at + 2) == Some(&b'-');
                    pair.iter().any(u8::is_ascii_alphanumeric) || (pair == b"--" && !tripled)
                });
                alphanumeric(bytes.first().copied())
                    && alphanumeric(bytes.last().copied())
                    && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-._:@+".contains(byte))
                    && separated
            });
        if good {
            return Ok(Self(text.to_owned()));
        }
        Err(Error::new(Kind::Invalid, format!("{} is not the name of an image in a layout", QuotedText(text))))
    }
}

/// Invalid text from outside, such as an invalid tag in a registry's list. It is kept only for a report. `Display` quotes
/// and shortens it, and escapes control characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Malformed(String);

impl Malformed {
    /// Keeps as much of `text` as a report needs.
    pub fn new(text: &str) -> Self {
        Self(QuotedText(text).to_string())
    }
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The malformed tags of one list, for one report at its end.
#[derive(Debug, Default)]
pub struct RejectedTags {
    first: Vec<Malformed>,
    count: usize,
}

impl RejectedTags {
    /// Adds the malformed tags of a page.
    pub fn add(&mut self, page: Vec<Malformed>) {
        self.count += page.len();
        let room = MAX_REPORTED_TAGS.saturating_sub(self.first.len());
        self.first.extend(page.into_iter().take(room));
    }

    /// The error for the list of `holder`; `None` if all tags are valid.
    pub fn error(&self, holder: &dyn fmt::Display) -> Option<Error> {
        let shown: Vec<String> = self.first.iter().map(Malformed::to_string).collect();
        let what = match (self.count, self.count.saturating_sub(shown.len())) {
            (0, _) => return None,
            (1, _) => format!("{holder} lists {}, which is not a tag: it is left out", shown.join("")),
            (count, 0) => {
                format!("{holder} lists {count} names that are not tags: {}: they are left out", shown.join(", "))
            }
            (count, more) => {
                format!(
                    "{holder} lists {count} names that are not tags: {} and {more} more: they are left out",
                    shown.join(", ")
                )
            }
        };
        Some(Error::new(Kind::Invalid, what).hint(TAG_HINT))
    }

    /// The malformed tags that are reported one by one.
    pub fn first(&self) -> &[Malformed] {
        &self.first
    }
}

/// Parses each text as a tag. Invalid texts go into the second list.
pub fn parse_tags<T: AsRef<str>>(texts: impl IntoIterator<Item = T>) -> (Vec<Tag>, Vec<Malformed>) {
    let (mut tags, mut malformed) = (Vec::new(), Vec::new());
    for text in texts {
        match text.as_ref().parse() {
            Ok(tag) => tags.push(tag),
            Err(_) => malformed.push(Malformed::new(text.as_ref())),
        }
    }
    (tags, malformed)
}

/// Prints text as a quoted literal, at most [`MAX_SHOWN_CHARS`] characters of it.
pub(super) struct QuotedText<'a>(pub(super) &'a str);

impl fmt::Display for QuotedText<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.char_indices().nth(MAX_SHOWN_CHARS) {
            Some((end, _)) => write!(f, "{:?}… ({} bytes)", &self.0[..end], self.0.len()),
            None => write!(f, "{:?}", self.0),
        }
    }
}

/// Implements for each checked type what it shares with `str`.
macro_rules! checked_text {
    ($($name:ident),+) => {$(
        impl $name {
            /// The text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl Deref for $name {
            type Target = str;

            fn deref(&self) -> &str {
                &self.0
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl Borrow<str> for $name {
            fn borrow(&self) -> &str {
                &self.0
            }
        }

        impl PartialEq<str> for $name {
            fn eq(&self, other: &str) -> bool {
                self.0 == *other
            }
        }

        impl PartialEq<&str> for $name {
            fn eq(&self, other: &&str) -> bool {
                self.0 == *other
            }
        }

        impl PartialEq<String> for $name {
            fn eq(&self, other: &String) -> bool {
                self.0 == *other
            }
        }

        #[cfg(test)]
        impl From<&str> for $name {
            fn from(text: &str) -> Self {
                text.parse().expect("a test names only what is well formed")
            }
        }

        impl From<$name> for String {
            fn from(checked: $name) -> Self {
                checked.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = Error;

            fn try_from(text: String) -> Result<Self> {
                text.parse()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Debug::fmt(&self.0, f)
            }
        }

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_str(&self.0)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    )+};
}

checked_text!(Tag, RepositoryName, RegistryName, LayoutName);

/// The longest layout name in bytes: a host, a repository name and a tag together are shorter.
const MAX_LAYOUT_NAME: usize = 1024;
/// The most malformed tags of a list that a message shows.
const MAX_REPORTED_TAGS: usize = 10;
/// The rule for tags, as a hint.
pub(super) const TAG_HINT: &str =
    "a tag has up to 128 letters, digits, '.', '_' and '-', and begins with none of '.' and '-'";
/// Characters of a malformed text that a message shows.
const MAX_SHOWN_CHARS: usize = 160;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_fits_the_grammar_is_a_tag() {
        let longest = "a".repeat(128);
        for good in ["latest", "1.27", "_x", "A-b_c.d", "0", longest.as_str()] {
            assert!(good.parse::<Tag>().is_ok_and(|tag| tag == good), "{good}");
        }
        let too_long = "a".repeat(129);
        let traversal = "../../../victim/app/manifests/latest";
        for bad in
            ["", ".", "..", "-x", ".x", "a/b", "a\\b", "a?b", "a#b", "%2e%2e", "a%2fb", "a b", "a\n", "a\0", "é", "a:b"]
                .into_iter()
                .chain([too_long.as_str(), traversal])
        {
            assert!(bad.parse::<Tag>().is_err(), "{bad:?}");
            assert!(serde_json::from_value::<Tag>(bad.into()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn names_of_repositories_and_registries_are_no_paths() {
        for bad in ["", "..", "a/../b", "a//b", "/a", "a/", "a?b", "a#b", "a%2fb", "a\\b", "A", "a\n", "a:b", "é"] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad:?}");
        }
        for bad in ["", "a/b", "a@b", "a?b", "a#b", "oci:dir", "oci:/dir", "a b", "..", "a:0", "a\\b", "u:p@h"] {
            assert!(bad.parse::<RegistryName>().is_err(), "{bad:?}");
        }
        let name: RepositoryName = "a".repeat(250).parse().expect("a name");
        assert!(name.below("b").is_ok() && name.below("too-long").is_err() && name.below("..").is_err());
    }

    #[test]
    fn layout_names_have_the_grammar_of_the_annotation() {
        for good in ["docker.io/library/nginx:1.27", "a", "a--b", "x@y+z", "localhost:5000/a:v1"] {
            assert!(good.parse::<LayoutName>().is_ok(), "{good}");
        }
        for bad in
            ["", "/", "a/", "../a", "a/..", "a..b", "a---b", "a?b", "a#b", "a b", "a\u{1b}", "a\\b", "a/./b", "%2e"]
        {
            assert!(bad.parse::<LayoutName>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn the_malformed_tags_of_a_list_are_one_short_report() {
        let mut rejected = RejectedTags::default();
        assert!(rejected.error(&"r.io/a").is_none());
        let (tags, malformed) = parse_tags(["v1", "../x"]);
        assert_eq!(tags, ["v1"]);
        rejected.add(malformed);
        let report = rejected.error(&"r.io/a").expect("a report").to_string();
        assert_eq!(report, "r.io/a lists \"../x\", which is not a tag: it is left out");
        let many: Vec<String> = (0..100_000).map(|nth| format!("{nth}/{}", "x".repeat(300))).collect();
        rejected.add(parse_tags(&many).1);
        let report = rejected.error(&"r.io/a").expect("a report").to_string();
        assert!(report.contains("100001 names") && report.contains("99991 more") && report.len() < 4000, "{report}");
    }

    #[test]
    fn malformed_text_is_shown_without_control_characters() {
        let shown = Malformed::new("a\u{1b}[2J\n\u{202e}b").to_string();
        assert_eq!(shown, r#""a\u{1b}[2J\n\u{202e}b""#);
        assert!(Malformed::new(&"x".repeat(1 << 20)).to_string().len() < 200);
    }
}
