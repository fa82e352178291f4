//! A cache that a proxy uses, as whoever mends it sees it. All of it blocks.

use std::path::Path;
use std::time::SystemTime;

use super::cache_dir::unlink;
use super::gc::{self, CacheUser, ContentFile, GcItem, GcOptions, GcResult};
use super::offline::Item;
use super::{Cache, ContentStore, ManifestStore, Removal, Settings, TagName};
use crate::error::Result;

/// The cache; clones are the same one.
#[derive(Clone, Debug)]
pub(in crate::proxy) struct OnlineCache {
    pub(in crate::proxy) blobs: ContentStore,
    pub(in crate::proxy) manifest_store: ManifestStore,
    settings: Settings,
}

impl Cache {
    /// The cache, for commands of operators and for the scrubber.
    pub(in crate::proxy) fn online(&self) -> OnlineCache {
        OnlineCache {
            blobs: self.blobs.clone(),
            manifest_store: self.manifest_store.clone(),
            settings: self.settings.clone(),
        }
    }
}

impl OnlineCache {
    pub(in crate::proxy) fn dir(&self) -> &Path {
        &self.settings.dir
    }

    /// The blobs and the manifests.
    pub(in crate::proxy) fn stores(&self) -> [ContentStore; 2] {
        [self.blobs.clone(), self.manifest_store.content_store().clone()]
    }

    /// Removes a tag, or content that isn't being read.
    pub(in crate::proxy) fn remove(&self, item: &Item) -> Result<Removal> {
        match item {
            Item::Tag { upstream, repository, tag } => {
                self.manifest_store.drop_tag(&TagName::new(upstream, repository, tag))
            }
            Item::Content(digest) => {
                let both = [self.manifest_store.discard_idle(digest), self.blobs.discard_idle(digest)];
                let worst = [Removal::Busy, Removal::Gone].into_iter().find(|removal| both.contains(removal));
                Ok(worst.unwrap_or(Removal::Absent))
            }
        }
    }

    /// Removes what is too old, too much or left over.
    pub(in crate::proxy) fn gc(&self, wanted: GcOptions) -> Result<GcResult> {
        let wanted = GcOptions {
            size: wanted.size.or(Some(self.settings.size)),
            keep_free: wanted.keep_free.or(Some(self.settings.keep_free)),
            ..wanted
        };
        gc::collect(self.dir(), &wanted, self)
    }
}

impl CacheUser for OnlineCache {
    /// What others left was removed at the start: what has our number may be ours.
    fn writes(&self, name: &str) -> bool {
        name.split('-').next() == Some(std::process::id().to_string().as_str())
    }

    fn used(&self, content: &ContentFile) -> Option<SystemTime> {
        if content.is_manifest {
            return self.manifest_store.last_used(&content.digest);
        }
        self.blobs.last_used(&content.digest)
    }

    fn remove(&self, what: &GcItem<'_>) -> Result<Removal> {
        match what {
            GcItem::File(path) => Ok(if unlink(path)? { Removal::Gone } else { Removal::Absent }),
            GcItem::Tag(_, name) => self.manifest_store.drop_tag(name),
            GcItem::Content(_, content) if content.is_manifest => Ok(self.manifest_store.discard_idle(&content.digest)),
            GcItem::Content(_, content) => Ok(self.blobs.discard_idle(&content.digest)),
        }
    }
}
