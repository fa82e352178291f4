//! The names of an entry of `index.json`. No I/O.

use super::entry::ParsedEntry;
use super::entry::{CONTAINERD_NAME, PUSHED_TO, REF_NAME};
use crate::reference::{LayoutName, Malformed, Reference, RepositoryName, Tag, Target};

/// How tags are resolved.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Scope {
    /// The directory is one repository: the tag is the whole `ref.name`, as in skopeo.
    Whole,
    /// One of several repositories: the `ref.name` is `repository:tag`.
    Repository(RepositoryName),
}

impl Scope {
    /// The `ref.name` to write for `target`; `None` for a digest.
    pub(super) fn written(&self, target: &Target) -> Option<String> {
        match (self, target) {
            (_, Target::Digest(_)) => None,
            (Self::Whole, Target::Tag(_) | Target::Name(_)) => Some(target.to_string()),
            (Self::Repository(name), Target::Tag(tag)) => Some(format!("{name}:{tag}")),
            // A repository has no full names.
            (Self::Repository(_), Target::Name(_)) => None,
        }
    }

    /// The tags of `entry` in this scope (in the whole directory also full names), each with the quality of its match: a name
    /// in the form that this program writes is preferred. `default` is the repository of bare tags.
    pub(super) fn targets(&self, entry: &ParsedEntry, default: &str) -> Vec<(NameMatch, Target)> {
        let exact = match (self, entry.annotations.get(REF_NAME)) {
            (Self::Whole, Some(whole)) => whole_name(whole).map(|target| (NameMatch::Exact, target)),
            _ => None,
        };
        let others = names(entry).into_iter().filter_map(|name| match (self, &name.repository) {
            (Self::Whole, _) => Some((NameMatch::Read, name.tag)),
            (Self::Repository(here), Some(there)) if here.as_str() == there.as_str() => Some((name.fit, name.tag)),
            (Self::Repository(here), None) if here.as_str() == default => Some((NameMatch::Read, name.tag)),
            (Self::Repository(_), _) => None,
        });
        exact.into_iter().chain(others.map(|(fit, tag)| (fit, Target::Tag(tag)))).collect()
    }
}

/// The target of a `ref.name` in the whole directory: a tag or a longer name.
fn whole_name(text: &str) -> Option<Target> {
    text.parse().map(Target::Tag).or_else(|_| text.parse::<LayoutName>().map(Target::Name)).ok()
}

/// The `ref.name` of an entry, if it is neither a tag nor valid by the image spec (annotations.md).
pub(super) fn malformed(entry: &ParsedEntry) -> Option<Malformed> {
    let text = entry.annotations.get(REF_NAME).filter(|text| !text.is_empty())?;
    whole_name(text).is_none().then(|| Malformed::new(text))
}

/// The quality of a match; the best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum NameMatch {
    /// The `ref.name` in the form that this program writes.
    Exact,
    /// A name in the form of another tool.
    Read,
    /// The name without its registry: `library/nginx:1` for `docker.io/library/nginx:1`.
    Alias,
}

/// A name in an annotation.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    /// `None` for a bare tag.
    pub(super) repository: Option<RepositoryName>,
    pub(super) tag: Tag,
    pub(super) fit: NameMatch,
}

/// All names of `entry`.
pub(super) fn names(entry: &ParsedEntry) -> Vec<Name> {
    let mut names = Vec::new();
    if let Some(text) = entry.annotations.get(REF_NAME) {
        if let Ok(tag) = text.parse() {
            names.push(Name { repository: None, tag, fit: NameMatch::Exact });
        } else {
            names.extend(full_names(text, NameMatch::Exact));
        }
    }
    if let Some(text) = entry.annotations.get(CONTAINERD_NAME) {
        names.extend(full_names(text, NameMatch::Read));
    }
    names
}

/// The repositories in which `entry` has a name, or to which it was pushed; [`NO_REPOSITORY`] for a bare tag.
pub(super) fn pushed_repositories(entry: &ParsedEntry) -> Vec<String> {
    let pushed =
        entry.annotations.get(PUSHED_TO).map(|repository| full_names(&format!("{repository}:x"), NameMatch::Exact));
    let all = names(entry).into_iter().chain(pushed.into_iter().flatten());
    let mut homes: Vec<String> =
        all.map(|name| name.repository.map_or_else(|| NO_REPOSITORY.to_owned(), String::from)).collect();
    homes.sort_unstable();
    homes.dedup();
    homes
}

/// The placeholder for the repository of a bare tag. No repository has this name.
pub(super) const NO_REPOSITORY: &str = "";

/// `repository:tag` unchanged, and without its registry.
fn full_names(text: &str, fit: NameMatch) -> Vec<Name> {
    let Some((repository, tag)) = text.rsplit_once(':') else { return Vec::new() };
    let Ok(tag) = tag.parse::<Tag>() else { return Vec::new() };
    let mut names = Vec::new();
    if let Ok(repository) = repository.parse() {
        names.push(Name { repository: Some(repository), tag, fit });
    }
    if let Ok(Reference { repository: parsed, target: Target::Tag(tag) }) = text.parse() {
        names.push(Name { repository: Some(parsed.name), tag, fit: NameMatch::Alias });
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::descriptor::{Descriptor, Digest};

    fn entry(annotations: &[(&str, &str)]) -> ParsedEntry {
        let mut entry = Descriptor::new("x", Digest::of(b"x"), 1);
        entry.annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        ParsedEntry::from(&entry)
    }

    fn named(name: &str) -> Scope {
        Scope::Repository(name.into())
    }

    fn tags(scope: &Scope, annotations: &[(&str, &str)]) -> Vec<(NameMatch, String)> {
        let mut targets = scope.targets(&entry(annotations), "images");
        targets.sort();
        targets.into_iter().map(|(fit, target)| (fit, target.to_string())).collect()
    }

    #[test]
    fn what_is_written_is_read_as_exact() {
        for scope in [Scope::Whole, named("a/b")] {
            let written = scope.written(&Target::Tag("v1".into())).expect("a name");
            assert_eq!(tags(&scope, &[(REF_NAME, &written)])[0], (NameMatch::Exact, "v1".into()), "{scope:?}");
        }
    }

    #[test]
    fn bare_tags_are_in_the_default_repository() {
        let bare: &[(&str, &str)] = &[(REF_NAME, "1.27")];
        assert_eq!(tags(&named("images"), bare), [(NameMatch::Read, "1.27".into())]);
        assert_eq!(tags(&named("other"), bare), []);
    }

    #[test]
    fn containerds_names_are_read_with_and_without_the_registry() {
        let built: &[(&str, &str)] = &[(REF_NAME, "1.27"), (CONTAINERD_NAME, "docker.io/library/nginx:1.27")];
        let at = |name: &str| tags(&named(name), built);
        assert_eq!(at("docker.io/library/nginx"), [(NameMatch::Read, "1.27".into())]);
        assert_eq!(at("library/nginx"), [(NameMatch::Alias, "1.27".into())]);
        assert_eq!(at("nginx"), []);
        let port: &[(&str, &str)] = &[(REF_NAME, "localhost:5000/x:v1")];
        assert_eq!(tags(&named("x"), port), [(NameMatch::Alias, "v1".into())]);
    }

    #[test]
    fn nonsense_has_no_names() {
        for text in ["", "a b:c", "x:", ":y", "X:..", "repo@sha256:00", "../../etc:tag"] {
            assert_eq!(tags(&named("x"), &[(CONTAINERD_NAME, text)]), [], "{text}");
        }
    }
}
