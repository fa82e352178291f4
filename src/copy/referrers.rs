//! Signatures, attestations, SBOMs: what names an image as its subject, and cosign's tags.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use super::graph::Graph;
use super::places::SMALL_FOR_LARGE;
use super::{Engine, Options, Plan, Report};
use crate::content::{Destination, Source};
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::{MAX_DEPTH, Manifest};
use crate::reference::Target;

impl Engine {
    /// Copies the referrers of all manifests of `image`, theirs in turn, and the tags that cosign
    /// derives from a digest. Returns how many there are.
    pub(super) async fn referrers<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        image: &Graph,
        options: &Options,
        report: &mut Report,
    ) -> Result<usize> {
        let mut count = 0;
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut level = subjects(source, image).await?;
        while !level.is_empty() {
            level.retain(|subject| seen.insert(*subject));
            if seen.len() > MAX_SUBJECTS {
                return Err(Error::new(Kind::Invalid, format!("more than {MAX_SUBJECTS} referrers of referrers"))
                    .on(Side::Source));
            }
            let found: Vec<Vec<Referrer>> = stream::iter(std::mem::take(&mut level))
                .map(|subject| look_for(source, destination, subject))
                .buffered(self.jobs * SMALL_FOR_LARGE)
                .try_collect()
                .await?;
            for referrer in found.into_iter().flatten() {
                count += 1;
                level.push(referrer.digest);
                self.referrer(source, destination, &referrer, options, report).await?;
            }
        }
        Ok(count)
    }

    /// Copies one artifact whole, unless it's there and listed where it has to be.
    async fn referrer<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        referrer: &Referrer,
        options: &Options,
        report: &mut Report,
    ) -> Result<()> {
        let Referrer { target, digest, listed } = referrer;
        let there = destination.find(target).await.map_err(|error| error.on(Side::Destination))?;
        if !options.force && *listed && there.is_some_and(|there| there.digest == *digest) {
            return Ok(());
        }
        let root = source.manifest(target).await.map_err(|error| error.on(Side::Source))?;
        let whole = Options { platforms: Vec::new(), flatten: false, ..options.clone() };
        let graph = Graph::walk(source, destination, root, &whole, self.jobs, self.knows()).await?;
        let plan = Plan::new(&graph, &whole)?;
        report.manifests += graph.manifests.len();
        report.pulls += graph.manifests.len();
        if options.dry_run {
            return self.look(source, destination, &plan, report).await;
        }
        self.observer.planned(plan.blobs.len(), plan.bytes());
        self.blobs(source, destination, &plan, report).await?;
        self.manifests(destination, &plan, target).await
    }

    /// Adds `referrer` to the tag schema's index of `subject`, at a destination without the
    /// referrers API (distribution spec, "Pushing Manifests with Subject").
    ///
    /// Read, change, write: two clients at once may lose one entry, which the next copy mends.
    /// Within this run one does it at a time.
    pub(super) async fn list_referrer<D: Destination>(
        &self,
        destination: &D,
        subject: &Descriptor,
        referrer: &Manifest,
    ) -> Result<()> {
        let alone = self.directory.holders(&format!("referrers of {}", destination.repository()), subject.digest);
        let _alone = alone.lock().await;
        let mut listed =
            destination.listed_referrers(&subject.digest).await.map_err(|error| error.on(Side::Destination))?;
        if listed.iter().any(|known| known.digest == referrer.digest()) {
            return Ok(());
        }
        let mut entry = referrer.descriptor().clone();
        entry.artifact_type = referrer.contents().artifact_type.clone();
        entry.annotations = referrer.contents().annotations.clone();
        listed.push(entry);
        let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": listed });
        let index = Manifest::read(Bytes::from(index.to_string()), None, None)?;
        let tag = Target::Tag(subject.digest.referrers_tag());
        destination.put_manifest(&index, &tag).await.map(drop).map_err(|error| error.on(Side::Destination))
    }
}

/// One referrer of a subject.
struct Referrer {
    target: Target,
    digest: Digest,
    /// Whether the destination lists it already, or needn't.
    listed: bool,
}

/// All manifests of an image; of what was there already too, whose children may be signed.
async fn subjects<S: Source>(source: &S, image: &Graph) -> Result<Vec<Digest>> {
    let mut all: Vec<Digest> = image.digests().collect();
    let mut indexes: Vec<Descriptor> = image.present.clone();
    for _ in 0..MAX_DEPTH {
        indexes.retain(|found| found.media_type.is_index());
        let mut children = Vec::new();
        for index in indexes {
            let index = source.manifest(&Target::Digest(index.digest)).await.map_err(|error| error.on(Side::Source))?;
            children.extend(index.contents().manifests.iter().cloned());
        }
        all.extend(children.iter().map(|child| child.digest));
        indexes = children;
    }
    Ok(all)
}

/// What refers to `subject`: by the API or the tag schema, and by cosign's tags.
async fn look_for<S: Source, D: Destination>(source: &S, destination: &D, subject: Digest) -> Result<Vec<Referrer>> {
    let listed = source.referrers(&subject).await.map_err(|error| error.on(Side::Source))?;
    let known = match listed.is_empty() {
        true => Vec::new(),
        false => destination.listed_referrers(&subject).await.map_err(|error| error.on(Side::Destination))?,
    };
    let mut found: Vec<Referrer> = listed
        .into_iter()
        .map(|referrer| Referrer {
            target: Target::Digest(referrer.digest),
            digest: referrer.digest,
            // One that is there but not in the list, such as after an interrupted run, is written again: with it the list.
            listed: known.iter().any(|known| known.digest == referrer.digest),
        })
        .collect();
    for suffix in COSIGN_SUFFIXES {
        let target = Target::Tag(format!("{}{suffix}", subject.referrers_tag()));
        if let Some(descriptor) = source.resolve(&target).await.map_err(|error| error.on(Side::Source))? {
            found.push(Referrer { target, digest: descriptor.digest, listed: true });
        }
    }
    Ok(found)
}

/// How cosign names its tags (sigstore/cosign, "SPEC.md"; before OCI 1.1 referrers).
const COSIGN_SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];
const MAX_SUBJECTS: usize = 20_000;
