//! Blobs that a copy into the layout did not finish: kept, so that the next copy goes on from there.
//!
//! A partial file has the name of its blob's digest. A copy takes it by renaming it to the name of a temporary file of
//! its own, so two copies never write to one file. What it holds is hashed again: it is trusted no more than bytes from
//! a registry are. It is a temporary file to everything else, and is removed when it is a day old.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use super::IO_CHUNK;
use super::upload::TEMP_PREFIX;
use crate::descriptor::{Digest, Hasher};
use crate::regular_file::{self, SAFE_OPEN_FLAGS};

/// The partial file of a blob in `dir`.
pub(super) fn path(dir: &Path, digest: &Digest) -> PathBuf {
    dir.join(format!("{TEMP_PREFIX}partial-{}-{}", digest.algorithm(), digest.hex()))
}

/// Moves the partial file of a blob to `to`, and opens it at its end. Gives its length, which is less than `size`.
///
/// # Errors
/// Those of the system: [`ErrorKind::NotFound`] if there is none, and [`ErrorKind::InvalidData`] for what is no file of
/// a copy: a link, or a file that has other names. Then `to` may be something that must not be used.
pub(super) fn take(from: &Path, to: &Path, size: u64) -> io::Result<(File, u64)> {
    fs::rename(from, to)?;
    let flags = i32::try_from((SAFE_OPEN_FLAGS | OFlags::NOFOLLOW).bits()).unwrap_or(0);
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(to)?;
    let metadata = regular_file::check(&file)?;
    if metadata.nlink() != 1 {
        return Err(ErrorKind::InvalidData.into());
    }
    // The last byte comes from the source, so that there is something to verify.
    let length = metadata.len().min(size.saturating_sub(1));
    file.set_len(length)?;
    file.seek(SeekFrom::End(0))?;
    Ok((file, length))
}

/// The state of the hash after all that is in the file. The position is the end then.
pub(super) fn hash(file: &mut File, mut hasher: Hasher) -> io::Result<Hasher> {
    file.rewind()?;
    let mut chunk = vec![0; IO_CHUNK];
    loop {
        match file.read(&mut chunk)? {
            0 => return Ok(hasher),
            read => hasher.update(&chunk[..read]),
        }
    }
}

/// Smaller blobs are brought again: to look for a file of theirs is no faster.
pub(super) const MIN_SIZE: u64 = 1 << 20;
