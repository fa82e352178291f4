//! Commands on a cache directory, outside the proxy that uses it. All functions block.
//!
//! [`list`] and [`verify`] are safe while a proxy runs, so they take no lock (a proxy could not start meanwhile). A file gets
//! its name when it is complete, and is never written after that. The proxy fetches a file that `verify` has removed again,
//! and current readers of it continue. [`remove()`] and [`gc()`] take the lock: a running proxy has tags and manifests in
//! memory, and would still serve what was removed. For a running proxy there is
//! [`Proxy::admin`](crate::proxy::Proxy::admin).

use std::fs::{self, File};
use std::io::{ErrorKind, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::cache_dir::unlink;
use super::content_store::Removal;
use super::gc::{self, CacheUser, ContentFile, GcItem, GcOptions, GcResult};
use super::manifest_store::{CachedTag, MAX_TAG_FILE, TagName};
use super::scan::{entries, parse};
use crate::descriptor::Digest;
use crate::error::{Error, Kind, Result};
use crate::reference::{Reference, Target, check_name, check_tag};
use crate::regular_file::{self, Links};

/// The content of a cache directory.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The tags, by name.
    pub(crate) tags: Vec<ListedTag>,
    /// Number and bytes of the manifests.
    pub(crate) manifests: (usize, u64),
    /// Number and bytes of the blobs.
    pub(crate) blobs: (usize, u64),
}

/// A tag or content, as an operator names it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Item {
    /// A tag.
    Tag {
        /// The upstream's name.
        upstream: String,
        repository: String,
        tag: String,
    },
    /// A manifest or a blob.
    Content(Digest),
}

impl FromStr for Item {
    type Err = Error;

    /// `docker.io/library/nginx:1.27`, `nginx@sha256:…` or `sha256:…`
    fn from_str(text: &str) -> Result<Self> {
        if let Ok(digest) = text.parse() {
            return Ok(Self::Content(digest));
        }
        let Reference { repository, target, .. } = text.parse()?;
        Ok(match target {
            Target::Tag(tag) => {
                Self::Tag { upstream: repository.registry.into(), repository: repository.name.into(), tag: tag.into() }
            }
            Target::Name(_) => return Err(Error::new(Kind::Usage, format!("{text:?} is neither a tag nor a digest"))),
            Target::Digest(digest) => Self::Content(digest),
        })
    }
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag { upstream, repository, tag } => write!(f, "{upstream}/{repository}:{tag}"),
            Self::Content(digest) => digest.fmt(f),
        }
    }
}

/// A tag in a listing.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct ListedTag {
    /// The upstream's name.
    pub(crate) upstream: String,
    pub(crate) repository: String,
    pub(crate) tag: String,
    /// The digest of its manifest.
    pub(crate) digest: Digest,
    /// When the upstream confirmed it, in seconds since 1970.
    pub(crate) checked: u64,
}

/// The result of [`verify`].
#[derive(Debug)]
pub(crate) struct VerifyResult {
    /// Number and bytes of the files that were read.
    pub(crate) read: (usize, u64),
    /// Those that did not match their names. They were removed.
    pub(crate) dropped: Vec<Digest>,
}

/// A file of content.
struct CheckedFile {
    path: PathBuf,
    digest: Digest,
    size: u64,
}

/// Lists the content of the directory. Changes nothing.
///
/// # Errors
/// [`Kind::Usage`] if `dir` is not a cache, [`Kind::Local`] if it cannot be read.
pub(crate) fn list(dir: &Path) -> Result<Listing> {
    check(dir)?;
    let count = |below: &str| -> Result<(usize, u64)> {
        let held = content_files(&dir.join(below))?;
        Ok((held.len(), held.iter().map(|file| file.size).sum()))
    };
    let mut tags = Vec::new();
    for part in 0..256 {
        tags.append(&mut self::tags(dir, part)?);
    }
    tags.sort();
    Ok(Listing { tags, manifests: count("manifests")?, blobs: count("blobs")? })
}

/// The tags of one of 256 parts.
pub(in crate::proxy) fn tags(dir: &Path, part: u16) -> Result<Vec<ListedTag>> {
    Ok(tag_files(dir, part)?.iter().filter_map(listed).collect())
}

/// The tag files of one of 256 parts.
pub(in crate::proxy) fn tag_files(dir: &Path, part: u16) -> Result<Vec<CachedTag>> {
    let files = entries(&dir.join("tags").join(format!("{part:02x}")))?;
    // A file that was removed meanwhile, or cannot be parsed, is no tag to the proxy either.
    let read = |path: PathBuf| {
        let bytes = regular_file::read(&path, Links::Refuse, MAX_TAG_FILE).ok()?;
        serde_json::from_slice::<CachedTag>(&bytes).ok()
    };
    Ok(files.iter().filter_map(|file| read(file.path())).collect())
}

fn listed(tag: &CachedTag) -> Option<ListedTag> {
    let mut parts = tag.name().split(' ').map(str::to_owned);
    let (upstream, repository, name) = (parts.next()?, parts.next()?, parts.next()?);
    // A file that was edited by hand must not put other text into listings.
    check_tag(&name).and(check_name(&name, &repository)).ok()?;
    Some(ListedTag { upstream, repository, tag: name, digest: tag.digest(), checked: tag.checked })
}

