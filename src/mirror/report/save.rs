//! Writes a report's file as a whole.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::atomic_file;
use crate::error::{Error, Result};
use crate::regular_file;

/// Writes `path` by `write`: into a temporary file beside it, which is then renamed. So a reader sees a complete
/// report, of this run or of the one before. A path that is not a regular file (`/dev/stderr`, a pipe) is written
/// directly.
///
/// # Errors
/// With the path. The temporary file is removed then.
pub fn save(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(format!("write {}", path.display()), &error);
    // A symbolic link stays: its target is replaced.
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&real).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let file = fs::OpenOptions::new().write(true).open(&real).map_err(failed)?;
        let mut buffered = BufWriter::new(file);
        return write(&mut buffered).and_then(|()| buffered.flush()).map_err(failed);
    }
    atomic_file::write(&real, None, |to| write(&mut LimitedWriter { to, left: MAX_REPORT })).map_err(failed)
}

/// Fails when a report becomes longer than [`read`] accepts.
struct LimitedWriter<'a> {
    to: &'a mut dyn Write,
    left: u64,
}

impl Write for LimitedWriter<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        regular_file::check_size(bytes.len() as u64, self.left).map_err(|_| report_too_large())?;
        let written = self.to.write(bytes)?;
        self.left -= written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.to.flush()
    }
}

fn report_too_large() -> std::io::Error {
    std::io::Error::new(std::io::ErrorKind::FileTooLarge, format!("the report has more than {MAX_REPORT} bytes"))
}

/// Reads a report that the user named. It may be a pipe.
///
/// # Errors
/// Those of the system, or if it has more than 256 MiB.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    regular_file::read_named(path, MAX_REPORT)
}

/// The largest report that is written or read, in bytes: some 500,000 images.
const MAX_REPORT: u64 = 256 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_is_never_longer_than_what_is_read() {
        let dir = std::env::temp_dir().join(format!("transload-report-limit-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("report.json");
        save(&path, |to| to.write_all(b"old")).expect("a file");
        let part = vec![b'x'; 1 << 20];
        let error = save(&path, |to| (0..MAX_REPORT / (1 << 20) + 1).try_for_each(|_| to.write_all(&part)));
        assert!(error.expect_err("too long").to_string().contains("more than"));
        assert_eq!(read(&path).expect("reads"), b"old");
        fs::remove_dir_all(dir).expect("removed");
    }

    /// Two pods with one volume: both are process 1.
    #[test]
    fn who_writes_the_same_report_spoils_no_other() {
        let dir = std::env::temp_dir().join(format!("transload-reports-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let path = dir.join("report.json");
        save(&path, |one| {
            one.write_all(b"one, ")?;
            one.flush()?;
            save(&path, |two| two.write_all(b"two")).map_err(std::io::Error::other)?;
            assert_eq!(fs::read(&path)?, b"two");
            one.write_all(b"and whole")
        })
        .expect("a file");
        assert_eq!(fs::read(&path).expect("the file"), b"one, and whole");
        assert_eq!(fs::read_dir(&dir).expect("a directory").count(), 1);
        fs::remove_dir_all(&dir).expect("ours");
    }
}
