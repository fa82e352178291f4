//! The results of several copies, as in the JSON documents of `transload copy` and `transload mirror`.

use serde::Serialize;

use super::{Report, Status};
use crate::error::{Error, Side};

/// The result of one image.
#[derive(Clone, Debug, Serialize)]
pub struct Entry {
    /// The source image, as a user writes it.
    pub source: String,
    /// The destination image.
    pub destination: String,
    /// The line of the list that names it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub line: Option<u32>,
    /// The result.
    #[serde(flatten)]
    pub ended: CopyResult,
}

/// The result of copying one image. The contents are boxed, since the run of a list keeps one for each image.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum CopyResult {
    /// The destination has the image, or a dry run found no error.
    Done {
        /// `copied`, `unchanged` or `planned`.
        status: &'static str,
        /// What was done.
        #[serde(flatten)]
        report: Box<Report>,
    },
    /// The image was not copied.
    Failed {
        /// `failed`, or `skipped` if the deadline passed before it was started.
        status: &'static str,
        /// The reason.
        error: Box<Failure>,
    },
}

impl CopyResult {
    /// The result of one image.
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

    /// An image that was not started, with the reason.
    pub fn skipped(why: &Error) -> Self {
        Self::Failed { status: SKIPPED, error: Box::new(why.into()) }
    }

    /// `copied`, `unchanged`, `planned`, `failed` or `skipped`.
    pub fn status(&self) -> &'static str {
        match self {
            Self::Done { status, .. } | Self::Failed { status, .. } => status,
        }
    }

    /// What was done; `None` if the image was not copied.
    pub fn report(&self) -> Option<&Report> {
        match self {
            Self::Done { report, .. } => Some(report),
            Self::Failed { .. } => None,
        }
    }

    /// Why the image was not copied.
    pub fn error(&self) -> Option<&Failure> {
        match self {
            Self::Done { .. } => None,
            Self::Failed { error, .. } => Some(error),
        }
    }
}

/// An error in a document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Failure {
    /// `source`, `destination` or `local`.
    pub side: Option<&'static str>,
    /// Its kind.
    pub kind: &'static str,
    /// The error's text.
    pub message: String,
    /// What the user can do.
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

/// Totals over all images.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Summary {
    /// Images written.
    pub copied: usize,
    /// Images that the destination already had.
    pub unchanged: usize,
    /// Images that a dry run would write.
    pub planned: usize,
    /// Images that failed.
    pub failed: usize,
    /// Images that a deadline kept from starting; only for commands with a deadline.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skipped: Option<usize>,
    /// Blobs uploaded.
    pub blobs_uploaded: usize,
    /// Blobs mounted.
    pub blobs_mounted: usize,
    /// Blobs that the destination already had.
    pub blobs_present: usize,
    /// Manifests read from sources, without those of failed images; [`RegistryUsage::pulls`] has all.
    pub pulls: usize,
    /// Bytes of uploaded blobs.
    pub bytes_uploaded: u64,
    /// Bytes of blobs that were mounted or already there.
    pub bytes_skipped: u64,
    /// Requests to all registries.
    pub requests: u64,
    /// Estimate of the requests of a real run; only for the dry run of a list.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_planned: Option<u64>,
    /// The duration in seconds.
    pub duration_seconds: f64,
}

impl Summary {
    /// Adds one image.
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

    /// The number of images.
    pub fn images(&self) -> usize {
        self.copied + self.unchanged + self.planned + self.failed + self.skipped.unwrap_or(0)
    }
}

/// The requests to one registry.
#[derive(Clone, Debug, Serialize)]
pub struct RegistryUsage {
    /// The registry's name.
    pub name: String,
    /// Requests, each redirect and token request counted.
    pub requests: u64,
    /// Manifests read from it, including those of failed images.
    pub pulls: u64,
    /// The last pull limit that it reported.
    pub pull_limit: Option<Quota>,
}

/// The pull limit of a registry (Docker Hub).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Quota {
    /// Pulls allowed in a window.
    pub limit: u64,
    /// Pulls left in it.
    pub remaining: u64,
    /// The window, in seconds.
    pub window_seconds: u64,
    /// The address or user id whose pulls are counted.
    pub source: Option<String>,
}

const COPIED: &str = "copied";
const UNCHANGED: &str = "unchanged";
const PLANNED: &str = "planned";
const FAILED: &str = "failed";
const SKIPPED: &str = "skipped";
