//! Finds tags of the destination that the list no longer has, and removes them.
//!
//! ```text
//! KeepSet: the images of the list in each of its target repositories
//!    │
//!  plan ── tags that are there, and not kept ── old enough? ── their signatures ── not too many?
//!    │
//!  Plan ── printed; execute, if the user confirms
//! ```
//! Protections against removing too much, each with a test:
//! - only repositories that the list names as targets are inspected: [`KeepSet`] can have no others;
//! - nothing is removed from a repository in which an image failed, or whose source's tags could not be listed:
//!   [`KeepSet::keep_all`];
//! - nothing is removed from a repository for which the list selects no image, as a wrong filter would;
//! - a tag stays if it is younger than [`Options::older_than`], or if its age is unknown;
//! - no tag at all is removed if the run would remove more than [`Options::most`];
//! - signatures and tags of referrers are removed with the last image that they belong to only.

mod execute;
mod inspect;
mod recorder;

use std::collections::{BTreeMap, BTreeSet};
use std::future::Future;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use jiff::Timestamp;
use serde::Serialize;

pub use self::execute::execute;
pub use self::inspect::{all_tags, creation_time, digests_of};
pub(crate) use self::recorder::KeepRecorder;

use super::list::{DestinationBase, Entry};
use super::{List, Shard};
use crate::copy::Failure;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result, Side};
use crate::panics;
use crate::reference::{Artifact, Repository, Tag, Target};

/// Limits of a prune.
#[derive(Clone, Debug)]
pub struct Options {
    /// Younger tags stay. With zero, ages are not looked up.
    pub older_than: Duration,
    /// The most tags to remove. `None`: ten or a fifth, whichever is more, of each repository and of all together.
    pub most: Option<usize>,
    /// If a registry cannot delete a single tag, delete its manifest, unless a tag that stays needs it.
    pub manifests: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { older_than: Duration::from_secs(7 * 24 * 3600), most: None, manifests: false }
    }
}

/// A repository of a destination, for pruning.
pub trait PruneTarget: Send + Sync {
    /// All tags. Fails if the list has names that are not tags.
    fn tags(&self) -> impl Future<Output = Result<Vec<Tag>>> + Send;
    /// The digest of the manifest and of all manifests below it. Empty if it does not exist.
    fn digests_of(&self, target: &Target) -> impl Future<Output = Result<Vec<Digest>>> + Send;
    /// The time when the tag was written, if the registry has it; else the time when its image was made.
    fn written_at(&self, tag: &Tag) -> impl Future<Output = Result<Option<Timestamp>>> + Send;
    /// Deletes only the tag. `false` if the registry cannot do that. A tag that does not exist is no error.
    fn delete_tag(&self, tag: &Tag) -> impl Future<Output = Result<bool>> + Send;
    /// Deletes the manifest and all its tags. A manifest that does not exist is no error.
    fn delete_manifest(&self, digest: &Digest) -> impl Future<Output = Result<()>> + Send;
}

/// The images of the list in each target repository. Other repositories are never inspected.
#[derive(Clone, Debug, Default)]
pub struct KeepSet(BTreeMap<Repository, RepositoryKeepSet>);

#[derive(Clone, Debug, Default)]
struct RepositoryKeepSet {
    tags: BTreeSet<Tag>,
    /// Images without a tag.
    digests: BTreeSet<Digest>,
    doubt: Option<String>,
}

