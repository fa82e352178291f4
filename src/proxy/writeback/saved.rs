//! The queue's file: which images wait, how often each was tried, and which were given up.
//!
//! A JSON list, replaced by rename. A try is counted here before it begins: if the process does not survive it, the next
//! one knows.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::Job;
use crate::atomic_file;
use crate::error::{Error, Kind, Result};
use crate::regular_file::{self, Links};

/// An image in the file.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct SavedJob {
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
pub(super) fn load(file: &Path) -> Result<Vec<SavedJob>> {
    let bytes = match regular_file::read(file, Links::Refuse, MAX_FILE) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.map_err(|error| Error::io(format!("read {}", file.display()), &error))?,
    };
    serde_json::from_slice(&bytes)
        .map_err(|error| Error::new(Kind::Local, format!("{}: {error}", file.display())).caused_by(error))
}

/// Replaces the file as a whole: a process may be killed at any moment. Only its owner may read it, since it names
/// private repositories. Blocks.
pub(super) fn store(file: &Path, all: &[SavedJob]) -> Result<()> {
    let bytes = serde_json::to_vec(all).map_err(|error| Error::new(Kind::Local, error.to_string()).caused_by(error))?;
    let failed = |error: &std::io::Error| Error::io(format!("write {}", file.display()), error);
    // What could not be read back would end all jobs.
    regular_file::check_size(bytes.len() as u64, MAX_FILE).map_err(|error| failed(&error))?;
    atomic_file::write(file, Some(0o600), |to| to.write_all(&bytes)).map_err(|error| failed(&error))
}

/// The most bytes that are read and written: more than a full queue has.
const MAX_FILE: u64 = 16 << 20;

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn only_its_owner_reads_the_file_whatever_was_there() {
        let dir = std::env::temp_dir().join(format!("transload-saved-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let file = dir.join("write-back.json");
        let mode = || fs::metadata(&file).expect("the file").permissions().mode() & 0o777;
        store(&file, &[]).expect("written");
        assert_eq!(mode(), 0o600);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).expect("its owner");
        store(&file, &[]).expect("written");
        assert_eq!(mode(), 0o600);
        assert_eq!(fs::read_dir(&dir).expect("a directory").count(), 1, "nothing else is left");
        fs::remove_dir_all(dir).expect("removed");
    }
}
