//! Reads files that other programs or users may have created.
//!
//! A directory of images, a cache or a node's `/etc` may hold special files. Opening a named pipe blocks until a process
//! writes to it, and `/dev/zero` has no end. So a file is opened without blocking, must be a regular file, and is read up to
//! a limit. The type is checked on the open file, since the path may change after a check. All functions block for as long
//! as the disk takes.

use std::fs::{File, FileType, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use rustix::fs::OFlags;

/// Whether a symbolic link in the last part of a path is followed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Links {
    /// It is followed: dotfile managers, Kubernetes and build tools create links.
    Follow,
    /// It is not followed: the open fails with `ELOOP`.
    Refuse,
}

/// Opens a regular file for reading.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::IsADirectory`]; [`io::ErrorKind::InvalidInput`] for other special files.
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

/// Changes `options` so that opening neither waits for the other end of a pipe nor follows a link. The caller must
/// [`check`] the open file.
pub(crate) fn with_safe_flags(options: &mut OpenOptions) -> &mut OpenOptions {
    options.custom_flags(i32::try_from((SAFE_OPEN_FLAGS | OFlags::NOFOLLOW).bits()).unwrap_or(0))
}

/// The metadata of an open file, which must be a regular file.
///
/// # Errors
/// [`io::ErrorKind::IsADirectory`], or [`io::ErrorKind::InvalidInput`] for other special files.
pub(crate) fn check(file: &File) -> io::Result<Metadata> {
    let metadata = file.metadata()?;
    match kind(metadata.file_type()) {
        None => Ok(metadata),
        // The same error as from reading it.
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
/// As [`read`]; [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub(crate) fn read_text(path: &Path, links: Links, max: u64) -> io::Result<String> {
    text(read(path, links, max)?)
}

/// The content of a file that the user named on the command line, of at most `max` bytes.
///
/// The file may be a pipe or a terminal, such as `<(command)` of a shell or `/dev/stdin`. Then this waits for its end. It
/// must not be used for paths from a directory or a document that others can write.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::FileTooLarge`] if there are more bytes.
pub(crate) fn read_named(path: &Path, max: u64) -> io::Result<Vec<u8>> {
    read_open(&File::open(path)?, max)
}

/// As [`read_named`], for text.
///
/// # Errors
/// As [`read_named`]; [`io::ErrorKind::InvalidData`] if it is not UTF-8.
pub(crate) fn read_named_text(path: &Path, max: u64) -> io::Result<String> {
    text(read_named(path, max)?)
}

/// The rest of an open file, of at most `max` bytes.
///
/// # Errors
/// Those of the system; [`io::ErrorKind::FileTooLarge`] if there are more bytes.
pub(crate) fn read_open(file: &File, max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    // One byte more than the limit shows that the file is too large.
    file.take(max.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > max { Err(too_large(max)) } else { Ok(bytes) }
}

/// Refuses content that the reader of the same file would not accept, before the old file is changed.
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

/// The kind of a special file; `None` for a regular file.
fn kind(of: FileType) -> Option<&'static str> {
    match of {
        of if of.is_file() => None,
        of if of.is_dir() => Some("a directory"),
        of if of.is_fifo() => Some("a named pipe"),
        of if of.is_socket() => Some("a socket"),
        _ => Some("a device"),
    }
}

/// Flags that prevent waiting for the other end of a pipe, and prevent a terminal from becoming the controlling one.
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
