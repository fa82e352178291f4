//! What several copies came to, in the form of their JSON documents: `transload copy`'s and a mirror run's.

use serde::Serialize;

use super::{Report, Status};
use crate::error::{Error, Side};

/// One image of a document.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// What was read, as a user writes it.
    pub source: String,
    /// Where it was to be written.
    pub destination: String,
    /// The line of the list that it came from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// How it ended.
    #[serde(flatten)]
    pub ended: CopyResult,
}

/// How an image's copy ended. Boxed inside: a list's run keeps one for each image.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum CopyResult {
    /// It is there, or would be.
    Done {
        /// `copied`, `unchanged` or `planned`.
        status: &'static str,
        /// The figures.
        #[serde(flatten)]
        report: Box<Report>,
    },
    /// It isn't.
    Failed {
        /// `failed`, or `skipped` if a deadline came before its turn.
        status: &'static str,
        /// Why.
        error: Box<Failure>,
    },
}

impl CopyResult {
    /// What became of one image.
    pub fn new(result: Result<Report, &Error>, dry_run: bool) -> Self {
        match result {
            Ok(report) => {
                let status = match report.status {
                    Status::Unchanged => UNCHANGED,
                    Status::Copied if dry_run => PLANNED,
                    Status::Copied => COPIED,
                };
                Self::Done { status, report: Box::new(report) }
            }
            Err(error) => Self::Failed { status: FAILED, error: Box::new(error.into()) },
        }
    }

    /// An image whose turn didn't come, and why.
    pub fn skipped(why: &Error) -> Self {
        Self::Failed { status: SKIPPED, error: Box::new(why.into()) }
    }

    /// `copied`, `unchanged`, `planned`, `failed` or `skipped`.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Done { status, .. } | Self::Failed { status, .. } => status,
        }
    }

    /// The figures, if it is there or would be.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Done { report, .. } => Some(report),
            Self::Failed { .. } => None,
        }
    }

    /// Why it isn't there.
    pub fn error(&self) -> Option<&Failure> {
        match self {
            Self::Done { .. } => None,
            Self::Failed { error, .. } => Some(error),
        }
    }
}

/// An error, as documents have it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// `source`, `destination` or `local`.
    pub side: Option<&'static str>,
    /// Its kind.
    pub kind: &'static str,
    /// What went wrong.
    pub message: String,
    /// What can be done about it.
    pub hint: Option<String>,
}

impl From<&Error> for Failure {
    fn from(error: &Error) -> Self {
        Self {
            side: error.side().map(|side| match side {
                Side::Source => "source",
                Side::Destination => "destination",
                Side::Local => "local",
            }),
            kind: error.kind().name(),
            message: error.to_string(),
            hint: error.hint_text().map(str::to_owned),
        }
    }
}

/// The sums over all images.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Images written.
    pub copied: usize,
    /// Images that were there.
    pub unchanged: usize,
    /// Images that a dry run would write.
    pub planned: usize,
    /// Images that failed.
    pub failed: usize,
    /// Images whose turn a deadline came before; only where that can be.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<usize>,
    /// Blobs sent.
    pub blobs_uploaded: usize,
    /// Blobs mounted.
    pub blobs_mounted: usize,
    /// Blobs that were there.
    pub blobs_present: usize,
    /// Manifests read from sources for the images that are there, or would be; [`RegistryUsage::pulls`] has all.
    pub pulls: usize,
    /// Bytes of blobs sent.
    pub bytes_uploaded: u64,
    /// Bytes of blobs that didn't need to be sent.
    pub bytes_skipped: u64,
    /// Requests to all registries.
    pub requests: u64,
    /// About how many a run would make; of a list's dry run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_planned: Option<u64>,
    /// How long it took.
    pub duration_seconds: f64,
}

impl Summary {
    /// Counts an image.
    pub fn add(&mut self, ended: &CopyResult) {
        match ended.status() {
            COPIED => self.copied += 1,
            UNCHANGED => self.unchanged += 1,
            PLANNED => self.planned += 1,
            SKIPPED => *self.skipped.get_or_insert(0) += 1,
            _ => self.failed += 1,
        }
        let Some(report) = ended.report() else { return };
        self.blobs_uploaded += report.blobs_uploaded;
        self.blobs_mounted += report.blobs_mounted;
        self.blobs_present += report.blobs_present;
        self.pulls += report.pulls;
        self.bytes_uploaded = self.bytes_uploaded.saturating_add(report.bytes_uploaded);
        self.bytes_skipped = self.bytes_skipped.saturating_add(report.bytes_skipped);
    }

    /// How many images were counted.
    pub fn images(&self) -> usize {
        self.copied + self.unchanged + self.planned + self.failed + self.skipped.unwrap_or(0)
    }
}

/// What a registry was asked.
#[derive(Clone, Debug, Serialize)]
pub struct RegistryUsage {
    /// The registry.
    pub name: String,
    /// Requests, each redirect and token request counted.
    pub requests: u64,
    /// Manifests read from it, also for images that failed then.
    pub pulls: u64,
    /// The pull quota that it last told.
    pub pull_limit: Option<Quota>,
}

/// A registry's (Docker Hub's) pull quota.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quota {
    /// Pulls allowed in a window.
    pub limit: u64,
    /// Pulls left in it.
    pub remaining: u64,
    /// The window, in seconds.
    pub window_seconds: u64,
    /// What is counted: an address or a user's id.
    pub source: Option<String>,
}

const COPIED: &str = "copied";
const UNCHANGED: &str = "unchanged";
const PLANNED: &str = "planned";
const FAILED: &str = "failed";
const SKIPPED: &str = "skipped";
