//! The store of a layout directory: files, the index and its lock.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::Layout;
use super::directory;
use super::file_stream::FileVersion;
use super::file_stream::StoredBlob;
use super::index::{Index, ListingScope};
use super::membership::MembershipCache;
use super::names::Scope;
use super::quota::{Quota, QuotaUsage};
use super::root_dir::{RootDir, is_escape};
use super::upload::{BlobUpload, TempFile, blob_name};
use super::verified_files::VerifiedFiles;
use crate::descriptor::{Descriptor, Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::manifest::{MAX_DEPTH, MAX_MANIFEST, Manifest};
use crate::memory;
use crate::pool::run_blocking;
use crate::reference::{RepositoryName, Target};

/// A layout directory. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: RootDir,
    default_repository: RepositoryName,
    /// The latest index, with the version of its file.
    index: Mutex<Option<(FileVersion, Arc<Index>)>>,
    /// The subjects of manifests that were read. They never change.
    subjects: Mutex<HashMap<Digest, Option<Digest>>>,
    members: OnceLock<MembershipCache>,
    checked: OnceLock<VerifiedFiles>,
    room: Option<Arc<QuotaUsage>>,
}

impl Store {
    /// Opens the layout in `dir`.
    ///
    /// # Errors
    /// As [`Layout::open`].
    pub(crate) async fn open(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        run_blocking(move || {
            directory::check_layout(&RootDir::following(&dir))?;
            Self::new(&dir)
        })
        .await
    }

    /// Opens the layout in `dir`, and creates it if there is none. Removes temporary files of killed processes.
    ///
    /// # Errors
    /// As [`Layout::create`].
    pub(crate) async fn create(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        run_blocking(move || {
            create_all(&dir)?;
            directory::create_layout(&RootDir::following(&dir))?;
            directory::remove_stale_uploads(&dir);
            Self::new(&dir)
        })
        .await
    }

    /// Opens the layout in `dir` for a server. No name leads out of it, and all files are verified before they are served.
    /// With a `quota` it is created if there is none, and pushes are accepted up to the quota.
    ///
    /// # Errors
    /// As [`Layout::open`], or as [`Layout::create`] with a `quota`.
    pub(crate) async fn serve(dir: &Path, quota: Option<Quota>) -> Result<Self> {
        let dir = dir.to_owned();
        run_blocking(move || {
            if quota.is_some() {
                create_all(&dir)?;
            }
            let opened = dir.canonicalize().and_then(|real| RootDir::confined(&real));
            let root = opened.map_err(|error| {
                // Reports what is there instead of a layout, if there is something else.
                let what = directory::check_layout(&RootDir::following(&dir)).err();
                what.unwrap_or_else(|| Error::io(format!("open {}", dir.display()), &error))
            })?;
            let Some(quota) = quota else {
                directory::check_layout(&root)?;
                return Ok(Self::at(root, None));
            };
            directory::create_layout(&root)?;
            directory::remove_stale_uploads(root.path());
            let room = QuotaUsage::new(quota, root.path());
            Ok(Self::at(root, Some(Arc::new(room))))
        })
        .await
    }

    /// The layout that [`Store::create`] would open or create in `dir`, for reading only.
    ///
    /// # Errors
    /// Those of [`Layout::create`], as far as possible without writing.
    pub(crate) async fn planned(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        run_blocking(move || {
            directory::check_creatable(&dir)?;
            if dir.exists() { Self::new(&dir) } else { Ok(Self::at(RootDir::following(&dir), None)) }
        })
        .await
    }

    fn new(dir: &Path) -> Result<Self> {
        let real = dir.canonicalize().map_err(|error| Error::io(format!("open {}", dir.display()), &error))?;
        Ok(Self::at(RootDir::following(&real), None))
    }

