//! The directory as such: made, recognised, locked, swept. All of it blocks.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;

use super::index::Index;
use super::root_dir::RootDir;
use super::upload::{TempFile, is_temporary};
use crate::atomic_file::sync_dir;
use crate::clock;
use crate::error::{Error, Kind, Result};
use crate::regular_file;

/// Checks that `dir` is a layout of a version that is known.
pub(super) fn check_layout(root: &RootDir) -> Result<()> {
    let dir = root.path();
    let mark = dir.join(LAYOUT_FILE);
    let text = match root
        .open(Path::new(LAYOUT_FILE))
        .and_then(|(file, _)| regular_file::read_open(&file, MAX_LAYOUT_FILE))
    {
        Ok(text) => text,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            let why = match () {
                () if dir.is_dir() => "it has no file oci-layout",
                () if dir.exists() => "it is no directory",
                () => "it doesn't exist",
            };
            return Err(Error::new(Kind::NotFound, format!("{} is not an OCI image layout: {why}", dir.display()))
                .hint("name a directory that transload, skopeo (oci:DIR) or crane wrote; unpack an archive first"));
        }
        Err(error) => return Err(Error::io(format!("read {}", mark.display()), &error)),
    };
    let version = serde_json::from_slice::<serde_json::Value>(&text)
        .ok()
        .and_then(|mark| mark.get("imageLayoutVersion")?.as_str().map(str::to_owned));
    match version {
        Some(version) if version.starts_with("1.") => Ok(()),
        Some(version) => Err(Error::new(Kind::Unsupported, format!("image layout version {version} is not known"))),
        None => Err(Error::new(Kind::Invalid, format!("{} says no imageLayoutVersion", mark.display()))),
    }
}

/// Makes `dir` a layout, unless it is one.
pub(super) fn create_layout(root: &RootDir) -> Result<()> {
    let dir = root.path();
    let failed = |error: &std::io::Error| Error::io(format!("create {}", dir.display()), error);
    if !dir.join(LAYOUT_FILE).exists() {
        check_empty(dir)?;
        let mut temp = TempFile::new(dir, None)?;
        temp.write(&[Bytes::from_static(br#"{"imageLayoutVersion":"1.0.0"}"#)])?;
        // Only if nobody else was faster: the file is what others may hold the lock on.
        temp.try_rename(root, Path::new(LAYOUT_FILE))?;
    }
    check_layout(root)?;
    let blobs = dir.join("blobs");
    if !blobs.join("sha256").exists() {
        root.make_directory(Path::new("blobs/sha256")).map_err(|error| failed(&error))?;
        sync_dir(&blobs).and_then(|()| sync_dir(dir)).map_err(|error| failed(&error))?;
    }
    let _held = lock(root)?;
    if !dir.join(INDEX_FILE).exists() {
        let mut temp = TempFile::new(dir, None)?;
        temp.write(&[Bytes::from(Index::empty().to_bytes()?)])?;
        temp.rename(root, Path::new(INDEX_FILE))?;
    }
    Ok(())
}

/// Whether [`create_layout`] would succeed, as far as can be seen without writing.
pub(super) fn check_creatable(dir: &Path) -> Result<()> {
    match () {
        () if has_layout_file(dir) => check_layout(&RootDir::following(dir)),
        () if dir.exists() => check_empty(dir),
        () => Ok(()),
    }
}

/// Whether `dir` says of itself that it's a layout.
pub(super) fn has_layout_file(dir: &Path) -> bool {
    dir.join(LAYOUT_FILE).exists()
}

/// Someone's home directory is soon named by mistake.
fn check_empty(dir: &Path) -> Result<()> {
    let entries = fs::read_dir(dir).map_err(|error| Error::io(format!("read {}", dir.display()), &error))?;
    let mut names = entries.flatten().map(|entry| entry.file_name());
    let Some(other) = names.find(|name| !is_ours(&name.to_string_lossy())) else { return Ok(()) };
    let why = format!("{} is no image layout, and holds other things ({})", dir.display(), other.display());
    Err(Error::new(Kind::Usage, why).hint("name a new or an empty directory"))
}

fn is_ours(name: &str) -> bool {
    matches!(name, "blobs" | INDEX_FILE | LAYOUT_FILE) || is_temporary(name)
}

/// Waits for the lock on the layout `dir`, which is free again when the file is dropped.
pub(super) fn lock(root: &RootDir) -> Result<File> {
    let mark = root.path().join(LAYOUT_FILE);
    let failed = |error: &std::io::Error| Error::io(format!("lock {}", mark.display()), error);
    // For writing, since NFS makes of flock a lock that needs it.
    let file = root.open_writable(Path::new(LAYOUT_FILE)).map_err(|error| failed(&error))?;
    match file.lock() {
        Err(error) if error.kind() == ErrorKind::Unsupported => {
            tracing::warn!("{} cannot be locked: nothing else may write to it meanwhile", mark.display());
        }
        Err(error) => return Err(failed(&error)),
        Ok(()) => {}
    }
    Ok(file)
}

/// Removes what processes that were killed left in `dir` a day ago or longer.
pub(super) fn remove_stale_uploads(dir: &Path) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten().filter(|entry| is_temporary(&entry.file_name().to_string_lossy())) {
        let changed = entry.metadata().and_then(|data| data.modified()).unwrap_or_else(|_| clock::now());
        let old = clock::age(changed).is_some_and(|age| age > STALE_AFTER);
        if old && fs::remove_file(entry.path()).is_ok() {
            tracing::info!("removed {}, left by a run that was killed", entry.path().display());
        }
    }
}

/// The roots' file (image-layout.md, "index.json file").
pub(super) const INDEX_FILE: &str = "index.json";
/// The file that marks a layout (image-layout.md, "oci-layout file").
const LAYOUT_FILE: &str = "oci-layout";
/// The largest such file that is read, in bytes. It has one field.
const MAX_LAYOUT_FILE: u64 = 64 << 10;
/// No upload is silent for so long.
const STALE_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
