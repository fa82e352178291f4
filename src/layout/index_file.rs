//! The file `index.json`: it is read when it has changed, and replaced as a whole. All methods block.

use std::io::ErrorKind;
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;

use super::directory::{self, INDEX_FILE};
use super::entry::ParsedEntry;
use super::entry::REF_NAME;
use super::file_stream::FileVersion;
use super::index::{Index, MAX_INDEX};
use super::names::{NameMatch, Scope};
use super::store::{Store, lock};
use super::upload::TempFile;
use crate::error::{Error, Kind, Result};
use crate::reference::Target;
use crate::regular_file;

impl Store {
    /// The entry with the best match; among equal ones the last, since entries are added at the end.
    pub(super) fn entry(&self, scope: &Scope, target: &Target) -> Result<Option<ParsedEntry>> {
        let index = self.index()?;
        let mut fitting: Vec<(NameMatch, &ParsedEntry)> = Vec::new();
        for entry in self.listed(&index, scope).into_iter().rev() {
            let targets = scope.targets(entry, self.default_repository()).into_iter();
            let fits = targets.filter(|(_, other)| other == target);
            fitting.extend(fits.map(|(fit, _)| fit).min().map(|fit| (fit, entry)));
        }
        fitting.sort_by_key(|(fit, _)| *fit);
        let Some((best, entry)) = fitting.first().copied() else { return Ok(None) };
        let rival = fitting.iter().find(|(fit, other)| *fit == best && other.digest != entry.digest);
        if let (Scope::Whole, NameMatch::Read, Some((_, rival))) = (scope, best, rival) {
            let error = format!("{target} is several images in {}", self.dir().display());
            return Err(Error::new(Kind::Usage, error).hint(format!(
                "it is {} and {}",
                entry_title(entry),
                entry_title(rival)
            )));
        }
        Ok(Some(entry.clone()))
    }

    /// The entries in this scope, in the order of the file.
    pub(super) fn listed<'a>(&self, index: &'a Index, scope: &Scope) -> Vec<&'a ParsedEntry> {
        match scope {
            Scope::Whole => index.entries().collect(),
            Scope::Repository(name) => index.in_repository(name, self.default_repository()),
        }
    }

    /// The current index. The file is read only if it has changed.
    pub(super) fn index(&self) -> Result<Arc<Index>> {
        let failed =
            |error: std::io::Error| Error::io(format!("read {}", self.dir().join(INDEX_FILE).display()), &error);
        let (file, data) = match self.root().open(Path::new(INDEX_FILE)) {
            // The layout is only planned, or is being created.
            Err(error) if error.kind() == ErrorKind::NotFound && !directory::has_layout_file(self.dir()) => {
                return Ok(Arc::new(Index::empty()));
            }
            other => other.map_err(failed)?,
        };
        let stamp = FileVersion::of(&data);
        // Held while the file is read: after a change one request reads it, and the others wait.
        let mut known = lock(self.known_index());
        if let Some((seen, index)) = &*known
            && *seen == stamp
        {
            return Ok(index.clone());
        }
        let bytes = regular_file::read_open(&file, MAX_INDEX).map_err(|error| match error.kind() {
            ErrorKind::FileTooLarge => failed(error).of_kind(Kind::Invalid),
            _ => failed(error),
        })?;
        let index = Arc::new(Index::parse(&bytes.into())?);
        *known = Some((stamp, index.clone()));
        Ok(index)
    }

    /// Changes the index under a lock between threads and between processes.
    pub(super) fn change_index(&self, change: impl FnOnce(&mut Index) -> bool) -> Result<()> {
        let _held = directory::lock(self.root())?;
        let mut index = self.index()?.copy();
        if !change(&mut index) {
            return Ok(());
        }
        let mut temp = TempFile::new(self.dir(), None)?;
        // Checked before writing: an index that is too large to be read would make all images inaccessible.
        temp.write(&[Bytes::from(index.to_bytes()?)])?;
        let done = temp.rename(self.root(), Path::new(INDEX_FILE));
        // Two writes within the clock resolution of the file system could look equal.
        *lock(self.known_index()) = None;
        done
    }
}

fn entry_title(entry: &ParsedEntry) -> String {
    entry.annotations.get(REF_NAME).map(str::to_owned).unwrap_or_else(|| entry.digest.to_string())
}
