//! Files that are replaced as a whole: written beside, then renamed.
//!
//! ```text
//! DIR/config.json
//! DIR/.config.json.transload-0123456789abcdef.tmp     locked (flock) for as long as its writer lives
//! ```
//! A writer that is killed leaves its temporary file behind, with what was to be in the file. The next writer of the same
//! file removes it. The lock tells the two apart: the kernel releases it when the process ends, also in another container
//! on the same machine.

use std::fs::{self, File, OpenOptions};
use std::hash::{BuildHasher as _, Hasher as _};
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Replaces `path` by what `fill` writes. It has the permissions `mode`, or those that the umask allows.
///
/// A reader sees the old content or the new one, and never half of it. Files that killed writers left are removed before.
///
/// # Errors
/// As the file system reports it. The temporary file is removed then.
pub(crate) fn write(
    path: &Path,
    mode: Option<u32>,
    fill: impl FnOnce(&mut dyn Write) -> io::Result<()>,
) -> io::Result<()> {
    remove_abandoned(path);
    let (temporary, file) = create(path, mode)?;
    let written = (|| {
        if let Some(mode) = mode {
            file.set_permissions(fs::Permissions::from_mode(mode))?;
        }
        let mut buffered = BufWriter::new(&file);
        fill(&mut buffered)?;
        buffered.flush()?;
        drop(buffered);
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    if written.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    written
}

/// Makes the names in a directory durable, such as after a rename. Only Unix can sync a directory.
pub(crate) fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(dir)?.sync_all() } else { Ok(()) }
}

/// Removes the temporary files that killed writers of `path` left beside it. Never those of a writer that lives.
///
/// Does its best: what can't be read or removed stays.
pub(crate) fn remove_abandoned(path: &Path) {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return };
    let name = name.to_string_lossy();
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let Some(evidence) = evidence(&entry.file_name().to_string_lossy(), &name) else { continue };
        if entry.file_type().is_ok_and(|kind| kind.is_file()) && is_abandoned(&entry.path(), evidence).unwrap_or(false)
        {
            tracing::debug!("removed {}, left by a run that was killed", entry.path().display());
        }
    }
}

/// What proves that a temporary file is abandoned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Evidence {
    /// Nobody holds its lock.
    Lock,
    /// It was made by a version that took no lock: this process is gone, or the file is old.
    Process(i32),
    /// The same, where the name has no process: the file is old.
    Age,
}

/// Whether `entry` is the name of a temporary file for the file `name`.
fn evidence(entry: &str, name: &str) -> Option<Evidence> {
    let random = |text: &str| text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
    let stem = entry.strip_prefix('.')?.strip_suffix(".tmp")?;
    if let Some(id) = stem.strip_prefix("transload-").and_then(|id| id.parse().ok()) {
        return Some(Evidence::Process(id));
    }
    let rest = stem.strip_prefix(name)?.strip_prefix('.')?;
    match rest.strip_prefix("transload-") {
        Some(rest) if random(rest) => Some(Evidence::Lock),
        None if random(rest) => Some(Evidence::Age),
        _ => None,
    }
}

/// Removes the file if it's abandoned; whether it was.
fn is_abandoned(path: &Path, evidence: Evidence) -> io::Result<bool> {
    // For writing, since NFS makes of flock a lock that needs it. Not through a link, and not waiting for a pipe's end.
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?;
    let locked = file.try_lock();
    let old = file.metadata()?.modified().map(crate::clock::age)?.is_some_and(|age| age > STALE_AFTER);
    let abandoned = match locked {
        Err(fs::TryLockError::WouldBlock) => false,
        // A file system without locks.
        Err(fs::TryLockError::Error(_)) => old,
        Ok(()) => match evidence {
            Evidence::Lock => true,
            Evidence::Process(id) => old || !process_exists(id),
            Evidence::Age => old,
        },
    };
    if abandoned {
        fs::remove_file(path)?;
    }
    Ok(abandoned)
}

fn process_exists(process: i32) -> bool {
    let Some(id) = rustix::process::Pid::from_raw(process) else { return false };
    rustix::process::test_kill_process(id) != Err(rustix::io::Errno::SRCH)
}

