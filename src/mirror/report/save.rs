//! A report's file: there as a whole, or as it was before.

use std::fs;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

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
        return filled(file, write).map(drop).map_err(failed);
    }
    let beside = beside(&real);
    let written = fs::File::create(&beside)
        .and_then(|file| filled(file, write))
        .and_then(|file| file.sync_all())
        .and_then(|()| fs::rename(&beside, &real));
    written.map_err(|error| {
        let _ = fs::remove_file(&beside);
        failed(error)
    })
}

fn filled(file: fs::File, write: impl FnOnce(&mut dyn Write) -> std::io::Result<()>) -> std::io::Result<fs::File> {
    let mut buffered = BufWriter::new(file);
    write(&mut buffered)?;
    buffered.into_inner().map_err(std::io::IntoInnerError::into_error)
}

fn beside(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    path.with_file_name(format!(".{name}.{}.tmp", std::process::id()))
}
