//! `--prune`: its flags, and what registries have to say and to do for it.

use std::time::Duration;

use clap::ValueEnum;
use jiff::Timestamp;
use tokio::time::Instant;

use crate::error::{Kind, Result};
use crate::mirror::prune::{self, KeepSet, Options, Plan, PruneTarget};
use crate::mirror::schedule;
use crate::registry::{Registries, Repo};
use crate::{
    descriptor::Digest,
    reference::{Repository, Tag, Target},
};

/// What may be removed.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    // Not with --retry-failed: a run over some images doesn't know what all the list holds.
    /// Print the tags of the target repositories that are not in the list; `--prune=delete` removes them
    #[arg(long, value_enum, num_args = 0..=1, require_equals = true, default_missing_value = "plan",
        conflicts_with = "retry_failed", help_heading = HELP_HEADING)]
    prune: Option<Untagged>,
    /// Keep tags that are younger than this; 0s for no limit
    #[arg(long, value_name = "AGE", default_value = "7d", value_parser = schedule::parse_duration, help_heading = HELP_HEADING)]
    prune_older_than: Duration,
    /// Remove nothing if more than N tags would be removed [default: ten or a fifth, whichever is more, of each
    /// repository and of all together]
    #[arg(long, value_name = "N", requires = "prune", help_heading = HELP_HEADING)]
    prune_max: Option<usize>,
    /// If a registry cannot delete a single tag, delete its manifest, unless a remaining tag needs it
    #[arg(long, requires = "prune", help_heading = HELP_HEADING)]
    prune_manifests: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Untagged {
    /// Only print what would be removed
    Plan,
    /// Remove the tags
    Delete,
}

impl Args {
    /// Whether anything is to be said or done.
    pub(super) fn is_asked(&self) -> bool {
        self.prune.is_some()
    }

    /// Finds out what the list no longer holds, and removes it if the user said so and it's no dry run.
    /// Ends by the deadline.
    pub(super) async fn run(
        &self,
        keep_set: &KeepSet,
        registries: &Registries,
        dry_run: bool,
        deadline: Option<Instant>,
    ) -> Plan {
        let options =
            Options { older_than: self.prune_older_than, most: self.prune_max, manifests: self.prune_manifests };
        let open = |repository: &Repository| registries.repository(repository);
        let Some(mut plan) =
            before_deadline(deadline, prune::plan(keep_set, open, &options, crate::clock::timestamp())).await
        else {
            return Plan::default().with_deadline_passed();
        };
        if self.prune == Some(Untagged::Delete)
            && !dry_run
            && before_deadline(deadline, prune::execute(&mut plan, open, &options)).await.is_none()
        {
            plan = plan.with_deadline_passed();
        }
        plan
    }
}

/// What comes of it until the deadline, which nothing begins after.
async fn before_deadline<T>(deadline: Option<Instant>, work: impl Future<Output = T>) -> Option<T> {
    match deadline {
        Some(deadline) if deadline <= Instant::now() => None,
        Some(deadline) => tokio::time::timeout_at(deadline, work).await.ok(),
        None => Some(work.await),
    }
}

impl PruneTarget for Repo {
    async fn tags(&self) -> Result<Vec<Tag>> {
        prune::all_tags(self).await
    }

    async fn digests_of(&self, target: &Target) -> Result<Vec<Digest>> {
        prune::digests_of(self, target).await
    }

    async fn written_at(&self, tag: &Tag) -> Result<Option<Timestamp>> {
        match self.tag_state(tag).await {
            // A locked one couldn't be deleted, and whoever locked it meant it.
            Ok(Some(state)) => Ok(state.written.filter(|_| !state.locked)),
            Ok(None) => prune::creation_time(self, tag).await,
            Err(error) if error.kind() == Kind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    async fn delete_tag(&self, tag: &Tag) -> Result<bool> {
        Self::delete_tag(self, tag).await
    }

    async fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        Self::delete_manifest(self, digest).await
    }
}

const HELP_HEADING: &str = "Pruning";
