//! Reads the tags of a repository and their contents, at any registry.

use std::collections::BTreeSet;

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, TryStreamExt as _};
use jiff::Timestamp;
use serde::Deserialize;

use crate::content::Source;
use crate::descriptor::Digest;
use crate::error::{Kind, Result};
use crate::manifest::{MAX_DEPTH, Manifest};
use crate::reference::{RejectedTags, Tag, Target};

/// All tags of a repository; none if it does not exist.
///
/// # Errors
/// If the list may be incomplete: a missing tag would look like one that needs no manifest. Also for names that are
/// not tags, since their manifests are unknown.
pub async fn all_tags<S: Source>(source: &S) -> Result<Vec<Tag>> {
    let (mut all, mut pages, mut begun) = (BTreeSet::new(), source.tags(), false);
    let mut rejected = RejectedTags::default();
    loop {
        match pages.try_next().await {
            Ok(Some(page)) => {
                rejected.add(page.malformed);
                if let Some(error) = rejected.error(&"the repository") {
                    return Err(error.hint_instead("nothing is removed where the list of tags is not certain"));
                }
                all.extend(page.tags);
            }
            Ok(None) => return Ok(all.into_iter().collect()),
            Err(error) if error.kind() == Kind::NotFound && !begun => return Ok(Vec::new()),
            Err(error) => return Err(error),
        }
        begun = true;
    }
}

/// The digest of a manifest and of all manifests below it. Empty if it does not exist.
///
/// # Errors
/// Also if a child is missing, unless it is one that a sparse index never had.
pub async fn digests_of<S: Source>(source: &S, target: &Target) -> Result<Vec<Digest>> {
    match source.manifest(target).await {
        Ok(root) => {
            let mut digests = Vec::new();
            collect_digests(source, root, &mut digests, 0).await?;
            Ok(digests)
        }
        Err(error) if error.kind() == Kind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

fn collect_digests<'a, S: Source>(
    source: &'a S,
    manifest: Manifest,
    digests: &'a mut Vec<Digest>,
    depth: usize,
) -> BoxFuture<'a, Result<()>> {
    async move {
        digests.push(manifest.digest());
        for child in &manifest.contents().manifests {
            // An index names its images. Only an index inside it must be read.
            if !child.media_type.is_index() || depth >= MAX_DEPTH {
                digests.push(child.digest);
                continue;
            }
            match source.manifest(&Target::Digest(child.digest)).await {
                Ok(inner) => collect_digests(source, inner, digests, depth + 1).await?,
                // With --platform the destination has only some of the children.
                Err(error) if error.kind() == Kind::NotFound => digests.push(child.digest),
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
    .boxed()
}

/// When the image of a tag was made, by its config; for an index, the time of its youngest image. `None` if the
/// config has no time, or if it is not an image.
///
/// # Errors
/// Those of reading it.
pub async fn creation_time<S: Source>(source: &S, tag: &Tag) -> Result<Option<Timestamp>> {
    let mut wanted = vec![Target::Tag(tag.clone())];
    let (mut youngest, mut read) = (None, 0);
    while let Some(target) = wanted.pop() {
        read += 1;
        if read > MAX_PLATFORMS {
            return Ok(None);
        }
        let manifest = match source.manifest(&target).await {
            Ok(manifest) => manifest,
            Err(error) if error.kind() == Kind::NotFound => continue,
            Err(error) => return Err(error),
        };
        if manifest.is_index() {
            // Attestations have configs without a time.
            let children = manifest.contents().manifests.iter().filter(|child| !is_attestation(child));
            wanted.extend(children.map(|child| Target::Digest(child.digest)));
        } else {
            youngest = youngest.max(config_creation_time(source, &manifest).await?);
        }
    }
    Ok(youngest)
}

fn is_attestation(child: &crate::descriptor::Descriptor) -> bool {
    child.annotations.contains_key("vnd.docker.reference.type")
}

async fn config_creation_time<S: Source>(source: &S, manifest: &Manifest) -> Result<Option<Timestamp>> {
    #[derive(Deserialize)]
    struct Config {
        created: Option<Timestamp>,
    }
    let Some(config) = manifest.contents().blobs.first().filter(|config| config.size <= MAX_CONFIG) else {
        return Ok(None);
    };
    let mut body = source.blob(config, 0).await?;
    let mut bytes = Vec::new();
    while let Some(chunk) = body.try_next().await? {
        if (bytes.len() + chunk.len()) as u64 > config.size {
            return Ok(None);
        }
        bytes.extend_from_slice(&chunk);
    }
    // A config with another digest is not the image's.
    if !config.digest.matches(&bytes) {
        return Ok(None);
    }
    Ok(serde_json::from_slice::<Config>(&bytes).ok().and_then(|config| config.created))
}

/// More platforms than any image has.
const MAX_PLATFORMS: usize = 64;
const MAX_CONFIG: u64 = 1 << 20;
