//! Directories below a root that nothing leads out of.

use std::io;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Kind, Result, Side};

/// A node's root directory: `/`, or where a pod has mounted it.
///
/// In a pod a node's symlink may lead elsewhere than on the node: `/etc/containerd -> /opt/containerd`
/// below a mount at `/host` is the container's `/opt`, not the node's. So whatever leads out is refused,
/// not followed. Who may write to the root's directories is trusted: that is root anyway.
#[derive(Clone, Debug)]
pub(crate) struct RootDir {
    root: PathBuf,
}

impl RootDir {
    /// The root at `path`.
    ///
    /// # Errors
    /// If it isn't there.
    pub(crate) fn new(path: &Path) -> Result<Self> {
        let failed = |error| {
            Error::io(format!("use the root {}", path.display()), &error)
                .hint("--root is where the node's root directory is: / on the node, in a pod where it's mounted")
        };
        let root = path.canonicalize().map_err(failed)?;
        if !root.is_dir() {
            return Err(failed(io::ErrorKind::NotADirectory.into()));
        }
        Ok(Self { root })
    }

    /// The directory `path` below the root, if it's there.
    ///
    /// # Errors
    /// If something on the way leads out of the root, or is no directory.
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

    /// The directory `path` below the root, made where it isn't there; and whether the last part was.
    ///
    /// # Errors
    /// As [`find`](Self::find), or if it can't be made.
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

    /// What `path` is, once symlinks are followed; nothing, if it isn't there.
    fn step(&self, path: &Path) -> Result<Option<PathBuf>> {
        let doing = || format!("use {}", path.display());
        match std::fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(doing(), &error)),
            Ok(_) => {}
        }
        let real = path.canonicalize().map_err(|error| Error::io(doing(), &error))?;
        if !real.starts_with(&self.root) {
            let what =
                format!("it is a symbolic link that leads to {}, out of {}", real.display(), self.root.display());
            return Err(Error::new(Kind::Refused, what)
                .doing(doing())
                .on(Side::Local)
                .hint("name the directory that is meant with --certs-dir, and mount it"));
        }
        if !real.is_dir() {
            return Err(Error::new(Kind::Local, "it is not a directory").doing(doing()).on(Side::Local));
        }
        Ok(Some(real))
    }
}

/// The parts of an absolute or relative path, none of which goes up.
fn path_components(path: &Path) -> Result<Vec<&std::ffi::OsStr>> {
    let mut names = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => names.push(name),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                return Err(
                    Error::new(Kind::Usage, format!("{} has a part that goes up", path.display())).on(Side::Local)
                );
            }
        }
    }
    Ok(names)
}
