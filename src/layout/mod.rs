//! An OCI image layout directory as [`Source`] and [`Destination`], and as the store behind
//! `transload serve`.
//!
//! ```text
//! DIR/
//! ├── oci-layout             {"imageLayoutVersion":"1.0.0"}; locked (flock) while index.json is changed
//! ├── index.json             the roots: tagged manifests, and untagged ones that no index names
//! ├── blobs/sha256/<hex>     blobs and manifests, each named by its hash; sha512 beside it
//! └── .transload-<pid>-<n>   a temporary file; renamed when it is complete, or else removed
//! ```
//!
//! (OCI image spec, image-layout.md.) A file under `blobs/` is complete: it was hashed and synced before it got its name.
//! `index.json` is replaced by a rename, so readers need no lock.
//!
//! # Names
//! The spec has one annotation for names, `org.opencontainers.image.ref.name`. In `oci:DIR:TAG` it is the tag, as in skopeo
//! and crane. A served directory contains several repositories; there it is `repository:tag`, which the spec's grammar of the
//! annotation allows. The annotation `io.containerd.image.name` of containerd, buildx and `docker save` is read too. The
//! directory contains each blob and manifest once. `membership` decides which repositories it belongs to, and a digest alone
//! gives no access.
//!
//! # Limits
//! Media types have at most 255 bytes, annotations 256 KiB, `index.json` 64 MiB and 500,000 entries. Writers keep the
//! limits of readers, so what is written can be read again. Only regular files are opened.
//!
//! # Served
//! `Store::serve` follows no link out of the directory (`root_dir`), serves only files that it has hashed
//! (`verified_files`), and accepts pushes up to a `Quota` (`quota`).
//!
//! # Referrers
//! A manifest with a subject is listed in `index.json` even without a name, as in oras, so that it can be found. Lists by the
//! tag schema (`sha256-<hex>`), as regclient writes them, are read.

mod directory;
mod entry;
mod file_stream;
mod graph;
mod index;
mod index_file;
mod index_json;
mod listing;
mod membership;
mod names;
mod partial;
mod quota;
mod root_dir;
mod store;
mod upload;
mod verified_files;

use std::path::Path;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use crate::body::Body;
use crate::content::{Destination, Feed, PushReceipt, Source, TagPages, UploadStart};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::memory;
use crate::reference::{RegistryName, Repository, RepositoryName, Tag, Target};
use crate::verify::Verified;

pub(crate) use file_stream::StoredBlob;
pub(crate) use names::Scope;
pub(crate) use quota::Quota;
pub(crate) use store::Store;
pub(crate) use upload::BlobUpload;

/// A handle to a layout directory, or to one repository in it.
#[derive(Clone, Debug)]
pub struct Layout {
    store: Store,
    scope: Scope,
    repository: Repository,
}

impl Layout {
    /// Opens the layout in `dir`.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Unsupported`] for another version.
    pub async fn open(dir: &Path) -> Result<Self> {
        Ok(Store::open(dir).await?.layout())
    }

    /// Opens the layout in `dir`, and creates it if there is none.
    ///
    /// # Errors
    /// [`Kind::Usage`] if `dir` contains other files, [`Kind::Local`] if it cannot be written.
    pub async fn create(dir: &Path) -> Result<Self> {
        Ok(Store::create(dir).await?.layout())
    }

    /// The layout that [`Layout::create`] would open or create in `dir`, for reading only: for a dry run.
    ///
    /// # Errors
    /// Those of [`Layout::create`], as far as possible without writing.
    pub(crate) async fn planned(dir: &Path) -> Result<Self> {
        Ok(Store::planned(dir).await?.layout())
    }

    pub(crate) fn new(store: Store, scope: Scope) -> Self {
        // Not the name of any registry, so that nothing is mounted from one. The same for all repositories of the directory,
        // so that blobs are mounted between them.
        let registry = RegistryName::of_directory(store.dir());
        let name = match &scope {
            Scope::Whole => store.default_repository().clone(),
            Scope::Repository(name) => name.clone(),
        };
        Self { store, scope, repository: Repository { registry, name } }
    }

    /// The selected image: the one with `name`, or the only one.
    ///
    /// # Errors
    /// [`Kind::NotFound`] if there is none, [`Kind::Usage`] with the list if there are several.
    pub(crate) async fn select_target(&self, name: Option<&Target>) -> Result<Target> {
        match name {
            Some(name) => Ok(name.clone()),
            None => self.store.only().await,
        }
    }

