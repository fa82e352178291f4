//! Manifests and tags: all on disk, and the recently used ones in memory.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

use bytes::Bytes;
use quick_cache::Weighter;
use quick_cache::sync::Cache as Memory;
use serde::{Deserialize, Serialize};

use super::cache_dir::CacheDir;
use super::content_store::{ContentStore, Removal};
use super::repository_records::RepositoryRecords;
use super::tag_files::TagFileCount;
use crate::descriptor::{Descriptor, Digest, MAX_MEDIA_TYPE, MediaType};
use crate::error::{Error, Result};
use crate::file_access::OpenFile;
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::memory;
use crate::pool::run_blocking;
use crate::regular_file::{self, Links};

/// Manifests by digest, and tags. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct ManifestStore(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    store: ContentStore,
    records: RepositoryRecords,
    tags: PathBuf,
    tag_files: TagFileCount,
    home: CacheDir,
    manifests: Memory<Digest, Manifest, ByteWeigher>,
    known: Memory<TagName, CachedTag>,
    /// The log has a line about a failed write.
    warned: AtomicBool,
}

/// A tag with its repository and upstream, as one text, because it is looked up for each request.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct TagName(Arc<str>);

impl TagName {
    /// The name of a tag. None of the three parts can contain a space.
    pub(crate) fn new(upstream: &str, repository: &str, tag: &str) -> Self {
        Self(format!("{upstream} {repository} {tag}").into())
    }

    /// The name in a tag file.
    pub(super) fn of(tag: &CachedTag) -> Self {
        Self(tag.name.as_str().into())
    }

    /// The path of the tag file, relative to the directory of tags.
    pub(super) fn file(&self) -> PathBuf {
        let hex = Digest::of(self.0.as_bytes()).hex();
        [&hex[..2], &hex].iter().collect()
    }
}

/// A tag: its descriptor, and the time of the last check.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CachedTag {
    /// `upstream repository tag`. The file's name is only a hash of it.
    name: String,
    media_type: MediaType,
    digest: Digest,
    size: u64,
    /// When the upstream confirmed it, in seconds since 1970.
    pub(crate) checked: u64,
    /// The tiers of the upstream, as one text. Tag files of older versions have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    tiers: Option<Box<str>>,
}

impl CachedTag {
    /// The tag `name` with its descriptor.
    pub(crate) fn new(name: &TagName, descriptor: &Descriptor, checked: u64) -> Self {
        let Descriptor { media_type, digest, size, .. } = descriptor.clone();
        Self { name: name.0.to_string(), media_type, digest, size, checked, tiers: None }
    }

    /// The tag, as read from these [`tiers`](Self::tiers).
    pub(crate) fn with_tiers(self, tiers: &str) -> Self {
        Self { tiers: Some(tiers.into()), ..self }
    }

    /// The tiers of the upstream when the tag was read, as one text. With other tiers it is another upstream, and the tag says
    /// nothing about it. `None` for a tag that an older version wrote.
    pub(crate) fn tiers(&self) -> Option<&str> {
        self.tiers.as_deref()
    }

    /// `upstream repository tag`.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(in crate::proxy) fn upstream_and_repository(&self) -> Option<(&str, &str)> {
        let mut parts = self.name.split(' ');
        Some((parts.next()?, parts.next()?))
    }

    /// The descriptor of its manifest.
    pub(crate) fn descriptor(&self) -> Descriptor {
        Descriptor::new(self.media_type.clone(), self.digest, self.size)
    }

    /// The digest of its manifest.
    pub(crate) fn digest(&self) -> Digest {
        self.digest
    }
}

impl ManifestStore {
    /// The manifests of `store` and `records`, and at most `max_tags` tags in `home`. Blocks.
    pub(super) fn new(store: ContentStore, records: RepositoryRecords, home: CacheDir, max_tags: usize) -> Self {
        let tags = home.path().join("tags");
        let manifests = Memory::with_weighter(4096, MANIFEST_MEMORY, ByteWeigher);
        Self(Arc::new(Inner {
            store,
            records,
            tag_files: TagFileCount::new(tags.clone(), max_tags),
            tags,
            home,
            manifests,
            known: Memory::new(MAX_TAGS_IN_MEMORY),
            warned: AtomicBool::new(false),
        }))
    }

