//! Which repositories will be mounted from: guessed, so that one token is enough for a repository.
//!
//! A mount takes a token for both repositories, and in a list of images most repositories are mounted
//! to from a few others. The first request to a repository comes before it's known from which.

use super::scope::{MAX_MOUNT_SOURCES, Scope};
use crate::reference::RepositoryName;

/// The repositories that others will probably mount from.
#[derive(Debug, Default)]
pub(in crate::registry) struct MountScopes {
    /// Those that others were mounted from, the last one first.
    mounted: Vec<RepositoryName>,
    /// The first ones that were written to: who needs what is on its way there, waits for it and mounts it.
    opened: Vec<RepositoryName>,
    /// The registry gives no token for what may come.
    off: bool,
}

impl MountScopes {
    /// The scope of a token that's good for mounts to come, too.
    pub(in crate::registry) fn widen(&mut self, scope: &Scope, before: &[RepositoryName]) -> Scope {
        if self.off {
            return scope.clone();
        }
        let wide = scope.with(before).with(&self.mounted).with(&self.opened);
        let name = &scope.repository.name;
        if self.opened.len() < MAX_MOUNT_SOURCES && !name.is_empty() && !self.opened.contains(name) {
            self.opened.push(name.clone());
        }
        wide
    }

    /// A blob was mounted from this repository: others will be too.
    pub(in crate::registry) fn mounted(&mut self, name: &RepositoryName) {
        self.mounted.retain(|other| other != name);
        self.mounted.insert(0, name.clone());
        self.mounted.truncate(MAX_MOUNT_SOURCES);
    }

    /// No more guesses here.
    pub(in crate::registry) fn give_up(&mut self) {
        *self = Self { off: true, ..Self::default() };
    }
}
