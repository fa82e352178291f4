//! One image of a command: its two ends, whatever they are.

use std::fmt;

use crate::copy::{Engine, Options, Report};
use crate::error::Result;
use crate::reference::{DOCKER_HUB, Goal, Location, Reference, Repository, Target};
use crate::registry::Registries;

/// An image to be copied.
pub(super) struct Image<'a> {
    source: &'a Location,
    goal: &'a Goal,
    strip_library: bool,
}

/// One end of a copy, found from how the user named it.
pub(super) struct End;

impl End {
    /// The tag of a reference's repository, as a source.
    pub(super) fn tag(reference: &Reference, tag: String) -> Location {
        Location::Registry(reference.repository.at(Target::Tag(tag)), None)
    }
}

impl<'a> Image<'a> {
    pub(super) fn new(source: &'a Location, goal: &'a Goal, strip_library: bool) -> Self {
        Self { source, goal, strip_library }
    }

    pub(super) fn source(&self) -> String {
        self.source.to_string()
    }

    pub(super) fn destination(&self) -> String {
        let (repository, target) = self.at();
        match self.goal {
            Goal::Layout(directory, _) => format!("oci:{}:{target}", directory.display()),
            _ => repository.at(target).to_string(),
        }
    }

    /// Copies it.
    pub(super) async fn copy(&self, registries: &Registries, engine: &Engine, options: &Options) -> Result<Report> {
        let (repository, at) = self.at();
        match (self.source, self.goal) {
            (Location::Registry(reference, _), Goal::Below { .. } | Goal::Repository { .. }) => {
                let source = registries.repository(&reference.repository)?;
                let destination = registries.repository(&repository)?;
                engine.copy(&source, &reference.target, &destination, &at, options).await
            }
            _ => todo!(),
        }
    }

    /// Where it goes: the repository (of the source, for a directory) and the tag or digest.
    fn at(&self) -> (Repository, Target) {
        let (from, target) = match self.source {
            Location::Registry(reference, beside) => {
                let target = match beside {
                    // `r:tag@sha256:…`: the digest says what, the tag where to.
                    Some(tag) => Target::Tag(tag.clone()),
                    None => reference.target.clone(),
                };
                (reference.repository.clone(), target)
            }
            Location::Layout(directory, tag) => {
                let name = directory
                    .file_name()
                    .map(|name| name.to_string_lossy().to_ascii_lowercase())
                    .unwrap_or_else(|| "image".into());
                let tag = tag.clone().unwrap_or_else(|| "latest".into());
                (Repository { registry: DOCKER_HUB.into(), name }, Target::Tag(tag))
            }
        };
        let asked = match self.goal {
            Goal::Repository { tag, .. } | Goal::Layout(_, tag) => tag.clone().map(Target::Tag),
            Goal::Below { .. } => None,
        };
        (self.goal.repository(&from, self.strip_library).unwrap_or(from), asked.unwrap_or(target))
    }
}

impl fmt::Display for Image<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.source(), self.destination())
    }
}
