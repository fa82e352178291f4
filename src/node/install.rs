//! Putting a `hosts.toml` in its place, and what was there back.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::hosts::{DIRECTORY_MARKER, FILE_HEADER, Mirror, directory_name};
use super::root_dir::RootDir;
use crate::atomic_file;
use crate::error::{Error, Kind, Result, Side};
use crate::regular_file::{self, Links};

const HOSTS_FILE: &str = "hosts.toml";
const BACKUP_FILE: &str = "hosts.toml.transload-backup";

/// The largest `hosts.toml` that is written, in bytes, and that is read back as ours.
const MAX_HOSTS_FILE: u64 = 64 * 1024;

/// What an installation found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InstallOutcome {
    /// The very same file: nothing was changed.
    Same,
    /// An older file of ours.
    Ours,
    /// Nothing.
    Nothing,
    /// A file of somebody else, which is kept as a backup.
    Foreign,
}

/// What removing one did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RemoveOutcome {
    /// The file that was there before ours is there again.
    Restored,
    /// Ours is gone; there was none before.
    Gone,
    /// There was none of ours.
    Nothing,
    /// Somebody has put another file in the place of ours, which stays, as does the backup.
    Foreign,
}

/// The `hosts.toml` of one registry on a node.
#[derive(Clone, Debug)]
pub struct Installed {
    place: RootDir,
    directory: PathBuf,
}

impl Installed {
    /// That of `registry`, below containerd's directory `certs` on the node with this root.
    pub fn new(place: &RootDir, certs: &Path, registry: &str) -> Self {
        Self { place: place.clone(), directory: certs.join(directory_name(registry)) }
    }

    /// Where the file is, as seen from the root.
    pub fn path(&self) -> PathBuf {
        self.directory.join(HOSTS_FILE)
    }

    /// Puts `mirror` there. What was there, and isn't ours, is kept as a backup: the very file, with its
    /// mode and its times. A reader sees the old file or the new one, whole; whoever is killed in between
    /// leaves the old file in place.
    ///
    /// # Errors
    /// If the directory leads out of the root, or can't be written to.
    pub fn write(&self, mirror: &Mirror) -> Result<InstallOutcome> {
        let (directory, made) = self.place.make(&self.directory)?;
        let doing = |error: &io::Error| Error::io(format!("write {}", directory.join(HOSTS_FILE).display()), error);
        let current = ExistingFile::read(&directory.join(HOSTS_FILE)).map_err(|error| doing(&error))?;
        let made = made
            || matches!(&current, ExistingFile::Ours(text) if text[FILE_HEADER.len()..].starts_with(DIRECTORY_MARKER));
        let text = [FILE_HEADER, if made { DIRECTORY_MARKER } else { "" }, &mirror.render()].concat();
        let was = match current {
            ExistingFile::Ours(old) if old == text => return Ok(InstallOutcome::Same),
            ExistingFile::Ours(_) => InstallOutcome::Ours,
            ExistingFile::Nothing => InstallOutcome::Nothing,
            ExistingFile::Foreign => {
                back_up(&directory).map_err(|error| doing(&error))?;
                InstallOutcome::Foreign
            }
            ExistingFile::NoFile => {
                return Err(Error::new(Kind::Local, "it is neither a file nor a symbolic link")
                    .doing(format!("replace {}", directory.join(HOSTS_FILE).display()))
                    .on(Side::Local));
            }
        };
        replace(&directory, &text).map_err(|error| doing(&error))?;
        Ok(was)
    }

    /// Takes ours away, and puts back what was there.
    ///
    /// # Errors
    /// As [`write`](Self::write).
    pub fn remove(&self) -> Result<RemoveOutcome> {
        let Some(directory) = self.place.find(&self.directory)? else { return Ok(RemoveOutcome::Nothing) };
        let (file, backup) = (directory.join(HOSTS_FILE), directory.join(BACKUP_FILE));
        let doing = |error: &io::Error| Error::io(format!("remove {}", file.display()), error);
        let is_there = match fs::symlink_metadata(&backup) {
            Ok(_) => true,
            Err(error) if error.kind() == io::ErrorKind::NotFound => false,
            Err(error) => return Err(doing(&error)),
        };
        let made = match ExistingFile::read(&file).map_err(|error| doing(&error))? {
            // A backup without a file of ours: somebody has removed ours, and wants the old one no more
            // than ours; or wants it back. The second can be undone, the first can't.
            ExistingFile::Nothing if !is_there => return Ok(RemoveOutcome::Nothing),
            ExistingFile::Nothing => false,
            ExistingFile::Ours(text) => text[FILE_HEADER.len()..].starts_with(DIRECTORY_MARKER),
            ExistingFile::Foreign if is_there && same_file(&file, &backup).map_err(|error| doing(&error))? => {
                // Killed after the backup, before the new file.
                fs::remove_file(&backup).map_err(|error| doing(&error))?;
                return Ok(RemoveOutcome::Nothing);
            }
            ExistingFile::Foreign | ExistingFile::NoFile => return Ok(RemoveOutcome::Foreign),
        };
        if is_there {
            fs::rename(&backup, &file).map_err(|error| doing(&error))?;
        } else {
            fs::remove_file(&file).map_err(|error| doing(&error))?;
        }
        atomic_file::sync_dir(&directory).map_err(|error| doing(&error))?;
        if made && !is_there {
            // Stays where others have put something into it.
            let _ = fs::remove_dir(&directory);
        }
        Ok(if is_there { RemoveOutcome::Restored } else { RemoveOutcome::Gone })
    }
}

