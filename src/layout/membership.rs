//! What belongs to which repository of a served directory. All of it blocks.
//!
//! Content stands in the directory once, whatever names it, and is named by its digest. But who may read one
//! repository need not be allowed to read another (a proxy in front may decide so), and a digest is no secret. So
//! content belongs to a repository if
//! - `index.json` lists it there, by a name or by the annotation [`REPOSITORY`](super::entry::PUSHED_TO), or
//! - a manifest that belongs there names it, unless that is listed as partial, or
//! - it was uploaded to it, or mounted from a repository where it belongs, and no manifest names it yet: that is
//!   remembered in memory, and after a restart it's uploaded once more.
//!
//! A referrer that other tools left without any name belongs where its subject does.

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

/// What is remembered, within bounds.
#[derive(Debug)]
pub(super) struct MembershipCache {
    /// What manifests name. That never changes.
    links: Cache<Digest, Arc<ManifestLinks>, ByWeight>,
    /// What was uploaded to a repository.
    uploaded: Cache<(Arc<str>, Digest), ()>,
    /// What was found to belong to a repository, and in which state of the index.
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

/// What a manifest names.
#[derive(Debug)]
struct ManifestLinks {
    manifests: Vec<Digest>,
    blobs: Vec<Digest>,
    /// Layers that their owner doesn't allow to be distributed.
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
    /// Whether `digest` belongs to the repository that `scope` is; to a whole directory everything does.
    pub(super) fn is_member(&self, scope: &Scope, digest: &Digest) -> Result<bool> {
        let Scope::Repository(repository) = scope else { return Ok(true) };
        Ok(!self.members_among(repository, &HashSet::from([*digest]))?.is_empty())
    }

    /// Those of `wanted` that belong to `repository`.
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

    /// Remembers that the blob was uploaded to the repository, or mounted there.
    pub(super) fn note_upload(&self, repository: &RepositoryName, digest: Digest) {
        self.members().uploaded.insert((repository.as_str().into(), digest), ());
    }

    /// Whether the repository lacks some of what `manifest` names.
    pub(super) fn is_partial(&self, repository: &RepositoryName, manifest: &Manifest) -> Result<bool> {
        let links = ManifestLinks::of(manifest);
        let named: HashSet<Digest> = links.manifests.into_iter().chain(links.foreign).collect();
        Ok(!named.is_empty() && self.members_among(repository, &named)?.len() < named.len())
    }

    fn links(&self, digest: &Digest) -> Result<Option<Arc<ManifestLinks>>> {
        if let Some(known) = self.members().links.get(digest) {
            return Ok(Some(known));
        }
        // The type that the index knows makes no difference to what is named.
        let manifest = match self.read_manifest(digest, Some("")) {
            Err(error) if matches!(error.kind(), Kind::Local | Kind::Interrupted) => return Err(error),
            // What isn't a manifest, or not the right one, names nothing.
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
    /// What isn't found yet.
    wanted: HashSet<Digest>,
    found: &'a mut HashSet<Digest>,
    seen: HashSet<Digest>,
}

impl RepositoryWalk<'_> {
    fn repository(&mut self, index: &Index, repository: &RepositoryName) -> Result<()> {
        let listed = index.in_repository(repository, self.store.default_repository());
        // Cheap, and what pushes mostly ask for.
        listed.iter().for_each(|entry| self.visit(&entry.digest));
        // Listed twice, it's partial only if both are.
        let is_partial = |entry: &&&ParsedEntry| entry.annotations.get(INCOMPLETE).is_some();
        let whole: HashSet<Digest> = listed.iter().filter(|e| !is_partial(e)).map(|entry| entry.digest).collect();
        let partial: HashSet<Digest> = listed.iter().filter(is_partial).map(|entry| entry.digest).collect();
        let partial = partial.difference(&whole).copied().collect();
        for entry in listed {
            self.below(entry.digest, &partial)?;
        }
        // Referrers of referrers come in turn, each at its second look at the latest.
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

    /// Looks at what is below `root`, which belongs to the repository.
    fn below(&mut self, root: Digest, partial: &HashSet<Digest>) -> Result<()> {
        let mut open = vec![root];
        while let Some(digest) = open.pop() {
            if self.wanted.is_empty() || self.seen.contains(&digest) {
                continue;
            }
            // What isn't here is not remembered: an index may name any number of such.
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

/// By the bytes that it takes.
#[derive(Clone, Debug)]
struct ByWeight;

impl Weighter<Digest, Arc<ManifestLinks>> for ByWeight {
    fn weight(&self, _: &Digest, links: &Arc<ManifestLinks>) -> u64 {
        let named = links.manifests.len() + links.blobs.len() + links.foreign.len();
        (named * size_of::<Digest>() + 256) as u64
    }
}

/// Bytes of what manifests name.
const MAX_LINK_BYTES: u64 = 32 << 20;
/// Uploads without a manifest, and answers.
const MAX_REMEMBERED: usize = 65_536;
