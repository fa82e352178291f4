//! Reading files that others may have put in place.
//!
//! A directory of images, a cache or a node's `/etc` may hold anything under the name of a file. Opening a named
//! pipe blocks until somebody writes to it, and `/dev/zero` has no end. So a file is opened without blocking, must
//! be a regular file by what the open file itself says (a check of the path could be outrun), and is read up to a
//! limit. All of it blocks, for as long as the disk takes.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Whether a symbolic link in the last part of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// It is: dotfile managers, Kubernetes and build tools make links.
    Follow,
    /// It isn't: the open fails with `ELOOP`.
    Refuse,
}

/// Opens a regular file for reading.
///
/// # Errors
/// Those of the system, [`io::ErrorKind::IsADirectory`] among them; [`io::ErrorKind::InvalidInput`] if it is another
/// kind of file that isn't a regular one.
pub(crate) fn open(path: &Path, links: Links) -> io::Result<(File, Metadata)> {
    open_with(path, links, OFlags::empty())
}

/// As [`open`], with further flags of open(2).
pub(crate) fn open_with(path: &Path, links: Links, flags: OFlags) -> io::Result<(File, Metadata)> {
    let follow = match links {
        Links::Follow => OFlags::empty(),
        Links::Refuse => OFlags::NOFOLLOW,
    };
    let flags = i32::try_from((SAFE_OPEN_FLAGS | follow | flags).bits()).unwrap_or(0);
    let file = OpenOptions::new().read(true).custom_flags(flags).open(path)?;
    let metadata = check(&file)?;
    Ok((file, metadata))
}

/// Has `options` neither wait for the other end of a pipe nor follow a link, whatever else they ask for. [`check`]
/// the file that is opened.
pub(crate) fn with_safe_flags(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(i32::try_from((SAFE_OPEN_FLAGS | OFlags::NOFOLLOW).bits()).unwrap_or(0))
}

/// What the open file is, if it is a regular one.
///
/// # Errors
/// [`io::ErrorKind::IsADirectory`], or [`io::ErrorKind::InvalidInput`] if it is another kind of file.
pub(crate) fn check(file: &File) -> io::Result<Metadata> {
    let metadata = file.metadata()?;
    match kind(metadata.file_type()) {
        None => Ok(metadata),
        // What reading it would say.
        Some(_) if metadata.is_dir() => Err(rustix::io::Errno::ISDIR.into()),
        Some(kind) => Err(io::Error::new(io::ErrorKind::InvalidInput, format!("it is not a regular file, but {kind}"))),
    }
}

/// The content of a regular file of at most `max` bytes.
///
/// # Errors
/// Those of [`open`]; [`io::ErrorKind::FileTooLarge`] if there are more bytes.
pub(crate) fn read(path: &Path, links: Links, max: u64) -> io::Result<Vec<u8>> {
    let (file, metadata) = open(path, links)?;
    if metadata.len() > max {
        return Err(too_large(max));
    }
    read_open(&file, max)
}

/// As [`read`], for text.
///
/// # Errors
/// As [`read`]; [`io::ErrorKind::InvalidData`] if it isn't UTF-8.
pub(crate) fn read_text(path: &Path, links: Links, max: u64) -> io::Result<String> {
    text(read(path, links, max)?)
}

/// The content of a file that the user named on the command line, of at most `max` bytes.
///
/// It may be a pipe or a terminal: `<(command)` of a shell and `/dev/stdin` are. Then this waits for its end. It is
/// not for paths that come from a directory or a document which others may write.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::FileTooLarge`] if there are more bytes.
pub(crate) fn read_named(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    read_open(&File::open(path)?, max)
}

/// As [`read_named`], for text.
///
/// # Errors
/// As [`read_named`]; [`io::ErrorKind::InvalidData`] if it isn't UTF-8.
pub(crate) fn read_named_text(path: &Path, max: u64) -> io::Result<String> {
    text(read_named(path, max)?)
}

/// The rest of an open file, of at most `max` bytes.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::FileTooLarge`] if there are more bytes.
pub(crate) fn read_open(file: &File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than there may be tells that there is more.
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(too_large(max)) } else { Ok(bytes) }
}

/// Refuses to write more than the reader of the same file accepts, before the old file is touched.
///
/// # Errors
/// [`io::ErrorKind::FileTooLarge`] if `bytes` is more than `max`.
pub(crate) fn check_size(bytes: u64, max: u64) -> io::Result<()> {
    if bytes > max { Err(too_large(max)) } else { Ok(()) }
}

fn text(bytes: Vec<u8>) -> io::Result<String> {
    String::from_utf8(bytes).map_err(|_| io::Error::new(io::ErrorKind::InvalidData, "it is not text in UTF-8"))
}

fn too_large(max: u64) -> io::Error {
    io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {max} bytes"))
}

/// What it is instead of a regular file.
fn kind(of: FileType) -> Option<&'static str> {
    match of {
        of if of.is_file() => None,
        of if of.is_dir() => Some("a directory"),
        of if of.is_fifo() => Some("a named pipe"),
        of if of.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Not to wait for the other end of a pipe, and not to make a terminal the controlling one of this process.
pub(crate) const SAFE_OPEN_FLAGS: OFlags = OFlags::NONBLOCK.union(OFlags::NOCTTY).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> std::path::PathBuf {
        let dir = std::env::temp_dir().join(format!("transload-regular-{}-{name}", std::process::id()));
        drop(std::fs::remove_dir_all(&dir));
        std::fs::create_dir_all(&dir).expect("a directory");
        dir
    }

    #[test]
    fn only_regular_files_are_opened_and_none_blocks() {
        let dir = scratch("kinds");
        let pipe = dir.join("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
        let socket = dir.join("socket");
        let _bound = std::os::unix::net::UnixListener::bind(&socket).expect("a socket");
        for (path, kind) in [(&*pipe, "a named pipe"), (&*dir, "Is a directory"), (Path::new("/dev/zero"), "a device")]
        {
            let error = open(path, Links::Follow).expect_err("refused");
            assert!(error.to_string().contains(kind), "{}: {error}", path.display());
        }
        assert!(open(&socket, Links::Follow).is_err());
        let link = dir.join("link");
        std::os::unix::fs::symlink("/dev/zero", &link).expect("a link");
        assert!(read(&link, Links::Follow, 10).expect_err("refused").to_string().ends_with("a device"));
        std::fs::remove_dir_all(dir).expect("removed");
    }

    #[test]
    fn links_and_limits() {
        let dir = scratch("limits");
        let (file, link) = (dir.join("file"), dir.join("link"));
        std::fs::write(&file, "12345").expect("a file");
        std::os::unix::fs::symlink(&file, &link).expect("a link");
        assert_eq!(read(&link, Links::Follow, 5).expect("reads"), b"12345");
        assert!(read(&link, Links::Refuse, 5).is_err());
        assert_eq!(read(&file, Links::Refuse, 5).expect("reads"), b"12345");
        for wrong in [read(&file, Links::Follow, 4), read_named(&file, 4), read_named(Path::new("/dev/zero"), 9)] {
            assert_eq!(wrong.expect_err("too large").kind(), io::ErrorKind::FileTooLarge);
        }
        std::fs::remove_dir_all(dir).expect("removed");
    }
}