    fn at(root: RootDir, room: Option<Arc<QuotaUsage>>) -> Self {
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

    /// The path of the directory.
    pub(crate) fn dir(&self) -> &Path {
        self.0.root.path()
    }

    /// The repository of entries that have only a tag: the directory's name.
    pub(crate) fn default_repository(&self) -> &RepositoryName {
        &self.0.default_repository
    }

    /// The directory as one repository.
    pub(crate) fn layout(&self) -> Layout {
        Layout::new(self.clone(), Scope::Whole)
    }

    pub(crate) fn repository(&self, name: &RepositoryName) -> Layout {
        Layout::new(self.clone(), Scope::Repository(name.clone()))
    }

    /// Starts an upload of a blob that will belong to the repository `owner`. With a `hasher`, [`BlobUpload::commit`] verifies
    /// the digest.
    pub(super) async fn create_upload_for(
        &self,
        owner: Option<RepositoryName>,
        hasher: Option<Hasher>,
    ) -> Result<BlobUpload> {
        self.run_blocking(|store| Ok(BlobUpload::new(store.clone(), store.temp(hasher)?, owner))).await
    }

    /// Begins a blob that a copy brings, or goes on with what an earlier copy kept of it.
    pub(super) async fn continue_upload(&self, owner: Option<RepositoryName>, blob: &Descriptor) -> Result<BlobUpload> {
        let blob = blob.clone();
        self.run_blocking(move |store| {
            // What is kept would take room that nobody counts.
            let temp = match store.0.room {
                Some(_) => store.temp(None)?,
                None => TempFile::for_blob(store.dir(), &blob)?,
            };
            Ok(BlobUpload::new(store.clone(), temp, owner))
        })
        .await
    }

    fn temp(&self, hasher: Option<Hasher>) -> Result<TempFile> {
        Ok(TempFile::new(self.dir(), hasher)?.with_quota(self.0.room.clone()))
    }

    pub(super) async fn open_blob(&self, digest: &Digest) -> Result<Option<StoredBlob>> {
        let digest = *digest;
        self.run_blocking(move |store| store.open_blob_blocking(&digest)).await
    }

    pub(super) async fn manifest(&self, scope: &Scope, target: &Target) -> Result<Option<Manifest>> {
        let (scope, target) = (scope.clone(), target.clone());
        self.run_blocking(move |store| store.manifest_blocking(&scope, &target)).await
    }

    /// The descriptor of `target`, if the image is complete.
    pub(super) async fn find_whole(&self, scope: &Scope, target: &Target) -> Result<Option<Descriptor>> {
        let (scope, target) = (scope.clone(), target.clone());
        self.run_blocking(move |store| {
            let found = store.manifest_blocking(&scope, &target).and_then(|found| match found {
                Some(manifest) if store.is_whole(&manifest, MAX_DEPTH)? => Ok(Some(manifest.descriptor().clone())),
                _ => Ok(None),
            });
            match found {
                // A damaged image is not complete.
                Err(error) if matches!(error.kind(), Kind::Invalid | Kind::Mismatch) => Ok(None),
                found => found,
            }
        })
        .await
    }

    /// The only image of the directory. Signatures and lists of referrers do not count as images.
    pub(super) async fn only(&self) -> Result<Target> {
        self.run_blocking(|store| store.only_blocking()).await
    }

    pub(super) async fn referrers(&self, scope: &Scope, subject: &Digest) -> Result<Vec<Descriptor>> {
        let (scope, subject) = (scope.clone(), *subject);
        self.run_blocking(move |store| store.referrers_blocking(&scope, &subject)).await
    }

    /// Stores `manifest`, then lists it in the index under the names of all `targets`, or under none.
    pub(super) async fn put_manifest(&self, scope: &Scope, manifest: &Manifest, targets: &[Target]) -> Result<()> {
        let partial = self.check_put(scope, manifest).await?;
        let names: Vec<_> = targets.iter().map(|target| scope.written(target)).collect();
        let (scope, manifest) = (scope.clone(), manifest.clone());
        self.run_blocking(move |store| {
            let there = store.open_blob_blocking(&manifest.digest())?;
            let there = there.filter(|there| there.size() == manifest.descriptor().size).map(StoredBlob::read_all);
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
                    index.put(&manifest, ListingScope { name: name.as_deref(), repository, partial })
                };
                // Adds all of them, also after one has changed the index.
                names.iter().map(put).fold(false, |changed, put| changed | put)
            })
        })
        .await
    }

    /// Whether `manifest` is partial in this scope. Reads other manifests, so it needs a permit, which is released before
    /// anything waits for the lock of the index.
    ///
    /// # Errors
    /// Those of [`Store::check_referrer`].
    async fn check_put(&self, scope: &Scope, manifest: &Manifest) -> Result<bool> {
        let _turn = memory::disk_read_permit().await;
        let (scope, manifest) = (scope.clone(), manifest.clone());
        self.run_blocking(move |store| {
            store.check_referrer(&scope, &manifest)?;
            match &scope {
                Scope::Whole => Ok(false),
                Scope::Repository(repository) => store.is_partial(repository, &manifest),
            }
        })
        .await
    }

    pub(super) async fn run_blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let store = self.clone();
        run_blocking(move || work(&store)).await
    }
}

