//! One image of a command: its two ends, whatever they are.

use std::path::PathBuf;

use crate::copy::{Engine, Options, Report};
use crate::error::{Result, Side};
use crate::layout::Layout;
use crate::reference::{
    DestinationLocation, RegistryName, Repository, RepositoryName, SourceLocation, Tag, Target, layout_splits,
};
use crate::registry::Registries;

/// A source that is settled: which manifest of what.
#[derive(Clone, Debug)]
pub(super) struct SourceImage {
    location: SourceLocation,
    /// Which manifest is read.
    target: Target,
    /// Under what it's written, unless the destination says otherwise.
    keep: Target,
}

impl SourceImage {
    /// Settles what the user named. A directory is looked at for its only image.
    pub(super) async fn resolve(location: SourceLocation) -> Result<Self> {
        let location = match location {
            SourceLocation::Layout(directory, name) => {
                let (directory, name) = existing(directory, name);
                SourceLocation::Layout(directory, name)
            }
            registry @ SourceLocation::Registry(..) => registry,
        };
        let (target, keep) = match &location {
            // `r:tag@sha256:…`: the digest says what, the tag where to.
            SourceLocation::Registry(reference, beside) => {
                let keep = beside.clone().map_or_else(|| reference.target.clone(), Target::Tag);
                (reference.target.clone(), keep)
            }
            SourceLocation::Layout(directory, name) => {
                let on_source = |error: crate::error::Error| error.on(Side::Source);
                let layout = Layout::open(directory).await.map_err(on_source)?;
                let target = layout.select_target(name.as_ref()).await.map_err(on_source)?;
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
    pub(super) fn location(&self) -> &SourceLocation {
        &self.location
    }

    /// Which manifest is read.
    pub(super) fn target(&self) -> &Target {
        &self.target
    }

    /// Another tag of the same repository.
    pub(super) fn with_tag(&self, tag: Tag) -> Self {
        let location = match &self.location {
            SourceLocation::Registry(reference, _) => {
                SourceLocation::Registry(reference.repository.at(Target::Tag(tag.clone())), None)
            }
            SourceLocation::Layout(directory, _) => {
                SourceLocation::Layout(directory.clone(), Some(Target::Tag(tag.clone())))
            }
        };
        Self { location, target: Target::Tag(tag.clone()), keep: Target::Tag(tag) }
    }

    /// The repository; for a directory, one by its name.
    fn repository(&self) -> Result<Repository> {
        match &self.location {
            SourceLocation::Registry(reference, _) => Ok(reference.repository.clone()),
            SourceLocation::Layout(directory, _) => {
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
pub(super) struct CopyRequest {
    from: SourceImage,
    to: ImageEnd,
    at: Target,
}

/// Where an image goes.
#[derive(Clone, Debug)]
enum ImageEnd {
    Repository(Repository),
    Directory(PathBuf),
}

impl CopyRequest {
    /// An image of `from` for `goal`.
    ///
    /// # Errors
    /// [`Kind::Usage`](crate::error::Kind::Usage) if the destination cannot have the name that results.
    pub(super) fn new(from: SourceImage, goal: DestinationLocation, strip_library: bool) -> Result<Self> {
        let goal = match goal {
            DestinationLocation::Layout(directory, name) => {
                let (directory, name) = existing(directory, name);
                DestinationLocation::Layout(directory, name)
            }
            other => other,
        };
        let asked = match &goal {
            DestinationLocation::Repository { tag, .. } => tag.clone().map(Target::Tag),
            DestinationLocation::Layout(_, name) => name.clone(),
            DestinationLocation::Below { .. } => None,
        };
        let at = asked.unwrap_or_else(|| from.keep.clone());
        let to = match goal {
            DestinationLocation::Layout(directory, _) => ImageEnd::Directory(directory),
            DestinationLocation::Repository { repository, .. } => ImageEnd::Repository(repository),
            DestinationLocation::Below { registry, prefix } => {
                ImageEnd::Repository(from.repository()?.below(registry, &prefix, strip_library)?)
            }
        };
        if let ImageEnd::Repository(_) = to {
            at.in_registry()?;
        }
        Ok(Self { from, to, at })
    }

    pub(super) fn source(&self) -> String {
        self.from.location.to_string()
    }

    pub(super) fn destination(&self) -> String {
        match &self.to {
            ImageEnd::Directory(directory) => format!("oci:{}:{}", directory.display(), self.at),
            ImageEnd::Repository(repository) => repository.at(self.at.clone()).to_string(),
        }
    }

    /// Copies it.
    pub(super) async fn copy(&self, registries: &Registries, engine: &Engine, options: &Options) -> Result<Report> {
        match (&self.from.location, &self.to) {
            (SourceLocation::Registry(reference, _), ImageEnd::Directory(directory)) => {
                let source = registries.repository(&reference.repository)?;
                self.copy_between(engine, &source, &create(directory, options).await?, options).await
            }
            (SourceLocation::Registry(reference, _), ImageEnd::Repository(to)) => {
                let source = registries.repository(&reference.repository)?;
                self.copy_between(engine, &source, &registries.repository(to)?, options).await
            }
            (SourceLocation::Layout(from, _), ImageEnd::Directory(directory)) => {
                self.copy_between(engine, &open(from).await?, &create(directory, options).await?, options).await
            }
            (SourceLocation::Layout(from, _), ImageEnd::Repository(to)) => {
                self.copy_between(engine, &open(from).await?, &registries.repository(to)?, options).await
            }
        }
    }

    async fn copy_between<S: crate::content::Source, D: crate::content::Destination>(
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
