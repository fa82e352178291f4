//! Manifests of an image that goes to several destinations: each is read from its source once, since
//! Docker Hub counts each read as a pull. And all of them get the same image, though its tag move meanwhile.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::OnceCell;

use crate::content::{Body, Source, TagPage};
use crate::descriptor::{Descriptor, Digest};
use crate::error::Result;
use crate::manifest::Manifest;
use crate::reference::{Repository, Target};

/// The manifests that were read of one image. Goes with the last of its jobs.
#[derive(Debug, Default)]
pub(super) struct Reading(Mutex<HashMap<Target, Arc<OnceCell<Manifest>>>>);

/// A source, read for one of an image's destinations.
#[derive(Clone, Debug)]
pub(super) struct Shared<S> {
    source: S,
    /// None if there's one destination only.
    reading: Option<Arc<Reading>>,
    /// Manifests that another one's read gave.
    given: Arc<AtomicUsize>,
}

impl Reading {
    fn cell(&self, target: &Target) -> Arc<OnceCell<Manifest>> {
        let mut cells = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        cells.entry(target.clone()).or_default().clone()
    }
}

impl<S> Shared<S> {
    pub(super) fn new(source: S, reading: Option<Arc<Reading>>) -> Self {
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
        let Some(reading) = &self.reading else { return self.source.manifest(target).await };
        let mut own = false;
        let read = async {
            own = true;
            self.source.manifest(target).await
        };
        let manifest = reading.cell(target).get_or_try_init(|| read).await?.clone();
        if own {
            // Who asks by digest has it too.
            let _ = reading.cell(&Target::Digest(manifest.digest())).set(manifest.clone());
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
