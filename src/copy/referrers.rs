//! Copies signatures, attestations and SBOMs: manifests that name an image as their subject, and artifacts at tags that
//! are named after its digest.

use std::collections::{BTreeSet, HashSet};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use serde_json::json;

use super::artifact_tags::ArtifactTags;
use super::concurrency::SMALL_SLOTS_PER_LARGE;
use super::graph::{ManifestDigests, Walk};
use super::{Engine, Options, Plan, Report};
use crate::content::{Destination, Source};
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::{MAX_DEPTH, Manifest};
use crate::reference::{Tag, Target};

impl Engine {
    /// Copies the referrers of all manifests of `image`, their referrers in turn, and the artifacts at tags that are
    /// named after a digest. Returns the number of artifacts.
    pub(super) async fn referrers<S: Source, D: Destination>(
        &self,
        (source, target): (&S, &Target),
        destination: &D,
        image: ManifestDigests,
        options: &Options,
        report: &mut Report,
    ) -> Result<usize> {
        let mut level = subjects(source, destination, image, report).await?;
        let Some(&root) = level.first() else { return Ok(0) };
        let (tags, mut found) = self.find_of_root((source, target), destination, root, level.len()).await?;
        let mut seen = HashSet::from([root]);
        let mut count = 0;
        while !level.is_empty() {
            level.retain(|subject| seen.insert(*subject));
            let mut listing = stream::iter(std::mem::take(&mut level))
                .map(|subject| find_referrers(source, destination, subject, &tags))
                .buffered(self.jobs * SMALL_SLOTS_PER_LARGE);
            while let Some(more) = listing.try_next().await? {
                found.extend(more);
                check_subject_count(seen.len() + found.len())?;
            }
            drop(listing);
            for referrer in std::mem::take(&mut found) {
                count += 1;
                level.push(referrer.digest);
                self.referrer(source, destination, &referrer, options, report).await?;
            }
        }
        Ok(count)
    }

    /// Finds the referrers of the image's own manifest, and the tags of artifacts in the source's repository.
    ///
    /// This comes before all other lists. It shows whether the registries have the referrers API, and whether the list of
    /// tags is complete.
    async fn find_of_root<S: Source, D: Destination>(
        &self,
        (source, target): (&S, &Target),
        destination: &D,
        root: Digest,
        manifests: usize,
    ) -> Result<(ArtifactTags, Vec<Referrer>)> {
        let unlisted = ArtifactTags::default();
        let direct = find_referrers(source, destination, root, &unlisted);
        let (mut tags, found) = future::join(self.artifact_tags.of(source, target, manifests), direct).await;
        let mut found = found?;
        for referrer in &found {
            match &referrer.target {
                Target::Tag(tag) => tags.check(tag),
                _ if source.uses_referrers_tags() => tags.check(&root.referrers_tag()),
                _ => {}
            }
        }
        let more = &tags.candidates(&root)? - &unlisted.candidates(&root)?;
        found.extend(find_tagged(source, root, more).await?);
        Ok((tags, found))
    }

    /// Copies one artifact with its blobs, unless the destination has it and lists it.
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
        // The copy of another tag of the image may be copying it.
        let alone = self.lock_source(source, destination, *digest).await;
        let listed =
            async || Ok::<_, Error>(*listed || contains_digest(&listed_referrers(destination, of).await?, digest));
        if alone.is_none() && (options.dry_run || (listed().await? && there().await?)) {
            return Ok(());
        }
        // By digest: all destinations share one read, and a tag that moves meanwhile does not matter.
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

    /// Adds `referrer` to the list of the tag schema for `subject`, at a destination without the referrers API
    /// (distribution spec, "Pushing Manifests with Subject").
    ///
    /// This reads, changes and writes the list. Two clients at the same time may lose an entry, which the next copy adds
    /// again. Within this run a lock prevents that.
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
        // A list that is too large to be read again is refused before it replaces the old one.
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
    /// Its subject.
    of: Digest,
    /// Whether the destination lists it already, or does not need to.
    listed: bool,
}

/// All manifests of an image. An index that was not read may have signed children. It is read from the destination,
/// since a read from the source may count as a pull.
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
                // A dry run has not written it, and a sparse index may lack it.
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

/// Refuses an image that has too many manifests and referrers.
fn check_subject_count(subjects: usize) -> Result<()> {
    if subjects > MAX_SUBJECTS {
        let what = format!("the image and its referrers have more than {MAX_SUBJECTS} manifests");
        return Err(Error::new(Kind::Invalid, what).on(Side::Source));
    }
    Ok(())
}

/// Finds the referrers of `subject`: by the API or the tag schema, and by tags that are named after it.
async fn find_referrers<S: Source, D: Destination>(
    source: &S,
    destination: &D,
    subject: Digest,
    tags: &ArtifactTags,
) -> Result<Vec<Referrer>> {
    let listed = match source.uses_referrers_tags() && tags.excludes_referrers_of(&subject) {
        true => Vec::new(),
        false => source.referrers(&subject).await.map_err(|error| error.on(Side::Source))?,
    };
    // Only digests are kept: descriptors may be long.
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
            // A referrer that the destination has but does not list, as after an interrupted run, is written again. That
            // lists it.
            listed: known.contains(&digest),
        })
        .collect();
    found.extend(find_tagged(source, subject, tags.candidates(&subject)?).await?);
    Ok(found)
}

/// The artifacts of `subject` at those of the tags that exist.
async fn find_tagged<S: Source>(source: &S, subject: Digest, tags: BTreeSet<Tag>) -> Result<Vec<Referrer>> {
    let mut found = Vec::new();
    for target in tags.into_iter().map(Target::Tag) {
        if let Some(descriptor) = source.resolve(&target).await.map_err(|error| error.on(Side::Source))? {
            let Descriptor { digest, size, .. } = descriptor;
            found.push(Referrer { target, digest, size, of: subject, listed: true });
        }
    }
    Ok(found)
}

/// The referrers of `subject` that the destination lists.
async fn listed_referrers<D: Destination>(destination: &D, subject: &Digest) -> Result<Vec<Descriptor>> {
    destination.listed_referrers(subject).await.map_err(|error| error.on(Side::Destination))
}

fn contains_digest(listed: &[Descriptor], digest: &Digest) -> bool {
    listed.iter().any(|known| known.digest == *digest)
}

const MAX_SUBJECTS: usize = 20_000;
