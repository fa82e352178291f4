//! Entries whose tags may meet at one destination: which of them has such a tag mustn't be a matter of luck, or it
//! would be another one in each run. The list's first one has it; so those behind it wait till its tags are known.

use std::collections::{BTreeSet, HashMap};

use tokio::sync::watch;

use super::list::{Base, Entry, Place};

/// Who waits for whom, of the entries of a run by their numbers.
#[derive(Debug)]
pub(super) struct Rivals {
    /// In each place that an entry shares the one before it, which itself waits for those before.
    before: Vec<Vec<usize>>,
    known: watch::Sender<Vec<bool>>,
}

impl Rivals {
    pub(super) fn of(entries: &[&Entry], to: &[Base]) -> Self {
        let mut places: HashMap<Place, Vec<usize>> = HashMap::new();
        for (number, entry) in entries.iter().enumerate() {
            // Where templates make different tags of the same one, nothing can meet.
            for place in entry.places(to, Some("tag")).unwrap_or_default() {
                places.entry(place).or_default().push(number);
            }
        }
        let mut before = vec![Vec::new(); entries.len()];
        for sharing in places.into_values() {
            let sources: BTreeSet<_> = sharing.iter().map(|number| &entries[*number].source).collect();
            // What is named is known to be apart.
            if sources.len() > 1 && sharing.iter().any(|number| entries[*number].pick.needs_list()) {
                sharing.windows(2).for_each(|pair| before[pair[1]].push(pair[0]));
            }
        }
        Self { before, known: watch::Sender::new(vec![false; entries.len()]) }
    }

    /// Waits for those before this one.
    pub(super) async fn turn(&self, number: usize) {
        let before = &self.before[number];
        if !before.is_empty() {
            // The sender is here.
            let _ = self.known.subscribe().wait_for(|known| before.iter().all(|other| known[*other])).await;
        }
    }

    /// All tags of this one are known, or it's known that they can't be.
    pub(super) fn done(&self, number: usize) {
        self.known.send_modify(|known| known[number] = true);
    }
}
