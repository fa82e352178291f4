//! The document `index.json`. No I/O.
//!
//! What other tools wrote into it is kept: fields and entries that aren't known here go out again
//! as they came. Of each entry only what is looked for is parsed; the rest stays a part of the file's bytes, so that
//! an index of 64 MiB costs some two times that of memory, whatever is in it.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::entry::{Entry, ParsedEntry};
use super::entry::{INCOMPLETE, PUSHED_TO, REF_NAME};
use super::index_json::IndexJson;
use super::index_json::MAX_ENTRIES;
use super::names;
use super::quota::quota_exceeded;
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;
use crate::reference::RepositoryName;

/// The largest `index.json` that is read, and that is written, in bytes.
pub(super) const MAX_INDEX: u64 = 64 << 20;

/// The roots of a layout.
#[derive(Debug)]
pub(super) struct Index {
    /// Differs for each state that was read or made.
    id: u64,
    fields: Vec<(String, Bytes)>,
    entries: Vec<Entry>,
    lookup: OnceLock<EntryPositions>,
}

/// Where an entry stands.
#[derive(Clone, Debug, Default)]
struct EntryPositions {
    /// By repository: the entries that have a name in it, or were pushed to it.
    homes: HashMap<Box<str>, Vec<u32>>,
    /// Those that say nothing of a repository.
    loose: Vec<u32>,
    by_digest: HashMap<Digest, u32>,
}

/// How a manifest is listed.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ListingScope<'a> {
    /// The `ref.name`.
    pub(super) name: Option<&'a str>,
    /// The repository that it was pushed to, where the directory has several.
    pub(super) repository: Option<&'a RepositoryName>,
    /// Whether that repository lacks some of what the manifest names.
    pub(super) partial: bool,
}

impl Index {
    pub(super) fn empty() -> Self {
        let fields = [("schemaVersion", "2".to_owned()), ("mediaType", format!("\"{}\"", MediaType::OCI_INDEX))];
        Self::of(fields.map(|(key, value)| (key.to_owned(), Bytes::from(value))).into(), Vec::new())
    }

    fn of(fields: Vec<(String, Bytes)>, entries: Vec<Entry>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self { id: NEXT.fetch_add(1, Ordering::Relaxed), fields, entries, lookup: OnceLock::new() }
    }

    /// A copy to be changed.
    pub(super) fn copy(&self) -> Self {
        Self::of(self.fields.clone(), self.entries.clone())
    }

    /// Reads the file's bytes.
    ///
    /// # Errors
    /// [`Kind::Invalid`] if it isn't an index, or has more than [`MAX_ENTRIES`] entries.
    pub(super) fn parse(bytes: &Bytes) -> Result<Self> {
        let read: IndexJson<'_> = serde_json::from_slice(bytes)
            .map_err(|error| Error::new(Kind::Invalid, format!("index.json is malformed: {error}")).caused_by(error))?;
        let mut types: HashSet<Arc<str>> = HashSet::new();
        let entries = read.entries.into_iter().map(|raw| {
            let known = serde_json::from_str::<Descriptor>(raw.get()).ok().map(|entry| {
                let mut listed = ParsedEntry::from(&entry);
                // Most entries have one of a few types, which are kept once.
                match types.get(&listed.media_type) {
                    Some(same) => listed.media_type = same.clone(),
                    None => drop(types.insert(listed.media_type.clone())),
                }
                listed
            });
            Entry { raw: bytes.slice_ref(raw.get().as_bytes()), known }
        });
        let entries = entries.collect();
        let fields = read.fields.into_iter().map(|(key, raw)| (key, bytes.slice_ref(raw.get().as_bytes())));
        Ok(Self::of(fields.collect(), entries))
    }

