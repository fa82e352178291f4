//! The directory itself: files, the index and its lock.

use std::collections::HashMap;
use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Layout;
use super::checked::Checked;
use super::dir;
use super::index::{Index, Listing};
use super::members::Members;
use super::names::Scope;
use super::partial::{Partial, Temp, blob_name};
use super::read::Stored;
use super::room::{Quota, Room};
use super::root::{Root, leads_out};
use crate::descriptor::{Descriptor, Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::manifest::{MAX_DEPTH, MAX_MANIFEST, Manifest};
use crate::memory;
use crate::pool::blocking;
use crate::reference::{RepositoryName, Target};

/// A layout directory. A clone is a handle to the same.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: Root,
    default_repository: RepositoryName,
    /// The index as it was last read, and what its file looked like then.
    index: Mutex<Option<(Stamp, Arc<Index>)>>,
    /// For manifests that were looked at: what they are about. Their content never changes.
    subjects: Mutex<HashMap<Digest, Option<Digest>>>,
    members: OnceLock<Members>,
    checked: OnceLock<Checked>,
    room: Option<Arc<Room>>,
}

impl Store {
    /// The layout in `dir`, which must be one.
    ///
    /// # Errors
    /// As [`Layout::open`].
    pub async fn open(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        blocking(move || {
            dir::check(&Root::following(&dir))?;
            Self::new(&dir)
        })
        .await
    }

    /// The layout in `dir`, made if there is none. Leavings of killed runs are removed.
    ///
    /// # Errors
    /// As [`Layout::create`].
    pub async fn create(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        blocking(move || {
            create_all(&dir)?;
            dir::make(&Root::following(&dir))?;
            dir::sweep(&dir);
            Self::new(&dir)
        })
        .await
    }

    /// The layout in `dir` for a server. No name in it leads out of it, and what is read is verified. With a `quota`
    /// it is made if there is none, and pushes may use so much.
    ///
    /// # Errors
    /// As [`Layout::open`], or as [`Layout::create`] with a `quota`.
    pub async fn serve(dir: &Path, quota: Option<Quota>) -> Result<Self> {
        let dir = dir.to_owned();
        blocking(move || {
            if quota.is_some() {
                create_all(&dir)?;
            }
            let opened = dir.canonicalize().and_then(|real| Root::confined(&real));
            let root = opened.map_err(|error| {
                // Says what is there instead of a layout, if that is what is wrong.
                let what = dir::check(&Root::following(&dir)).err();
                what.unwrap_or_else(|| Error::io(format!("open {}", dir.display()), &error))
            })?;
            let Some(quota) = quota else {
                dir::check(&root)?;
                return Ok(Self::at(root, None));
            };
            dir::make(&root)?;
            dir::sweep(root.path());
            let room = Room::new(quota, root.path());
            Ok(Self::at(root, Some(Arc::new(room))))
        })
        .await
    }

    /// The layout that [`Store::create`] would find or make in `dir`, to be read only.
    ///
    /// # Errors
    /// As [`Layout::create`], as far as can be seen without writing.
    pub async fn planned(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        blocking(move || {
            dir::check_make(&dir)?;
            if dir.exists() { Self::new(&dir) } else { Ok(Self::at(Root::following(&dir), None)) }
        })
        .await
    }

    fn new(dir: &Path) -> Result<Self> {
        let real = dir.canonicalize().map_err(|error| Error::io(format!("open {}", dir.display()), &error))?;
        Ok(Self::at(Root::following(&real), None))
    }

    fn at(root: Root, room: Option<Arc<Room>>) -> Self {
        let name = root.path().file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let default_repository = name.parse().unwrap_or_else(|_| RepositoryName::image());
        Self(Arc::new(Inner {
            root,
            default_repository,
            index: Mutex::default(),
            subjects: Mutex::default(),
            members: OnceLock::new(),
            checked: OnceLock::new(),
            room,
        }))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.0.root.path()
    }

    /// The repository that entries with no more than a tag are in: the directory's name.
    pub fn default_repository(&self) -> &RepositoryName {
        &self.0.default_repository
    }

