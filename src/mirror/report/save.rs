//! A report's file: there as a whole, or as it was before.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::Path;

use crate::atomic_file;
use crate::error::{Error, Result};

/// Writes `path` by `write`: into a file beside it, which then takes its name. So whoever reads it sees
/// the report of this run or of the one before, and never half of one. What isn't a plain file
/// (`/dev/stderr`, a pipe) is written as it is.
///
/// # Errors
/// With the path. The file beside it is removed then.
pub fn save(path: &Path, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(format!("write {}", path.display()), &error);
    // Through a symbolic link, which stays.
    let real = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    if fs::metadata(&real).is_ok_and(|there| !there.is_file() && !there.is_dir()) {
        let file = fs::OpenOptions::new().write(true).open(&real).map_err(failed)?;
        let mut buffered = BufWriter::new(file);
        return write(&mut buffered).and_then(|()| buffered.flush()).map_err(failed);
    }
    atomic_file::write(&real, None, write).map_err(failed)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As two pods with one volume, each of them process 1.
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
