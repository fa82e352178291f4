//! The queue's file: which images wait, how often each was tried, and which were given up.
//!
//! A JSON list, replaced by rename. A try is counted here before it begins: if the process does not survive it, the next
//! one knows.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Job;
use crate::error::{Error, Kind, Result};
use crate::regular_file::{self, Links};

/// An image in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Saved {
    #[serde(flatten)]
    pub(super) job: Job,
    /// Tries so far.
    #[serde(default)]
    pub(super) tries: u32,
    /// The last ones of them that began and never ended: the process was killed.
    #[serde(default)]
    pub(super) unended: u32,
    /// When it was given up, in seconds since 1970. Until it is forgotten, it is not queued again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) given_up: Option<u64>,
}

/// Reads the file; empty where there is none. Blocks.
pub(super) fn load(file: &Path) -> Result<Vec<Saved>> {
    let bytes = match regular_file::read(file, Links::Refuse, MAX_FILE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|error| Error::io(format!("read {}", file.display()), &error))?,
    };
    serde_json::from_slice(&bytes).map_err(|error| Error::new(Kind::Local, format!("{}: {error}", file.display())))
}

/// Writes another file, and renames it: a process may be killed at any moment. Blocks.
pub(super) fn store(file: &Path, all: &[Saved]) -> Result<()> {
    let beside = file.with_extension("new");
    let bytes = serde_json::to_vec(all).map_err(|error| Error::new(Kind::Local, error.to_string()))?;
    let failed = |error: &std::io::Error| Error::io(format!("write {}", file.display()), error);
    // What could not be read back would end all jobs.
    regular_file::check_size(bytes.len() as u64, MAX_FILE).map_err(|error| failed(&error))?;
    // What a killed process left; it may be another kind of file.
    let _ = fs::remove_file(&beside);
    let written = File::create_new(&beside).and_then(|mut to| {
        to.write_all(&bytes)?;
        to.sync_all()?;
        fs::rename(&beside, file)
    });
    written.map_err(|error| failed(&error))
}

/// The most bytes that are read and written: more than a full queue has.
const MAX_FILE: u64 = 16 << 20;