/// A new temporary file for `path`, locked.
fn create(path: &Path, mode: Option<u32>) -> io::Result<(PathBuf, File)> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let mut tries = 0;
    loop {
        // Writers of one file may be in containers of their own, where each is process 1. These keys differ each time.
        let random = std::hash::RandomState::new().build_hasher().finish();
        let temporary = path.with_file_name(format!(".{name}.transload-{random:016x}.tmp"));
        let file = match OpenOptions::new().write(true).create_new(true).mode(mode.unwrap_or(0o666)).open(&temporary) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists && tries < MAX_TRIES => {
                tries += 1;
                continue;
            }
            made => made?,
        };
        // Where there are no locks the file's age protects it.
        let _ = file.lock();
        // Another writer may have found it before it was locked, and removed it.
        if file.metadata()?.nlink() > 0 || tries == MAX_TRIES {
            return Ok((temporary, file));
        }
        tries += 1;
    }
}

/// No writer needs so long.
const STALE_AFTER: Duration = Duration::from_secs(10 * 60);
const MAX_TRIES: u32 = 8;

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;

    /// A directory that is gone afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("transload-atomic-{name}-{}", std::process::id()));
            fs::create_dir_all(&path).expect("a directory");
            Self(path)
        }

        fn names(&self) -> Vec<String> {
            let entries = fs::read_dir(&self.0).expect("a directory").flatten();
            let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_writer_that_lives_keeps_its_file() {
        let dir = Scratch::new("lives");
        let path = dir.0.join("report.json");
        write(&path, Some(0o600), |one| {
            one.write_all(b"one, ")?;
            one.flush()?;
            write(&path, Some(0o600), |two| two.write_all(b"two"))?;
            assert_eq!(fs::read(&path)?, b"two");
            one.write_all(b"and whole")
        })
        .expect("a file");
        assert_eq!(fs::read(&path).expect("the file"), b"one, and whole");
        assert_eq!(dir.names(), ["report.json"]);
        assert_eq!(fs::metadata(&path).expect("the file").permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn what_a_killed_writer_left_is_removed_and_nothing_else() {
        let dir = Scratch::new("killed");
        let path = dir.0.join("config.json");
        let make = |name: &str, minutes: u64| {
            let file = File::create(dir.0.join(name)).expect("a file");
            let changed = SystemTime::now() - Duration::from_secs(60 * minutes);
            file.set_modified(changed).expect("to change its time");
            file
        };
        let this = std::process::id();
        let stays = [
            ".config.json.transload-0123456789abcdeX.tmp".to_owned(),
            ".other.json.transload-0123456789abcdef.tmp".to_owned(),
            // A report of a version that took no lock may still be written.
            ".config.json.0123456789abcdef.tmp".to_owned(),
            format!(".transload-{this}.tmp"),
            ".transload-notes.tmp".to_owned(),
            "config.json.tmp".to_owned(),
        ];
        let held = ".config.json.transload-aaaaaaaaaaaaaaaa.tmp";
        for name in &stays {
            make(name, 2);
        }
        let lock = make(held, 60);
        lock.lock().expect("a lock");
        // No process has this number: it is above the kernel's limit (pid_max, proc(5)).
        let goes = [".config.json.transload-0123456789abcdef.tmp", ".transload-2000000000.tmp"];
        for name in goes {
            make(name, 0);
        }
        write(&path, Some(0o600), |to| to.write_all(b"{}")).expect("a file");
        let mut expected = stays.to_vec();
        expected.extend([held.to_owned(), "config.json".to_owned()]);
        expected.sort();
        assert_eq!(dir.names(), expected);

        for name in &stays[2..4] {
            make(name, 11);
        }
        drop(lock);
        remove_abandoned(&path);
        expected.retain(|name| !stays[2..4].contains(name) && name != held);
        assert_eq!(dir.names(), expected);
    }

    #[test]
    fn a_failure_leaves_the_old_file_and_no_other() {
        let dir = Scratch::new("fails");
        let path = dir.0.join("a");
        write(&path, Some(0o644), |to| to.write_all(b"old")).expect("a file");
        write(&path, Some(0o644), |_| Err(io::Error::other("no"))).expect_err("it fails");
        assert_eq!((fs::read(&path).expect("the file"), dir.names()), (b"old".to_vec(), vec!["a".to_owned()]));
    }
}
