//! Limits the number of tag files, since a client can request any number of tags. All methods block.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::scan::entries;
use crate::error::Result;

/// The number of tag files.
#[derive(Debug)]
pub(super) struct TagFileCount {
    dir: PathBuf,
    max: usize,
    /// An upper bound: removed files are noticed only when the limit is reached.
    count: AtomicUsize,
    /// Held while files are removed.
    removing: Mutex<()>,
}

impl TagFileCount {
    /// Counts the files in `dir`, of which there may be `max`.
    pub(super) fn new(dir: PathBuf, max: usize) -> Self {
        let count =
            entries(&dir).into_iter().flatten().map(|shard| entries(&shard.path()).map_or(0, |tags| tags.len()));
        let count = AtomicUsize::new(count.sum());
        Self { dir, max, count, removing: Mutex::new(()) }
    }

    /// Counts a new file. Above the limit the files that were checked longest ago are removed, an eighth of all.
    ///
    /// # Errors
    /// If the files cannot be listed.
    pub(super) fn added(&self) -> Result<()> {
        if self.count.fetch_add(1, Ordering::Relaxed) < self.max {
            return Ok(());
        }
        // If another thread is removing files, that is enough.
        let Ok(_removing) = self.removing.try_lock() else { return Ok(()) };
        let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
        for shard in entries(&self.dir)? {
            for tag in entries(&shard.path())? {
                // A tag file is written at each check of the tag.
                let written = tag.metadata().and_then(|metadata| metadata.modified());
                all.push((written.unwrap_or(SystemTime::UNIX_EPOCH), tag.path()));
            }
        }
        let over = (all.len() + self.max / 8).saturating_sub(self.max);
        if all.len() > self.max {
            all.sort();
            all.drain(..over).for_each(|(_, path)| drop(fs::remove_file(path)));
            tracing::info!("removed {over} tags from the cache: there were more than {}", self.max);
        }
        self.count.store(all.len(), Ordering::Relaxed);
        Ok(())
    }
}

/// The limit of tag files: about 400 MiB of the smallest files.
pub(super) const MAX_TAG_FILES: usize = 100_000;
