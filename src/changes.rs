//! Whether what is looked at again and again has become another: a list, a configuration. No I/O.

/// What was seen. What is new must look the same twice before it's taken: half of a file that is being written
/// is a file, too, and may even make sense.
#[derive(Debug)]
pub(crate) struct Changes<T> {
    /// What was taken last; `None` if it couldn't be looked at.
    seen: Option<T>,
    /// Something new, that may still be being written.
    suspect: Option<T>,
}

impl<T: PartialEq> Changes<T> {
    /// Since it was like this.
    pub(crate) fn since(seen: T) -> Self {
        Self { seen: Some(seen), suspect: None }
    }

    /// Whether it's to be taken as it is `now`: if it's new, and was the same a look ago; or if someone says that
    /// it's `ready`, new or not.
    pub(crate) fn look(&mut self, now: T, ready: bool) -> bool {
        if !ready && self.seen.as_ref() == Some(&now) {
            self.suspect = None;
            return false;
        }
        if !ready && self.suspect.as_ref() != Some(&now) {
            self.suspect = Some(now);
            return false;
        }
        *self = Self::since(now);
        true
    }

    /// It couldn't be looked at. Whether that is new.
    pub(crate) fn lose(&mut self) -> bool {
        self.seen.take().is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_being_written_is_not_taken() {
        let mut changes = Changes::since("old");
        assert!(!changes.look("old", false));
        for half in ["n", "ne", "new"] {
            assert!(!changes.look(half, false), "{half}");
        }
        assert!(changes.look("new", false) && !changes.look("new", false));
        // It was another in between, and is again what it was.
        assert!(!changes.look("odd", false) && !changes.look("new", false) && !changes.look("odd", false));
        // Someone says so.
        assert!(changes.look("half", true) && changes.look("half", true) && !changes.look("half", false));
        // It's gone, once, and comes back as it was.
        assert!(changes.lose() && !changes.lose());
        assert!(!changes.look("half", false) && changes.look("half", false));
    }
}