    /// The manifest, if it is cached.
    pub(crate) async fn manifest(&self, digest: &Digest) -> Option<Manifest> {
        if let Some(found) = self.0.manifests.get(digest) {
            return Some(found);
        }
        let pin = self.0.store.pin(digest)?;
        // Many clients may request many large manifests.
        let large = self.0.store.size_of(digest).is_some_and(|size| size > memory::SMALL_ANSWER as u64);
        let _permit = if large { memory::disk_read_permit().await } else { None };
        let (manifest_store, digest) = (self.clone(), *digest);
        let read = run_blocking(move || {
            let Some(stored) = manifest_store.0.store.open_pinned(&digest, pin)? else { return Ok(None) };
            manifest_store.read(&digest, &stored.file)
        });
        match read.await {
            Ok(found) => {
                if let Some(manifest) = &found {
                    self.0.manifests.insert(digest, manifest.clone());
                }
                found
            }
            Err(error) => {
                tracing::error!("{error}: it is fetched again");
                None
            }
        }
    }

    /// Whether the manifest is cached.
    pub(in crate::proxy) fn has(&self, digest: &Digest) -> bool {
        self.0.manifests.peek(digest).is_some() || self.0.store.size_of(digest).is_some()
    }

    /// The manifest, if it is cached. Does not displace others in memory. Blocks.
    pub(in crate::proxy) fn look_through(&self, digest: &Digest) -> Option<Manifest> {
        if let Some(found) = self.0.manifests.peek(digest) {
            return Some(found);
        }
        let pin = self.0.store.pin(digest)?;
        let stored = self.0.store.open_pinned(digest, pin).ok()??;
        self.read(digest, &stored.file).inspect_err(|error| tracing::error!("{error}: it is fetched again")).ok()?
    }

    /// The manifests that are recorded for this repository, the latest last. Blocks.
    pub(in crate::proxy) fn recorded(&self, repository: &str) -> Vec<Digest> {
        self.0.records.manifests(repository)
    }

    /// Records that these manifests belong to this repository. Blocks.
    pub(in crate::proxy) fn record(&self, repository: &str, manifests: &[Digest]) {
        self.log_error(self.0.records.add(repository, manifests, |digest| self.has(digest)));
    }

    /// Stores a manifest. On return it is on disk, unless the disk cannot be written.
    pub(crate) async fn put(&self, manifest: &Manifest) {
        self.0.manifests.insert(manifest.digest(), manifest.clone());
        if self.0.store.size_of(&manifest.digest()).is_some() {
            return;
        }
        let (manifest_store, manifest) = (self.clone(), manifest.clone());
        self.log_error(run_blocking(move || manifest_store.write(&manifest)).await);
    }

