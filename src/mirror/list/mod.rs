//! What a list of images says, whatever form it was written in. No I/O.

use std::collections::BTreeSet;

use crate::descriptor::{Digest, Platform};
use crate::reference::Repository;

/// A list, read and checked.
#[derive(Clone, Debug, Default)]
pub struct List {
    /// In the order of the file.
    pub entries: Vec<Entry>,
    /// Destinations that the list names for all its entries without their own; those of the command
    /// line stand instead of them.
    pub to: Vec<Base>,
    /// What the file says and transload doesn't do, or does otherwise.
    pub notes: Vec<Note>,
}

/// Something to be mirrored: images of one repository.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The line of the file it begins at, from 1.
    pub line: usize,
    /// Where it is.
    pub source: Repository,
    /// Which images of it.
    pub pick: Pick,
    /// Where it goes.
    pub target: Aim,
    /// Only these platforms; all if empty.
    pub platforms: Vec<Platform>,
    /// With signatures, attestations and other referrers.
    pub referrers: bool,
}

/// Which images of a repository.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pick {
    /// These, by name.
    pub exact: BTreeSet<Exact>,
    /// And those tags that fit; needs the list of tags.
    pub select: Option<Select>,
}

/// An image by its name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Exact {
    /// Its tag here and at the destination; an image without is written by its digest.
    pub tag: Option<String>,
    /// What the tag must be: pinned.
    pub digest: Option<Digest>,
}

/// Which tags, by what they look like.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Select {
    // Filled by the selection's author.
}

/// Where an entry goes.
#[derive(Clone, Debug, PartialEq)]
pub enum Aim {
    /// To the run's destinations, under the path that the template makes (`{repository}` if none is given).
    Below(Option<String>),
    /// To these repositories, whatever the run's destinations are; with another tag where one is given.
    Fixed(Vec<(Repository, Option<String>)>),
}

/// A destination of a run: a registry, and a path in it that stands before all repositories.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Base {
    /// The registry.
    pub registry: String,
    /// The path, without a slash at its ends; may be empty.
    pub prefix: String,
}

/// A remark about a line of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The line, from 1; 0 for the file as a whole.
    pub line: usize,
    /// What is remarked.
    pub text: String,
}
