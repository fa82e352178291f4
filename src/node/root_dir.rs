//! Directories below a root. Paths cannot leave it.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Kind, Result, Side};

/// A node's root directory: `/`, or its mount point in a pod.
///
/// In a pod a symlink of the node may have another target than on the node: below a mount at `/host`,
/// `/etc/containerd -> /opt/containerd` leads to the container's `/opt`. So paths that leave the root are refused.
/// Users who may write to the root's directories are trusted: they are root.
#[derive(Clone, Debug)]
pub(crate) struct RootDir {
    root: PathBuf,
}

impl RootDir {
    /// The root at `path`.
    ///
    /// # Errors
    /// If it does not exist.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let failed = |error| {
            Error::io(format!("use the root {}", path.display()), &error)
                .hint("--root is the node's root directory: / on the node, its mount point in a pod")
        };
        let root = path.canonicalize().map_err(failed)?;
        if !root.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { root })
    }

    /// The directory `path` below the root, if it exists.
    ///
    /// # Errors
    /// If a part of the path leaves the root or is not a directory.
    pub(crate) fn find(&self, path: &Path) -> Result<Option<PathBuf>> {
        let mut at = self.root.clone();
        for name in path_components(path)? {
            match self.step(&at.join(name))? {
                Some(next) => at = next,
                None => return Ok(None),
            }
        }
        Ok(Some(at))
    }

    /// The directory `path` below the root, created if needed; and whether its last part was created.
    ///
    /// # Errors
    /// As [`find`](Self::find), or if it cannot be created.
    pub(crate) fn make(&self, path: &Path) -> Result<(PathBuf, bool)> {
        let (mut at, mut made) = (self.root.clone(), false);
        for name in path_components(path)? {
            let next = at.join(name);
            (at, made) = match self.step(&next)? {
                Some(next) => (next, false),
                None => {
                    match std::fs::create_dir(&next) {
                        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                            return Err(Error::io(format!("make the directory {}", next.display()), &error));
                        }
                        _ => {}
                    }
                    (next, true)
                }
            };
        }
        Ok((at, made))
    }

    /// The target of `path` after symlinks; `None` if it does not exist.
    fn step(&self, path: &Path) -> Result<Option<PathBuf>> {
        let doing = || format!("use {}", path.display());
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(doing(), &error)),
            Ok(_) => {}
        }
        let real = path.canonicalize().map_err(|error| Error::io(doing(), &error))?;
        if !real.starts_with(&self.root) {
            let what = format!("it is a symbolic link to {}, outside of {}", real.display(), self.root.display());
            return Err(Error::new(Kind::Refused, what)
                .doing(doing())
                .on(Side::Local)
                .hint("set --certs-dir to the right directory, and mount it"));
        }
        if !real.is_dir() {
            return Err(Error::new(Kind::Local, "it is not a directory").doing(doing()).on(Side::Local));
        }
        Ok(Some(real))
    }
}

/// The parts of an absolute or relative path without `..`.
fn path_components(path: &Path) -> Result<Vec<&std::ffi::OsStr>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(Error::new(Kind::Usage, format!("{} contains ..", path.display())).on(Side::Local));
            }
        }
    }
    Ok(names)
}
