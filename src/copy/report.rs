//! The result of copying one image, and the observer of a copy in progress.

use serde::Serialize;

use super::{Graph, Plan};
use crate::descriptor::{Descriptor, Digest};
use serde::Serializer;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The result of copying one image.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// Whether it was written.
    #[serde(skip)]
    pub status: Status,
    /// The digest of the root manifest.
    pub digest: Option<Digest>,
    /// The platforms of its images, as the index names them.
    pub platforms: Platforms,
    /// Manifests written (or, in a dry run, to be written).
    pub manifests_written: usize,
    /// Manifests read from the source. Docker Hub counts each as a pull, also in a dry run.
    pub pulls: usize,
    /// Manifests that the destination already had.
    pub manifests_present: usize,
    /// Blobs uploaded.
    pub blobs_uploaded: usize,
    /// Blobs mounted from another repository of the destination.
    pub blobs_mounted: usize,
    /// Blobs that the destination already had.
    pub blobs_present: usize,
    /// Foreign layers that were not copied.
    pub blobs_foreign: usize,
    /// Bytes of uploaded blobs.
    pub bytes_uploaded: u64,
    /// Bytes of blobs that were mounted or already there.
    pub bytes_skipped: u64,
    /// Blobs that needed more than one attempt.
    pub blobs_retried: usize,
    /// Referrers that were copied or already there.
    pub referrers: usize,
    /// The duration in seconds.
    pub duration_seconds: f64,
}

/// Whether an image was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// Written to the destination.
    #[default]
    Copied,
    /// The destination already had it.
    Unchanged,
}

/// The result of transferring one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The registry mounted it from another of its repositories.
    Mounted {
        /// The repository.
        from: String,
    },
    /// The destination already had it.
    Present,
    /// It was uploaded.
    Uploaded {
        /// Its size in bytes.
        bytes: u64,
        /// The number of attempts.
        attempts: u32,
    },
}

/// Receives the progress of copies: progress bars, metrics. Its methods are called from any task and must not block.
pub trait Observer: Send + Sync {
    /// An image was planned: the number and the total size of its blobs.
    fn planned(&self, _blobs: usize, _bytes: u64) {}
    /// The download of a blob starts.
    fn started(&self, _blob: &Descriptor) {}
    /// Bytes of a blob arrived from the source. After a fault some may arrive twice.
    fn moved(&self, _blob: &Digest, _bytes: u64) {}
    /// The destination has a blob.
    fn finished(&self, _blob: &Descriptor, _outcome: &Outcome) {}
    /// A blob whose bytes were about to come is given up: its copy failed or was stopped.
    fn abandoned(&self, _blob: &Descriptor) {}
    /// An image's copy failed or was stopped: so many planned bytes of blobs that aren't finished won't come.
    fn unplanned(&self, _bytes: u64) {}
}

/// An observer that does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

impl Report {
    /// Estimate of the requests that it takes to copy what a dry run found.
    ///
    /// At the source: one for each manifest and each uploaded blob. At the destination: one for the tag, two for each
    /// uploaded blob, one for each mounted blob, one for each manifest. An unchanged image takes one for the tag at both
    /// ends. With selected platforms it also takes one for each manifest at the destination.
    pub fn requests_planned(&self) -> u64 {
        let requests = match self.status {
            Status::Unchanged if self.manifests_present > 1 => 2 + self.manifests_present,
            Status::Unchanged => 2,
            Status::Copied => 1 + 2 * self.manifests_written + 3 * self.blobs_uploaded + self.blobs_mounted,
        };
        requests as u64
    }

    pub(super) fn unchanged(&mut self, root: &Descriptor, graph: &Graph) {
        self.status = Status::Unchanged;
        self.digest = Some(root.digest);
        self.platforms = graph.platforms.iter().collect();
        self.manifests_present = graph.manifests.len() + graph.present.len();
    }

    pub(super) fn planned(&mut self, graph: &Graph, plan: &Plan) {
        self.digest = graph.manifests.first().map(|root| root.digest());
        self.platforms = graph.platforms.iter().collect();
        self.manifests_written = graph.manifests.len();
        self.manifests_present = graph.present.len();
        self.blobs_foreign = plan.foreign.len();
    }

    pub(super) fn add(&mut self, blob: &Descriptor, outcome: &Outcome) {
        match outcome {
            Outcome::Uploaded { bytes, attempts } => {
                self.blobs_uploaded += 1;
                self.bytes_uploaded = self.bytes_uploaded.saturating_add(*bytes);
                self.blobs_retried += usize::from(*attempts > 1);
            }
            Outcome::Mounted { .. } => {
                self.blobs_mounted += 1;
                self.bytes_skipped = self.bytes_skipped.saturating_add(blob.size);
            }
            Outcome::Present => {
                self.blobs_present += 1;
                self.bytes_skipped = self.bytes_skipped.saturating_add(blob.size);
            }
        }
    }
}

/// The platforms of an image. Images with the same platforms can share one set: a list has thousands of images and few
/// different sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platforms(Arc<BTreeSet<String>>);

impl Platforms {
    /// The platforms in alphabetical order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether both share one set in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: ToString> FromIterator<T> for Platforms {
    fn from_iter<I: IntoIterator<Item = T>>(platforms: I) -> Self {
        // A report keeps them in memory, and an index can name thousands of any length.
        let texts = platforms.into_iter().map(|platform| platform.to_string());
        let texts: BTreeSet<String> = texts.filter(|text| text.len() <= MAX_PLATFORM).collect();
        Self(Arc::new(texts.into_iter().take(MAX_PLATFORMS).collect()))
    }
}

impl Serialize for Platforms {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// The most platforms of one image in a report.
pub(super) const MAX_PLATFORMS: usize = 200;
/// The longest platform in a report, in bytes.
pub(super) const MAX_PLATFORM: usize = 128;
