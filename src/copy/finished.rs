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

use super::directory::Number;
use crate::content::Destination;
use crate::descriptor::Digest;
use crate::manifest::Manifest;

/// The finished images of a run, by registry.
#[derive(Default)]
pub(super) struct Finished(Mutex<HashMap<RegistryName, Shelf>>);

#[derive(Default)]
struct Shelf {
    /// Images of which the digest alone is known, by their number. They stay until they're read: who reads may
    /// leave, as a failed image's transfers do.
    unread: BTreeMap<usize, Lookup>,
    /// Noted so far.
    noted: usize,
    /// Who has a blob.
    holders: HashMap<Digest, Number>,
    /// One reads, the others wait for what he finds.
    reading: Arc<tokio::sync::Mutex<()>>,
}

type Lookup = Arc<dyn Fn() -> BoxFuture<'static, (Number, Vec<Digest>)> + Send + Sync>;

impl Finished {
    /// Notes that `destination`, which has this number, holds the image `root`.
    pub(super) fn note<D: Destination>(&self, destination: &D, number: Number, root: Digest) {
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
        lookup: impl Fn() -> BoxFuture<'static, (Number, Vec<Digest>)> + Send + Sync + 'static,
    ) {
        let mut shelves = self.lock();
        let shelf = shelves.entry(registry).or_default();
        if shelf.noted < MOST {
            shelf.unread.insert(shelf.noted, Arc::new(lookup));
            shelf.noted += 1;
        }
    }

    /// A repository of `registry` whose finished images have the blob.
    pub(super) async fn holder(&self, registry: &str, blob: &Digest) -> Option<Number> {
        let reading = self.lock().get(registry)?.reading.clone();
        let _alone = reading.lock().await;
        let unread = match self.lock().get(registry) {
            Some(shelf) if !shelf.holders.contains_key(blob) => shelf.unread.clone(),
            _ => BTreeMap::new(),
        };
        let read = |(nth, lookup): (usize, Lookup)| async move { (nth, lookup().await) };
        let mut found = stream::iter(unread).map(read).buffer_unordered(AT_ONCE);
        while let Some((nth, (number, blobs))) = found.next().await {
            if let Some(shelf) = self.lock().get_mut(registry) {
                shelf.unread.remove(&nth);
                let room = MAX_HOLDERS.saturating_sub(shelf.holders.len());
                shelf.holders.extend(blobs.into_iter().take(room).map(|blob| (blob, number)));
            }
        }
        self.lock().get(registry)?.holders.get(blob).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<RegistryName, Shelf>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The blobs of an image that the destination holds, as far as its manifests can be read.
async fn blobs<D: Destination>(destination: &D, root: Digest) -> Vec<Digest> {
    let (mut found, mut wanted, mut read) = (Vec::new(), vec![root], 0);
    while let Some(digest) = wanted.pop() {
        read += 1;
        if read > MOST_MANIFESTS {
            break;
        }
        if found.len() > MAX_BLOBS {
            break;
        }
        match destination.stored(&digest).await {
            Ok(manifest) => note(&manifest, &mut found, &mut wanted),
            Err(error) => tracing::debug!("{digest} of a finished image is not read: {error}"),
        }
    }
    found
}

fn note(manifest: &Manifest, found: &mut Vec<Digest>, wanted: &mut Vec<Digest>) {
    let contents = manifest.contents();
    let blobs = contents.blobs.iter().filter(|blob| !blob.media_type.is_foreign_layer());
    found.extend(blobs.filter(|blob| Some(blob.digest) != contents.config).map(|blob| blob.digest));
    wanted.extend(contents.manifests.iter().take(MOST_MANIFESTS).map(|child| child.digest));
}

/// Images noted, of each registry. What a long list's others hold is sent again, which costs bytes only.
const MOST: usize = 256;
/// Manifests read of one of them.
const MOST_MANIFESTS: usize = 32;
/// Blobs noted of one of them, before no more of its manifests are read; and of all images of a registry.
const MAX_BLOBS: usize = 1000;
const MAX_HOLDERS: usize = 200_000;
const AT_ONCE: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use futures_util::future::pending;

    use super::*;
    use crate::copy::Directory;
    use crate::reference::Repository;

    #[tokio::test]
    async fn what_was_not_read_to_the_end_is_read_by_the_next_one() {
        let (finished, directory) = (Finished::default(), Directory::default());
        let number = directory.number(&"r.io/app".parse::<Repository>().expect("a repository"));
        let [quick, slow] = [b"quick", b"slow!"].map(|name| Digest::of(name));
        let asked = Arc::new([AtomicUsize::new(0), AtomicUsize::new(0)]);
        for (nth, digest) in [quick, slow].into_iter().enumerate() {
            let asked = asked.clone();
            finished.add("r.io".into(), move || {
                let stuck = asked[nth].fetch_add(1, Ordering::Relaxed) == 0 && nth == 1;
                async move { if stuck { pending().await } else { (number, vec![digest]) } }.boxed()
            });
        }
        assert!(finished.holder("r.io", &slow).now_or_never().is_none(), "its image fails meanwhile");
        assert_eq!(finished.holder("r.io", &slow).await, Some(number));
        assert_eq!(finished.holder("r.io", &quick).await, Some(number));
        let asked = asked.each_ref().map(|times| times.load(Ordering::Relaxed));
        assert_eq!(asked, [1, 2], "and what was read isn't read again");
    }
}
