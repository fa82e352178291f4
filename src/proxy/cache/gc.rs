//! What of a cache's directory is too old, too much, or left over. All of it blocks.

use std::collections::{BTreeMap, HashSet};

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::content_store::Removal;
use super::manifest_store::{CachedTag, MAX_TAG_FILE, TagName};
use super::scan::{entries, parse};
use crate::descriptor::Digest;
use crate::error::Result;
use crate::regular_file::{self, Links};

/// What is to go.
#[derive(Clone, Copy, Debug, Default)]
pub struct GcOptions {
    /// What is more than so many bytes of blobs, the least lately used first; and what is more than a 64th
    /// of that of manifests, as a proxy has it.
    pub size: Option<u64>,
    /// And so many blobs that so many bytes are free on the disk.
    pub keep_free: Option<u64>,
    /// Tags that were not checked, and content that was not used, for so long.
    pub older_than: Option<Duration>,
    /// Only say what would go.
    pub dry_run: bool,
}

/// Why something went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RemovalReason {
    /// A fetch or a write that was never completed left it.
    Left,
    /// It's not as large as its name says.
    Cut,
    /// It was not used for long.
    Unused,
    /// There was more than there may be.
    Room,
}

/// Number and bytes of files.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FileTotals {
    /// How many.
    pub count: usize,
    /// Their bytes.
    pub bytes: u64,
}

/// What went.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct GcResult {
    /// Nothing did: it would.
    pub dry_run: bool,
    /// By the reason.
    pub removed: BTreeMap<RemovalReason, FileTotals>,
    /// What should have gone, and stayed as it's being read.
    pub busy: usize,
}

impl GcResult {
    /// All of it.
    pub fn sum(&self) -> FileTotals {
        self.removed.values().fold(FileTotals::default(), |all, sum| FileTotals {
            count: all.count + sum.count,
            bytes: all.bytes + sum.bytes,
        })
    }
}

/// Whoever uses the directory: what only he knows, and how something is removed under him.
pub(super) trait CacheUser {
    /// Whether a temporary file of this name is being written.
    fn writes(&self, name: &str) -> bool;

    /// When this content was used last, besides what the file system says.
    fn used(&self, content: &ContentFile) -> Option<SystemTime>;

    /// Removes something.
    fn remove(&self, what: &GcItem) -> Result<Removal>;
}

/// One file of content.
#[derive(Debug)]
pub(super) struct ContentFile {
    pub(super) is_manifest: bool,
    pub(super) digest: Digest,
    pub(super) size: u64,
    /// What it really has.
    length: u64,
    used: SystemTime,
}

/// Something to be removed.
#[derive(Debug)]
pub(super) enum GcItem<'a> {
    File(PathBuf),
    Tag(PathBuf, TagName),
    Content(PathBuf, &'a ContentFile),
}

/// Removes what is wanted to go from `dir`.
pub(super) fn collect(dir: &Path, wanted: &GcOptions, user: &dyn CacheUser) -> Result<GcResult> {
    let freed = GcResult { dry_run: wanted.dry_run, ..GcResult::default() };
    let mut gc = Collector { dir, wanted, user, now: crate::clock::now(), freed };
    for left in entries(&dir.join("fills"))? {
        if left.file_name().to_str().is_some_and(|name| !user.writes(name)) {
            let size = left.metadata().map_or(0, |metadata| metadata.len());
            gc.drop(RemovalReason::Left, &GcItem::File(left.path()), size)?;
        }
    }
    let named = gc.tags()?;
    let manifests = gc.collect_store(true, &named)?;
    gc.types(&manifests)?;
    gc.repositories(&manifests)?;
    let blobs = gc.collect_store(false, &HashSet::new())?;
    gc.make_free(blobs)?;
    Ok(gc.freed)
}

struct Collector<'a> {
    dir: &'a Path,
    wanted: &'a GcOptions,
    user: &'a dyn CacheUser,
    now: SystemTime,
    freed: GcResult,
}

