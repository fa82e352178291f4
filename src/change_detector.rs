//! Whether what is looked at again and again has become another: a list, a configuration. No I/O.

/// What was seen. What is new must look the same twice before it's taken: half of a file that is being written
/// is a file, too, and may even make sense.
#[derive(Debug)]
pub(crate) struct ChangeDetector<T> {
    /// What was taken last; `None` if it couldn't be looked at.
    seen: Option<T>,
    /// Something new, that may still be being written.
    suspect: Option<T>,
}

impl<T: PartialEq> ChangeDetector<T> {
    /// Since it was like this.
    pub(crate) fn starting_at(seen: T) -> Self {
        Self { seen: Some(seen), suspect: None }
    }

    /// Whether it's to be taken as it is `now`: if it's new, and was the same a look ago; or if someone says that
    /// it's `ready`, new or not.
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

    /// It couldn't be looked at. Whether that is new.
    pub(crate) fn observe_missing(&mut self) -> bool {
        self.seen.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_written_is_not_taken() {
        let mut changes = ChangeDetector::starting_at("old");
        assert!(!changes.observe("old", false));
        for half in ["n", "ne", "new"] {
            assert!(!changes.observe(half, false), "{half}");
        }
        assert!(changes.observe("new", false) && !changes.observe("new", false));
        // It was another in between, and is again what it was.
        assert!(!changes.observe("odd", false) && !changes.observe("new", false) && !changes.observe("odd", false));
        // Someone says so.
        assert!(changes.observe("half", true) && changes.observe("half", true) && !changes.observe("half", false));
        // It's gone, once, and comes back as it was.
        assert!(changes.observe_missing() && !changes.observe_missing());
        assert!(!changes.observe("half", false) && changes.observe("half", false));
    }
}
