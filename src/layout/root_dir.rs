//! How names below a layout's directory are resolved. All of it blocks.
//!
//! A copy follows links: build tools write layouts whose blobs are links into their own store, and a copy checks each
//! digest anyway. A server must not: whoever can put a link into the directory would have it read any file of the
//! host. So a confined root opens nothing outside of its directory, whatever links there are, and also while they are
//! being changed: by openat2(2) with `RESOLVE_BENEATH`, or where the kernel lacks that (before Linux 5.6, or by a
//! seccomp filter), by opening each part of the path without following links.

use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use crate::atomic_file::sync_dir;
use crate::regular_file::{self, Links, SAFE_OPEN_FLAGS};

/// A layout's directory.
#[derive(Debug)]
pub(super) struct RootDir {
    path: PathBuf,
    /// The open directory, if nothing outside of it may be reached.
    confined: Option<OwnedFd>,
}

impl RootDir {
    /// A directory in which links are followed.
    pub(super) fn following(path: &Path) -> Self {
        Self { path: path.to_owned(), confined: None }
    }

    /// A directory out of which no name leads. `path` itself may be a link.
    ///
    /// # Errors
    /// If it can't be opened.
    pub(super) fn confined(path: &Path) -> io::Result<Self> {
        let dir = rustix::fs::open(path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { path: path.to_owned(), confined: Some(dir) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_confined(&self) -> bool {
        self.confined.is_some()
    }

    /// The regular file `name` below the directory, for reading.
    ///
    /// # Errors
    /// Those of the system, `EXDEV` or `ELOOP` if a confined root would be left, and those of
    /// [`regular_file::open`].
    pub(super) fn open(&self, name: &Path) -> io::Result<(File, Metadata)> {
        let Some(root) = &self.confined else { return regular_file::open(&self.path.join(name), Links::Follow) };
        let file = File::from(open_beneath(root, name, OFlags::RDONLY | SAFE_OPEN_FLAGS)?);
        let metadata = regular_file::check(&file)?;
        Ok((file, metadata))
    }

    /// The same for writing, which locks over NFS need.
    pub(super) fn open_writable(&self, name: &Path) -> io::Result<File> {
        let file = match &self.confined {
            Some(root) => File::from(open_beneath(root, name, OFlags::RDWR | SAFE_OPEN_FLAGS)?),
            None => {
                let flags = i32::try_from(SAFE_OPEN_FLAGS.bits()).unwrap_or(0);
                let mut options = OpenOptions::new();
                std::os::unix::fs::OpenOptionsExt::custom_flags(&mut options, flags);
                options.read(true).write(true).open(self.path.join(name))?
            }
        };
        regular_file::check(&file)?;
        Ok(file)
    }

    /// Makes the directory `name` and those before it, where they aren't there.
    ///
    /// # Errors
    /// Those of the system; a confined root takes no link for a directory.
    pub(super) fn make_directory(&self, name: &Path) -> io::Result<()> {
        match &self.confined {
            None => fs::create_dir_all(self.path.join(name)),
            Some(root) => open_directory(root, name).map(drop),
        }
    }

    /// Moves `from`, a file in the directory itself, to the name `to` below it, and makes that durable. What has the
    /// name is replaced; a link is replaced, not followed. Returns the size of the regular file that was there.
    ///
    /// # Errors
    /// As [`Self::make_directory`].
    pub(super) fn rename(&self, from: &OsStr, to: &Path) -> io::Result<u64> {
        let (parent, name) = (to.parent().unwrap_or(Path::new("")), to.file_name().unwrap_or_default());
        let Some(root) = &self.confined else {
            let parent = self.path.join(parent);
            fs::create_dir_all(&parent)?;
            let to = parent.join(name);
            let replaced = fs::symlink_metadata(&to).ok().filter(Metadata::is_file).map_or(0, |old| old.len());
            fs::rename(self.path.join(from), to)?;
            return sync_dir(&parent).map(|()| replaced);
        };
        let directory = File::from(open_directory(root, parent)?);
        let old = rustix::fs::statat(&directory, name, rustix::fs::AtFlags::SYMLINK_NOFOLLOW).ok();
        let old = old.filter(|old| rustix::fs::FileType::from_raw_mode(old.st_mode).is_file());
        rustix::fs::renameat(root, from, &directory, name)?;
        directory.sync_all()?;
        Ok(old.map_or(0, |old| u64::try_from(old.st_size).unwrap_or(0)))
    }
}

/// Whether an error says that a path leads out of a confined root, or over a link that isn't followed.
pub(super) fn is_escape(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [rustix::io::Errno::XDEV, rustix::io::Errno::LOOP].iter().any(|errno| code == Some(errno.raw_os_error()))
}

/// Opens `name` below `root`.
fn open_beneath(root: &OwnedFd, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    match openat2(root, name, flags) {
        Some(opened) => opened,
        None => open_by_parts(root, name, flags),
    }
}

/// `None` where there is no such system call.
#[cfg(target_os = "linux")]
fn openat2(root: &OwnedFd, name: &Path, flags: OFlags) -> Option<io::Result<OwnedFd>> {
    use rustix::fs::ResolveFlags;
    use rustix::io::Errno;
    /// Another process renamed something meanwhile; so often in a row is no accident.
    const MAX_RENAME_RACES: usize = 8;
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    for _ in 0..MAX_RENAME_RACES {
        match rustix::fs::openat2(root, name, flags, Mode::empty(), resolve) {
            Err(Errno::AGAIN | Errno::INTR) => {}
            // A seccomp filter that doesn't know the call says EPERM.
            Err(Errno::NOSYS | Errno::PERM) => return None,
            opened => return Some(opened.map_err(io::Error::from)),
        }
    }
    Some(Err(Errno::AGAIN.into()))
}

#[cfg(not(target_os = "linux"))]
fn openat2(_: &OwnedFd, _: &Path, _: OFlags) -> Option<io::Result<OwnedFd>> {
    None
}

/// Opens each part of `name` by itself, following no link.
fn open_by_parts(root: &OwnedFd, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let parent = name.parent().unwrap_or(Path::new(""));
    let mut at = root.try_clone()?;
    for part in parts(parent)? {
        at = rustix::fs::openat(&at, part, DIRECTORY_FLAGS, Mode::empty())?;
    }
    Ok(rustix::fs::openat(&at, name.file_name().unwrap_or_default(), flags | OFlags::NOFOLLOW, Mode::empty())?)
}

/// The directory `name` below `root`, made where it isn't there.
fn open_directory(root: &OwnedFd, name: &Path) -> io::Result<OwnedFd> {
    let mut at = root.try_clone()?;
    for part in parts(name)? {
        match rustix::fs::mkdirat(&at, part, Mode::from_raw_mode(0o777)) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => return Err(error.into()),
        }
        at = rustix::fs::openat(&at, part, DIRECTORY_FLAGS, Mode::empty())?;
    }
    Ok(at)
}

/// The parts of a relative path that goes down only.
fn parts(name: &Path) -> io::Result<Vec<&OsStr>> {
    let part = |component| match component {
        Component::Normal(part) => Ok(part),
        _ => Err(io::Error::from(io::ErrorKind::InvalidInput)),
    };
    name.components().map(part).collect()
}

/// For reading, so that it can be synced.
const DIRECTORY_FLAGS: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_confined_root_is_not_left_with_or_without_openat2() {
        let dir = std::env::temp_dir().join(format!("transload-root-{}", std::process::id()));
        drop(fs::remove_dir_all(&dir));
        fs::create_dir_all(dir.join("root/real")).expect("a directory");
        fs::write(dir.join("secret"), "secret").expect("a file");
        fs::write(dir.join("root/real/file"), "ours").expect("a file");
        let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.join("root").join(name)).expect("a link");
        link("../secret", "up");
        link("..", "parent");
        link("/etc", "absolute");
        let root = RootDir::confined(&dir.join("root")).expect("opens");
        let open = root.confined.as_ref().expect("open");
        for name in ["up", "parent/secret", "absolute/hostname", "../secret"] {
            let error = root.open(Path::new(name)).expect_err(name);
            assert!(is_escape(&error), "{name}: {error}");
            assert!(open_by_parts(open, Path::new(name), OFlags::RDONLY).is_err(), "{name}");
        }
        assert!(root.make_directory(Path::new("parent/made")).is_err() && !dir.join("made").exists());
        assert!(root.open(Path::new("real/file")).is_ok());
        assert!(open_by_parts(open, Path::new("real/file"), OFlags::RDONLY).is_ok());
        fs::write(dir.join("root/temp"), "moved").expect("a file");
        assert!(root.rename(OsStr::new("temp"), Path::new("parent/secret")).is_err());
        assert_eq!(root.rename(OsStr::new("temp"), Path::new("real/file")).expect("moved"), 4);
        assert_eq!(fs::read(dir.join("secret")).expect("there"), b"secret");
        fs::remove_dir_all(dir).expect("removed");
    }
}