impl KeepSet {
    /// The set of a run over `list` with these destinations. Nothing is removed from repositories to which another
    /// shard copies too.
    ///
    /// # Errors
    /// If an entry has no destination.
    pub fn of_list(list: &List, to: &[DestinationBase], shard: Option<&Shard>) -> Result<Self> {
        let mut keep_set = Self::default();
        let is_ours = |entry: &&Entry| shard.is_none_or(|shard| shard.contains(&entry.source));
        let (ours, others): (Vec<&Entry>, Vec<&Entry>) = list.entries.iter().partition(is_ours);
        for entry in ours {
            for target in targets(entry, to)? {
                keep_set.of(&target);
            }
        }
        // Repositories of other shards only are not inspected.
        for entry in others {
            for target in targets(entry, to)? {
                if keep_set.0.contains_key(&target) {
                    keep_set.keep_all(
                        &target,
                        format!("images of {}, which is in another shard, are copied there too", entry.source),
                    );
                }
            }
        }
        Ok(keep_set)
    }

    /// Keeps an image of the list. It must be called for unchanged images too.
    pub fn keep(&mut self, target: &Repository, at: &Target) {
        let kept_here = self.of(target);
        match at {
            Target::Tag(tag) => drop(kept_here.tags.insert(tag.clone())),
            Target::Digest(digest) => drop(kept_here.digests.insert(*digest)),
            // Registries have no names of this kind.
            Target::Name(_) => {}
        }
    }

    /// Keeps everything in a repository, since not all images of the list are known there: its source could not be
    /// listed, an image failed, or another shard copies there too.
    pub fn keep_all(&mut self, target: &Repository, why: impl Into<String>) {
        self.of(target).doubt.get_or_insert_with(|| why.into());
    }

    /// Keeps everything in all repositories that an entry copies to, since not all of its images are known.
    pub fn keep_all_of_entry(&mut self, entry: &Entry, to: &[DestinationBase], why: &str) {
        for target in targets(entry, to).unwrap_or_default() {
            self.keep_all(&target, why);
        }
    }

    fn of(&mut self, target: &Repository) -> &mut RepositoryKeepSet {
        self.0.entry(target.clone()).or_default()
    }
}

/// The repositories that an entry copies to. They do not depend on the tag.
fn targets(entry: &Entry, to: &[DestinationBase]) -> Result<Vec<Repository>> {
    Ok(entry.places(to, Some("any"))?.into_iter().map(|(repository, _)| repository).collect())
}

/// The tags to remove, and the result.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Plan {
    /// The repositories, by name.
    pub repositories: Vec<RepositoryPlan>,
    /// The reason if nothing may be removed at all.
    pub refused: Option<Failure>,
    /// Whether the plan was executed.
    pub done: bool,
}

/// The part of a plan for one repository.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RepositoryPlan {
    /// The repository, with its registry.
    pub repository: String,
    /// How many tags of images there are.
    pub tags: usize,
    /// The tags to remove, in order; images first, then their signatures.
    pub deletions: Vec<TagDeletion>,
    /// How many tags stay because they are too young or of unknown age, although the list does not have them.
    pub too_young: usize,
    /// The reason if nothing may be removed here.
    pub kept_reason: Option<String>,
    /// The error of the inspection or the removal.
    pub error: Option<Failure>,
    /// The digests that the list has.
    #[serde(skip)]
    pub pinned: BTreeSet<Digest>,
    /// The tags that stay.
    #[serde(skip)]
    pub staying: Vec<Tag>,
}

/// A tag to remove.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct TagDeletion {
    /// The tag.
    pub tag: Tag,
    /// The digest of its image.
    pub digest: Option<Digest>,
    /// When it was written, if that was looked up and is known.
    pub written_at: Option<Timestamp>,
    /// Whether it is a signature or a tag of referrers, which is removed with its image.
    pub companion: bool,
    /// Whether it was removed.
    pub deleted: bool,
    /// The reason if it was kept in the end.
    pub kept_reason: Option<String>,
}

impl Plan {
    /// A plan that was not made or executed in time. Tags that are not removed stay.
    #[must_use]
    pub fn with_deadline_passed(self) -> Self {
        Self { refused: self.refused.or_else(|| Some(Failure::from(&super::run::deadline_passed()))), ..self }
    }

