//! An image that is to be copied, and how its copy ended.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::reference::{RegistryName, RepositoryName, Target};

/// An image to copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub(crate) struct Job {
    /// The upstream's name.
    pub(crate) upstream: String,
    pub(crate) repository: String,
    /// The tag, or the digest.
    pub(crate) target: String,
}

impl Job {
    /// The length of its strings in bytes.
    pub(super) fn size(&self) -> usize {
        self.upstream.len() + self.repository.len() + self.target.len()
    }

    pub(super) fn has_same_repository(&self, other: &Self) -> bool {
        (&self.upstream, &self.repository) == (&other.upstream, &other.repository)
    }

    /// The manifest to copy.
    ///
    /// # Errors
    /// If `target` is neither a tag nor a digest: the queue's file may contain anything.
    pub(crate) fn target(&self) -> Result<Target> {
        // A tag has no colon.
        if self.target.contains(':') {
            self.target.parse().map(Target::Digest)
        } else {
            self.target.parse().map(Target::Tag)
        }
    }

    /// Whether its parts are valid. The queue's file may contain anything, and an invalid job would be tried for ever.
    pub(super) fn is_valid(&self) -> bool {
        let valid =
            self.target().and(self.repository.parse::<RepositoryName>()).and(self.upstream.parse::<RegistryName>());
        if let Err(error) = &valid {
            tracing::warn!("removed an entry of the write-back queue: {error}");
        }
        valid.is_ok()
    }
}

/// The result of a successful copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CopyOutcome {
    /// The image was copied.
    Copied,
    /// The first tier had the image.
    Present,
}
