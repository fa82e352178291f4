//! A cache that a proxy uses, as whoever mends it sees it. All of it blocks.

use std::path::Path;
use std::time::SystemTime;

use super::admin::{Item, unlink};
use super::gc::{self, Content, Freed, Keeper, Wanted, What};
use super::{Cache, Documents, Removal, Settings, Shelf, TagName};
use crate::error::Result;

/// The cache; clones are the same one.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct Live {
    pub(in crate::proxy) blobs: Shelf,
    pub(in crate::proxy) documents: Documents,
    settings: Settings,
}

impl Cache {
    pub(in crate::proxy) fn live(&self) -> Live {
        Live { blobs: self.blobs.clone(), documents: self.documents.clone(), settings: self.settings.clone() }
    }
}

impl Live {
    pub(in crate::proxy) fn dir(&self) -> &Path {
        &self.settings.dir
    }

    /// Removes a tag, or content that isn't being read.
    pub(in crate::proxy) fn remove(&self, item: &Item) -> Result<Removal> {
        match item {
            Item::Tag { upstream, repository, tag } => {
                self.documents.drop_tag(&TagName::new(upstream, repository, tag))
            }
            Item::Content(digest) => {
                let both = [self.documents.discard_idle(digest), self.blobs.discard_idle(digest)];
                let worst = [Removal::Busy, Removal::Gone].into_iter().find(|removal| both.contains(removal));
                Ok(worst.unwrap_or(Removal::Absent))
            }
        }
    }

    /// Removes what is too old, too much or left over.
    pub(in crate::proxy) fn gc(&self, wanted: Wanted) -> Result<Freed> {
        let wanted = Wanted {
            size: wanted.size.or(Some(self.settings.size)),
            keep_free: wanted.keep_free.or(Some(self.settings.keep_free)),
            ..wanted
        };
        gc::collect(self.dir(), &wanted, self)
    }
}

impl Keeper for Live {
    /// What others left was removed at the start: what has our number may be ours.
    fn writes(&self, name: &str) -> bool {
        name.split('-').next() == Some(std::process::id().to_string().as_str())
    }

    fn used(&self, content: &Content) -> Option<SystemTime> {
        if content.is_manifest {
            return self.documents.used(&content.digest);
        }
        self.blobs.used(&content.digest)
    }

    fn remove(&self, what: &What<'_>) -> Result<Removal> {
        match what {
            What::File(path) => Ok(if unlink(path)? { Removal::Gone } else { Removal::Absent }),
            What::Tag(_, name) => self.documents.drop_tag(name),
            What::Content(_, content) if content.is_manifest => Ok(self.documents.discard_idle(&content.digest)),
            What::Content(_, content) => Ok(self.blobs.discard_idle(&content.digest)),
        }
    }
}