    /// The file's bytes.
    ///
    /// # Errors
    /// [`Kind::Full`] if there are more than a reader accepts.
    pub(super) fn to_bytes(&self) -> Result<Vec<u8>> {
        if self.entries.len() > MAX_ENTRIES {
            return Err(quota_exceeded(format!("index.json lists at most {MAX_ENTRIES} manifests")));
        }
        let mut text = b"{".to_vec();
        for (key, value) in &self.fields {
            text.extend(b"\n  ");
            text.extend(serde_json::to_vec(key).unwrap_or_default());
            text.extend(b": ");
            text.extend(value);
            text.push(b',');
        }
        text.extend(b"\n  \"manifests\": [");
        for (at, entry) in self.entries.iter().enumerate() {
            text.extend(if at == 0 { &b"\n    "[..] } else { b",\n    " });
            text.extend(&entry.raw);
        }
        text.extend(b"\n  ]\n}\n");
        if text.len() as u64 > MAX_INDEX {
            return Err(quota_exceeded(format!("index.json has at most {MAX_INDEX} bytes")));
        }
        Ok(text)
    }

    /// Differs for each state of the index.
    pub(super) fn id(&self) -> u64 {
        self.id
    }

    /// The entries, in the order of the file.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = &ParsedEntry> {
        self.entries.iter().filter_map(|entry| entry.known.as_ref())
    }

    /// The entries that have a name in `repository`, or were pushed to it, in the order of the file. Those with a bare
    /// tag, or that say nothing of a repository, are in the `default` one.
    pub(super) fn in_repository(&self, repository: &RepositoryName, default: &RepositoryName) -> Vec<&ParsedEntry> {
        let lookup = self.lookup();
        let mut places: Vec<u32> = lookup.homes.get(repository.as_str()).into_iter().flatten().copied().collect();
        if repository == default {
            places.extend(lookup.homes.get(names::NO_REPOSITORY).into_iter().flatten().chain(&lookup.loose));
            places.sort_unstable();
            places.dedup();
        }
        self.at(&places)
    }

    /// The entries that say nothing of a repository.
    pub(super) fn loose(&self) -> Vec<&ParsedEntry> {
        self.at(&self.lookup().loose)
    }

    /// The first entry of this manifest.
    pub(super) fn by_digest(&self, digest: &Digest) -> Option<&ParsedEntry> {
        self.lookup().by_digest.get(digest).and_then(|at| self.entries.get(*at as usize)?.known.as_ref())
    }

    fn at(&self, places: &[u32]) -> Vec<&ParsedEntry> {
        places.iter().filter_map(|at| self.entries.get(*at as usize)?.known.as_ref()).collect()
    }

    fn lookup(&self) -> &EntryPositions {
        self.lookup.get_or_init(|| {
            let mut lookup = EntryPositions::default();
            // At most MAX_ENTRIES, and one more while one is added.
            for (entry, at) in self.entries.iter().zip(0_u32..) {
                let Some(entry) = &entry.known else { continue };
                lookup.by_digest.entry(entry.digest).or_insert(at);
                let homes = names::pushed_repositories(entry);
                if homes.is_empty() {
                    lookup.loose.push(at);
                }
                for home in homes {
                    lookup.homes.entry(home.into()).or_default().push(at);
                }
            }
            lookup
        })
    }

    /// Lists `manifest`. Says whether anything changed.
    ///
    /// An image's children are written before their index, so they come in here as roots first;
    /// their index takes them out again. What remains are the roots.
    pub(super) fn put(&mut self, manifest: &Manifest, listing: ListingScope<'_>) -> bool {
        let added = entry(manifest, listing);
        let changed = !self.is_listed(&added, listing) && {
            self.replace(&added, listing);
            true
        };
        let dropped = !listing.partial && self.drop_children(manifest, listing.repository);
        if changed || dropped {
            *self = Self::of(std::mem::take(&mut self.fields), std::mem::take(&mut self.entries));
        }
        changed || dropped
    }

    fn is_listed(&self, added: &Descriptor, listing: ListingScope<'_>) -> bool {
        match listing {
            ListingScope { name: Some(name), .. } => {
                let mut same = self.entries.iter().filter(|old| is_named(old, name));
                // Another tool may have left two of one name: then both give way.
                let is_same = same
                    .next()
                    .is_some_and(|old| serde_json::from_slice::<Descriptor>(&old.raw).is_ok_and(|old| old == *added));
                is_same && same.next().is_none()
            }
            ListingScope { repository: Some(repository), partial, .. } => self.entries().any(|old| {
                is_entry_of(old, &added.digest, repository) && old.annotations.get(INCOMPLETE).is_some() == partial
            }),
            ListingScope { repository: None, .. } => self.entries().any(|old| old.digest == added.digest),
        }
    }

    /// Adds the entry in place of those that it stands for.
    fn replace(&mut self, added: &Descriptor, listing: ListingScope<'_>) {
        let mut superseded = Vec::new();
        self.entries.retain(|old| {
            let Some(known) = &old.known else { return true };
            if listing.name.is_some_and(|name| is_named(old, name)) {
                superseded.extend((known.digest != added.digest).then(|| old.raw.clone()));
                return false;
            }
            let same = known.digest == added.digest;
            !match listing.repository {
                Some(repository) => same && known.annotations.is_push_to(repository),
                None => same && listing.name.is_some() && known.annotations.is_empty(),
            }
        });
        // A registry keeps a manifest whose tag moved on: who asked for the tag a moment ago asks for its digest now.
        if let Some(repository) = listing.repository {
            for old in superseded.iter().filter_map(|raw| without_name(raw, repository)) {
                let same = |entry: &ParsedEntry| {
                    old.known.as_ref().is_some_and(|old| is_entry_of(entry, &old.digest, repository))
                };
                if !self.entries().any(same) {
                    self.entries.push(old);
                }
            }
        }
        self.entries.push(Entry::from(added));
    }

    fn drop_children(&mut self, parent: &Manifest, repository: Option<&RepositoryName>) -> bool {
        let children: HashSet<Digest> = parent.contents().manifests.iter().map(|child| child.digest).collect();
        let before = self.entries.len();
        // A referrer (it has an artifact type) stays: it's found only here.
        self.entries.retain(|entry| {
            !entry.known.as_ref().is_some_and(|known| {
                let is_bare = match repository {
                    Some(repository) => {
                        known.annotations.is_push_to(repository) && known.annotations.get(INCOMPLETE).is_none()
                    }
                    None => known.annotations.is_empty(),
                };
                is_bare && !known.has_artifact_type && children.contains(&known.digest)
            })
        });
        self.entries.len() != before
    }
}

