//! The files of tags: small ones, bounded in their number, since a client can ask for any number of tags.
//! All of it blocks.

use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::SystemTime;

use super::scan::entries;
use crate::error::Result;

/// How many there are.
#[derive(Debug)]
pub(super) struct TagFileCount {
    dir: PathBuf,
    most: usize,
    /// At least so many: those that were removed are seen when there seem to be too many.
    count: AtomicUsize,
    thinning: Mutex<()>,
}

impl TagFileCount {
    /// Those in `dir`, of which `most` may stay.
    pub(super) fn new(dir: PathBuf, most: usize) -> Self {
        let count =
            entries(&dir).into_iter().flatten().map(|shard| entries(&shard.path()).map_or(0, |tags| tags.len()));
        let count = AtomicUsize::new(count.sum());
        Self { dir, most, count, thinning: Mutex::new(()) }
    }

    /// There's a new one: if that makes too many, those that were checked least lately go, an eighth of all.
    ///
    /// # Errors
    /// If they can't be listed.
    pub(super) fn added(&self) -> Result<()> {
        if self.count.fetch_add(1, Ordering::Relaxed) < self.most {
            return Ok(());
        }
        // One is enough.
        let Ok(_thinning) = self.thinning.try_lock() else { return Ok(()) };
        let mut all: Vec<(SystemTime, PathBuf)> = Vec::new();
        for shard in entries(&self.dir)? {
            for tag in entries(&shard.path())? {
                // It's written whenever it's checked.
                let written = tag.metadata().and_then(|metadata| metadata.modified());
                all.push((written.unwrap_or(SystemTime::UNIX_EPOCH), tag.path()));
            }
        }
        let over = (all.len() + self.most / 8).saturating_sub(self.most);
        if all.len() > self.most {
            all.sort();
            all.drain(..over).for_each(|(_, path)| drop(fs::remove_file(path)));
            tracing::info!("{over} tags were forgotten: there were more than {}", self.most);
        }
        self.count.store(all.len(), Ordering::Relaxed);
        Ok(())
    }
}

/// Tags on the disk: some 400 MiB of the smallest files that there are.
pub(super) const MAX_TAG_FILES: usize = 100_000;