    /// How many tags are to be removed, with companions.
    pub fn planned_deletions(&self) -> usize {
        self.repositories.iter().map(|part| part.deletions.len()).sum()
    }

    /// How many tags were removed.
    pub fn deletions(&self) -> usize {
        self.repositories.iter().flat_map(|part| &part.deletions).filter(|going| going.deleted).count()
    }

    /// Whether anything failed or was refused.
    pub fn failed(&self) -> bool {
        self.refused.is_some() || self.repositories.iter().any(|part| part.error.is_some())
    }
}

/// Makes a plan. Changes nothing.
///
/// `open` opens a repository. An error of one repository is recorded, and nothing is removed from it.
pub async fn plan<S: PruneTarget>(
    keep_set: &KeepSet,
    open: impl Fn(&Repository) -> Result<S>,
    options: &Options,
    now: Timestamp,
) -> Plan {
    let open = &open;
    let repositories: Vec<RepositoryPlan> = stream::iter(&keep_set.0)
        .map(|(repository, kept_here)| async move {
            let mut part = RepositoryPlan { repository: repository.to_string(), ..RepositoryPlan::default() };
            part.kept_reason = skip_reason(kept_here);
            if part.kept_reason.is_none()
                && let Err(error) =
                    panics::catch_panic(plan_repository(open(repository), kept_here, options, now, &mut part)).await
            {
                part.deletions.clear();
                let error = error.on(Side::Destination).doing(format!("find tags to prune in {repository}"));
                part.error = Some(Failure::from(&error));
            }
            part
        })
        .buffered(CONCURRENT_REPOSITORIES)
        .collect()
        .await;
    let refused = check_limit(&repositories, options).as_ref().map(Failure::from);
    Plan { repositories, refused, done: false }
}

fn skip_reason(kept_here: &RepositoryKeepSet) -> Option<String> {
    let nothing = || "the list selects no tag for it: check its filters".to_owned();
    kept_here.doubt.clone().or_else(|| kept_here.tags.is_empty().then(nothing))
}

async fn plan_repository<S: PruneTarget>(
    remote: Result<S>,
    kept_here: &RepositoryKeepSet,
    options: &Options,
    now: Timestamp,
    part: &mut RepositoryPlan,
) -> Result<()> {
    let remote = &remote?;
    let there = remote.tags().await?;
    let (companions, images): (Vec<Tag>, Vec<Tag>) = there.into_iter().partition(|tag| Artifact::of(tag).is_some());
    part.tags = images.len();
    let (held, loose): (Vec<Tag>, Vec<Tag>) = images.into_iter().partition(|tag| kept_here.tags.contains(tag));
    part.pinned.clone_from(&kept_here.digests);
    let (mut staying, mut going) = (held, Vec::new());
    let mut ages = stream::iter(loose)
        .map(|tag| async move {
            let written = if options.older_than.is_zero() { None } else { remote.written_at(&tag).await? };
            Ok::<_, Error>((tag, written))
        })
        .buffered(CONCURRENT_READS);
    while let Some((tag, written)) = ages.try_next().await? {
        if is_old(written, options.older_than, now) {
            going.push(TagDeletion {
                tag,
                digest: None,
                written_at: written,
                companion: false,
                deleted: false,
                kept_reason: None,
            });
        } else {
            part.too_young += 1;
            staying.push(tag);
        }
    }
    drop(ages);
    going.sort_by(|a, b| a.tag.cmp(&b.tag));
    part.deletions = going;
    // The list may name tags such as `sha256-….sig` as images. Those stay.
    let companions = companions.into_iter().filter(|tag| !kept_here.tags.contains(tag)).collect();
    plan_companions(remote, &staying, companions, part).await?;
    part.staying = staying;
    Ok(())
}