/// What is in the place of the file.
enum ExistingFile {
    Nothing,
    Ours(String),
    Foreign,
    NoFile,
}

impl ExistingFile {
    fn read(path: &Path) -> io::Result<Self> {
        let metadata = match fs::symlink_metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::Nothing),
            metadata => metadata?,
        };
        // A symlink isn't followed: it's somebody else's, and kept as it is.
        if metadata.is_symlink() {
            return Ok(Self::Foreign);
        }
        if !metadata.is_file() {
            return Ok(Self::NoFile);
        }
        // Longer than any of ours, or not text: it's somebody else's.
        match regular_file::read_text(path, Links::Refuse, MAX_HOSTS_FILE) {
            Ok(text) if text.starts_with(FILE_HEADER) => Ok(Self::Ours(text)),
            Ok(_) => Ok(Self::Foreign),
            Err(error) if matches!(error.kind(), io::ErrorKind::FileTooLarge | io::ErrorKind::InvalidData) => {
                Ok(Self::Foreign)
            }
            Err(error) => Err(error),
        }
    }
}

/// Gives the file a second name, so that it's never without one. An older backup goes: whoever has
/// written a file over ours wants that one back.
fn back_up(directory: &Path) -> io::Result<()> {
    let backup = directory.join(BACKUP_FILE);
    match fs::remove_file(&backup) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let file = directory.join(HOSTS_FILE);
    // Without capabilities the kernel allows no link to another user's file. Then there's none for a moment,
    // and pulls go to the registry itself.
    fs::hard_link(&file, &backup).or_else(|_| fs::rename(&file, &backup))
}

fn replace(directory: &Path, text: &str) -> io::Result<()> {
    // A longer one would be read as somebody else's, and never be removed.
    regular_file::check_size(text.len() as u64, MAX_HOSTS_FILE)?;
    // For all to read: containerd may run under another user (rootless).
    atomic_file::write(&directory.join(HOSTS_FILE), Some(0o644), |to| to.write_all(text.as_bytes()))?;
    atomic_file::sync_dir(directory)
}

fn same_file(one: &Path, other: &Path) -> io::Result<bool> {
    let id = |path: &Path| fs::symlink_metadata(path).map(|metadata| (metadata.dev(), metadata.ino()));
    Ok(id(one)? == id(other)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_never_longer_than_what_is_read_as_ours() {
        let dir = std::env::temp_dir().join(format!("transload-install-{}", std::process::id()));
        fs::create_dir_all(&dir).expect("a directory");
        let of_length = |length: u64| {
            format!("{FILE_HEADER}{}", "#".repeat(usize::try_from(length).expect("small") - FILE_HEADER.len()))
        };
        replace(&dir, &of_length(MAX_HOSTS_FILE)).expect("written");
        assert!(
            matches!(ExistingFile::read(&dir.join(HOSTS_FILE)), Ok(ExistingFile::Ours(text)) if text.len() as u64 == MAX_HOSTS_FILE)
        );
        assert_eq!(
            replace(&dir, &of_length(MAX_HOSTS_FILE + 1)).expect_err("too long").kind(),
            io::ErrorKind::FileTooLarge
        );
        assert!(matches!(ExistingFile::read(&dir.join(HOSTS_FILE)), Ok(ExistingFile::Ours(_))), "it is as it was");
        // One of somebody else may be of any length.
        fs::write(dir.join(HOSTS_FILE), of_length(MAX_HOSTS_FILE + 1)).expect("written");
        assert!(matches!(ExistingFile::read(&dir.join(HOSTS_FILE)), Ok(ExistingFile::Foreign)));
        fs::remove_dir_all(dir).expect("removed");
    }
}
