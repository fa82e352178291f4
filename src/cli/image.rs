//! One image of a command: its two ends, whatever they are.

use std::path::PathBuf;

use crate::copy::{Engine, Options, Report};
use crate::error::{Result, Side};
use crate::layout::Layout;
use crate::reference::{Goal, Location, RegistryName, Repository, RepositoryName, Tag, Target, layout_splits};
use crate::registry::Registries;

/// A source that is settled: which manifest of what.
#[derive(Clone, Debug)]
pub(super) struct From {
    location: Location,
    /// Which manifest is read.
    target: Target,
    /// Under what it's written, unless the destination says otherwise.
    keep: Target,
}

impl From {
    /// Settles what the user named. A directory is looked at for its only image.
    pub(super) async fn settle(location: Location) -> Result<Self> {
        let location = match location {
            Location::Layout(directory, name) => {
                let (directory, name) = existing(directory, name);
                Location::Layout(directory, name)
            }
            registry @ Location::Registry(..) => registry,
        };
        let (target, keep) = match &location {
            // `r:tag@sha256:…`: the digest says what, the tag where to.
            Location::Registry(reference, beside) => {
                let keep = beside.clone().map_or_else(|| reference.target.clone(), Target::Tag);
                (reference.target.clone(), keep)
            }
            Location::Layout(directory, name) => {
                let on_source = |error: crate::error::Error| error.on(Side::Source);
                let layout = Layout::open(directory).await.map_err(on_source)?;
                let target = layout.choose(name.as_ref()).await.map_err(on_source)?;
                let keep = match &target {
                    Target::Digest(_) => Target::Tag(Tag::latest()),
                    named => named.clone(),
                };
                (target, keep)
            }
        };
        Ok(Self { location, target, keep })
    }

    /// Where it is.
    pub(super) fn location(&self) -> &Location {
        &self.location
    }

    /// Which manifest is read.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Another tag of the same repository.
    pub(super) fn with_tag(&self, tag: Tag) -> Self {
        let location = match &self.location {
            Location::Registry(reference, _) => {
                Location::Registry(reference.repository.at(Target::Tag(tag.clone())), None)
            }
            Location::Layout(directory, _) => Location::Layout(directory.clone(), Some(Target::Tag(tag.clone()))),
        };
        Self { location, target: Target::Tag(tag.clone()), keep: Target::Tag(tag) }
    }

    /// The repository; for a directory, one by its name.
    fn repository(&self) -> Result<Repository> {
        match &self.location {
            Location::Registry(reference, _) => Ok(reference.repository.clone()),
            Location::Layout(directory, _) => {
                let name = directory.file_name().map(|name| name.to_string_lossy().to_ascii_lowercase());
                let name = name.as_deref().unwrap_or("image").parse::<RepositoryName>();
                let name = name.map_err(|error| {
                    error.hint_instead("name the destination's repository, such as myregistry.azurecr.io/name:tag")
                })?;
                Ok(Repository { registry: RegistryName::docker_hub(), name })
            }
        }
    }
}

/// An image to be copied.
#[derive(Clone, Debug)]
pub(super) struct Image {
    from: From,
    to: End,
    at: Target,
}

/// Where an image goes.
#[derive(Clone, Debug)]
enum End {
    Repository(Repository),
    Directory(PathBuf),
}

impl Image {
    /// An image of `from` for `goal`.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage) if the destination cannot have the name that results.
    pub(super) fn new(from: From, goal: Goal, strip_library: bool) -> Result<Self> {
        let goal = match goal {
            Goal::Layout(directory, name) => {
                let (directory, name) = existing(directory, name);
                Goal::Layout(directory, name)
            }
            other => other,
        };
        let asked = match &goal {
            Goal::Repository { tag, .. } => tag.clone().map(Target::Tag),
            Goal::Layout(_, name) => name.clone(),
            Goal::Below { .. } => None,
        };
        let at = asked.unwrap_or_else(|| from.keep.clone());
        let to = match goal {
            Goal::Layout(directory, _) => End::Directory(directory),
            Goal::Repository { repository, .. } => End::Repository(repository),
            Goal::Below { registry, prefix } => {
                End::Repository(from.repository()?.below(registry, &prefix, strip_library)?)
            }
        };
        if let End::Repository(_) = to {
            at.in_registry()?;
        }
        Ok(Self { from, to, at })
    }

    pub(super) fn source(&self) -> String {
        self.from.location.to_string()
    }

    pub(super) fn destination(&self) -> String {
        match &self.to {
            End::Directory(directory) => format!("oci:{}:{}", directory.display(), self.at),
            End::Repository(repository) => repository.at(self.at.clone()).to_string(),
        }
    }

    /// Copies it.
    pub(super) async fn copy(&self, registries: &Registries, engine: &Engine, options: &Options) -> Result<Report> {
        match (&self.from.location, &self.to) {
            (Location::Registry(reference, _), End::Directory(directory)) => {
                let source = registries.repository(&reference.repository)?;
                self.between(engine, &source, &create(directory, options).await?, options).await
            }
            (Location::Registry(reference, _), End::Repository(to)) => {
                let source = registries.repository(&reference.repository)?;
                self.between(engine, &source, &registries.repository(to)?, options).await
            }
            (Location::Layout(from, _), End::Directory(directory)) => {
                self.between(engine, &open(from).await?, &create(directory, options).await?, options).await
            }
            (Location::Layout(from, _), End::Repository(to)) => {
                self.between(engine, &open(from).await?, &registries.repository(to)?, options).await
            }
        }
    }

    async fn between<S: crate::content::Source, D: crate::content::Destination>(
        &self,
        engine: &Engine,
        source: &S,
        destination: &D,
        options: &Options,
    ) -> Result<Report> {
        let copied = engine.copy(source, &self.from.target, destination, &self.at, options).await;
        copied.map_err(|error| error.doing(format!("copy {}", self.source())))
    }
}

/// The layout directory that is meant, and the name of the image in it: the longest path that is one. If none is, what
/// was read from the text.
fn existing(directory: PathBuf, name: Option<Target>) -> (PathBuf, Option<Target>) {
    let is_layout =
        |directory: &PathBuf| directory.join("index.json").exists() || directory.join("oci-layout").exists();
    let found = layout_splits(&directory, name.as_ref()).into_iter().find(|(directory, _)| is_layout(directory));
    found.unwrap_or((directory, name))
}

async fn open(directory: &std::path::Path) -> Result<Layout> {
    Layout::open(directory).await.map_err(|error| error.on(Side::Source))
}

async fn create(directory: &std::path::Path, options: &Options) -> Result<Layout> {
    let made = if options.dry_run { Layout::planned(directory).await } else { Layout::create(directory).await };
    made.map_err(|error| error.on(Side::Destination))
}