    /// The directory as one repository.
    pub fn whole(&self) -> Layout {
        Layout::new(self.clone(), Scope::Whole)
    }

    /// The repository `name` in it.
    pub fn repository(&self, name: &RepositoryName) -> Layout {
        Layout::new(self.clone(), Scope::Repository(name.clone()))
    }

    /// Begins a blob. With a `hasher`, [`Partial::commit`] checks the digest.
    pub async fn begin(&self, hasher: Option<Hasher>) -> Result<Partial> {
        self.begin_for(None, hasher).await
    }

    /// The same, for a repository that it will belong to.
    pub(super) async fn begin_for(&self, owner: Option<RepositoryName>, hasher: Option<Hasher>) -> Result<Partial> {
        self.work(|store| Ok(Partial::new(store.clone(), store.temp(hasher)?, owner))).await
    }

    fn temp(&self, hasher: Option<Hasher>) -> Result<Temp> {
        Ok(Temp::new(self.dir(), hasher)?.within(self.0.room.clone()))
    }

    pub(super) async fn stored(&self, digest: &Digest) -> Result<Option<Stored>> {
        let digest = *digest;
        self.work(move |store| store.stored_now(&digest)).await
    }

    pub(super) async fn manifest(&self, scope: &Scope, target: &Target) -> Result<Option<Manifest>> {
        let (scope, target) = (scope.clone(), target.clone());
        self.work(move |store| store.manifest_now(&scope, &target)).await
    }

    /// The descriptor of `target`, if all that it needs is here.
    pub(super) async fn find_whole(&self, scope: &Scope, target: &Target) -> Result<Option<Descriptor>> {
        let (scope, target) = (scope.clone(), target.clone());
        self.work(move |store| {
            let found = store.manifest_now(&scope, &target).and_then(|found| match found {
                Some(manifest) if store.is_whole(&manifest, MAX_DEPTH)? => Ok(Some(manifest.descriptor().clone())),
                _ => Ok(None),
            });
            match found {
                // What is broken isn't whole.
                Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Mismatch) => Ok(None),
                found => found,
            }
        })
        .await
    }

    /// The one image of the directory. Signatures and lists of referrers don't count as images.
    pub(super) async fn only(&self) -> Result<Target> {
        self.work(|store| store.only_now()).await
    }

    pub(super) async fn referrers(&self, scope: &Scope, subject: &Digest) -> Result<Vec<Descriptor>> {
        let (scope, subject) = (scope.clone(), *subject);
        self.work(move |store| store.referrers_now(&scope, &subject)).await
    }

    /// Stores `manifest`, then lists it in the index, by the names that `targets` have here: by all of them, or none.
    pub(super) async fn put_manifest(&self, scope: &Scope, manifest: &Manifest, targets: &[Target]) -> Result<()> {
        let partial = self.check_put(scope, manifest).await?;
        let names: Vec<_> = targets.iter().map(|target| scope.written(target)).collect();
        let (scope, manifest) = (scope.clone(), manifest.clone());
        self.work(move |store| {
            let there = store.stored_now(&manifest.digest())?;
            let there = there.filter(|there| there.size() == manifest.descriptor().size).map(Stored::read_all);
            if there.transpose()?.is_none_or(|there| there != manifest.bytes()) {
                let mut temp = store.temp(None)?;
                temp.write(std::slice::from_ref(manifest.bytes()))?;
                temp.rename(store.root(), &blob_name(&manifest.digest()))?;
            }
            let repository = match &scope {
                Scope::Whole => None,
                Scope::Repository(repository) => Some(repository),
            };
            store.change_index(|index| {
                let put = |name: &Option<String>| {
                    index.put(&manifest, Listing { name: name.as_deref(), repository, partial })
                };
                // All of them, whichever changes the index.
                names.iter().map(put).fold(false, |changed, put| changed | put)
            })
        })
        .await
    }

    /// Whether `manifest` is partial in this scope. Reads other manifests, so it takes a turn; the turn ends before
    /// anything waits for the lock of the index.
    ///
    /// # Errors
    /// As [`Store::check_referrer`].
    async fn check_put(&self, scope: &Scope, manifest: &Manifest) -> Result<bool> {
        let _turn = memory::reading_from_disk().await;
        let (scope, manifest) = (scope.clone(), manifest.clone());
        self.work(move |store| {
            store.check_referrer(&scope, &manifest)?;
            match &scope {
                Scope::Whole => Ok(false),
                Scope::Repository(repository) => store.is_partial(repository, &manifest),
            }
        })
        .await
    }

    pub(super) async fn work<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.clone();
        blocking(move || work(&store)).await
    }
}

