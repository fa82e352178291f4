//! Images that the destination already had. Their blobs can be mounted into other repositories.
//!
//! Only the digest of such an image is known. Its manifests are read when a large blob would have to be sent otherwise,
//! and from the destination, not from the source. So the second run of a list sends no layer that an image of the first
//! run has, and a run that sends nothing reads nothing.
//!
//! A blob of an image that was never finished is not found here. If a run was killed, a layer that several images share
//! may be in a repository whose image has no tag yet. The next run looks for the layer only in the repository of the first
//! image that needs it, and may send it again. Asking all repositories of a list for each large layer would cost every
//! run more than that.

use crate::reference::RegistryName;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::blob_locations::RepositoryId;
use crate::content::Destination;
use crate::descriptor::Digest;
use crate::manifest::Manifest;

/// The images that each registry already had.
#[derive(Default)]
pub(super) struct MountCandidates(Mutex<HashMap<RegistryName, RegistryCandidates>>);

#[derive(Default)]
struct RegistryCandidates {
    /// Images whose manifests were not read yet, by their number. An image stays here until its manifests are read: a
    /// reader may be dropped, as the transfers of a failed image are.
    unread: BTreeMap<usize, Lookup>,
    /// Images added so far.
    added: usize,
    /// A repository that has the blob.
    holders: HashMap<Digest, RepositoryId>,
    /// One task reads manifests. The others wait for its result.
    reading: Arc<tokio::sync::Mutex<()>>,
}

type Lookup = Arc<dyn Fn() -> BoxFuture<'static, (RepositoryId, Vec<Digest>)> + Send + Sync>;

impl MountCandidates {
    /// Adds the image `root`, which the repository `destination` with this number holds.
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
        if candidates.added < MAX_IMAGES {
            candidates.unread.insert(candidates.added, Arc::new(lookup));
            candidates.added += 1;
        }
    }

    /// A repository of `registry` that has the blob.
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

/// The blobs of an image at the destination, as far as its manifests can be read.
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
            Ok(manifest) => add_manifest(&manifest, &mut found, &mut wanted),
            Err(error) => tracing::debug!("cannot look for blobs to mount in manifest {digest}: {error}"),
        }
    }
    found
}

fn add_manifest(manifest: &Manifest, found: &mut Vec<Digest>, wanted: &mut Vec<Digest>) {
    let contents = manifest.contents();
    let blobs = contents.blobs.iter().filter(|blob| !blob.media_type.is_foreign_layer());
    found.extend(blobs.filter(|blob| Some(blob.digest) != contents.config).map(|blob| blob.digest));
    wanted.extend(contents.manifests.iter().take(MAX_MANIFESTS).map(|child| child.digest));
}

/// Images that are remembered for each registry. Blobs of further images are sent again, which costs only bytes.
const MAX_IMAGES: usize = 256;
/// Manifests that are read of one image.
const MAX_MANIFESTS: usize = 32;
/// Blobs of one image after which no more of its manifests are read.
const MAX_BLOBS: usize = 1000;
/// Blobs that are remembered for each registry.
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
    async fn an_unfinished_read_is_done_by_the_next_task() {
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
        assert!(
            mount_candidates.holder("r.io", &slow).now_or_never().is_none(),
            "the task is dropped before its read ends"
        );
        assert_eq!(mount_candidates.holder("r.io", &slow).await, Some(number));
        assert_eq!(mount_candidates.holder("r.io", &quick).await, Some(number));
        let asked = asked.each_ref().map(|times| times.load(Ordering::Relaxed));
        assert_eq!(asked, [1, 2], "a finished read is not repeated");
    }
}