    /// The cached tag.
    pub(crate) async fn tag(&self, name: &TagName) -> Option<CachedTag> {
        if let Some(found) = self.0.known.get(name) {
            return Some(found);
        }
        let path = self.0.tags.join(name.file());
        let read = run_blocking(move || match regular_file::read(&path, Links::Refuse, MAX_TAG_FILE) {
            Ok(bytes) => Ok(serde_json::from_slice::<CachedTag>(&bytes).ok()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(Error::io(format!("read {}", path.display()), &error)),
        });
        let found = read.await.unwrap_or_else(|error| {
            tracing::warn!("{error}");
            None
        });
        let found = found.filter(|tag| *tag.name == *name.0)?;
        self.0.known.insert(name.clone(), found.clone());
        Some(found)
    }

    /// Stores a tag.
    pub(crate) async fn put_tag(&self, name: &TagName, tag: CachedTag) {
        self.0.known.insert(name.clone(), tag.clone());
        let (manifest_store, name) = (self.clone(), name.clone());
        self.log_error(run_blocking(move || manifest_store.write_tag(&name, &tag)).await);
    }

    /// Removes a tag that no longer exists at the upstream.
    pub(crate) async fn forget_tag(&self, name: &TagName) {
        self.0.known.remove(name);
        let path = self.0.tags.join(name.file());
        let removed = run_blocking(move || super::cache_dir::unlink(&path)).await;
        self.log_error(removed.map(drop));
    }

    /// Removes a tag. Blocks.
    pub(super) fn drop_tag(&self, name: &TagName) -> Result<Removal> {
        let gone = super::cache_dir::unlink(&self.0.tags.join(name.file()))?;
        let known = self.0.known.remove(name).is_some();
        Ok(if gone || known { Removal::Gone } else { Removal::Absent })
    }

    /// Removes a manifest, unless it is being read. Blocks.
    pub(super) fn discard_idle(&self, digest: &Digest) -> Removal {
        let removal = self.0.store.discard_idle(digest);
        if removal != Removal::Busy && self.0.manifests.remove(digest).is_some() {
            return Removal::Gone;
        }
        removal
    }

    /// The time of the last request for a manifest, if it is known. A manifest in memory counts as just used.
    pub(super) fn last_used(&self, digest: &Digest) -> Option<SystemTime> {
        if self.0.manifests.peek(digest).is_some() {
            return Some(crate::clock::now());
        }
        self.0.store.last_used(digest)
    }

    /// The store of the manifests.
    pub(crate) fn content_store(&self) -> &ContentStore {
        &self.0.store
    }

    /// A manifest's bytes are checked whenever they are read: they are small. A file that cannot be read is dropped.
    fn read(&self, digest: &Digest, file: &OpenFile) -> Result<Option<Manifest>> {
        let bytes = read_whole(file).map_err(|error| {
            self.0.store.discard(digest);
            Error::io(format!("read manifest {digest}"), &error)
        })?;
        let media_type = regular_file::read_text(&self.type_file(digest), Links::Refuse, MAX_MEDIA_TYPE as u64).ok();
        match Manifest::read(Bytes::from(bytes), media_type.as_deref(), Some(*digest)) {
            Ok(manifest) => Ok(Some(manifest)),
            Err(error) => {
                self.0.store.discard(digest);
                Err(error.doing("read a manifest of the cache"))
            }
        }
    }

    fn write(&self, manifest: &Manifest) -> Result<()> {
        let (bytes, digest) = (manifest.bytes(), manifest.digest());
        let own = Manifest::read(bytes.clone(), None, Some(digest)).ok();
        let media_type = &manifest.descriptor().media_type;
        if own.is_none_or(|own| own.descriptor().media_type != *media_type) {
            // Before the manifest, so that a manifest with a name is complete.
            let path = self.type_file(&digest);
            self.replace(&path, media_type.0.as_bytes())?;
        }
        let temp = self.0.store.begin(bytes.len() as u64)?;
        super::write_at(&temp.file(), bytes, 0)?;
        self.0.store.commit(digest, temp).map(drop)
    }

    /// Not synced: after a power loss the upstream is asked again.
    fn write_tag(&self, name: &TagName, tag: &CachedTag) -> Result<()> {
        let json = serde_json::to_vec(tag).unwrap_or_default();
        let path = self.0.tags.join(name.file());
        regular_file::check_size(json.len() as u64, MAX_TAG_FILE)
            .map_err(|error| Error::io(format!("write {}", path.display()), &error))?;
        let is_new = !path.exists();
        self.replace(&path, &json)?;
        if is_new { self.0.tag_files.added() } else { Ok(()) }
    }

    fn replace(&self, path: &std::path::Path, bytes: &[u8]) -> Result<()> {
        let mut temp = self.0.store.temporary()?;
        super::write_at(&temp.file(), bytes, 0)?;
        if let Some(parent) = path.parent() {
            self.0
                .home
                .files()
                .create_dir_all(parent)
                .map_err(|error| Error::io(format!("create {}", parent.display()), &error))?;
        }
        temp.rename(path)
    }

    fn type_file(&self, digest: &Digest) -> PathBuf {
        self.0.store.dir().join("types").join(digest.hex())
    }

    /// Logs the first failed write. Manifests and tags that cannot be written are served from memory.
    fn log_error(&self, result: Result<()>) {
        if let Err(error) = result
            && !self.0.warned.swap(true, Ordering::Relaxed)
        {
            tracing::error!("{error}: manifests and tags are kept in memory only");
        }
    }
}

/// Reads a manifest file, up to the largest size of a manifest.
fn read_whole(file: &OpenFile) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    loop {
        bytes.reserve(READ_SIZE);
        let offset = bytes.len() as u64;
        match file.read_at(&mut bytes, offset) {
            Ok(0) => return Ok(bytes),
            Ok(_) if bytes.len() as u64 > MAX_MANIFEST => return Err(std::io::ErrorKind::FileTooLarge.into()),
            Ok(_) => {}
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Weighs a manifest in memory by its bytes and its parsed content.
#[derive(Clone, Debug)]
struct ByteWeigher;

impl Weighter<Digest, Manifest> for ByteWeigher {
    fn weight(&self, _: &Digest, manifest: &Manifest) -> u64 {
        manifest.weight() + 512
    }
}

/// The largest tag file that is read or written, in bytes.
pub(super) const MAX_TAG_FILE: u64 = 16 << 10;
/// The limit of manifests in memory, in bytes.
const MANIFEST_MEMORY: u64 = 16 << 20;
const MAX_TAGS_IN_MEMORY: usize = 10_000;
/// Bytes of one read: more than the size of most manifests.
const READ_SIZE: usize = 16 << 10;
