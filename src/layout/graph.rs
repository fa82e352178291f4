//! Relations between the manifests of a store: the only image, complete images, referrers. All methods block.

use std::collections::HashSet;

use super::entry::ParsedEntry;
use super::index_json::MAX_ENTRIES;
use super::names::{Scope, malformed};
use super::store::{Store, lock};
use super::{MAX_NAMES_IN_ERROR, join_names};
use crate::descriptor::{Descriptor, Digest};
use crate::error::{Error, Kind, Result};
use crate::manifest::{MAX_MANIFEST, Manifest};
use crate::reference::{Artifact, Target};

impl Store {
    pub(super) fn only_blocking(&self) -> Result<Target> {
        let index = self.index()?;
        let (mut named, mut unnamed, mut bad) = (Vec::new(), Vec::new(), Vec::new());
        for entry in index.entries() {
            match (whole_target(entry), malformed(entry)) {
                (Some(target), _) if is_about_another(&target) => {}
                (Some(target), _) => named.push(target),
                (None, Some(name)) => bad.push(name),
                (None, None) if self.subject(entry)?.is_none() => unnamed.push(Target::Digest(entry.digest)),
                (None, None) => {}
            }
        }
        let mut found = if named.is_empty() { unnamed } else { named };
        found.dedup();
        if let (Some(name), false) = (bad.first(), found.is_empty()) {
            let (dir, more) = (self.dir().display(), bad.len() - 1);
            tracing::warn!("{dir}: the name {name} is not valid: its image is left out ({more} more such names)");
        }
        match (found.pop(), found.is_empty()) {
            (Some(only), true) => Ok(only),
            (None, _) if !bad.is_empty() => {
                let error = format!("the image's name {} in {} is not valid", bad[0], self.dir().display());
                Err(Error::new(Kind::Invalid, error)
                    .hint("an image's name is a tag, or registry/repository:tag: correct it in index.json"))
            }
            (None, _) => Err(Error::new(Kind::NotFound, format!("{} has no image", self.dir().display()))),
            (Some(last), false) => {
                let dir = self.dir().display();
                let names: Vec<_> =
                    found.iter().chain([&last]).take(MAX_NAMES_IN_ERROR + 1).map(Target::to_string).collect();
                Err(Error::new(Kind::Usage, format!("{dir} has several images: {}", join_names(&names)))
                    .hint(format!("select one: oci:{dir}:{}", names[0])))
            }
        }
    }

    /// Whether all blobs of an image exist with the right size. Of an index at least one child must exist, and none may be
    /// incomplete: a sparse index is complete.
    pub(super) fn is_whole(&self, manifest: &Manifest, depth: usize) -> Result<bool> {
        self.is_whole_but(manifest, depth, &mut HashSet::new())
    }

    /// Like [`is_whole`](Self::is_whole), for manifests that are not in `seen`. Each is read once: indexes may name the same
    /// child thousands of times, at each depth.
    fn is_whole_but(&self, manifest: &Manifest, depth: usize, seen: &mut HashSet<Digest>) -> Result<bool> {
        for blob in manifest.contents().blobs.iter().filter(|blob| !blob.media_type.is_foreign_layer()) {
            if self.open_blob_blocking(&blob.digest)?.is_none_or(|stored| stored.size() != blob.size) {
                return Ok(false);
            }
        }
        let children = &manifest.contents().manifests;
        let mut present = 0;
        for child in children {
            if seen.contains(&child.digest) {
                present += 1;
                continue;
            }
            match self.read_manifest(&child.digest, Some(&child.media_type.0))? {
                Some(_) if depth == 0 => return Ok(false),
                Some(child) if !self.is_whole_but(&child, depth - 1, seen)? => return Ok(false),
                Some(child) => {
                    seen.insert(child.digest());
                    present += 1;
                }
                None => {}
            }
        }
        Ok(present > 0 || children.is_empty())
    }

