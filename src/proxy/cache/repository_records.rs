//! Which manifests belong to which repository: one small text file for each repository of an upstream.
//!
//! Content is stored by its digest, whichever repository it came from. A record lists the manifests of one repository: the
//! first line is the repository's name, and each further line is the digest of a manifest that the upstream confirmed there.
//! So a warm cache works after a restart without its upstream, and serves content only to repositories that it belongs to.
//!
//! A record only saves a request to the upstream. Nothing is synced: what is lost by a power failure, a removal or a torn
//! line is requested again. The disk space of all records is limited, since clients choose the names. All methods block.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use super::scan::entries;
use crate::descriptor::Digest;
use crate::error::{Error, Result};
use crate::regular_file::{self, Links};

/// The records of all repositories.
#[derive(Debug)]
pub(super) struct RepositoryRecords {
    dir: PathBuf,
    max_bytes: u64,
    /// An upper bound of the disk space of all files: removals by others are noticed only when the limit is reached.
    bytes: AtomicU64,
    /// Held while a record is changed.
    writing: Mutex<()>,
}

impl RepositoryRecords {
    /// The records in `dir`, which may take `max_bytes` of disk space in total.
    pub(super) fn new(dir: PathBuf, max_bytes: u64) -> Self {
        let bytes = files(&dir).map_or(0, |files| files.iter().map(|file| file.bytes).sum());
        Self { dir, max_bytes, bytes: AtomicU64::new(bytes), writing: Mutex::new(()) }
    }

    /// The manifests that belong to the repository `name`, the latest last. None if the file cannot be read, or contains
    /// another name.
    pub(super) fn manifests(&self, name: &str) -> Vec<Digest> {
        match read(&self.path(name)) {
            Some((found, manifests)) if found == name => manifests,
            _ => Vec::new(),
        }
    }

    /// Records that these manifests belong to the repository `name`. If there are too many, only manifests for which
    /// `is_cached` returns true are kept.
    ///
    /// # Errors
    /// [`Kind::Local`](crate::error::Kind::Local) if the disk cannot be written.
    pub(super) fn add(&self, name: &str, new: &[Digest], is_cached: impl Fn(&Digest) -> bool) -> Result<()> {
        let path = self.path(name);
        let failed = |error: &std::io::Error| Error::io(format!("write {}", path.display()), error);
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let known = self.manifests(name);
        let present: BTreeSet<&Digest> = known.iter().collect();
        let new: Vec<Digest> = new.iter().filter(|digest| !present.contains(digest)).copied().collect();
        let before = space(&path);
        if known.is_empty() || known.len() + new.len() > MAX_MANIFESTS {
            let mut kept: Vec<Digest> = known.into_iter().filter(|digest| is_cached(digest)).collect();
            // Leaves a quarter free, so that the next manifests are appended again.
            let reserved = (MAX_MANIFESTS - MAX_MANIFESTS / 4).saturating_sub(new.len());
            kept.drain(..kept.len().saturating_sub(reserved));
            kept.extend(new);
            self.replace(&path, name, &kept).map_err(|error| failed(&error))?;
        } else {
            let mut options = OpenOptions::new();
            let opened = regular_file::with_safe_flags(options.append(true)).open(&path);
            let mut file = opened.map_err(|error| failed(&error))?;
            regular_file::check(&file).map_err(|error| failed(&error))?;
            // Also without new manifests: records that are in use are removed last.
            file.set_modified(crate::clock::now()).map_err(|error| failed(&error))?;
            file.write_all(lines(&new).as_bytes()).map_err(|error| failed(&error))?;
        }
        let growth = space(&path).saturating_sub(before);
        if self.bytes.fetch_add(growth, Ordering::Relaxed) + growth > self.max_bytes {
            self.remove_oldest()?;
        }
        Ok(())
    }

    /// Replaces a record as a whole, by a rename.
    fn replace(&self, path: &Path, name: &str, manifests: &[Digest]) -> std::io::Result<()> {
        super::make_dir(path.parent().unwrap_or(&self.dir))?;
        let temporary = path.with_extension("new");
        // A killed process may have left it, and it may be another kind of file.
        let _ = fs::remove_file(&temporary);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        file.write_all(format!("{name}{}", lines(manifests)).as_bytes())?;
        fs::rename(&temporary, path)
    }

    /// Removes the least recently used records until an eighth of the space is free.
    fn remove_oldest(&self) -> Result<()> {
        let mut all = files(&self.dir)?;
        all.sort_by_key(|file| file.written);
        let mut bytes: u64 = all.iter().map(|file| file.bytes).sum();
        let mut removed = 0;
        if bytes > self.max_bytes {
            for file in &all {
                if bytes <= self.max_bytes - self.max_bytes / 8 {
                    break;
                }
                let _ = fs::remove_file(&file.path);
                bytes -= file.bytes;
                removed += 1;
            }
            tracing::info!("removed {removed} records of repositories: they took more than {} bytes", self.max_bytes);
        }
        self.bytes.store(bytes, Ordering::Relaxed);
        Ok(())
    }

    fn path(&self, name: &str) -> PathBuf {
        let hex = Digest::of(name.as_bytes()).hex();
        self.dir.join(&hex[..2]).join(hex)
    }
}

