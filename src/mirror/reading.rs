//! Manifests that several images of a run need: an image's own for each of its destinations, and the children of an
//! index that has several tags. Each is read from its source once, since Docker Hub counts each read as a pull. And all
//! destinations get the same image, though its tag move meanwhile.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OnceCell;

use crate::content::{Body, Source, TagPage};
use crate::descriptor::{Descriptor, Digest};
use crate::error::Result;
use crate::manifest::Manifest;
use crate::reference::{Repository, Target};

/// The manifests that images of this run have read by digest, for as long as one of these images is worked on: of tags
/// that are one image, those that bring it to different destinations needn't be the same.
#[derive(Debug, Default)]
pub(super) struct Shelf(Mutex<HashMap<(Repository, Digest), Weak<Cell>>>);

type Cell = OnceCell<Manifest>;

/// The manifests that were read of one image. Goes with the last of its jobs.
#[derive(Debug)]
pub(super) struct Reading {
    shelf: Arc<Shelf>,
    from: Repository,
    cells: Mutex<HashMap<Target, Arc<Cell>>>,
}

/// A source, read for one of an image's destinations.
#[derive(Clone, Debug)]
pub(super) struct Shared<S> {
    source: S,
    reading: Arc<Reading>,
    /// Manifests that another one's read gave.
    given: Arc<AtomicUsize>,
}

impl Reading {
    /// For an image of the repository `from`.
    pub(super) fn new(shelf: &Arc<Shelf>, from: &Repository) -> Self {
        Self { shelf: shelf.clone(), from: from.clone(), cells: Mutex::default() }
    }

    fn cell(&self, target: &Target) -> Arc<Cell> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        let new = || target.digest().map_or_else(Arc::default, |digest| self.shelf.cell((self.from.clone(), digest)));
        cells.entry(target.clone()).or_insert_with(new).clone()
    }
}

impl Shelf {
    fn cell(&self, key: (Repository, Digest)) -> Arc<Cell> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let found = cells.get(&key).and_then(Weak::upgrade);
        found.unwrap_or_else(|| {
            let cell = Arc::default();
            cells.insert(key, Arc::downgrade(&cell));
            cell
        })
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let cells = std::mem::take(self.cells.get_mut().unwrap_or_else(PoisonError::into_inner));
        let digests: Vec<_> = cells.keys().filter_map(Target::digest).collect();
        drop(cells);
        let mut shelf = self.shelf.0.lock().unwrap_or_else(PoisonError::into_inner);
        for digest in digests {
            let key = (self.from.clone(), digest);
            if shelf.get(&key).is_some_and(|cell| cell.strong_count() == 0) {
                shelf.remove(&key);
            }
        }
    }
}

impl<S> Shared<S> {
    pub(super) fn new(source: S, reading: Arc<Reading>) -> Self {
        Self { source, reading, given: Arc::default() }
    }

    /// How many manifests cost this destination no read.
    pub(super) fn given(&self) -> usize {
        self.given.load(Ordering::Relaxed)
    }
}

impl<S: Source> Source for Shared<S> {
    async fn resolve(&self, target: &Target) -> Result<Option<Descriptor>> {
        self.source.resolve(target).await
    }

    /// Who comes second waits for the first one's read; if that fails or is dropped, reads itself.
    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        let mut own = false;
        let read = async {
            own = true;
            self.source.manifest(target).await
        };
        let manifest = self.reading.cell(target).get_or_try_init(|| read).await?.clone();
        if own {
            // Who asks by digest has it too.
            let _ = self.reading.cell(&Target::Digest(manifest.digest())).set(manifest.clone());
        } else {
            self.given.fetch_add(1, Ordering::Relaxed);
        }
        Ok(manifest)
    }

    async fn blob(&self, blob: &Descriptor, from: u64) -> Result<Body> {
        self.source.blob(blob, from).await
    }

    async fn part(&self, blob: &Descriptor, part: Range<u64>) -> Result<Body> {
        self.source.part(blob, part).await
    }

    fn origin(&self) -> Option<&Repository> {
        self.source.origin()
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        self.source.referrers(subject).await
    }

    async fn tags(&self, next: Option<&str>) -> Result<TagPage> {
        self.source.tags(next).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_that_are_worked_on_share_what_they_read() {
        let shelf = Arc::<Shelf>::default();
        let of = |name: &str| Reading::new(&shelf, &name.parse().expect("a repository"));
        let (one, two, other) = (of("r.io/app"), of("r.io/app"), of("r.io/other"));
        let target = Target::Digest(Digest::of(b"child"));
        let cell = one.cell(&target);
        assert!(Arc::ptr_eq(&cell, &two.cell(&target)), "the same manifest for another tag");
        assert!(!Arc::ptr_eq(&cell, &other.cell(&target)), "it may not be there");
        let tag = Target::Tag("v1".parse().expect("a tag"));
        assert!(!Arc::ptr_eq(&one.cell(&tag), &two.cell(&tag)), "each is asked what its tag is");
        drop((cell, one));
        let kept = two.cell(&target);
        assert!(Arc::ptr_eq(&kept, &of("r.io/app").cell(&target)), "as long as one of them needs it");
        drop((kept, two, other));
        assert!(shelf.0.lock().expect("no panic").is_empty(), "a long list leaves nothing");
    }
}
