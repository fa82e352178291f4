//! Images that a destination had when their turn came: what they hold can be mounted elsewhere.
//!
//! Of such an image only the digest is known. Its manifests are read, from the destination and not from
//! the source, when a large blob would have to be sent otherwise: so a list's second run sends no layer
//! that an image of the first run has, and one without anything to send reads nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;
use futures_util::{FutureExt as _, StreamExt as _, stream};

use super::directory::Number;
use crate::content::Destination;
use crate::descriptor::Digest;
use crate::manifest::Manifest;

/// The finished images of a run, by registry.
#[derive(Default)]
pub(super) struct Finished(Mutex<HashMap<String, Shelf>>);

#[derive(Default)]
struct Shelf {
    /// Images of which the digest alone is known.
    unread: Vec<Lookup>,
    /// Noted so far.
    noted: usize,
    /// Who has a blob.
    holders: HashMap<Digest, Number>,
    /// One reads, the others wait for what he finds.
    reading: Arc<tokio::sync::Mutex<()>>,
}

type Lookup = Box<dyn FnOnce() -> BoxFuture<'static, (Number, Vec<Digest>)> + Send>;

impl Finished {
    /// Notes that `destination`, which has this number, holds the image `root`.
    pub(super) fn note<D: Destination>(&self, destination: &D, number: Number, root: Digest) {
        let mut shelves = self.lock();
        let shelf = shelves.entry(destination.repository().registry.clone()).or_default();
        if shelf.noted >= MOST {
            return;
        }
        shelf.noted += 1;
        let destination = destination.clone();
        shelf.unread.push(Box::new(move || async move { (number, Box::pin(blobs(&destination, root)).await) }.boxed()));
    }

    /// A repository of `registry` whose finished images have the blob.
    pub(super) async fn holder(&self, registry: &str, blob: &Digest) -> Option<Number> {
        let reading = self.lock().get(registry)?.reading.clone();
        let _alone = reading.lock().await;
        let unread = match self.lock().get_mut(registry) {
            Some(shelf) if !shelf.holders.contains_key(blob) => std::mem::take(&mut shelf.unread),
            _ => Vec::new(),
        };
        let mut found = stream::iter(unread).map(|lookup| lookup()).buffer_unordered(AT_ONCE);
        while let Some((number, blobs)) = found.next().await {
            if let Some(shelf) = self.lock().get_mut(registry) {
                shelf.holders.extend(blobs.into_iter().map(|blob| (blob, number)));
            }
        }
        self.lock().get(registry)?.holders.get(blob).copied()
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Shelf>> {
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
    wanted.extend(contents.manifests.iter().map(|child| child.digest));
}

/// Images noted, of each registry. What a long list's others hold is sent again, which costs bytes only.
const MOST: usize = 256;
/// Manifests read of one of them.
const MOST_MANIFESTS: usize = 32;
const AT_ONCE: usize = 16;