    /// The verified manifest; `None` if it does not exist.
    pub(crate) async fn lookup(&self, target: &Target) -> Result<Option<Manifest>> {
        let _turn = memory::disk_read_permit().await;
        self.store.manifest(&self.scope, target).await
    }

    /// Stores a manifest under all of these targets. On an error it is listed under none of them.
    ///
    /// # Errors
    /// Those of [`Destination::put_manifest`].
    pub(crate) async fn put_as(&self, manifest: &Manifest, targets: &[Target]) -> Result<()> {
        self.store.put_manifest(&self.scope, manifest, targets).await
    }

    /// Up to `most` tags after `after`, sorted by bytes.
    pub(crate) async fn tags_page(&self, after: Option<&str>, most: usize) -> Result<Vec<Tag>> {
        Ok(self.store.page(&self.scope, after, most).await?.0.tags)
    }

    /// The blob or manifest as a file of any size; `None` if it does not exist. In one of several repositories, only content
    /// that belongs to it and is verified: the first time this hashes the file.
    pub(crate) async fn open_blob(&self, digest: &Digest) -> Result<Option<StoredBlob>> {
        match &self.scope {
            Scope::Whole => self.store.open_blob(digest).await,
            scope @ Scope::Repository(_) => self.store.verified_blob(scope, digest).await,
        }
    }

    /// Starts an upload. Its digest, with the algorithm of `like`, is verified at the end.
    ///
    /// # Errors
    /// [`Kind::Local`] if the directory cannot be written.
    pub(crate) async fn create_upload(&self, like: Digest) -> Result<BlobUpload> {
        self.store.create_upload_for(self.owner(), Some(like.hasher())).await
    }

    /// Mounts the blob from the repository `from` of the same directory. Returns whether it exists there.
    ///
    /// # Errors
    /// [`Kind::Local`] if the directory cannot be read.
    pub(crate) async fn mount(&self, digest: &Digest, from: &RepositoryName) -> Result<bool> {
        if self.store.repository(from).open_blob(digest).await?.is_none() {
            return Ok(false);
        }
        if let Some(owner) = self.owner() {
            self.store.note_upload(&owner, *digest);
        }
        Ok(true)
    }

    fn owner(&self) -> Option<RepositoryName> {
        match &self.scope {
            Scope::Whole => None,
            Scope::Repository(name) => Some(name.clone()),
        }
    }
}

impl Source for Layout {
    async fn resolve(&self, target: &Target) -> Result<Option<Descriptor>> {
        Ok(self.lookup(target).await?.map(|manifest| manifest.descriptor().clone()))
    }

    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        match self.lookup(target).await? {
            Some(manifest) => Ok(manifest),
            None => Err(self.not_found(target).await),
        }
    }

    async fn blob(&self, blob: &Descriptor, from: u64) -> Result<Body> {
        let stored = self.open_blob(&blob.digest).await?.ok_or_else(|| {
            Error::new(Kind::NotFound, format!("blob {} is not in {}", blob.digest, self.store.dir().display()))
        })?;
        if stored.size() != blob.size {
            let why = format!("its file has {} bytes, but the manifest states {}", stored.size(), blob.size);
            return Err(Error::new(Kind::Mismatch, format!("blob {} is corrupt: {why}", blob.digest)));
        }
        Ok(stored.read(from..blob.size))
    }

    async fn referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        let _turn = memory::disk_read_permit().await;
        self.store.referrers(&self.scope, subject).await
    }

    fn tags(&self) -> TagPages {
        let pages = stream::try_unfold((self.clone(), Some(None::<String>)), async |(layout, after)| {
            let Some(after) = after else { return Ok(None) };
            let (mut page, after) = layout.store.page(&layout.scope, after.as_deref(), TAGS_PER_PAGE).await?;
            page.is_last = after.is_none();
            Ok(Some((page, (layout, after.map(Some)))))
        });
        pages.boxed()
    }
}

impl Destination for Layout {
    type Session = BlobUpload;

    fn repository(&self) -> &Repository {
        &self.repository
    }

    /// Always false: checking for a blob costs no request.
    async fn is_new(&self) -> bool {
        false
    }

    /// The descriptor, if the image is complete. Unlike a registry, a directory may lack content of its manifests, for example
    /// after a partial copy. A second copy then repairs it.
    async fn resolve_existing(&self, target: &Target) -> Result<Option<Descriptor>> {
        self.store.find_whole(&self.scope, target).await
    }

