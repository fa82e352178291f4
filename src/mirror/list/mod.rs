//! What a list of images says, whatever form it was written in. No I/O.
//!
//! ```text
//! text ── read ──> which form? ── lines | own | skopeo | regsync | image_syncer | dregsy ──> List
//!                      │                                                                      │
//!                  node (YAML and JSON, each value with its line)      select: which tags   place: where to
//! ```
//!
//! A list of another tool is taken as it is: what it says that changes nothing about which images are
//! copied (credentials, schedules, hooks) becomes a [`Note`]; what would, and can't be done, is an error.

mod claims;
mod destination;
mod dialect;
mod dregsy;
mod error;
mod image_syncer;
mod latest;
mod lines;
mod malformed;
mod native;
mod node;
mod pattern;
mod range;
mod read;
mod reader;
mod regsync;
mod skopeo;
mod tag_filter;
mod template;
mod text;
mod version;

use std::collections::BTreeSet;

pub use claims::Claims;
pub(in crate::mirror) use destination::RenderedDestination;
pub use destination::{DestinationBase, ImageDestination, Template};
pub use dialect::Dialect;
pub use latest::Latest;
pub use pattern::Pattern;
pub use reader::{Defaults, Environment};
pub use tag_filter::{TagChooser, TagFilter, TagSet, Versions};

use crate::descriptor::{Digest, Platform};
use crate::reference::{RegistryName, Repository, Tag};

/// A list, read and checked.
#[derive(Clone, Debug)]
pub struct List {
    /// How it is written.
    pub form: ListFormat,
    /// In the order of the file.
    pub entries: Vec<Entry>,
    /// Destinations that the list names for all its entries without their own; those of the command
    /// line stand instead of them.
    pub to: Vec<DestinationBase>,
    /// What the file says and transload doesn't do, or does otherwise. By line.
    pub notes: Vec<Note>,
}

/// How a list is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListFormat {
    /// One reference a line, or two.
    Lines,
    /// transload's YAML or JSON.
    Native,
    /// `skopeo sync --src yaml`.
    Skopeo,
    /// regclient's regsync.
    Regsync,
    /// image-syncer's images, or its older file of everything.
    ImageSyncer,
    /// dregsy's tasks.
    Dregsy,
}

/// Something to be mirrored: images of one repository.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The line of the file it begins at, from 1.
    pub line: usize,
    /// Where it is.
    pub source: Repository,
    /// Which images of it.
    pub pick: ImageSelection,
    /// Where it goes; [`Entry::places`] says where that is.
    pub target: DestinationRule,
    /// Docker Hub's official images lose their `library/` at the destination.
    pub strip_library: bool,
    /// Only these platforms; all if empty.
    pub platforms: Vec<Platform>,
    /// With signatures, attestations and other referrers.
    pub referrers: bool,
}

/// Which images of a repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageSelection {
    /// These, by name.
    pub exact: BTreeSet<SelectedImage>,
    /// And those tags that fit; needs the list of tags.
    pub select: Option<TagFilter>,
}

/// An image by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SelectedImage {
    /// Its tag here and at the destination; an image without is written by its digest.
    pub tag: Option<Tag>,
    /// What the tag must be: pinned.
    pub digest: Option<Digest>,
}

/// Where an entry goes.
#[derive(Clone, Debug, PartialEq)]
pub enum DestinationRule {
    /// To the run's destinations, under the path that the template makes.
    Below(Template),
    /// To these registries, whatever the run's destinations are: each a registry and a path in it.
    Fixed(Vec<(RegistryName, Template)>),
}

/// A remark about a line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is remarked.
    pub text: String,
}

impl ListFormat {
    /// What it is called.
    pub fn name(self) -> &'static str {
        match self {
            Self::Lines => "lines",
            Self::Native => "transload",
            Self::Skopeo => "skopeo sync",
            Self::Regsync => "regsync",
            Self::ImageSyncer => "image-syncer",
            Self::Dregsy => "dregsy",
        }
    }
}

impl SelectedImage {
    fn latest() -> Self {
        Self { tag: Some(Tag::latest()), digest: None }
    }
}

impl std::fmt::Display for SelectedImage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.tag.as_deref().unwrap_or_default())?;
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod foreign_tests;
#[cfg(test)]
mod tests;
