//! What a copy begins with: what the tag is at both ends, and the manifest that it names.

use futures_util::future;

use super::{Engine, Mode, Options, graph};
use crate::content::{Destination, Source};
use crate::descriptor::Descriptor;
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::Manifest;
use crate::reference::Target;

/// What a copy begins with.
pub(super) enum ResolvedRoot {
    /// The destination has it.
    Same(Box<Descriptor>),
    /// As it was read from that side. What the destination holds may lack children that are wanted.
    Read(Manifest, Side),
}

impl Engine {
    /// Finds out what to copy, or that there's nothing to do.
    pub(super) async fn resolve_root<S: Source, D: Destination>(
        &self,
        source: &S,
        target: &Target,
        destination: &D,
        at: &Target,
        options: &Options,
    ) -> Result<(ResolvedRoot, usize)> {
        if options.flatten {
            return self.resolve_flattened(source, target, destination, at, options).await;
        }
        if !options.force {
            let (here, there) = self.resolve_both(source, target, destination, at).await?;
            let Some(here) = here else { return read_root(source, target).await };
            if there.is_some_and(|there| there.digest == here.digest) {
                // A list's single image was found to be for a wanted platform when it was copied.
                if options.platforms.is_empty() || (self.mode == Mode::List && here.media_type.is_manifest()) {
                    return Ok((ResolvedRoot::Same(Box::new(here)), 0));
                }
                let stored =
                    destination.existing_manifest(&here.digest).await.map_err(|error| error.on(Side::Destination))?;
                return Ok((ResolvedRoot::Read(stored, Side::Destination), 0));
            }
            // By digest from here on: a tag that moves meanwhile is copied as it was, or fails.
            let root = read_root(source, &Target::Digest(here.digest)).await;
            if !root.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
                return root;
            }
        }
        read_root(source, target).await
    }

    /// The one image of an index. The index has to be read to know which.
    async fn resolve_flattened<S: Source, D: Destination>(
        &self,
        source: &S,
        target: &Target,
        destination: &D,
        at: &Target,
        options: &Options,
    ) -> Result<(ResolvedRoot, usize)> {
        let root = manifest(source, target).await?;
        let child = graph::only_child(source, &root, &options.platforms).await?;
        if !options.force {
            let there = destination.resolve_existing(at).await.map_err(|error| error.on(Side::Destination))?;
            if there.is_some_and(|there| there.digest == child.digest) {
                return Ok((ResolvedRoot::Same(Box::new(child)), 1));
            }
        }
        if !root.is_index() {
            return Ok((ResolvedRoot::Read(root, Side::Source), 1));
        }
        let child = source.manifest(&Target::Digest(child.digest)).await.map_err(|error| error.on(Side::Source))?;
        Ok((ResolvedRoot::Read(child, Side::Source), 2))
    }

    /// What the tag is at both ends. Of the source `None` only if it wasn't asked.
    async fn resolve_both<S: Source, D: Destination>(
        &self,
        source: &S,
        target: &Target,
        destination: &D,
        at: &Target,
    ) -> Result<(Option<Descriptor>, Option<Descriptor>)> {
        let here = async {
            let found = source.resolve(target).await.map_err(|error| error.on(Side::Source))?;
            found.ok_or_else(|| root_not_found(target))
        };
        let there = async { destination.resolve_existing(at).await.map_err(|error| error.on(Side::Destination)) };
        if self.mode == Mode::SingleImage {
            let (here, there) = future::try_join(here, there).await?;
            return Ok((Some(here), there));
        }
        // Of a repository that had no image, no tag is asked for: this run writes each once.
        let there = if destination.is_known_new() { None } else { there.await? };
        let here = match &there {
            None => None,
            // Pinned, and there.
            Some(found) if target.digest() == Some(found.digest) => there.clone(),
            Some(_) => Some(here.await?),
        };
        Ok((here, there))
    }
}

async fn read_root<S: Source>(source: &S, target: &Target) -> Result<(ResolvedRoot, usize)> {
    Ok((ResolvedRoot::Read(manifest(source, target).await?, Side::Source), 1))
}

async fn manifest<S: Source>(source: &S, target: &Target) -> Result<Manifest> {
    source.manifest(target).await.map_err(|error| match error.kind() {
        Kind::NotFound => root_not_found(target),
        _ => error.on(Side::Source),
    })
}

fn root_not_found(target: &Target) -> Error {
    let what = match target {
        Target::Tag(tag) => format!("there is no tag {tag:?}"),
        Target::Name(name) => format!("there is no image {name:?}"),
        Target::Digest(digest) => format!("there is no manifest {digest}"),
    };
    Error::new(Kind::NotFound, what)
        .on(Side::Source)
        .hint("check the name and the tag; transload tags REPOSITORY lists what there is")
}
