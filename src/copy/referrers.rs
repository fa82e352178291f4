//! Signatures, attestations, SBOMs: what names an image as its subject, and cosign's tags.

use std::collections::HashSet;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use serde_json::json;

use super::concurrency::SMALL_SLOTS_PER_LARGE;
use super::graph::{ManifestDigests, Walk};
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
        image: ManifestDigests,
        options: &Options,
        report: &mut Report,
    ) -> Result<usize> {
        let mut count = 0;
        let mut seen: HashSet<Digest> = HashSet::new();
        let mut level = subjects(source, destination, image, report).await?;
        while !level.is_empty() {
            level.retain(|subject| seen.insert(*subject));
            let mut listing = stream::iter(std::mem::take(&mut level))
                .map(|subject| find_referrers(source, destination, subject))
                .buffered(self.jobs * SMALL_SLOTS_PER_LARGE);
            let mut found = Vec::new();
            while let Some(more) = listing.try_next().await? {
                found.extend(more);
                check_subject_count(seen.len() + found.len())?;
            }
            drop(listing);
            for referrer in found {
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
        let Referrer { target, digest, size, of, listed } = referrer;
        let there = async || {
            let there = destination.resolve_existing(target).await.map_err(|error| error.on(Side::Destination))?;
            Ok::<_, Error>(there.is_some_and(|there| there.digest == *digest))
        };
        if !options.force && *listed && there().await? {
            return Ok(());
        }
        // Another tag of the image may be bringing it.
        let alone = self.lock_source(source, destination, *digest).await;
        let listed =
            async || Ok::<_, Error>(*listed || contains_digest(&listed_referrers(destination, of).await?, digest));
        if alone.is_none() && (options.dry_run || (listed().await? && there().await?)) {
            return Ok(());
        }
        // By digest: so it's read once for all destinations, and is what was looked for.
        let account = self.memory.account();
        let by_digest = Target::Digest(*digest);
        let read = async { source.manifest(&by_digest).await.map_err(|error| error.on(Side::Source)) };
        let root = account.child((digest, *size), read).await?;
        report.pulls += 1;
        let whole = Options { platforms: Vec::new(), flatten: false, ..options.clone() };
        let walk = Walk { account: &account, jobs: self.jobs, knows: self.knows() };
        let graph = walk.run(source, destination, (root, Side::Source), &whole).await?;
        report.pulls += graph.pulls;
        report.manifests_written += graph.manifests.len();
        let plan = Plan::new(&graph, &whole)?;
        self.write_image(source, destination, &plan, target, options, report).await
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
        let alone = self.blob_locations.holders(&format!("referrers of {}", destination.repository()), subject.digest);
        let _alone = alone.lock().await;
        let mut listed = listed_referrers(destination, &subject.digest).await?;
        if contains_digest(&listed, &referrer.digest()) {
            return Ok(());
        }
        let mut entry = referrer.descriptor().clone();
        entry.artifact_type = referrer.contents().artifact_type.clone();
        entry.annotations = referrer.contents().annotations.clone();
        listed.push(entry);
        let index = json!({ "schemaVersion": 2, "mediaType": MediaType::OCI_INDEX, "manifests": listed });
        let tag = Target::Tag(subject.digest.referrers_tag());
        // A list that is too large to be read is refused here, before the old one is replaced.
        let index = Manifest::read(Bytes::from(index.to_string()), None, None).map_err(|error| {
            error.doing(format!("add {} to the list {tag}", referrer.digest())).on(Side::Destination)
        })?;
        destination.put_manifest(&index, &tag).await.map(drop).map_err(|error| error.on(Side::Destination))
    }
}

/// One referrer of a subject.
struct Referrer {
    target: Target,
    digest: Digest,
    size: u64,
    /// To what it refers.
    of: Digest,
    /// Whether the destination lists it already, or needn't.
    listed: bool,
}

/// All manifests of an image; of what was there already too, whose children may be signed. That is read at the
/// destination: at the source it would be a pull.
async fn subjects<S: Source, D: Destination>(
    source: &S,
    destination: &D,
    image: ManifestDigests,
    report: &mut Report,
) -> Result<Vec<Digest>> {
    let ManifestDigests { digests: mut all, unread: mut indexes } = image;
    let mut seen: HashSet<Digest> = all.iter().copied().collect();
    for _ in 0..MAX_DEPTH {
        for index in std::mem::take(&mut indexes) {
            let index = match destination.existing_manifest(&index).await {
                // In a dry run it would only be there, and a sparse index may lack it.
                Err(error) if error.kind() == Kind::NotFound => {
                    report.pulls += 1;
                    let index = source.manifest(&Target::Digest(index)).await;
                    index.map_err(|error| error.on(Side::Source))?
                }
                stored => stored.map_err(|error| error.on(Side::Destination))?,
            };
            let children = index.contents().manifests.iter().filter(|child| seen.insert(child.digest));
            for child in children {
                all.push(child.digest);
                indexes.extend(child.media_type.is_index().then_some(child.digest));
            }
            check_subject_count(all.len())?;
        }
    }
    Ok(all)
}

/// Refuses more manifests than an image and what refers to it may have.
fn check_subject_count(subjects: usize) -> Result<()> {
    if subjects > MAX_SUBJECTS {
        let what = format!("the image and its referrers have more than {MAX_SUBJECTS} manifests");
        return Err(Error::new(Kind::Invalid, what).on(Side::Source));
    }
    Ok(())
}

/// What refers to `subject`: by the API or the tag schema, and by cosign's tags.
async fn find_referrers<S: Source, D: Destination>(
    source: &S,
    destination: &D,
    subject: Digest,
) -> Result<Vec<Referrer>> {
    let listed = source.referrers(&subject).await.map_err(|error| error.on(Side::Source))?;
    // Their digests alone: descriptors may be long.
    let listed: Vec<(Digest, u64)> = listed.iter().map(|referrer| (referrer.digest, referrer.size)).collect();
    let known: HashSet<Digest> = match listed.is_empty() {
        true => HashSet::new(),
        false => listed_referrers(destination, &subject).await?.iter().map(|known| known.digest).collect(),
    };
    let mut found: Vec<Referrer> = listed
        .into_iter()
        .map(|(digest, size)| Referrer {
            target: Target::Digest(digest),
            digest,
            size,
            of: subject,
            // One that is there but not in the list, such as after an interrupted run, is written again: with it the list.
            listed: known.contains(&digest),
        })
        .collect();
    for suffix in COSIGN_SUFFIXES {
        let target = Target::Tag(subject.cosign_tag(suffix)?);
        if let Some(descriptor) = source.resolve(&target).await.map_err(|error| error.on(Side::Source))? {
            let Descriptor { digest, size, .. } = descriptor;
            found.push(Referrer { target, digest, size, of: subject, listed: true });
        }
    }
    Ok(found)
}

/// What the destination lists as referring to `subject`.
async fn listed_referrers<D: Destination>(destination: &D, subject: &Digest) -> Result<Vec<Descriptor>> {
    destination.listed_referrers(subject).await.map_err(|error| error.on(Side::Destination))
}

fn contains_digest(listed: &[Descriptor], digest: &Digest) -> bool {
    listed.iter().any(|known| known.digest == *digest)
}

/// How cosign names its tags (sigstore/cosign, "SPEC.md"; before OCI 1.1 referrers).
const COSIGN_SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];
const MAX_SUBJECTS: usize = 20_000;
