//! Predicts which repositories blobs will be mounted from, so that one token is enough for a repository.
//!
//! A mount needs a token for both repositories. In a list of images most repositories mount from a few others. The
//! first request to a repository is sent before they are known.

use super::scope::{MAX_MOUNT_SOURCES, Scope};
use crate::reference::RepositoryName;

/// The repositories that blobs will probably be mounted from.
#[derive(Debug, Default)]
pub(in crate::registry) struct MountScopes {
    /// The repositories of earlier mounts, the newest first.
    mounted: Vec<RepositoryName>,
    /// The first repositories that were written to: later images with the same blobs wait for them and mount from
    /// there.
    opened: Vec<RepositoryName>,
    /// The registry refuses tokens for predicted scopes.
    off: bool,
}

impl MountScopes {
    /// The scope of a token that later mounts can use too.
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

    /// Notes that a blob was mounted from this repository: later ones may be too.
    pub(in crate::registry) fn mounted(&mut self, name: &RepositoryName) {
        self.mounted.retain(|other| other != name);
        self.mounted.insert(0, name.clone());
        self.mounted.truncate(MAX_MOUNT_SOURCES);
    }

    /// Stops predictions for this registry.
    pub(in crate::registry) fn give_up(&mut self) {
        *self = Self { off: true, ..Self::default() };
    }
}
