//! Lists of images, in any of the known formats. No I/O.
//!
//! ```text
//! text ── read ──> format? ── lines | native | skopeo | regsync | image_syncer | dregsy ──> List
//!                     │                                                                      │
//!                 node (YAML and JSON, each value with its line)    tag_filter: tags   destination: targets
//! ```
//!
//! A setting of another tool that does not change which images are copied (credentials, schedules, hooks) becomes a
//! [`Note`]. A setting that would change it, and is not supported, is an error.

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

/// A list that was read and checked.
#[derive(Clone, Debug)]
pub struct List {
    /// The format of the file.
    pub form: ListFormat,
    /// In the order of the file.
    pub entries: Vec<Entry>,
    /// Destinations of all entries without their own. Those of the command line replace them.
    pub to: Vec<DestinationBase>,
    /// Settings in the file that are ignored or have another effect, in the order of their lines.
    pub notes: Vec<Note>,
}

/// The format of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListFormat {
    /// One or two references in each line.
    Lines,
    /// transload's own YAML or JSON.
    Native,
    /// `skopeo sync --src yaml`.
    Skopeo,
    /// regclient's regsync.
    Regsync,
    /// image-syncer's images, or its older file, which has all settings.
    ImageSyncer,
    /// dregsy's tasks.
    Dregsy,
}

/// Images of one repository that are to be mirrored.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The first line of the entry, from 1.
    pub line: usize,
    /// The source repository.
    pub source: Repository,
    /// The images of the repository.
    pub pick: ImageSelection,
    /// The target; [`Entry::places`] resolves it.
    pub target: DestinationRule,
    /// Docker Hub's official images lose their `library/` at the destination.
    pub strip_library: bool,
    /// Copy only these platforms; all if empty.
    pub platforms: Vec<Platform>,
    /// Copy signatures, attestations and other referrers too.
    pub referrers: bool,
}

/// A selection of images of a repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ImageSelection {
    /// Images by name.
    pub exact: BTreeSet<SelectedImage>,
    /// Further tags, by a filter. It needs the list of tags.
    pub select: Option<TagFilter>,
}

/// An image by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SelectedImage {
    /// The tag at source and destination. An image without a tag is written by its digest.
    pub tag: Option<Tag>,
    /// The digest that the tag must have: the image is pinned.
    pub digest: Option<Digest>,
}

/// The target of an entry.
#[derive(Clone, Debug, PartialEq)]
pub enum DestinationRule {
    /// The run's destinations, with the path that the template makes.
    Below(Template),
    /// These registries, each with a path. The run's destinations do not matter.
    Fixed(Vec<(RegistryName, Template)>),
}

/// A note about a line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// The text.
    pub text: String,
}

impl ListFormat {
    /// The name that users see.
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