/// Removes a tag, or content. The manifest and blobs of a tag stay, since other tags may share them.
///
/// # Errors
/// [`Kind::Usage`] if `dir` is not a cache, or a proxy uses it; [`Kind::Local`] if it cannot be written.
pub(crate) fn remove(dir: &Path, item: &Item) -> Result<Removal> {
    let _lock = lock_directory(dir)?;
    let mut found = false;
    match item {
        Item::Tag { upstream, repository, tag } => {
            found = unlink(&dir.join("tags").join(TagName::new(upstream, repository, tag).file()))?;
        }
        Item::Content(digest) => {
            for below in ["manifests", "blobs"] {
                for file in content_files(&dir.join(below))?.iter().filter(|file| file.digest == *digest) {
                    found |= unlink(&file.path)?;
                }
            }
        }
    }
    Ok(if found { Removal::Gone } else { Removal::Absent })
}

/// Removes content that is too old or exceeds the limits, and leftovers.
///
/// # Errors
/// Those of [`remove()`].
pub(crate) fn gc(dir: &Path, wanted: &GcOptions) -> Result<GcResult> {
    let _lock = lock_directory(dir)?;
    gc::collect(dir, wanted, &NoUser)
}

/// No proxy uses the directory: this process has its lock.
struct NoUser;

impl CacheUser for NoUser {
    fn writes(&self, _: &str) -> bool {
        false
    }

    fn used(&self, _: &ContentFile) -> Option<SystemTime> {
        None
    }

    fn remove(&self, what: &GcItem<'_>) -> Result<Removal> {
        let (GcItem::File(path) | GcItem::Tag(path, _) | GcItem::Content(path, _)) = what;
        Ok(if unlink(path)? { Removal::Gone } else { Removal::Absent })
    }
}

/// Reads all content, and removes files whose digest or size does not match their name, or that cannot be read. `dropped` is
/// called for each at once, because the whole may take hours.
///
/// # Errors
/// [`Kind::Usage`] if `dir` is not a cache; [`Kind::Local`] if a corrupt file cannot be removed.
pub(crate) fn verify(dir: &Path, mut dropped: impl FnMut(&Path)) -> Result<VerifyResult> {
    check(dir)?;
    let mut verified = VerifyResult { read: (0, 0), dropped: Vec::new() };
    for below in ["manifests", "blobs"] {
        for file in content_files(&dir.join(below))? {
            let Some((good, inode)) = verify_file(&file)? else { continue };
            verified.read = (verified.read.0 + 1, verified.read.1 + file.size);
            // A running proxy may have removed it too, and fetched it again: the new file stays.
            let same = || fs::metadata(&file.path).is_ok_and(|metadata| metadata.ino() == inode);
            if !good && same() && unlink(&file.path)? {
                dropped(&file.path);
                verified.dropped.push(file.digest);
            }
        }
    }
    Ok(verified)
}

/// Whether the file matches its name, and its inode. `None` if it was removed meanwhile.
fn verify_file(held: &CheckedFile) -> Result<Option<(bool, u64)>> {
    let failed = |error: &std::io::Error| Error::io(format!("read {}", held.path.display()), error);
    let mut file = match crate::proxy::scrub::open_without_atime(&held.path) {
        Ok(file) => file,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        // A missing permission does not make the file corrupt.
        Err(error) => return Err(failed(&error)),
    };
    let inode = file.metadata().map_err(|error| failed(&error))?.ino();
    let (mut hasher, mut size, mut buffer) = (held.digest.hasher(), 0, vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => {
                hasher.update(&buffer[..count]);
                size += count as u64;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A disk sector that cannot be read.
            Err(error) => {
                tracing::error!("{}", failed(&error));
                return Ok(Some((false, inode)));
            }
        }
    }
    Ok(Some((size == held.size && hasher.finish() == held.digest, inode)))
}

/// The files of content below `dir`. Files with other names are ignored.
fn content_files(dir: &Path) -> Result<Vec<CheckedFile>> {
    let mut found = Vec::new();
    for algorithm in ["sha256", "sha512"] {
        for shard in entries(&dir.join(algorithm))? {
            for file in entries(&shard.path())? {
                let name = file.file_name();
                if let Some((digest, size)) = name.to_str().and_then(|name| parse(algorithm, name)) {
                    found.push(CheckedFile { path: file.path(), digest, size });
                }
            }
        }
    }
    Ok(found)
}

/// Checks that `dir` is a cache: a mistyped path must not look like an empty cache.
fn check(dir: &Path) -> Result<()> {
    if dir.join("blobs").is_dir() && dir.join("tags").is_dir() {
        return Ok(());
    }
    Err(Error::new(Kind::Usage, format!("{} is not the directory of a cache", dir.display()))
        .hint("use the directory of `transload proxy --cache`"))
}

fn lock_directory(dir: &Path) -> Result<File> {
    check(dir)?;
    super::cache_dir::take_lock(dir, &dir.join("lock")).map_err(|error| match error.kind() {
        Kind::Usage => Error::new(Kind::Usage, format!("a proxy uses the cache {}", dir.display())).hint(
            "run the command with --admin and the address of the proxy's --listen-admin, or stop the proxy first",
        ),
        _ => error,
    })
}

const BUFFER: usize = 1 << 20;
