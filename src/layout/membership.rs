//! Membership: which content belongs to which repository of a served directory. All methods block.
//!
//! The directory contains each blob and manifest once, under its digest. But a user who may read one repository may not be
//! allowed to read another one (an HTTP proxy in front of the server may decide that), and a digest is not a secret. So content
//! belongs to a repository if
//! - `index.json` lists it there, by a name or by the annotation [`PUSHED_TO`](super::entry::PUSHED_TO), or
//! - a manifest that belongs to the repository names it, unless the manifest is listed as partial, or
//! - it was uploaded to the repository, or mounted from one that it belongs to, and no manifest names it yet. That is
//!   remembered in memory only; after a restart it must be uploaded again.
//!
//! A referrer without any name, as other tools write it, belongs to the repository of its subject.

use std::collections::HashSet;
use std::sync::Arc;

use quick_cache::Weighter;
use quick_cache::sync::Cache;

use super::entry::INCOMPLETE;
use super::entry::ParsedEntry;
use super::index::Index;
use super::names::Scope;
use super::store::Store;
use crate::descriptor::Digest;
use crate::error::{Kind, Result};
use crate::manifest::Manifest;
use crate::reference::RepositoryName;

/// Results in memory, within limits.
#[derive(Debug)]
pub(super) struct MembershipCache {
    /// The content that manifests name. It never changes.
    links: Cache<Digest, Arc<ManifestLinks>, ByWeight>,
    /// Uploads to repositories.
    uploaded: Cache<(Arc<str>, Digest), ()>,
    /// Members of repositories, with the state of the index for which they were found.
    found: Cache<(Arc<str>, Digest), u64>,
}

impl Default for MembershipCache {
    fn default() -> Self {
        Self {
            links: Cache::with_weighter(4096, MAX_LINK_BYTES, ByWeight),
            uploaded: Cache::new(MAX_REMEMBERED),
            found: Cache::new(MAX_REMEMBERED),
        }
    }
}

/// The content that a manifest names.
#[derive(Debug)]
struct ManifestLinks {
    manifests: Vec<Digest>,
    blobs: Vec<Digest>,
    /// Layers that must not be distributed.
    foreign: Vec<Digest>,
    subject: Option<Digest>,
}

impl ManifestLinks {
    fn of(manifest: &Manifest) -> Self {
        let contents = manifest.contents();
        let (foreign, blobs): (Vec<_>, Vec<_>) =
            contents.blobs.iter().partition(|blob| blob.media_type.is_foreign_layer());
        let digests = |blobs: Vec<&crate::descriptor::Descriptor>| blobs.iter().map(|blob| blob.digest).collect();
        Self {
            manifests: contents.manifests.iter().map(|child| child.digest).collect(),
            blobs: digests(blobs),
            foreign: digests(foreign),
            subject: contents.subject.as_ref().map(|subject| subject.digest),
        }
    }
}

impl Store {
    /// Whether `digest` belongs to the repository of `scope`. In the scope of the whole directory everything does.
    pub(super) fn is_member(&self, scope: &Scope, digest: &Digest) -> Result<bool> {
        let Scope::Repository(repository) = scope else { return Ok(true) };
        Ok(!self.members_among(repository, &HashSet::from([*digest]))?.is_empty())
    }

    /// The content of `wanted` that belongs to `repository`.
    pub(super) fn members_among(
        &self,
        repository: &RepositoryName,
        wanted: &HashSet<Digest>,
    ) -> Result<HashSet<Digest>> {
        let members = self.members();
        let (name, index) = (Arc::<str>::from(repository.as_str()), self.index()?);
        let is_known = |digest: &&Digest| {
            let key = (name.clone(), **digest);
            members.uploaded.get(&key).is_some() || members.found.get(&key) == Some(index.id())
        };
        let mut found: HashSet<Digest> = wanted.iter().filter(is_known).copied().collect();
        if found.len() < wanted.len() {
            let left = wanted.difference(&found).copied().collect();
            let mut walk = RepositoryWalk { store: self, wanted: left, found: &mut found, seen: HashSet::new() };
            walk.repository(&index, repository)?;
            for digest in &found {
                members.found.insert((name.clone(), *digest), index.id());
            }
        }
        Ok(found)
    }

    /// Records that the blob was uploaded to the repository, or mounted there.
    pub(super) fn note_upload(&self, repository: &RepositoryName, digest: Digest) {
        self.members().uploaded.insert((repository.as_str().into(), digest), ());
    }

    /// Whether the repository lacks some content that `manifest` names.
    pub(super) fn is_partial(&self, repository: &RepositoryName, manifest: &Manifest) -> Result<bool> {
        let links = ManifestLinks::of(manifest);
        let named: HashSet<Digest> = links.manifests.into_iter().chain(links.foreign).collect();
        Ok(!named.is_empty() && self.members_among(repository, &named)?.len() < named.len())
    }

