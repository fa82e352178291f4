//! Reads a directory of content at the start. All functions block.

use std::fs::{self, DirEntry};
use std::io::ErrorKind;
use std::path::Path;
use std::time::SystemTime;

use crate::descriptor::Digest;
use crate::error::{Error, Result};

/// The complete files below `dir`, oldest first. Files of a wrong size are removed. Files with other names are ignored.
///
/// A file is complete if it has the size that is in its name: it got the name after its bytes were hashed and synced, so only
/// a broken disk can make it shorter. This costs one `stat` for each file; 100,000 files take less than a second.
pub(super) fn scan_directory(dir: &Path) -> Result<Vec<(Digest, u64)>> {
    let mut found: Vec<(SystemTime, Digest, u64)> = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        for shard in entries(&dir.join(algorithm))? {
            for file in entries(&shard.path())? {
                found.extend(scan_file(algorithm, &file));
            }
        }
    }
    found.sort_by_key(|entry| entry.0);
    Ok(found.into_iter().map(|(_, digest, size)| (digest, size)).collect())
}

fn scan_file(algorithm: &str, file: &DirEntry) -> Option<(SystemTime, Digest, u64)> {
    let name = file.file_name();
    let Some((digest, size)) = name.to_str().and_then(|name| parse(algorithm, name)) else {
        tracing::warn!("{} is not a file of the cache", file.path().display());
        return None;
    };
    let metadata = file.metadata().ok()?;
    if metadata.len() != size {
        tracing::error!("{} has {} bytes: removed", file.path().display(), metadata.len());
        let _ = fs::remove_file(file.path());
        return None;
    }
    Some((metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH), digest, size))
}

/// The digest and the size in a file's name: `<hex>.<size>`.
pub(super) fn parse(algorithm: &str, name: &str) -> Option<(Digest, u64)> {
    let (hex, size) = name.split_once('.')?;
    Some((format!("{algorithm}:{hex}").parse().ok()?, size.parse().ok()?))
}

/// Removes the temporary files of an earlier process.
pub(super) fn sweep(fills: &Path) -> Result<()> {
    for left in entries(fills)? {
        tracing::info!("removing the incomplete file {}", left.path().display());
        let path = left.path();
        fs::remove_file(&path).map_err(|error| Error::io(format!("remove {}", path.display()), &error))?;
    }
    Ok(())
}

/// The entries of a directory; none if it does not exist.
pub(super) fn entries(dir: &Path) -> Result<Vec<DirEntry>> {
    let failed = |error: &std::io::Error| Error::io(format!("read {}", dir.display()), error);
    match fs::read_dir(dir) {
        Ok(read) => read.collect::<std::io::Result<_>>().map_err(|error| failed(&error)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(error) => Err(failed(&error)),
    }
}
