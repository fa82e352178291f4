//! Which repositories will be mounted from: guessed, so that one token is enough for a repository.
//!
//! A mount takes a token for both repositories, and in a list of images most repositories are mounted
//! to from a few others. The first request to a repository comes before it's known from which.

use super::token::{MOST_MOUNTED, Scope};
use crate::reference::RepositoryName;

/// The repositories that others will probably mount from.
#[derive(Debug, Default)]
pub(super) struct Beside {
    /// Those that others were mounted from, the last one first.
    mounted: Vec<RepositoryName>,
    /// The first ones that were written to: who needs what is on its way there, waits for it and mounts it.
    opened: Vec<RepositoryName>,
    /// The registry gives no token for what may come.
    off: bool,
}

impl Beside {
    /// The scope of a token that's good for mounts to come, too.
    pub(super) fn widen(&mut self, scope: &Scope, before: &[RepositoryName]) -> Scope {
        if self.off {
            return scope.clone();
        }
        let wide = scope.with(before).with(&self.mounted).with(&self.opened);
        let name = &scope.repository.name;
        if self.opened.len() < MOST_MOUNTED && !name.is_empty() && !self.opened.contains(name) {
            self.opened.push(name.clone());
        }
        wide
    }

    /// A blob was mounted from this repository: others will be too.
    pub(super) fn mounted(&mut self, name: &RepositoryName) {
        self.mounted.retain(|other| other != name);
        self.mounted.insert(0, name.clone());
        self.mounted.truncate(MOST_MOUNTED);
    }

    /// No more guesses here.
    pub(super) fn give_up(&mut self) {
        *self = Self { off: true, ..Self::default() };
    }
}