/// Methods that block.
impl Store {
    pub(super) fn root(&self) -> &RootDir {
        &self.0.root
    }

    pub(super) fn subjects(&self) -> &Mutex<HashMap<Digest, Option<Digest>>> {
        &self.0.subjects
    }

    pub(super) fn members(&self) -> &MembershipCache {
        self.0.members.get_or_init(MembershipCache::default)
    }

    pub(super) fn checked(&self) -> &VerifiedFiles {
        self.0.checked.get_or_init(VerifiedFiles::default)
    }

    /// The file of a blob or manifest; `None` if there is none. A path that is not a regular file, or leads out of a served
    /// directory, counts as none: a push or a copy may replace it.
    pub(super) fn open_blob_blocking(&self, digest: &Digest) -> Result<Option<StoredBlob>> {
        let name = blob_name(digest);
        let path = || self.dir().join(&name).display().to_string();
        match self.root().open(&name) {
            Ok((file, data)) => Ok(Some(StoredBlob::new(file, &data, path()))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error)
                if matches!(error.kind(), ErrorKind::InvalidInput | ErrorKind::IsADirectory) || is_escape(&error) =>
            {
                tracing::error!("{} is not used: {error}", path());
                Ok(None)
            }
            Err(error) => Err(Error::io(format!("read {}", path()), &error)),
        }
    }

    pub(super) fn manifest_blocking(&self, scope: &Scope, target: &Target) -> Result<Option<Manifest>> {
        match target {
            Target::Digest(digest) if self.is_member(scope, digest)? => self.read_manifest(digest, None),
            Target::Digest(_) => Ok(None),
            Target::Tag(_) | Target::Name(_) => {
                let Some(entry) = self.entry(scope, target)? else { return Ok(None) };
                let media_type = Some(&*entry.media_type);
                self.read_manifest(&entry.digest, media_type)?.map(Some).ok_or_else(|| {
                    let dir = self.dir().display();
                    Error::new(Kind::Invalid, format!("{dir} lists {target} as {}, but lacks that blob", entry.digest))
                        .hint("the directory is incomplete: copy the image to it again")
                })
            }
        }
    }

    /// The manifest with this digest; `None` if there is no such file, or it is too large for a manifest.
    pub(super) fn read_manifest(&self, digest: &Digest, media_type: Option<&str>) -> Result<Option<Manifest>> {
        let Some(stored) = self.open_blob_blocking(digest)?.filter(|stored| stored.size() <= MAX_MANIFEST) else {
            return Ok(None);
        };
        // The `mediaType` in an OCI manifest is optional. Without it the index has the media type.
        let listed = match media_type {
            Some(_) => None,
            None => self.index()?.by_digest(digest).map(|entry| entry.media_type.clone()),
        };
        let media_type = media_type.or(listed.as_deref());
        Manifest::read(stored.read_all()?, media_type, Some(*digest)).map(Some)
    }

    pub(super) fn known_index(&self) -> &Mutex<Option<(FileVersion, Arc<Index>)>> {
        &self.0.index
    }
}

fn create_all(dir: &Path) -> Result<()> {
    std::fs::create_dir_all(dir).map_err(|error| Error::io(format!("create {}", dir.display()), &error))
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
