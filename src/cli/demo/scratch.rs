//! A temporary directory.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Kind, Result};

/// A new directory that only this user may read. It is removed with its content on drop: at the end, after a failure,
/// and when an interrupt drops the run.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// `transload-demo-<pid>-<n>` in the system's directory for temporary files.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        for number in 0..100 {
            let path = parent.join(format!("transload-demo-{}-{number}", std::process::id()));
            // Never an existing one, which may be another user's.
            match DirBuilder::new().mode(0o700).create(&path) {
                Ok(()) => return Ok(Self(path)),
                Err(error) if error.kind() == ErrorKind::AlreadyExists => {}
                Err(error) => {
                    return Err(Error::io(format!("create {}", path.display()), &error)
                        .hint("set TMPDIR to a directory that can be written to"));
                }
            }
        }
        Err(Error::new(Kind::Local, format!("{} is full of other runs' directories", parent.display())))
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // A write that was in progress when an interrupt came may add a file while the directory is removed.
        for _ in 0..20 {
            match std::fs::remove_dir_all(&self.0) {
                Err(error) if error.kind() != ErrorKind::NotFound => std::thread::sleep(Duration::from_millis(5)),
                _ => return,
            }
        }
        tracing::warn!("{} could not be removed", self.0.display());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_gone_afterwards() {
        let scratch = Scratch::new().expect("a directory");
        let path = scratch.path().to_owned();
        std::fs::create_dir_all(path.join("a/b")).expect("a directory below");
        std::fs::write(path.join("a/b/c"), "x").expect("a file");
        assert_ne!(Scratch::new().expect("another").path(), path);
        drop(scratch);
        assert!(!path.exists());
    }
}
