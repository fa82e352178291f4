//! Files that fail at random, in debug builds only: the soak test runs the whole program on them.
//!
//! A directory controls them while the program runs. Its file `rate` holds how many of 10,000 calls fail, and its
//! file `faults` gets a line for each failure.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use super::{FileAccess, Files, SystemFiles};

/// Files whose calls fail by a pseudo-random sequence that `seed` determines. `dir` is described above.
pub(crate) fn files(seed: u64, dir: PathBuf) -> Files {
    Files::new(RandomFaults { dir, state: AtomicU64::new(seed) })
}

#[derive(Debug)]
struct RandomFaults {
    dir: PathBuf,
    state: AtomicU64,
}

impl RandomFaults {
    /// Fails if it is this call's turn.
    fn meet(&self, call: &str) -> io::Result<()> {
        let number = self.next();
        if number % 10_000 >= self.rate() {
            return Ok(());
        }
        let (name, error) = ERRORS[(number >> 32) as usize % ERRORS.len()];
        let log = OpenOptions::new().create(true).append(true).open(self.dir.join("faults"));
        // A fault that is not counted is still a fault.
        drop(log.and_then(|mut log| log.write_all(format!("{call} {name}\n").as_bytes())));
        Err(error.into())
    }

    fn rate(&self) -> u64 {
        let text = fs::read_to_string(self.dir.join("rate")).unwrap_or_default();
        text.trim().parse().unwrap_or(0)
    }

    /// The next number of splitmix64.
    fn next(&self) -> u64 {
        let mut mixed = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl FileAccess for RandomFaults {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.meet("create")?;
        SystemFiles.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.meet("open")?;
        SystemFiles.open(path)
    }

    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.meet("write") {
            // As a disk does: a part of the bytes may be there.
            SystemFiles.write_all_at(file, &bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        SystemFiles.write_all_at(file, bytes, offset)
    }

    fn read_at(&self, file: &File, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        self.meet("read")?;
        SystemFiles.read_at(file, buffer, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.meet("fsync")?;
        SystemFiles.sync(file)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.meet("fsync-directory")?;
        SystemFiles.sync_dir(dir)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.meet("rename")?;
        SystemFiles.rename(from, to)
    }

    fn allocate(&self, file: &File, part: Range<u64>) -> io::Result<bool> {
        self.meet("fallocate")?;
        SystemFiles.allocate(file, part)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.meet("create-directory")?;
        SystemFiles.create_dir_all(dir)
    }

    /// For half of the answers, so that both ways of serving a file are used.
    fn allows_sendfile(&self) -> bool {
        self.next().is_multiple_of(2)
    }
}

/// What a broken disk, a full disk and a used-up quota return.
const ERRORS: [(&str, Errno); 3] = [("EIO", Errno::IO), ("ENOSPC", Errno::NOSPC), ("EDQUOT", Errno::DQUOT)];

/// The increment of splitmix64.
const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
