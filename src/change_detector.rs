//! Detects changes of a file that is read again and again: a list, a configuration. No I/O.

/// The states that were seen. A new state is accepted only when it was seen twice: a file that is still being written may
/// be valid by chance.
#[derive(Debug)]
pub(crate) struct ChangeDetector<T> {
    /// The state that was accepted last; `None` if it could not be read.
    seen: Option<T>,
    /// A new state that was seen once.
    suspect: Option<T>,
}

impl<T: PartialEq> ChangeDetector<T> {
    /// A detector for a file with this state.
    pub(crate) fn starting_at(seen: T) -> Self {
        Self { seen: Some(seen), suspect: None }
    }

    /// Whether to accept the state `now`: if it is new and was seen twice, or if the caller knows that it is `ready`.
    pub(crate) fn observe(&mut self, now: T, ready: bool) -> bool {
        if !ready && self.seen.as_ref() == Some(&now) {
            self.suspect = None;
            return false;
        }
        if !ready && self.suspect.as_ref() != Some(&now) {
            self.suspect = Some(now);
            return false;
        }
        *self = Self::starting_at(now);
        true
    }

    /// Records that the file could not be read. Returns whether that is new.
    pub(crate) fn observe_missing(&mut self) -> bool {
        self.seen.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_is_being_written_is_not_accepted() {
        let mut changes = ChangeDetector::starting_at("old");
        assert!(!changes.observe("old", false));
        for half in ["n", "ne", "new"] {
            assert!(!changes.observe(half, false), "{half}");
        }
        assert!(changes.observe("new", false) && !changes.observe("new", false));
        // The file changed in between, and then changed back.
        assert!(!changes.observe("odd", false) && !changes.observe("new", false) && !changes.observe("odd", false));
        // The caller knows that the file is ready.
        assert!(changes.observe("half", true) && changes.observe("half", true) && !changes.observe("half", false));
        // The file is missing once, and comes back unchanged.
        assert!(changes.observe_missing() && !changes.observe_missing());
        assert!(!changes.observe("half", false) && changes.observe("half", false));
    }
}
