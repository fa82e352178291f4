//! Which images of a list a run takes: those of its shard, and after a run before those that failed in it.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use super::job::Job;
use super::list::Entry;
use super::report::PreviousFailures;
use super::{List, Shard};
use crate::reference::{Reference, Repository};

/// The images that a run takes.
#[derive(Debug)]
pub(crate) struct Selection {
    shard: Option<Shard>,
    failed: Option<PreviousFailures>,
    /// The repositories of which something failed: no other's tags need to be listed.
    failed_repositories: Option<BTreeSet<Repository>>,
    /// Images that failed before, and are in the list still: source and destination.
    again: Mutex<BTreeSet<(String, String)>>,
}

impl Selection {
    /// The images of this shard, if it isn't the whole list, that failed before, if not all are asked for.
    pub(crate) fn new(shard: Option<Shard>, failed: Option<PreviousFailures>) -> Self {
        let failed_repositories = failed.as_ref().map(repositories);
        Self { shard, failed, failed_repositories, again: Mutex::default() }
    }

    /// The shard.
    pub(crate) fn shard(&self) -> Option<&Shard> {
        self.shard.as_ref()
    }

    /// Whether the run takes something of an entry, or this image of it.
    pub(crate) fn wants(&self, entry: &Entry, job: Option<&Job>) -> bool {
        self.shard.as_ref().is_none_or(|shard| shard.contains(&entry.source))
            && self.failed_repositories.as_ref().is_none_or(|failed| failed.contains(&entry.source))
            && self.failed.as_ref().zip(job).is_none_or(|(failed, job)| {
                let holds = failed.holds(&job.from(), &job.to());
                holds && self.again.lock().unwrap_or_else(PoisonError::into_inner).insert((job.from(), job.to()))
            })
    }

    /// After the run: warns of what failed before and isn't asked for any more. A list or a destination that's another
    /// one would end as well as if all were done.
    pub(crate) fn warn_missing(self, list: &List) {
        let Self { shard, failed: Some(failed), again, .. } = self else { return };
        let again = again.into_inner().unwrap_or_else(PoisonError::into_inner);
        let listed = |source: &str| list.entries.iter().any(|entry| entry.source.to_string() == source);
        let others = |source: &str| {
            let source: Option<Reference> = source.parse().ok();
            shard.as_ref().zip(source).is_some_and(|(shard, source)| !shard.contains(&source.repository))
        };
        let mut missed = failed.iter().filter(|(source, destination)| {
            // Of a repository whose tags weren't known, any may have failed.
            let known = match destination.is_empty() {
                true => listed(source),
                // A set of pairs can't be asked by borrowed ones.
                false => again.contains(&((*source).to_owned(), (*destination).to_owned())),
            };
            !known && !others(source)
        });
        if let Some((source, destination)) = missed.next() {
            let to = if destination.is_empty() { String::new() } else { format!(" to {destination}") };
            let more = missed.count();
            let more = if more == 0 { String::new() } else { format!(", and {more} more") };
            tracing::warn!("what failed before isn't in the list, or goes elsewhere now: {source}{to}{more}");
        }
    }
}

fn repositories(failed: &PreviousFailures) -> BTreeSet<Repository> {
    failed.iter().filter_map(|(source, _)| source.parse::<Reference>().ok()).map(|source| source.repository).collect()
}