impl Collector<'_> {
    fn drop(&mut self, why: RemovalReason, what: &GcItem<'_>, bytes: u64) -> Result<Removal> {
        let removal = if self.wanted.dry_run { Removal::Gone } else { self.user.remove(what)? };
        match removal {
            Removal::Gone => {
                let sum = self.freed.removed.entry(why).or_default();
                sum.count += 1;
                sum.bytes += bytes;
            }
            Removal::Busy => self.freed.busy += 1,
            Removal::Absent => {}
        }
        Ok(removal)
    }

    fn is_old(&self, used: SystemTime) -> bool {
        let age = self.now.duration_since(used).unwrap_or_default();
        self.wanted.older_than.is_some_and(|most| age > most)
    }

    /// Drops old tags; returns what the others name. A tag's file is written whenever it's checked.
    fn tags(&mut self) -> Result<HashSet<Digest>> {
        let mut named = HashSet::new();
        for shard in entries(&self.dir.join("tags"))? {
            for file in entries(&shard.path())? {
                let (Ok(bytes), Ok(metadata)) =
                    (regular_file::read(&file.path(), Links::Refuse, MAX_TAG_FILE), file.metadata())
                else {
                    continue;
                };
                let Ok(tag) = serde_json::from_slice::<CachedTag>(&bytes) else { continue };
                if self.is_old(metadata.modified().unwrap_or(self.now)) {
                    self.drop(RemovalReason::Unused, &GcItem::Tag(file.path(), TagName::of(&tag)), metadata.len())?;
                } else {
                    named.insert(tag.digest());
                }
            }
        }
        Ok(named)
    }

    /// Drops what is cut, old, or too much; returns what remains, the least lately used first. What is `named` isn't old.
    fn collect_store(&mut self, is_manifest: bool, named: &HashSet<Digest>) -> Result<Vec<ContentFile>> {
        let mut kept = Vec::new();
        for content in self.contents(is_manifest)? {
            let why = if content.length != content.size {
                Some(RemovalReason::Cut)
            } else if self.is_old(content.used) && !named.contains(&content.digest) {
                Some(RemovalReason::Unused)
            } else {
                None
            };
            match why {
                Some(why) if self.content(why, &content)? != Removal::Busy => {}
                _ => kept.push(content),
            }
        }
        kept.sort_by_key(|content| content.used);
        if let Some(size) = self.wanted.size {
            let bound = if is_manifest { super::manifest_capacity(size) } else { size };
            let all: u64 = kept.iter().map(|content| content.size).sum();
            self.oldest(&mut kept, all.saturating_sub(bound))?;
        }
        Ok(kept)
    }

    fn make_free(&mut self, mut blobs: Vec<ContentFile>) -> Result<()> {
        let Some(keep) = self.wanted.keep_free else { return Ok(()) };
        let planned = if self.wanted.dry_run { self.freed.sum().bytes } else { 0 };
        let free = crate::file_access::free_bytes(self.dir).unwrap_or(u64::MAX).saturating_add(planned);
        self.oldest(&mut blobs, keep.saturating_sub(free))
    }

    /// Drops the least lately used, until so many bytes went.
    fn oldest(&mut self, kept: &mut Vec<ContentFile>, mut excess: u64) -> Result<()> {
        let mut rest = Vec::new();
        for content in kept.drain(..) {
            if excess > 0 && self.content(RemovalReason::Room, &content)? != Removal::Busy {
                excess = excess.saturating_sub(content.size);
            } else {
                rest.push(content);
            }
        }
        *kept = rest;
        Ok(())
    }

    fn content(&mut self, why: RemovalReason, content: &ContentFile) -> Result<Removal> {
        let (below, hex) = (if content.is_manifest { "manifests" } else { "blobs" }, content.digest.hex());
        let name = format!("{hex}.{}", content.size);
        let path = self.dir.join(below).join(content.digest.algorithm()).join(&hex[..2]).join(name);
        self.drop(why, &GcItem::Content(path, content), content.length)
    }

    fn contents(&self, is_manifest: bool) -> Result<Vec<ContentFile>> {
        let below = self.dir.join(if is_manifest { "manifests" } else { "blobs" });
        let mut found = Vec::new();
        for algorithm in ["sha256", "sha512"] {
            for shard in entries(&below.join(algorithm))? {
                for file in entries(&shard.path())? {
                    let named = file.file_name().to_str().and_then(|name| parse(algorithm, name));
                    let (Some((digest, size)), Ok(metadata)) = (named, file.metadata()) else { continue };
                    // Where the file system notes reads at all, it does so once a day.
                    let used = [metadata.modified().ok(), metadata.accessed().ok()].into_iter().flatten().max();
                    let used = used.unwrap_or(self.now);
                    let mut content = ContentFile { is_manifest, digest, size, length: metadata.len(), used };
                    content.used = self.user.used(&content).map_or(used, |told| told.max(used));
                    found.push(content);
                }
            }
        }
        Ok(found)
    }

    /// Drops notes of media types whose manifests are gone. They are written before these.
    fn types(&mut self, manifests: &[ContentFile]) -> Result<()> {
        let notes = entries(&self.dir.join("manifests").join("types"))?;
        if notes.is_empty() {
            return Ok(());
        }
        let known: HashSet<String> = manifests.iter().map(|manifest| manifest.digest.hex()).collect();
        for note in notes {
            let Ok(metadata) = note.metadata() else { continue };
            if self.is_settled(&metadata) && note.file_name().to_str().is_some_and(|hex| !known.contains(hex)) {
                self.drop(RemovalReason::Left, &GcItem::File(note.path()), metadata.len())?;
            }
        }
        Ok(())
    }

    /// Drops records of repositories of whose manifests none is left.
    fn repositories(&mut self, manifests: &[ContentFile]) -> Result<()> {
        let known: HashSet<Digest> = manifests.iter().map(|manifest| manifest.digest).collect();
        for shard in entries(&self.dir.join(super::REPOSITORIES))? {
            for record in entries(&shard.path())? {
                let Ok(metadata) = record.metadata() else { continue };
                let lists = |(_, listed): (String, Vec<Digest>)| listed.iter().any(|digest| known.contains(digest));
                if self.is_settled(&metadata) && !super::repository_records::read(&record.path()).is_some_and(lists) {
                    self.drop(RemovalReason::Left, &GcItem::File(record.path()), metadata.len())?;
                }
            }
        }
        Ok(())
    }

    /// Whether what is written about a manifest is so old that the manifest has been written too.
    fn is_settled(&self, metadata: &std::fs::Metadata) -> bool {
        let age = metadata.modified().ok().and_then(|made| self.now.duration_since(made).ok());
        age.unwrap_or_default() > SETTLE_TIME
    }
}

/// After this time a manifest has followed the note of its type, and its line in a record.
const SETTLE_TIME: Duration = Duration::from_secs(3600);
