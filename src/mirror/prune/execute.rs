//! The removal of what a plan says.

use std::collections::{BTreeMap, BTreeSet};

use super::{Options, Plan, PruneTarget, RepositoryPlan, tag_contents};
use crate::copy::Failure;
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result, Side};
use crate::panics;
use crate::reference::{Repository, Tag, Target};

/// Removes what the plan says, and notes in it what is gone. A refused plan removes nothing.
///
/// What fails ends the work on that repository; the others go on. Dropping the future stops it between two
/// tags, or in the middle of one's request.
pub async fn execute<S: PruneTarget>(plan: &mut Plan, open: impl Fn(&Repository) -> Result<S>, options: &Options) {
    plan.done = true;
    if plan.refused.is_some() {
        return;
    }
    for part in plan.repositories.iter_mut().filter(|part| part.kept_reason.is_none() && part.error.is_none()) {
        if part.deletions.is_empty() {
            continue;
        }
        let opened = part.repository.parse::<Repository>().and_then(|repository| open(&repository));
        let result = match opened {
            Ok(remote) => panics::catch_panic(remove_tags(&remote, part, options)).await,
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let error = error.on(Side::Destination).doing(format!("prune {}", part.repository));
            part.error = Some(Failure::from(&error));
        }
    }
}

async fn remove_tags<S: PruneTarget>(remote: &S, part: &mut RepositoryPlan, options: &Options) -> Result<()> {
    let mut needed: Option<BTreeMap<Digest, Target>> = None;
    for at in 0..part.deletions.len() {
        let tag = part.deletions[at].tag.clone();
        if remote.delete_tag(&tag).await? {
            part.deletions[at].deleted = true;
            continue;
        }
        if !options.manifests {
            return Err(Error::new(Kind::Unsupported, "this registry cannot delete a tag by itself")
                .hint("allow that its manifest is deleted, where no tag that stays needs it, by --prune-manifests"));
        }
        // Asked anew: whatever came since the plan was made counts as well.
        if needed.is_none() {
            needed = Some(digests_in_use(remote, part).await?);
        }
        let needed_by = needed.as_ref();
        let Some(digest) = remote.digests_of(&Target::Tag(tag)).await?.first().copied() else {
            part.deletions[at].deleted = true;
            continue;
        };
        match needed_by.and_then(|needed| needed.get(&digest)) {
            Some(by @ (Target::Tag(_) | Target::Name(_))) => {
                part.deletions[at].kept_reason = Some(format!("its manifest is needed by tag \"{by}\""));
            }
            Some(Target::Digest(by)) => {
                part.deletions[at].kept_reason = Some(format!("its manifest is needed by {by}, which the list holds"));
            }
            None => {
                remote.delete_manifest(&digest).await?;
                part.deletions[at].deleted = true;
            }
        }
    }
    Ok(())
}

/// Every manifest that tags which stay, and what the list holds by digest, are or hold: an index is broken
/// without its children. With who needs it.
async fn digests_in_use<S: PruneTarget>(remote: &S, part: &RepositoryPlan) -> Result<BTreeMap<Digest, Target>> {
    let mut tags: BTreeSet<Tag> = remote.tags().await?.into_iter().collect();
    // A tag that the second list lacks may be gone, or the list may be a wrong one, such as a passing 404.
    tags.extend(part.staying.iter().cloned());
    let going: BTreeSet<&str> = part.deletions.iter().map(|going| going.tag.as_str()).collect();
    tags.retain(|tag| !going.contains(tag.as_str()));
    let pinned = part.pinned.iter().copied().map(Target::Digest);
    let staying: Vec<Target> = tags.into_iter().map(Target::Tag).chain(pinned).collect();
    let held = tag_contents(remote, staying.iter().cloned()).await?;
    let pairs = staying.iter().zip(held);
    Ok(pairs.flat_map(|(target, digests)| digests.into_iter().map(|digest| (digest, target.clone()))).collect())
}
