//! Images that a destination had when their turn came: what they hold can be mounted elsewhere.
//!
//! Of such an image only the digest is known. Its manifests are read, from the destination and not from
//! the source, when a large blob would have to be sent otherwise: so a list's second run sends no layer
//! that an image of the first run has, and one without anything to send reads nothing.
//!
//! A blob whose image was never finished is known to nobody but its repository. So after a run that was killed, a layer
//! that several images share is looked for only where the first of them that comes wants it: if another one had brought
//! it elsewhere, and had no tag yet, it's sent again. To ask all repositories of a list for each of its large layers
//! would cost every run more than that costs after a kill.

use crate::reference::RegistryName;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::blob_locations::RepositoryId;
use crate::content::Destination;
use crate::descriptor::Digest;
use crate::manifest::Manifest;

/// The finished images of a run, by registry.
#[derive(Default)]
pub(super) struct MountCandidates(Mutex<HashMap<RegistryName, RegistryCandidates>>);

#[derive(Default)]
struct RegistryCandidates {
    /// Images of which the digest alone is known, by their number. They stay until they're read: who reads may
    /// leave, as a failed image's transfers do.
    unread: BTreeMap<usize, Lookup>,
    /// Noted so far.
    noted: usize,
    /// Who has a blob.
    holders: HashMap<Digest, RepositoryId>,
    /// One reads, the others wait for what he finds.
    reading: Arc<tokio::sync::Mutex<()>>,
}

type Lookup = Arc<dyn Fn() -> BoxFuture<'static, (RepositoryId, Vec<Digest>)> + Send + Sync>;

impl MountCandidates {
    /// Notes that `destination`, which has this number, holds the image `root`.
    pub(super) fn add_image<D: Destination>(&self, destination: &D, number: RepositoryId, root: Digest) {
        let registry = destination.repository().registry.clone();
        let destination = destination.clone();
        self.add(registry, move || {
            let destination = destination.clone();
            async move { (number, Box::pin(blobs(&destination, root)).await) }.boxed()
        });
    }

    fn add(
        &self,
        registry: RegistryName,
        lookup: impl Fn() -> BoxFuture<'static, (RepositoryId, Vec<Digest>)> + Send + Sync + 'static,
    ) {
        let mut registries = self.lock();
        let candidates = registries.entry(registry).or_default();
        if candidates.noted < MAX_IMAGES {
            candidates.unread.insert(candidates.noted, Arc::new(lookup));
            candidates.noted += 1;
        }
    }

    /// A repository of `registry` whose finished images have the blob.
    pub(super) async fn holder(&self, registry: &str, blob: &Digest) -> Option<RepositoryId> {
        let reading = self.lock().get(registry)?.reading.clone();
        let _alone = reading.lock().await;
        let unread = match self.lock().get(registry) {
            Some(candidates) if !candidates.holders.contains_key(blob) => candidates.unread.clone(),
            _ => BTreeMap::new(),
        };
        let read = |(nth, lookup): (usize, Lookup)| async move { (nth, lookup().await) };
        let mut found = stream::iter(unread).map(read).buffer_unordered(CONCURRENT_LOOKUPS);
        while let Some((nth, (number, blobs))) = found.next().await {
            if let Some(candidates) = self.lock().get_mut(registry) {
                candidates.unread.remove(&nth);
                let room = MAX_HOLDERS.saturating_sub(candidates.holders.len());
                candidates.holders.extend(blobs.into_iter().take(room).map(|blob| (blob, number)));
            }
        }
        self.lock().get(registry)?.holders.get(blob).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RegistryName, RegistryCandidates>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blobs of an image that the destination holds, as far as its manifests can be read.
async fn blobs<D: Destination>(destination: &D, root: Digest) -> Vec<Digest> {
    let (mut found, mut wanted, mut read) = (Vec::new(), vec![root], 0);
    while let Some(digest) = wanted.pop() {
        read += 1;
        if read > MAX_MANIFESTS {
            break;
        }
        if found.len() > MAX_BLOBS {
            break;
        }
        match destination.existing_manifest(&digest).await {
            Ok(manifest) => note_manifest(&manifest, &mut found, &mut wanted),
            Err(error) => tracing::debug!("{digest} of a finished image is not read: {error}"),
        }
    }
    found
}

fn note_manifest(manifest: &Manifest, found: &mut Vec<Digest>, wanted: &mut Vec<Digest>) {
    let contents = manifest.contents();
    let blobs = contents.blobs.iter().filter(|blob| !blob.media_type.is_foreign_layer());
    found.extend(blobs.filter(|blob| Some(blob.digest) != contents.config).map(|blob| blob.digest));
    wanted.extend(contents.manifests.iter().take(MAX_MANIFESTS).map(|child| child.digest));
}

/// Images noted, of each registry. What a long list's others hold is sent again, which costs bytes only.
const MAX_IMAGES: usize = 256;
/// Manifests read of one of them.
const MAX_MANIFESTS: usize = 32;
/// Blobs noted of one of them, before no more of its manifests are read; and of all images of a registry.
const MAX_BLOBS: usize = 1000;
const MAX_HOLDERS: usize = 200_000;
const CONCURRENT_LOOKUPS: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::pending;

    use super::*;
    use crate::copy::BlobLocations;
    use crate::reference::Repository;

    #[tokio::test]
    async fn what_was_not_read_to_the_end_is_read_by_the_next_one() {
        let (mount_candidates, blob_locations) = (MountCandidates::default(), BlobLocations::default());
        let number = blob_locations.id_of(&"r.io/app".parse::<Repository>().expect("a repository"));
        let [quick, slow] = [b"quick", b"slow!"].map(|name| Digest::of(name));
        let asked = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        for (nth, digest) in [quick, slow].into_iter().enumerate() {
            let asked = asked.clone();
            mount_candidates.add("r.io".into(), move || {
                let stuck = asked[nth].fetch_add(1, Ordering::Relaxed) == 0 && nth == 1;
                async move { if stuck { pending().await } else { (number, vec![digest]) } }.boxed()
            });
        }
        assert!(mount_candidates.holder("r.io", &slow).now_or_never().is_none(), "its image fails meanwhile");
        assert_eq!(mount_candidates.holder("r.io", &slow).await, Some(number));
        assert_eq!(mount_candidates.holder("r.io", &quick).await, Some(number));
        let asked = asked.each_ref().map(|times| times.load(Ordering::Relaxed));
        assert_eq!(asked, [1, 2], "and what was read isn't read again");
    }
}
