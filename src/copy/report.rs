//! What a copy did, for people and for machines.

use serde::Serialize;

use super::{Graph, Plan};
use crate::descriptor::{Descriptor, Digest};
use serde::Serializer;
use std::collections::BTreeSet;
use std::sync::Arc;

/// What became of one image.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Report {
    /// What it came to.
    #[serde(skip)]
    pub status: Status,
    /// The digest of the root manifest.
    pub digest: Option<Digest>,
    /// The platforms of its images, as the index names them.
    pub platforms: Platforms,
    /// Manifests written (or, in a dry run, to be written).
    pub manifests_written: usize,
    /// Manifests read from the source: at Docker Hub each is counted as a pull, in a dry run too.
    pub pulls: usize,
    /// Manifests that were there already.
    pub manifests_present: usize,
    /// Blobs sent.
    pub blobs_uploaded: usize,
    /// Blobs mounted from another repository of the destination.
    pub blobs_mounted: usize,
    /// Blobs that were there already.
    pub blobs_present: usize,
    /// Foreign layers that were left where they are.
    pub blobs_foreign: usize,
    /// Bytes of blobs sent.
    pub bytes_uploaded: u64,
    /// Bytes of blobs that didn't need to be sent.
    pub bytes_skipped: u64,
    /// Blobs that needed more than one attempt.
    pub blobs_retried: usize,
    /// Referrers copied or found there.
    pub referrers: usize,
    /// How long it took.
    pub duration_seconds: f64,
}

/// How a copy ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Status {
    /// Written to the destination.
    #[default]
    Copied,
    /// The destination had it.
    Unchanged,
}

/// What became of one blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The registry took it from another of its repositories.
    Mounted {
        /// From which.
        from: String,
    },
    /// It was there.
    Present,
    /// It was sent.
    Uploaded {
        /// How many bytes.
        bytes: u64,
        /// In how many attempts.
        attempts: u32,
    },
}

/// Who is told what happens while it happens: progress bars, metrics. Called from any task, so
/// it must be quick.
pub trait Observer: Send + Sync {
    /// An image's walk found so many blobs, of so many bytes.
    fn planned(&self, _blobs: usize, _bytes: u64) {}
    /// A blob's bytes are about to come.
    fn started(&self, _blob: &Descriptor) {}
    /// Bytes of a blob came from the source. After a fault some may come twice.
    fn moved(&self, _blob: &Digest, _bytes: u64) {}
    /// A blob is at the destination.
    fn finished(&self, _blob: &Descriptor, _outcome: &Outcome) {}
    /// A blob whose bytes were about to come is given up: its copy failed or was stopped.
    fn abandoned(&self, _blob: &Descriptor) {}
    /// An image's copy failed or was stopped: so many planned bytes of blobs that aren't finished won't come.
    fn unplanned(&self, _bytes: u64) {}
}

/// An observer that doesn't care.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl Observer for NoObserver {}

impl Report {
    /// About how many requests it takes to copy what a dry run found: at the source each manifest and blob;
    /// at the destination a look at the tag, two for each blob sent, one for each mounted, each manifest. What is
    /// unchanged takes a look at the tag at both ends, and at the destination one at each manifest, where some
    /// platforms' were looked for.
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

/// The platforms of an image. Shared by all images that have the same: a list has thousands of images,
/// and a handful of such sets.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Platforms(Arc<BTreeSet<String>>);

impl Platforms {
    /// Those that were written, in order.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    /// Whether they are the same in memory.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl<T: ToString> FromIterator<T> for Platforms {
    fn from_iter<I: IntoIterator<Item = T>>(platforms: I) -> Self {
        // A report keeps them to its end: an index can name thousands, of any length.
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

/// Platforms that are told of an image, and the bytes of each: nobody has longer ones.
pub(super) const MAX_PLATFORMS: usize = 200;

pub(super) const MAX_PLATFORM: usize = 128;
