//! Records the results of a run for pruning.

use super::KeepSet;
use crate::error::Result;
use crate::mirror::list::DestinationBase;
use crate::mirror::run::Event;
use crate::mirror::{List, Shard};

/// The images of the list at its targets, by the results of a run. Nothing is removed from a repository in which an
/// image failed, was skipped or is unknown.
#[derive(Debug)]
pub(crate) struct KeepRecorder<'a> {
    keep_set: KeepSet,
    list: &'a List,
    to: &'a [DestinationBase],
}

impl<'a> KeepRecorder<'a> {
    /// A recorder of a run over `list` to these destinations; see [`KeepSet::of_list`].
    pub(crate) fn new(list: &'a List, to: &'a [DestinationBase], shard: Option<&Shard>) -> Result<Self> {
        Ok(Self { keep_set: KeepSet::of_list(list, to, shard)?, list, to })
    }

    /// The result, after the run.
    pub(crate) fn finish(self) -> KeepSet {
        self.keep_set
    }

    /// Records the result of an image or an entry.
    pub(crate) fn record(&mut self, event: &Event) {
        match event {
            Event::Copied(job, _) | Event::Compared(job, _) => self.keep_set.keep(&job.destination, &job.at),
            Event::Failed(job, _) => {
                self.keep_set.keep(&job.destination, &job.at);
                self.keep_set.keep_all(&job.destination, format!("{} failed", job.from()));
            }
            Event::Skipped(job, _) => {
                self.keep_set.keep(&job.destination, &job.at);
                self.keep_set.keep_all(&job.destination, format!("{} was skipped", job.from()));
            }
            Event::Expected(_) => {}
            Event::Unknown { line, source, .. } => {
                let (list, line) = (self.list, *line);
                for entry in list.entries.iter().filter(|entry| entry.line == line && entry.source == *source) {
                    self.keep_set.keep_all_of_entry(entry, self.to, "not all tags of its source are known");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::{Error, Kind};
    use crate::mirror::job::Job;
    use crate::mirror::prune::{self, plan};
    use crate::reference::{Repository, Target};
    use crate::registry::{Options, Registries};

    /// Nothing is removed from a repository whose images are not all known, and its tags are not listed.
    #[tokio::test]
    async fn what_was_skipped_or_failed_or_is_not_known_spares_its_repository() {
        let list = List::read("images: [{source: s.io/a, glob: '*'}]\n", "list").expect("a list");
        let to = ["r.io/x".parse().expect("a destination")];
        let job = || {
            let (source, destination) = ["s.io/a", "r.io/x/a"].map(|name| name.parse().expect("a repository")).into();
            let tag = Target::Tag("1".into());
            Box::new(Job {
                line: 1,
                source,
                read: tag.clone(),
                destination,
                at: tag,
                platforms: vec![],
                referrers: false,
                no_tag: None,
            })
        };
        let late = || Error::new(Kind::Timeout, "late");
        let unknown = Event::Unknown { line: 1, source: job().source, error: late(), skipped: false };
        for (event, why) in [
            (Event::Skipped(job(), late()), "s.io/a:1 was skipped"),
            (Event::Failed(job(), late()), "s.io/a:1 failed"),
            (unknown, "not all tags of its source are known"),
        ] {
            let mut recorder = KeepRecorder::new(&list, &to, None).expect("claims");
            recorder.record(&event);
            let registries = Registries::new(Options::default());
            let open = |repository: &Repository| registries.repository(repository);
            let plan = plan(&recorder.finish(), open, &prune::Options::default(), crate::clock::timestamp()).await;
            assert_eq!(plan.repositories[0].kept_reason.as_deref(), Some(why));
            assert_eq!(registries.known().len(), 0);
        }
    }
}
