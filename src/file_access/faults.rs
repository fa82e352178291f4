//! Files that fail on purpose, for tests.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::{FileAccess, Files, SystemFiles};

/// A call that can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Call {
    /// [`FileAccess::create`]
    Create,
    /// [`FileAccess::open`]
    Open,
    /// [`FileAccess::write_all_at`]: half of the bytes are written.
    Write,
    /// [`FileAccess::read_at`]
    Read,
    /// [`FileAccess::sync`]
    Sync,
    /// [`FileAccess::rename`]
    Rename,
    /// [`FileAccess::allocate`]
    Allocate,
    /// [`FileAccess::create_dir_all`]
    CreateDir,
}

/// The planned faults, and the number of calls of each kind. Clones share them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Faults(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    planned: Vec<Planned>,
    calls: Vec<Call>,
}

#[derive(Debug)]
struct Planned {
    call: Call,
    error: Errno,
    /// Calls that succeed before the first fault.
    skip: usize,
    times: usize,
}

impl Faults {
    /// Makes `times` calls fail with `error`, after `skip` calls that succeed.
    pub(crate) fn plan(&self, call: Call, error: Errno, skip: usize, times: usize) {
        self.lock().planned.push(Planned { call, error, skip, times });
    }

    /// The number of calls of this kind.
    pub(crate) fn count(&self, call: Call) -> usize {
        self.lock().calls.iter().filter(|made| **made == call).count()
    }

    /// Files with these faults.
    pub(crate) fn files(&self) -> Files {
        Files::new(FaultyFiles(self.clone()))
    }

    fn meet(&self, call: Call) -> io::Result<()> {
        let mut state = self.lock();
        state.calls.push(call);
        let Some(planned) = state.planned.iter_mut().find(|planned| planned.call == call && planned.times > 0) else {
            return Ok(());
        };
        if planned.skip > 0 {
            planned.skip -= 1;
            return Ok(());
        }
        planned.times -= 1;
        Err(planned.error.into())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[derive(Debug)]
struct FaultyFiles(Faults);

impl FileAccess for FaultyFiles {
    fn create(&self, path: &Path) -> io::Result<File> {
        self.0.meet(Call::Create)?;
        SystemFiles.create(path)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.0.meet(Call::Open)?;
        SystemFiles.open(path)
    }

    fn write_all_at(&self, file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
        if let Err(error) = self.0.meet(Call::Write) {
            SystemFiles.write_all_at(file, &bytes[..bytes.len() / 2], offset)?;
            return Err(error);
        }
        SystemFiles.write_all_at(file, bytes, offset)
    }

    fn read_at(&self, file: &File, buffer: &mut Vec<u8>, offset: u64) -> io::Result<usize> {
        self.0.meet(Call::Read)?;
        SystemFiles.read_at(file, buffer, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.0.meet(Call::Sync)?;
        SystemFiles.sync(file)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.0.meet(Call::Rename)?;
        SystemFiles.rename(from, to)
    }

    fn allocate(&self, file: &File, part: Range<u64>) -> io::Result<bool> {
        self.0.meet(Call::Allocate)?;
        SystemFiles.allocate(file, part)
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.0.meet(Call::CreateDir)?;
        SystemFiles.create_dir_all(dir)
    }

    fn allows_sendfile(&self) -> bool {
        false
    }
}