    async fn existing_manifest(&self, digest: &Digest) -> Result<Manifest> {
        self.manifest(&Target::Digest(*digest)).await
    }

    async fn has_blob(&self, blob: &Descriptor) -> Result<bool> {
        let stored = self.open_blob(&blob.digest).await?;
        Ok(stored.is_some_and(|stored| stored.size() == blob.size))
    }

    async fn start_upload(&self, blob: &Descriptor, from: Option<&Repository>) -> Result<UploadStart<BlobUpload>> {
        if let Some(from) = from.filter(|from| from.registry == self.repository.registry) {
            let is_mounted = match &self.scope {
                Scope::Whole => self.has_blob(blob).await?,
                Scope::Repository(_) => self.mount(&blob.digest, &from.name).await?,
            };
            if is_mounted {
                return Ok(UploadStart::Mounted);
            }
        }
        Ok(UploadStart::Session(self.store.continue_upload(self.owner(), blob).await?))
    }

    /// Writes to a temporary file, which is renamed when it is complete. After an error, or if the future is dropped, the file
    /// is removed.
    async fn upload<S: Source>(&self, session: BlobUpload, feed: &Feed<S>, mut body: Verified) -> Result<()> {
        let kept = session.size().await?;
        if kept > 0 {
            drop(body);
            feed.resume_at(kept, session.hash_kept(feed.blob().digest).await?);
            body = feed.open(kept).await?;
            tracing::info!("blob {}: going on from byte {kept}", feed.blob().digest.short());
        }
        if let Err(error) = session.append(&mut body).await {
            if error.kind() == Kind::Mismatch {
                session.discard().await?;
            }
            return Err(error);
        }
        // `Verified` yields its last frame only after digest and size are verified.
        session.commit(feed.blob().digest).await
    }

    async fn put_manifest(&self, manifest: &Manifest, at: &Target) -> Result<PushReceipt> {
        self.put_as(manifest, std::slice::from_ref(at)).await?;
        Ok(PushReceipt { lists_referrer: manifest.contents().subject.is_some() })
    }

    async fn listed_referrers(&self, subject: &Digest) -> Result<Vec<Descriptor>> {
        self.store.referrers(&self.scope, subject).await
    }
}

impl Layout {
    async fn not_found(&self, target: &Target) -> Error {
        let dir = self.store.dir().display();
        let error = Error::new(Kind::NotFound, format!("{target} is not in {dir}"));
        match self.tags_page(None, MAX_NAMES_IN_ERROR + 1).await {
            Ok(tags) if target.tag().is_some() && !tags.is_empty() => {
                error.hint(format!("it has {}", join_names(&tags)))
            }
            _ => error,
        }
    }
}

/// `a, b, c and more`.
fn join_names<T: std::fmt::Display>(names: &[T]) -> String {
    let more = if names.len() > MAX_NAMES_IN_ERROR { " and more" } else { "" };
    let shown: Vec<String> = names.iter().take(MAX_NAMES_IN_ERROR).map(T::to_string).collect();
    format!("{}{more}", shown.join(", "))
}

/// Collects frames of `body`: at least [`IO_CHUNK`] bytes, or up to its end. Empty at the end.
///
/// The frames before an error are returned first, so that a partial upload keeps them.
async fn collect_frames<B>(body: &mut B, failed: &mut Option<Error>) -> Vec<bytes::Bytes>
where
    B: futures_util::TryStream<Ok = bytes::Bytes, Error = Error> + Unpin + Send,
{
    let mut frames = Vec::new();
    let mut size = 0;
    while size < IO_CHUNK && failed.is_none() {
        match body.try_next().await {
            Ok(Some(frame)) => {
                size += frame.len();
                frames.push(frame);
            }
            Ok(None) => break,
            Err(error) => *failed = Some(error),
        }
    }
    frames
}

/// Bytes that are read or written in one step on the blocking pool.
///
/// Measured on a relay: steps of 1 MiB cost 0.28-0.42 CPU s/GiB, and the small steps of tokio's file a multiple of that. It is
/// half of that, because each connection of a server holds one chunk.
const IO_CHUNK: usize = 512 << 10;
/// Tags of one page.
const TAGS_PER_PAGE: usize = 1000;
/// How many names an error lists.
const MAX_NAMES_IN_ERROR: usize = 10;

#[cfg(test)]
mod tests;