    fn links(&self, digest: &Digest) -> Result<Option<Arc<ManifestLinks>>> {
        if let Some(known) = self.members().links.get(digest) {
            return Ok(Some(known));
        }
        // The media type in the index makes no difference here.
        let manifest = match self.read_manifest(digest, Some("")) {
            Err(error) if matches!(error.kind(), Kind::Local | Kind::Interrupted) => return Err(error),
            // A file that is not a manifest, or does not match its digest, names nothing.
            Err(_) | Ok(None) => return Ok(None),
            Ok(Some(manifest)) => manifest,
        };
        let links = Arc::new(ManifestLinks::of(&manifest));
        self.members().links.insert(*digest, links.clone());
        Ok(Some(links))
    }
}

/// A search through the manifests of one repository.
struct RepositoryWalk<'a> {
    store: &'a Store,
    /// The content that is not found yet.
    wanted: HashSet<Digest>,
    found: &'a mut HashSet<Digest>,
    seen: HashSet<Digest>,
}

impl RepositoryWalk<'_> {
    fn repository(&mut self, index: &Index, repository: &RepositoryName) -> Result<()> {
        let listed = index.in_repository(repository, self.store.default_repository());
        // Cheap, and sufficient for most pushes.
        listed.iter().for_each(|entry| self.visit(&entry.digest));
        // A manifest with two entries is partial only if both are.
        let is_partial = |entry: &&&ParsedEntry| entry.annotations.get(INCOMPLETE).is_some();
        let whole: HashSet<Digest> = listed.iter().filter(|e| !is_partial(e)).map(|entry| entry.digest).collect();
        let partial: HashSet<Digest> = listed.iter().filter(is_partial).map(|entry| entry.digest).collect();
        let partial = partial.difference(&whole).copied().collect();
        for entry in listed {
            self.below(entry.digest, &partial)?;
        }
        // Referrers of referrers are found in later rounds.
        let mut loose = index.loose();
        let mut progress = true;
        while progress && !self.wanted.is_empty() {
            progress = false;
            let mut left = Vec::new();
            for entry in loose {
                let subject = self.store.links(&entry.digest)?.and_then(|links| links.subject);
                if subject.is_some_and(|subject| self.seen.contains(&subject)) {
                    progress = true;
                    self.visit(&entry.digest);
                    self.below(entry.digest, &partial)?;
                } else {
                    left.push(entry);
                }
            }
            loose = left;
        }
        Ok(())
    }

    /// Visits the content below `root`, which belongs to the repository.
    fn below(&mut self, root: Digest, partial: &HashSet<Digest>) -> Result<()> {
        let mut open = vec![root];
        while let Some(digest) = open.pop() {
            if self.wanted.is_empty() || self.seen.contains(&digest) {
                continue;
            }
            // Missing content is not remembered: an index may name any amount of it.
            let Some(links) = self.store.links(&digest)? else { continue };
            self.seen.insert(digest);
            links.blobs.iter().for_each(|blob| self.visit(blob));
            if !partial.contains(&digest) {
                links.foreign.iter().chain(&links.manifests).for_each(|named| self.visit(named));
                open.extend(&links.manifests);
            }
        }
        Ok(())
    }

    fn visit(&mut self, digest: &Digest) {
        if self.wanted.remove(digest) {
            self.found.insert(*digest);
        }
    }
}

impl Store {
    /// The entries that may be referrers of `subject` in this scope.
    pub(super) fn candidates<'a>(
        &self,
        index: &'a Index,
        scope: &Scope,
        subject: &Digest,
    ) -> Result<Vec<&'a ParsedEntry>> {
        let Scope::Repository(repository) = scope else { return Ok(index.entries().collect()) };
        let mut listed = index.in_repository(repository, self.default_repository());
        if repository != self.default_repository() && self.is_member(scope, subject)? {
            listed.extend(index.loose());
        }
        Ok(listed)
    }
}

/// Weighs links by their bytes.
#[derive(Clone, Debug)]
struct ByWeight;

impl Weighter<Digest, Arc<ManifestLinks>> for ByWeight {
    fn weight(&self, _: &Digest, links: &Arc<ManifestLinks>) -> u64 {
        let named = links.manifests.len() + links.blobs.len() + links.foreign.len();
        (named * size_of::<Digest>() + 256) as u64
    }
}

/// The limit of the links of manifests in memory, in bytes.
const MAX_LINK_BYTES: u64 = 32 << 20;
/// The limit of uploads and of results in memory.
const MAX_REMEMBERED: usize = 65_536;
