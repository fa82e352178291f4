//! A directory for the time of a run.

use std::fs::DirBuilder;
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::error::{Error, Kind, Result};

/// A new directory, that only this user may read. Removed on drop, with all that is in it: at the
/// end, after a failure, and when an interrupt drops the run.
pub(super) struct Scratch(PathBuf);

impl Scratch {
    /// `transload-demo-<pid>-<n>` where the system keeps temporary files.
    ///
    /// # Errors
    /// If nothing can be written there.
    pub(super) fn new() -> Result<Self> {
        let parent = std::env::temp_dir();
        for number in 0..100 {
            let path = parent.join(format!("transload-demo-{}-{number}", std::process::id()));
            // Never one that is there: it may be somebody else's, or a trap.
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
        // A write that an interrupt left on its way may put one more file in while we clear up.
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