/// The repository's name in a record, and its manifests.
pub(super) fn read(path: &Path) -> Option<(String, Vec<Digest>)> {
    let mut text = String::new();
    let read =
        regular_file::open(path, Links::Refuse).and_then(|(file, _)| file.take(MAX_RECORD).read_to_string(&mut text));
    if let Err(error) = read {
        if error.kind() != ErrorKind::NotFound {
            tracing::warn!("read {}: {error}: the upstream is asked again", path.display());
        }
        return None;
    }
    let mut lines = text.lines();
    let name = lines.next()?.to_owned();
    // A torn line is no digest.
    Some((name, lines.filter_map(|line| line.parse().ok()).collect()))
}

/// The lines of these manifests. Each begins with a line feed, so a torn line does not damage the next one.
fn lines(manifests: &[Digest]) -> String {
    manifests.iter().map(|digest| format!("\n{digest}")).collect()
}

/// The file of a record.
#[derive(Debug)]
struct Record {
    path: PathBuf,
    written: SystemTime,
    bytes: u64,
}

fn files(dir: &Path) -> Result<Vec<Record>> {
    let mut all = Vec::new();
    for shard in entries(dir)? {
        for file in entries(&shard.path())? {
            let Ok(metadata) = file.metadata() else { continue };
            let written = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
            all.push(Record { path: file.path(), written, bytes: blocks(metadata.len()) });
        }
    }
    Ok(all)
}

fn space(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| blocks(metadata.len()))
}

/// The disk space of a file of this length.
fn blocks(length: u64) -> u64 {
    length.max(1).next_multiple_of(DISK_BLOCK)
}

/// The limit of the disk space of all records.
pub(super) const MAX_RECORDS_BYTES: u64 = 256 << 20;
/// Manifests of one repository that are recorded.
const MAX_MANIFESTS: usize = 10_000;
/// An upper bound of a record's length: a name, and a SHA-512 digest for each manifest.
const MAX_RECORD: u64 = 4096 + MAX_MANIFESTS as u64 * 140;
const DISK_BLOCK: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(nth: usize) -> Digest {
        Digest::of(&nth.to_be_bytes())
    }

    struct Dir(PathBuf);

    impl Dir {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("transload-repositories-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }
    }

    impl Drop for Dir {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn manifests_come_back_for_their_repository_only() {
        let dir = Dir::new("own");
        let records = RepositoryRecords::new(dir.0.clone(), MAX_RECORDS_BYTES);
        for nth in [1, 2, 1, 3] {
            records.add("a.io a.io app", &[digest(nth)], |_| true).expect("written");
        }
        assert_eq!(records.manifests("a.io a.io app"), [digest(1), digest(2), digest(3)]);
        assert!(records.manifests("a.io b.io app").is_empty());
        // A file in the place of another one says nothing.
        let other = records.path("a.io a.io other");
        super::super::make_dir(other.parent().expect("one")).expect("made");
        fs::copy(records.path("a.io a.io app"), &other).expect("copied");
        assert!(records.manifests("a.io a.io other").is_empty());
        records.add("a.io a.io other", &[digest(4)], |_| true).expect("written");
        assert_eq!(records.manifests("a.io a.io other"), [digest(4)]);
    }

    #[test]
    fn a_torn_line_costs_itself_only() {
        let dir = Dir::new("torn");
        let records = RepositoryRecords::new(dir.0.clone(), MAX_RECORDS_BYTES);
        records.add("n", &[digest(1), digest(2)], |_| true).expect("written");
        let path = records.path("n");
        let text = fs::read_to_string(&path).expect("there");
        fs::write(&path, &text[..text.len() - 20]).expect("torn");
        records.add("n", &[digest(3)], |_| true).expect("written");
        assert_eq!(records.manifests("n"), [digest(1), digest(3)]);
    }

    #[test]
    fn a_record_is_bounded_and_keeps_what_is_cached_and_late() {
        let dir = Dir::new("bounded");
        let records = RepositoryRecords::new(dir.0.clone(), MAX_RECORDS_BYTES);
        let all: Vec<Digest> = (0..MAX_MANIFESTS).map(digest).collect();
        records.add("n", &all, |_| true).expect("written");
        records.add("n", &[digest(MAX_MANIFESTS)], |digest| *digest != all[MAX_MANIFESTS - 1]).expect("written");
        let left = records.manifests("n");
        assert_eq!(left.len(), MAX_MANIFESTS - MAX_MANIFESTS / 4);
        assert_eq!(left[left.len() - 2..], [digest(MAX_MANIFESTS - 2), digest(MAX_MANIFESTS)]);
    }

    #[test]
    fn all_records_together_are_bounded() {
        let dir = Dir::new("all");
        let records = RepositoryRecords::new(dir.0.clone(), 16 * DISK_BLOCK);
        for nth in 0..17_u64 {
            let name = format!("n{nth}");
            records.add(&name, &[digest(1)], |_| true).expect("written");
            // The file system's clock has larger steps than these.
            let then = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(1000 + nth);
            let file = fs::File::options().append(true).open(records.path(&name));
            let _ = file.and_then(|file| file.set_modified(then));
        }
        let left: Vec<u64> = (0..17).filter(|nth| !records.manifests(&format!("n{nth}")).is_empty()).collect();
        assert_eq!(left, (3..17).collect::<Vec<_>>());
    }
}
