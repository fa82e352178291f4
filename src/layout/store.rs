//! The directory itself: files, the index and its lock.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs::{File, Metadata};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;

use super::Layout;
use super::dir;
use super::graph::Referrer;
use super::index::Index;
use super::names::{Fit, REF_NAME, Scope, malformed, names};
use super::partial::{Partial, Temp};
use super::read::Stored;
use crate::content::TagPage;
use crate::descriptor::{Descriptor, Digest, Hasher};
use crate::error::{Error, Kind, Result};
use crate::manifest::{MAX_DEPTH, MAX_MANIFEST, Manifest};
use crate::pool::blocking;
use crate::reference::{RepositoryName, Target};

/// A layout directory. A clone is a handle to the same.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    default_repository: RepositoryName,
    /// The index as it was last read, and what its file looked like then.
    index: Mutex<Option<(Stamp, Arc<Index>)>>,
    /// For manifests that were looked at: what they are about. Their content never changes.
    subjects: Mutex<HashMap<Digest, Option<Arc<Referrer>>>>,
}

impl Store {
    /// The layout in `dir`, which must be one.
    ///
    /// # Errors
    /// As [`Layout::open`].
    pub async fn open(dir: &Path) -> Result<Self> {
        let dir = dir.to_owned();
        blocking(move || {
            dir::check(&dir)?;
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
            dir::make(&dir)?;
            dir::sweep(&dir);
            Self::new(&dir)
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
            if dir.exists() { Self::new(&dir) } else { Ok(Self::at(dir)) }
        })
        .await
    }

    fn new(dir: &Path) -> Result<Self> {
        dir.canonicalize().map(Self::at).map_err(|error| Error::io(format!("open {}", dir.display()), &error))
    }