/// What blocks.
impl Store {
    pub(super) fn root(&self) -> &Root {
        &self.0.root
    }

    pub(super) fn subjects(&self) -> &Mutex<HashMap<Digest, Option<Digest>>> {
        &self.0.subjects
    }

    pub(super) fn members(&self) -> &Members {
        self.0.members.get_or_init(Members::default)
    }

    pub(super) fn checked(&self) -> &Checked {
        self.0.checked.get_or_init(Checked::default)
    }

    /// The file of a blob or manifest; `None` if there is none. What isn't a regular file, or leads out of a served
    /// directory, is none: a push or a copy may put the right one in its place.
    pub(super) fn stored_now(&self, digest: &Digest) -> Result<Option<Stored>> {
        let name = blob_name(digest);
        let path = || self.dir().join(&name).display().to_string();
        match self.root().open(&name) {
            Ok((file, data)) => Ok(Some(Stored::new(file, &data, path()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error)
                if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::IsADirectory) || leads_out(&error) =>
            {
                tracing::error!("{} is not used: {error}", path());
                Ok(None)
            }
            Err(error) => Err(Error::io(format!("read {}", path()), &error)),
        }
    }

    pub(super) fn manifest_now(&self, scope: &Scope, target: &Target) -> Result<Option<Manifest>> {
        match target {
            Target::Digest(digest) if self.belongs(scope, digest)? => self.read_manifest(digest, None),
            Target::Digest(_) => Ok(None),
            Target::Tag(_) | Target::Name(_) => {
                let Some(entry) = self.entry(scope, target)? else { return Ok(None) };
                let media_type = Some(&*entry.media_type);
                self.read_manifest(&entry.digest, media_type)?.map(Some).ok_or_else(|| {
                    let dir = self.dir().display();
                    Error::new(Kind::Invalid, format!("{dir} lists {target} as {}, but lacks that blob", entry.digest))
                        .hint("the directory was copied in part: copy the image to it again")
                })
            }
        }
    }

    /// The manifest with this digest; `None` if there is no such file, or one that is too large
    /// to be a manifest.
    pub(super) fn read_manifest(&self, digest: &Digest, media_type: Option<&str>) -> Result<Option<Manifest>> {
        let Some(stored) = self.stored_now(digest)?.filter(|stored| stored.size() <= MAX_MANIFEST) else {
            return Ok(None);
        };
        // OCI made a manifest's own `mediaType` optional: then the index knows it.
        let listed = match media_type {
            Some(_) => None,
            None => self.index()?.by_digest(digest).map(|entry| entry.media_type.clone()),
        };
        let media_type = media_type.or(listed.as_deref());
        Manifest::read(stored.read_all()?, media_type, Some(*digest)).map(Some)
    }

    pub(super) fn known_index(&self) -> &Mutex<Option<(Stamp, Arc<Index>)>> {
        &self.0.index
    }
}

/// What tells one version of a file from the next. A rename makes a new inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    size: u64,
    modified: (i64, i64),
    /// Any program can set the time of a file's last modification, and none that of its last change.
    changed: (i64, i64),
    inode: u64,
    device: u64,
}

impl Stamp {
    pub(super) fn of(data: &Metadata) -> Self {
        Self {
            size: data.len(),
            modified: (data.mtime(), data.mtime_nsec()),
            changed: (data.ctime(), data.ctime_nsec()),
            inode: data.ino(),
            device: data.dev(),
        }
    }
}

fn create_all(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|error| Error::io(format!("create {}", dir.display()), &error))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
