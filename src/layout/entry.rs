//! One entry of `index.json`: its descriptor and its known annotations. No I/O.

use std::sync::Arc;

use bytes::Bytes;

use crate::descriptor::{Descriptor, Digest};
use crate::reference::RepositoryName;

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) raw: Bytes,
    /// `None` if it cannot be parsed, for example because of an unknown hash algorithm.
    pub(super) known: Option<ParsedEntry>,
}

/// The parsed parts of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ParsedEntry {
    pub(super) media_type: Arc<str>,
    pub(super) digest: Digest,
    pub(super) annotations: Annotations,
    pub(super) has_artifact_type: bool,
}

/// The known annotations of an entry.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Annotations {
    pub(super) known: [Option<Box<str>>; KNOWN_ANNOTATIONS.len()],
    has_others: bool,
}

impl Annotations {
    /// The annotation `key`, one of [`KNOWN_ANNOTATIONS`].
    pub(super) fn get(&self, key: &str) -> Option<&str> {
        self.known[KNOWN_ANNOTATIONS.iter().position(|known| *known == key)?].as_deref()
    }

    /// Whether the entry has no annotation at all.
    pub(super) fn is_empty(&self) -> bool {
        !self.has_others && self.known.iter().all(Option::is_none)
    }

    /// Whether this is an entry without a name that was pushed to `repository`.
    pub(super) fn is_push_to(&self, repository: &RepositoryName) -> bool {
        let named = self.get(REF_NAME).is_some() || self.get(CONTAINERD_NAME).is_some();
        self.get(PUSHED_TO) == Some(repository.as_str()) && !named && !self.has_others
    }
}

/// The known annotations.
pub(super) const KNOWN_ANNOTATIONS: [&str; 4] = [REF_NAME, CONTAINERD_NAME, PUSHED_TO, INCOMPLETE];

impl From<&Descriptor> for ParsedEntry {
    fn from(entry: &Descriptor) -> Self {
        let known = KNOWN_ANNOTATIONS.map(|key| entry.annotations.get(key).map(|value| value.as_str().into()));
        let has_others = entry.annotations.keys().any(|key| !KNOWN_ANNOTATIONS.contains(&key.as_str()));
        Self {
            media_type: entry.media_type.0.as_str().into(),
            digest: entry.digest,
            annotations: Annotations { known, has_others },
            has_artifact_type: entry.artifact_type.is_some(),
        }
    }
}

impl From<&Descriptor> for Entry {
    fn from(entry: &Descriptor) -> Self {
        // Writing a descriptor to memory cannot fail.
        let raw = Bytes::from(serde_json::to_vec(entry).unwrap_or_default());
        Self { raw, known: Some(ParsedEntry::from(entry)) }
    }
}

/// The image spec's annotation for an entry's name (annotations.md).
pub(super) const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// The full name, as containerd, buildx and `docker save` write it.
pub(super) const CONTAINERD_NAME: &str = "io.containerd.image.name";

/// The repository of a served directory to which a manifest was pushed by digest. The spec has no annotation for it.
pub(super) const PUSHED_TO: &str = "io.transload.repository";

/// `true` for a manifest whose repository lacks some of its content: children of a sparse index, or layers that must not be
/// distributed. Other users may push that content to other repositories, and it must not become accessible here because a
/// manifest names it. The spec has no annotation for it.
pub(super) const INCOMPLETE: &str = "io.transload.partial";