    fn at(dir: PathBuf) -> Self {
        let name = dir.file_name().unwrap_or_default().to_string_lossy().to_lowercase();
        let default_repository = name.parse().unwrap_or_else(|_| RepositoryName::image());
        Self(Arc::new(Inner { dir, default_repository, index: Mutex::default(), subjects: Mutex::default() }))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        &self.0.dir
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

    /// All repositories that have a tag, in the order of their bytes.
    pub async fn repositories(&self) -> Result<Vec<RepositoryName>> {
        self.work(|store| {
            let index = store.index()?;
            let default = || store.default_repository().clone();
            let found = index.entries().flat_map(names).filter(|name| name.fit != Fit::Alias);
            Ok(found.map(|name| name.repository.unwrap_or_else(default)).collect::<BTreeSet<_>>().into_iter().collect())
        })
        .await
    }

    /// Begins a blob. With a `hasher`, [`Partial::commit`] checks the digest.
    pub async fn begin(&self, hasher: Option<Hasher>) -> Result<Partial> {
        self.work(|store| Ok(Partial::new(store.clone(), Temp::new(store.dir(), hasher)?))).await
    }

    /// The file of a blob or manifest.
    pub(super) fn blob_path(&self, digest: &Digest) -> PathBuf {
        // A `Digest` holds a known algorithm and a hash: nothing in here comes from outside as text.
        self.dir().join("blobs").join(digest.algorithm()).join(digest.hex())
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

    /// Up to `most` tags and names behind `after`, in the order of their bytes. The first page of the whole
    /// directory has all malformed names.
    pub(super) async fn page(
        &self,
        scope: &Scope,
        after: Option<&str>,
        most: usize,
    ) -> Result<(TagPage, Option<String>)> {
        let (scope, after) = (scope.clone(), after.map(str::to_owned));
        self.work(move |store| {
            let index = store.index()?;
            let targets = index.entries().flat_map(|entry| scope.targets(entry, store.default_repository()));
            let targets: BTreeMap<String, Target> = targets
                .map(|(_, target)| (target.to_string(), target))
                .filter(|(text, _)| after.as_ref() < Some(text))
                .collect();
            let (mut page, mut next) = (TagPage::default(), None);
            if scope == Scope::Whole && after.is_none() {
                page.malformed = index.entries().filter_map(malformed).collect();
            }
            for (at, (text, target)) in targets.into_iter().take(most).enumerate() {
                next = (at + 1 == most).then_some(text);
                match target {
                    Target::Tag(tag) => page.tags.push(tag),
                    Target::Name(name) => page.names.push(name),
                    Target::Digest(_) => {}
                }
            }
            Ok((page, next))
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

    /// Stores `manifest`, then lists it in the index, under `name` where one is given.
    pub(super) async fn put_manifest(&self, manifest: &Manifest, name: Option<String>) -> Result<()> {
        let manifest = manifest.clone();
        self.work(move |store| {
            let there = store.stored_now(&manifest.digest())?;
            let there = there.filter(|there| there.size() == manifest.descriptor().size).map(Stored::read_all);
            if there.transpose()?.is_none_or(|there| there != manifest.bytes()) {
                let mut temp = Temp::new(store.dir(), None)?;
                temp.write(std::slice::from_ref(manifest.bytes()))?;
                temp.rename(&store.blob_path(&manifest.digest()))?;
            }
            store.change_index(|index| index.put(&manifest, name.as_deref()))
        })
        .await
    }

    async fn work<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> Result<T> + Send + 'static) -> Result<T> {
        let store = self.clone();
        blocking(move || work(&store)).await
    }
}

/// What blocks.
impl Store {
    pub(super) fn subjects(&self) -> &Mutex<HashMap<Digest, Option<Arc<Referrer>>>> {
        &self.0.subjects
    }

    pub(super) fn stored_now(&self, digest: &Digest) -> Result<Option<Stored>> {
        let path = self.blob_path(digest);
        let failed = |error: &std::io::Error| Error::io(format!("read {}", path.display()), error);
        let file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(&error)),
        };
        let data = file.metadata().map_err(|error| failed(&error))?;
        Ok(data.is_file().then(|| Stored::new(file, data.len(), path.display().to_string())))
    }

    pub(super) fn manifest_now(&self, scope: &Scope, target: &Target) -> Result<Option<Manifest>> {
        match target {
            Target::Digest(digest) => self.read_manifest(digest, None),
            Target::Tag(_) | Target::Name(_) => {
                let Some(entry) = self.entry(scope, target)? else { return Ok(None) };
                let media_type = Some(entry.media_type.0.as_str());
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
            None => self.index()?.entries().find(|entry| entry.digest == *digest).map(|entry| entry.media_type.clone()),
        };
        let media_type = media_type.or(listed.as_ref().map(|listed| listed.0.as_str()));
        Manifest::read(stored.read_all()?, media_type, Some(*digest)).map(Some)
    }

    /// The entry that fits best; the last of equals, since entries are added at the end.
    fn entry(&self, scope: &Scope, target: &Target) -> Result<Option<Descriptor>> {
        let index = self.index()?;
        let mut fitting: Vec<(Fit, &Descriptor)> = Vec::new();
        for entry in index.entries().rev() {
            let targets = scope.targets(entry, self.default_repository()).into_iter();
            let fits = targets.filter(|(_, other)| other == target);
            fitting.extend(fits.map(|(fit, _)| fit).min().map(|fit| (fit, entry)));
        }
        fitting.sort_by_key(|(fit, _)| *fit);
        let Some((best, entry)) = fitting.first().copied() else { return Ok(None) };
        let rival = fitting.iter().find(|(fit, other)| *fit == best && other.digest != entry.digest);
        if let (Scope::Whole, Fit::Read, Some((_, rival))) = (scope, best, rival) {
            let error = format!("{target} is several images in {}", self.dir().display());
            return Err(Error::new(Kind::Usage, error).hint(format!("it is {} and {}", title(entry), title(rival))));
        }
        Ok(Some(entry.clone()))
    }

    /// The index as it is now; read again only if its file is another one.
    pub(super) fn index(&self) -> Result<Arc<Index>> {
        let path = self.dir().join("index.json");
        let failed = |error: std::io::Error| Error::io(format!("read {}", path.display()), &error);
        let file = match File::open(&path) {
            // Only planned, or in the making.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound && !dir::is_marked(self.dir()) => {
                return Ok(Arc::new(Index::empty()));
            }
            other => other.map_err(failed)?,
        };
        let stamp = Stamp::of(&file.metadata().map_err(failed)?);
        if let Some((known, index)) = &*lock(&self.0.index)
            && *known == stamp
        {
            return Ok(index.clone());
        }
        let mut bytes = Vec::new();
        file.take(MAX_INDEX + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() as u64 > MAX_INDEX {
            return Err(Error::new(Kind::Invalid, format!("{} is larger than {MAX_INDEX} bytes", path.display())));
        }
        let index = Arc::new(Index::parse(&bytes)?);
        *lock(&self.0.index) = Some((stamp, index.clone()));
        Ok(index)
    }

    /// Changes the index under the lock, which holds between threads and between processes.
    fn change_index(&self, change: impl FnOnce(&mut Index) -> bool) -> Result<()> {
        let _held = dir::hold(self.dir())?;
        let mut index = Index::clone(&*self.index()?);
        if !change(&mut index) {
            return Ok(());
        }
        let mut temp = Temp::new(self.dir(), None)?;
        temp.write(&[Bytes::from(index.to_bytes())])?;
        let done = temp.rename(&self.dir().join("index.json"));
        // Two writes within one tick of the file system's clock could look the same.
        *lock(&self.0.index) = None;
        done
    }
}

/// What tells one version of a file from the next. A rename makes a new inode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    size: u64,
    changed: Option<SystemTime>,
    inode: u64,
}

impl Stamp {
    fn of(data: &Metadata) -> Self {
        #[cfg(unix)]
        let inode = std::os::unix::fs::MetadataExt::ino(data);
        #[cfg(not(unix))]
        let inode = 0;
        Self { size: data.len(), changed: data.modified().ok(), inode }
    }
}

fn title(entry: &Descriptor) -> String {
    entry.annotations.get(REF_NAME).cloned().unwrap_or_else(|| entry.digest.to_string())
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The largest `index.json` that is read: room for some hundred thousand images.
const MAX_INDEX: u64 = 64 << 20;
