//! An image that is to be copied, and how its copy ended.

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::reference::{RegistryName, RepositoryName, Target};

/// One image to be copied.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Job {
    /// The upstream's name.
    pub upstream: String,
    /// The repository there.
    pub repository: String,
    /// The tag, or the digest.
    pub target: String,
}

impl Job {
    /// Its strings, in bytes.
    pub(super) fn size(&self) -> usize {
        self.upstream.len() + self.repository.len() + self.target.len()
    }

    pub(super) fn is_beside(&self, other: &Self) -> bool {
        (&self.upstream, &self.repository) == (&other.upstream, &other.repository)
    }

    /// Which manifest.
    ///
    /// # Errors
    /// If it is neither a tag nor a digest: the queue's file can be anything.
    pub fn target(&self) -> Result<Target> {
        // A tag has no colon.
        if self.target.contains(':') {
            self.target.parse().map(Target::Digest)
        } else {
            self.target.parse().map(Target::Tag)
        }
    }

    /// Whether its parts are what they should be. The queue's file can be anything; a job that can never be
    /// done would be tried for ever.
    pub(super) fn is_valid(&self) -> bool {
        let valid =
            self.target().and(self.repository.parse::<RepositoryName>()).and(self.upstream.parse::<RegistryName>());
        if let Err(error) = &valid {
            tracing::warn!("an entry of the write-back queue is dropped: {error}");
        }
        valid.is_ok()
    }
}

/// How a copy ended well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CopyOutcome {
    /// It was copied.
    Copied,
    /// The durable tier had it.
    Present,
}