    pub(super) fn referrers_blocking(&self, scope: &Scope, subject: &Digest) -> Result<Vec<Descriptor>> {
        let index = self.index()?;
        let mut found = Vec::new();
        let mut seen = HashSet::new();
        let mut size = LIST_OVERHEAD;
        for entry in self.candidates(&index, scope, subject)? {
            if self.subject(entry)? == Some(*subject)
                && seen.insert(entry.digest)
                && let Some(manifest) = self.read_manifest(&entry.digest, Some(&entry.media_type))?
            {
                let referrer = as_referrer(&manifest);
                size += referrer_size(&referrer);
                check_referrers_size(subject, size, Kind::Invalid)?;
                found.push(referrer);
            }
        }
        // Distribution spec, "Referrers Tag Schema".
        let list = Target::Tag(subject.referrers_tag());
        if let Some(list) = self.manifest_blocking(scope, &list)? {
            found.extend(list.contents().manifests.iter().filter(|entry| seen.insert(entry.digest)).cloned());
        }
        Ok(found)
    }

    /// Checks that the list of referrers of the manifest's subject does not become too large for clients.
    ///
    /// # Errors
    /// [`Kind::Full`].
    pub(super) fn check_referrer(&self, scope: &Scope, manifest: &Manifest) -> Result<()> {
        let Some(subject) = &manifest.contents().subject else { return Ok(()) };
        let mut all = self.referrers_blocking(scope, &subject.digest)?;
        all.retain(|other| other.digest != manifest.digest());
        let size: u64 = all.iter().chain([&as_referrer(manifest)]).map(referrer_size).sum();
        check_referrers_size(&subject.digest, LIST_OVERHEAD + size, Kind::Full)
    }

    /// The subject of a manifest. Each manifest is read once.
    pub(super) fn subject(&self, entry: &ParsedEntry) -> Result<Option<Digest>> {
        let digest = &entry.digest;
        if let Some(known) = lock(self.subjects()).get(digest) {
            return Ok(*known);
        }
        // A directory may list missing content, or content that is not a manifest: it has no subject.
        let manifest = match self.read_manifest(digest, Some(&entry.media_type)) {
            Ok(Some(manifest)) => manifest,
            Ok(None) => return Ok(None),
            Err(error) if error.kind() == Kind::Local => return Err(error),
            Err(_) => return Ok(None),
        };
        let subject = manifest.contents().subject.as_ref().map(|subject| subject.digest);
        let mut known = lock(self.subjects());
        // Bounded: entries come and go, and never so many are listed at once.
        if known.len() > 2 * MAX_ENTRIES {
            known.clear();
        }
        known.insert(*digest, subject);
        Ok(subject)
    }
}

/// The descriptor of a referrer for the referrers API.
fn as_referrer(manifest: &Manifest) -> Descriptor {
    let contents = manifest.contents();
    let mut descriptor = manifest.descriptor().clone();
    descriptor.artifact_type.clone_from(&contents.artifact_type);
    descriptor.annotations.clone_from(&contents.annotations);
    descriptor
}

/// The bytes of an entry in a list, with the comma.
fn referrer_size(entry: &Descriptor) -> u64 {
    serde_json::to_vec(entry).map_or(0, |text| text.len() as u64 + 1)
}

/// Checks the size of a list of referrers. It is an index, and must not exceed the largest manifest that clients read
/// (distribution spec, "Listing Referrers").
fn check_referrers_size(subject: &Digest, size: u64, kind: Kind) -> Result<()> {
    if size <= MAX_MANIFEST {
        return Ok(());
    }
    Err(Error::new(kind, format!("the list of referrers of {subject} has more than {MAX_MANIFEST} bytes")))
}

/// The bytes of a list besides its entries.
const LIST_OVERHEAD: u64 = 128;

/// The name of the entry in the scope of the whole directory: the tag of `oci:DIR:TAG`, or a longer name.
fn whole_target(entry: &ParsedEntry) -> Option<Target> {
    Scope::Whole.targets(entry, "").into_iter().min().map(|(_, target)| target)
}

/// Tags of signatures (cosign: `sha256-<hex>.sig`) and of lists of referrers (`sha256-<hex>`).
fn is_about_another(target: &Target) -> bool {
    target.to_string().rsplit(':').next().is_some_and(|last| Artifact::of(last).is_some())
}
