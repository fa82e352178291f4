//! One image of a run, and the difference of its tag at source and destination.

use crate::descriptor::{Digest, Platform};
use crate::reference::{Repository, Target};

/// One image of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The line of its entry in the list, from 1.
    pub line: usize,
    /// The repository to read.
    pub source: Repository,
    /// The tag to read, or the digest that it is pinned to.
    pub read: Target,
    /// The repository to write.
    pub destination: Repository,
    /// The tag or digest to write.
    pub at: Target,
    /// Copy only these platforms; all if empty.
    pub platforms: Vec<Platform>,
    /// Copy referrers too.
    pub referrers: bool,
    /// The text that should be the tag, if it is not a valid tag. Such a job is only reported.
    pub no_tag: Option<String>,
}

/// The difference between the tags of source and destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// The same image.
    None,
    /// The destination has no such tag.
    Missing(Digest),
    /// Different images.
    Differs {
        /// The digest at the source.
        here: Digest,
        /// The digest at the destination.
        there: Digest,
    },
}

impl Job {
    /// The source as a reference.
    pub fn from(&self) -> String {
        self.source.at(self.read.clone()).to_string()
    }

    /// The destination as a reference.
    pub fn to(&self) -> String {
        match &self.no_tag {
            Some(text) => format!("{}:{}", self.destination, text.escape_debug()),
            None => self.destination.at(self.at.clone()).to_string(),
        }
    }
}
