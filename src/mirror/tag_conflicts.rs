//! Finds entries whose tags may conflict at a destination. The first such entry of the list writes a tag, in every
//! run alike; so later ones wait until its tags are known.

use std::collections::{BTreeSet, HashMap};

use tokio::sync::watch;

use super::list::{DestinationBase, Entry, ImageDestination};

/// Which entries wait for which others, by their numbers.
#[derive(Debug)]
pub(super) struct TagConflicts {
    /// For each entry and shared destination, the entry before it, which waits for those before itself.
    before: Vec<Vec<usize>>,
    known: watch::Sender<Vec<bool>>,
}

impl TagConflicts {
    /// The conflicts, and the entries that take part: the wanted ones, and earlier ones that may conflict with them
    /// but are not wanted, such as those of another shard. The tags of these must be known, although they are not
    /// copied.
    pub(super) fn of<'a>(
        all: &'a [Entry],
        to: &[DestinationBase],
        wanted: impl Fn(&Entry) -> bool,
    ) -> (Self, Vec<&'a Entry>) {
        let mut places: HashMap<ImageDestination, Vec<usize>> = HashMap::new();
        for (number, entry) in all.iter().enumerate() {
            // Different templates for one tag make different tags, so such entries cannot conflict.
            for place in entry.places(to, Some("tag")).unwrap_or_default() {
                places.entry(place).or_default().push(number);
            }
        }
        let mut asked: Vec<bool> = all.iter().map(wanted).collect();
        let (mut before, wanted) = (vec![Vec::new(); all.len()], asked.clone());
        for mut sharing in places.into_values() {
            sharing.truncate(sharing.iter().rposition(|number| wanted[*number]).map_or(0, |last| last + 1));
            let sources: BTreeSet<_> = sharing.iter().map(|number| &all[*number].source).collect();
            // Entries that name their tags are checked for conflicts when the list is read.
            if sources.len() > 1 && sharing.iter().any(|number| all[*number].pick.needs_tag_list()) {
                sharing.windows(2).for_each(|pair| before[pair[1]].push(pair[0]));
                sharing.iter().for_each(|number| asked[*number] = true);
            }
        }
        let entries: Vec<usize> = (0..all.len()).filter(|number| asked[*number]).collect();
        // Numbers of wanted entries only.
        let before = entries.iter().map(|number| {
            let others = before[*number].iter();
            others.filter_map(|other| entries.binary_search(other).ok()).collect()
        });
        let known = watch::Sender::new(vec![false; entries.len()]);
        (Self { before: before.collect(), known }, entries.iter().map(|number| &all[*number]).collect())
    }

    /// Waits for the entries before this one.
    pub(super) async fn wait_for_turn(&self, number: usize) {
        let before = &self.before[number];
        if !before.is_empty() {
            // `self` owns the sender, so this does not fail.
            let _ = self.known.subscribe().wait_for(|known| before.iter().all(|other| known[*other])).await;
        }
    }

    /// The tags of this entry are known, or will never be known.
    pub(super) fn finish(&self, number: usize) {
        self.known.send_modify(|known| known[number] = true);
    }
}
