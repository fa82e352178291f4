//! Entries whose tags may meet at one destination: which of them has such a tag mustn't be a matter of luck, or it
//! would be another one in each run. The list's first one has it; so those behind it wait till its tags are known.

use std::collections::{BTreeSet, HashMap};

use tokio::sync::watch;

use super::list::{DestinationBase, Entry, ImageDestination};

/// Who waits for whom, of the entries of a run by their numbers.
#[derive(Debug)]
pub(super) struct TagConflicts {
    /// In each place that an entry shares the one before it, which itself waits for those before.
    before: Vec<Vec<usize>>,
    known: watch::Sender<Vec<bool>>,
}

impl TagConflicts {
    /// Of the entries that are wanted; and these, with those before one of them which aren't: of another shard, say.
    /// Their tags must be known too, though nothing is to be done with them.
    pub(super) fn of<'a>(
        all: &'a [Entry],
        to: &[DestinationBase],
        wanted: impl Fn(&Entry) -> bool,
    ) -> (Self, Vec<&'a Entry>) {
        let mut places: HashMap<ImageDestination, Vec<usize>> = HashMap::new();
        for (number, entry) in all.iter().enumerate() {
            // Where templates make different tags of the same one, nothing can meet.
            for place in entry.places(to, Some("tag")).unwrap_or_default() {
                places.entry(place).or_default().push(number);
            }
        }
        let mut asked: Vec<bool> = all.iter().map(wanted).collect();
        let (mut before, wanted) = (vec![Vec::new(); all.len()], asked.clone());
        for mut sharing in places.into_values() {
            sharing.truncate(sharing.iter().rposition(|number| wanted[*number]).map_or(0, |last| last + 1));
            let sources: BTreeSet<_> = sharing.iter().map(|number| &all[*number].source).collect();
            // What is named is known to be apart.
            if sources.len() > 1 && sharing.iter().any(|number| all[*number].pick.needs_tag_list()) {
                sharing.windows(2).for_each(|pair| before[pair[1]].push(pair[0]));
                sharing.iter().for_each(|number| asked[*number] = true);
            }
        }
        let entries: Vec<usize> = (0..all.len()).filter(|number| asked[*number]).collect();
        // By their places among those.
        let before = entries.iter().map(|number| {
            let others = before[*number].iter();
            others.filter_map(|other| entries.binary_search(other).ok()).collect()
        });
        let known = watch::Sender::new(vec![false; entries.len()]);
        (Self { before: before.collect(), known }, entries.iter().map(|number| &all[*number]).collect())
    }

    /// Waits for those before this one.
    pub(super) async fn wait_for_turn(&self, number: usize) {
        let before = &self.before[number];
        if !before.is_empty() {
            // The sender is here.
            let _ = self.known.subscribe().wait_for(|known| before.iter().all(|other| known[*other])).await;
        }
    }

    /// All tags of this one are known, or it's known that they can't be.
    pub(super) fn finish(&self, number: usize) {
        self.known.send_modify(|known| known[number] = true);
    }
}
