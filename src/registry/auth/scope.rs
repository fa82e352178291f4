//! Token scopes: which actions on which repositories a token allows.

use std::fmt;

use crate::reference::{Repository, RepositoryName};
use crate::registry::azure::is_acr;

/// The scope of a token. One token has few repositories: ACR answered a token with all of them with "Request Header Or
/// Cookie Too Large" (regclient#797).
#[derive(Clone, Debug, PartialEq, Eq)]
pub(in crate::registry) struct Scope {
    pub(in crate::registry) repository: Repository,
    pub(in crate::registry) access: Access,
    /// The repositories that a mount reads.
    pub(super) from: Vec<RepositoryName>,
}

/// The access to a repository.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(in crate::registry) enum Access {
    Pull,
    Push,
    Delete,
}

impl Scope {
    pub(in crate::registry) fn pull(repository: &Repository) -> Self {
        Self { repository: repository.clone(), access: Access::Pull, from: Vec::new() }
    }

    pub(in crate::registry) fn push(repository: &Repository) -> Self {
        Self { access: Access::Push, ..Self::pull(repository) }
    }

    /// For deletes. At ACR also to read the time of a tag's last write.
    pub(in crate::registry) fn delete(repository: &Repository) -> Self {
        Self { access: Access::Delete, ..Self::pull(repository) }
    }

    /// For a mount from `from`: Docker Hub requires `pull` there too (rust-oci-client#235), as does ACR in ABAC mode.
    pub(in crate::registry) fn mounting(&self, from: &Repository) -> Self {
        Self { from: vec![from.name.clone()], ..self.clone() }
    }

    pub(in crate::registry) fn pushes(&self) -> bool {
        self.access == Access::Push
    }

    /// The other repositories that a mount reads.
    pub(in crate::registry) fn from(&self) -> &[RepositoryName] {
        &self.from
    }

    /// The scope with more repositories to mount from; only the first ones if they are too many for one token.
    pub(in crate::registry) fn with<'a>(&self, more: impl IntoIterator<Item = &'a RepositoryName>) -> Self {
        let mut wide = self.clone();
        for name in more {
            if wide.from.len() < MAX_MOUNT_SOURCES && *name != wide.repository.name && !wide.from.contains(name) {
                wide.from.push(name.clone());
            }
        }
        wide
    }

    pub(in crate::registry) fn texts(&self) -> impl Iterator<Item = String> {
        let actions = match self.access {
            Access::Pull => "pull",
            Access::Push => "pull,push",
            Access::Delete if is_acr(&self.repository.registry) => "pull,delete,metadata_read",
            Access::Delete => "pull,delete",
        };
        let own = (!self.repository.name.is_empty()).then(|| format!("repository:{}:{actions}", self.repository.name));
        own.into_iter().chain(self.from.iter().map(|from| format!("repository:{from}:pull")))
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.texts().collect::<Vec<_>>().join(" "))
    }
}

/// The limit of repositories that one token may mount from. With names of a hundred characters it has 2 KiB; above
/// about 8 KiB, ACR refuses the header.
pub(in crate::registry) const MAX_MOUNT_SOURCES: usize = 8;
