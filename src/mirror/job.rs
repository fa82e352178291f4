//! One image of a run, and how its two tags compare.

use crate::descriptor::{Digest, Platform};
use crate::reference::{Repository, Target};

/// One image of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The line of the list that asks for it, from 1.
    pub line: usize,
    /// Where it's read.
    pub source: Repository,
    /// What is read: the tag, or the digest that it's pinned to.
    pub read: Target,
    /// Where it's written.
    pub destination: Repository,
    /// Under what.
    pub at: Target,
    /// Only these platforms.
    pub platforms: Vec<Platform>,
    /// With its referrers.
    pub referrers: bool,
    /// What should be the tag there and is none: such a job is only reported.
    pub no_tag: Option<String>,
}

/// How a destination's tag stands to its source's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// It's the same.
    None,
    /// The destination hasn't it.
    Missing(Digest),
    /// It's another image.
    Differs {
        /// At the source.
        here: Digest,
        /// At the destination.
        there: Digest,
    },
}

impl Job {
    /// The source as users write it.
    pub fn from(&self) -> String {
        self.source.at(self.read.clone()).to_string()
    }

    /// The destination as users write it.
    pub fn to(&self) -> String {
        match &self.no_tag {
            Some(text) => format!("{}:{}", self.destination, text.escape_debug()),
            None => self.destination.at(self.at.clone()).to_string(),
        }
    }
}
