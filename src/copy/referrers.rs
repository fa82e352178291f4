//! Signatures, attestations, SBOMs: what names an image as its subject, and cosign's tags.

use std::collections::{HashSet, VecDeque};

use bytes::Bytes;
use serde_json::json;

use super::graph::Graph;
use super::{Engine, Options, Plan, Report};
use crate::content::{Destination, Source};
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::Manifest;
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
        let mut subjects: VecDeque<Digest> = image.digests().collect();
        // What was there already still has children that may be signed.
        for present in &image.present {
            if present.media_type.is_index() {
                let index =
                    source.manifest(&Target::Digest(present.digest)).await.map_err(|error| error.on(Side::Source))?;
                subjects.extend(index.contents().manifests.iter().map(|child| child.digest));
            }
        }
        while let Some(subject) = subjects.pop_front() {
            if !seen.insert(subject) {
                continue;
            }
            if seen.len() > MAX_SUBJECTS {
                return Err(Error::new(Kind::Invalid, format!("more than {MAX_SUBJECTS} referrers of referrers"))
                    .on(Side::Source));
            }
            let listed = source.referrers(&subject).await.map_err(|error| error.on(Side::Source))?;
            let known = match listed.is_empty() {
                true => Vec::new(),
                false => destination.listed_referrers(&subject).await.map_err(|error| error.on(Side::Destination))?,
            };
            for referrer in listed {
                subjects.push_back(referrer.digest);
                count += 1;
                let target = Target::Digest(referrer.digest);
                // One that is there but not in the list, such as after an interrupted run, is written again: with it the list.
                let listed = known.iter().any(|known| known.digest == referrer.digest);
                self.referrer(source, destination, &target, listed, options, report).await?;
            }
            for suffix in COSIGN_SUFFIXES {
                let tag = Target::Tag(format!("{}{suffix}", subject.referrers_tag()));
                if let Some(found) = source.resolve(&tag).await.map_err(|error| error.on(Side::Source))? {
                    subjects.push_back(found.digest);
                    count += 1;
                    self.referrer(source, destination, &tag, true, options, report).await?;
                }
            }
        }
        Ok(count)
    }

    /// Copies one artifact whole, unless it's there and `listed` where it has to be.
    async fn referrer<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        target: &Target,
        listed: bool,
        options: &Options,
        report: &mut Report,
    ) -> Result<()> {
        let there = destination.find(target).await.map_err(|error| error.on(Side::Destination))?;
        let known = match target {
            Target::Digest(digest) => Some(*digest),
            Target::Tag(_) => source.resolve(target).await.map_err(|error| error.on(Side::Source))?.map(|d| d.digest),
        };
        if !options.force && listed && there.is_some_and(|there| Some(there.digest) == known) {
            return Ok(());
        }
        let root = source.manifest(target).await.map_err(|error| error.on(Side::Source))?;
        let whole = Options { platforms: Vec::new(), flatten: false, ..options.clone() };
        let graph = Graph::walk(source, destination, root, &whole, self.jobs).await?;
        let plan = Plan::new(&graph, &whole)?;
        report.manifests += graph.manifests.len();
        report.pulls += graph.manifests.len();
        if options.dry_run {
            return self.look(destination, &plan, report).await;
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

/// How cosign names its tags (sigstore/cosign, "SPEC.md"; before OCI 1.1 referrers).
const COSIGN_SUFFIXES: [&str; 3] = [".sig", ".att", ".sbom"];
const MAX_SUBJECTS: usize = 20_000;