/// Adds the companions of removed images, unless a tag that stays needs them too.
async fn plan_companions<S: PruneTarget>(
    remote: &S,
    staying: &[Tag],
    companions: Vec<Tag>,
    part: &mut RepositoryPlan,
) -> Result<()> {
    let mut lost = BTreeSet::new();
    let held: Vec<Vec<Digest>> =
        tag_contents(remote, part.deletions.iter().map(|going| Target::Tag(going.tag.clone()))).await?;
    for (going, digests) in part.deletions.iter_mut().zip(held) {
        going.digest = digests.first().copied();
        lost.extend(digests);
    }
    // Sorted names: there may be as many companions as manifests.
    let names = |lost: &BTreeSet<Digest>| lost.iter().map(Artifact::name).collect::<BTreeSet<String>>();
    let is_lost =
        |tag: &Tag, names: &BTreeSet<String>| Artifact::of(tag).is_some_and(|artifact| artifact.is_about_any(names));
    let named = names(&lost);
    if !companions.iter().any(|tag| is_lost(tag, &named)) {
        return Ok(());
    }
    let staying = staying.iter().cloned().map(Target::Tag).chain(part.pinned.iter().copied().map(Target::Digest));
    for digest in tag_contents(remote, staying).await?.into_iter().flatten() {
        lost.remove(&digest);
    }
    let named = names(&lost);
    for tag in companions.into_iter().filter(|tag| is_lost(tag, &named)) {
        part.deletions.push(TagDeletion {
            tag,
            digest: None,
            written_at: None,
            companion: true,
            deleted: false,
            kept_reason: None,
        });
    }
    Ok(())
}

/// The digests below each target, in order.
async fn tag_contents<S: PruneTarget>(remote: &S, targets: impl Iterator<Item = Target>) -> Result<Vec<Vec<Digest>>> {
    stream::iter(targets)
        .map(async |target| remote.digests_of(&target).await)
        .buffered(CONCURRENT_READS)
        .try_collect()
        .await
}

/// Times before the first containers are no real times: reproducible builds write 1970 or 1980.
fn is_old(written: Option<Timestamp>, older_than: Duration, now: Timestamp) -> bool {
    if older_than.is_zero() {
        return true;
    }
    let Some(written) = written.filter(|written| *written >= FIRST_PLAUSIBLE_TIME) else { return false };
    Duration::try_from(now.duration_since(written)).is_ok_and(|age| age > older_than)
}

fn check_limit(parts: &[RepositoryPlan], options: &Options) -> Option<Error> {
    let images = |part: &RepositoryPlan| part.deletions.iter().filter(|going| !going.companion).count();
    let all: usize = parts.iter().map(images).sum();
    let refused = |what: String| {
        let error = Error::new(Kind::Refused, format!("{what}: nothing is removed"));
        error.hint(format!("if that is meant, allow it: --prune-max {all}"))
    };
    if let Some(most) = options.most {
        return (all > most).then(|| refused(format!("{all} tags would be removed, and --prune-max allows {most}")));
    }
    let is_much = |number: usize, of: usize| number > FREE_DELETIONS.max(of / MAX_SHARE);
    let much = |number: usize, of: usize, whose: &str| {
        refused(format!(
            "{number} of {of} tags of {whose} would be removed, which is more than {FREE_DELETIONS} and than a fifth of them"
        ))
    };
    if let Some(part) = parts.iter().find(|part| is_much(images(part), part.tags)) {
        return Some(much(images(part), part.tags, &part.repository));
    }
    let there = parts.iter().map(|part| part.tags).sum();
    is_much(all, there).then(|| much(all, there, "all these repositories"))
}

const CONCURRENT_READS: usize = 16;
/// How many repositories are inspected at once.
const CONCURRENT_REPOSITORIES: usize = 8;
const FREE_DELETIONS: usize = 10;
const MAX_SHARE: usize = 5;
/// Docker was first shown in March 2013.
const FIRST_PLAUSIBLE_TIME: Timestamp = Timestamp::constant(1_356_998_400, 0);

#[cfg(test)]
mod tests;