fn is_named(entry: &Entry, name: &str) -> bool {
    entry.known.as_ref().is_some_and(|known| known.annotations.get(REF_NAME) == Some(name))
}

fn is_entry_of(entry: &ParsedEntry, digest: &Digest, repository: &RepositoryName) -> bool {
    entry.digest == *digest && names::pushed_repositories(entry).iter().any(|home| *home == **repository)
}

/// The entry that lost its name, as one that was pushed to `repository` by digest.
fn without_name(raw: &[u8], repository: &RepositoryName) -> Option<Entry> {
    let mut entry: Descriptor = serde_json::from_slice(raw).ok()?;
    let partial = entry.annotations.remove(INCOMPLETE);
    entry.annotations.clear();
    entry.annotations.insert(PUSHED_TO.into(), repository.to_string());
    entry.annotations.extend(partial.map(|partial| (INCOMPLETE.to_owned(), partial)));
    Some(Entry::from(&entry))
}

fn entry(manifest: &Manifest, listing: ListingScope<'_>) -> Descriptor {
    let mut entry = manifest.descriptor().clone();
    if manifest.contents().subject.is_some() {
        entry.artifact_type = Some(manifest.contents().artifact_type.clone().unwrap_or_default());
    }
    match listing {
        ListingScope { name: Some(name), .. } => drop(entry.annotations.insert(REF_NAME.into(), name.to_owned())),
        ListingScope { repository: Some(repository), .. } => {
            entry.annotations.insert(PUSHED_TO.into(), repository.to_string());
        }
        ListingScope { .. } => {}
    }
    if listing.partial {
        entry.annotations.insert(INCOMPLETE.into(), "true".into());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    use crate::layout::tests::{image, index_of, referrer};

    fn put(index: &mut Index, manifest: &Manifest, name: Option<&str>) -> bool {
        index.put(manifest, ListingScope { name, ..ListingScope::default() })
    }

    fn written(index: &Index) -> Vec<u8> {
        index.to_bytes().expect("it fits")
    }

    fn read(text: &str) -> Index {
        Index::parse(&Bytes::copy_from_slice(text.as_bytes())).expect("reads")
    }

    fn shown(index: &Index) -> Vec<(Digest, Option<&str>)> {
        index.entries().map(|e| (e.digest, e.annotations.get(REF_NAME))).collect()
    }

    #[test]
    fn a_tag_is_replaced_in_place_of_another() {
        let (one, two) = (image("1"), image("2"));
        let mut index = Index::empty();
        assert!(
            put(&mut index, &one, Some("v1")) && put(&mut index, &one, Some("v2")) && put(&mut index, &two, Some("v1"))
        );
        assert_eq!(shown(&index), [(one.digest(), Some("v2")), (two.digest(), Some("v1"))]);
        assert!(!put(&mut index, &two, Some("v1")), "nothing to write");
        let twice = written(&index);
        let twice = String::from_utf8(twice).expect("text").replace("\"v2\"", "\"v1\"");
        let mut index = read(&twice);
        assert_eq!(index.entries().count(), 2);
        assert!(put(&mut index, &two, Some("v1")));
        assert_eq!(shown(&index), [(two.digest(), Some("v1"))]);
    }

    #[test]
    fn only_roots_remain() {
        let (one, two) = (image("1"), image("2"));
        let parent = index_of(&[&one, &two]);
        let mut index = Index::empty();
        put(&mut index, &one, None);
        put(&mut index, &two, None);
        put(&mut index, &parent, Some("v1"));
        assert_eq!(shown(&index), [(parent.digest(), Some("v1"))]);
        put(&mut index, &one, Some("single"));
        put(&mut index, &two, None);
        assert!(put(&mut index, &parent, Some("v1")), "a child that came again goes again");
        assert_eq!(shown(&index), [(parent.digest(), Some("v1")), (one.digest(), Some("single"))]);
    }

    #[test]
    fn a_referrer_stays_and_a_name_replaces_no_name() {
        let (one, about) = (image("1"), referrer(&image("1"), "sig"));
        let mut index = Index::empty();
        put(&mut index, &about, None);
        put(&mut index, &index_of(&[&about]), Some("odd"));
        assert!(index.entries().any(|entry| entry.digest == about.digest()));
        put(&mut index, &one, None);
        put(&mut index, &one, Some("v1"));
        assert_eq!(index.entries().filter(|entry| entry.digest == one.digest()).count(), 1);
    }

    #[test]
    fn foreign_fields_survive() {
        let text = r#"{"schemaVersion":2,"x":{"y":[1]},"manifests":[{"mediaType":"m","digest":"md9:0","size":1,"data":"eA=="}]}"#;
        let mut index = read(text);
        assert_eq!(index.entries().count(), 0);
        put(&mut index, &image("1"), Some("v1"));
        let written: Value = serde_json::from_slice(&written(&index)).expect("JSON");
        assert_eq!(written["x"]["y"][0], 1);
        assert_eq!(written["manifests"][0]["data"], "eA==");
        assert_eq!(written["manifests"].as_array().map(Vec::len), Some(2));
    }
}
