//! Transfers one blob in the cheapest way: known to exist, mounted, found at the destination, or streamed.

use std::sync::Arc;

use futures_util::future;

use super::blob_locations::RepositoryId;
use super::concurrency::{SMALL_BLOB, TransferSlot};
use super::locks::{LockScope, ManifestLock};
use super::{BLOB_PATIENCE, BlobStep, Engine, Mode, Observer, Outcome, Plan, Report};
use crate::content::{Destination, Feed, Source, UploadStart};
use crate::descriptor::Descriptor;
use crate::error::{Kind, Result, Side};
use crate::reference::Repository;
use crate::retry::Budget;
use crate::verify::Verified;

impl Engine {
    /// Transfers the blob of `step` to the destination, unless the destination has it.
    pub(super) async fn transfer<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        step: &BlobStep,
    ) -> Result<Outcome> {
        let blob = &step.blob;
        let here = destination.repository();
        let number = self.blob_locations.id_of(here);
        let holders = self.blob_locations.holders(&here.registry, blob.digest);
        // Waiting for another transfer of the same blob takes no slot.
        let mut held = holders.lock().await;
        let outcome = if held.contains(&number) {
            Outcome::Present
        } else if let Some(from) = self.holder(&held).or_else(|| sibling_repository(source, here).cloned()) {
            // The other repository has the blob, so other transfers need not wait for this mount.
            drop(held);
            // Mounts into the same repository do wait: one request is enough, and docker-registry rewrites its link at
            // each mount, while it may be checking a manifest that needs the blob (400 `DIGEST_INVALID`). A `None` here
            // only means that a manifest has this digest.
            let _alone = self.locks.acquire(LockScope::Repository(number), number, blob.digest).await;
            let mounted = holders.lock().await.contains(&number);
            if mounted {
                Outcome::Present
            } else {
                let outcome = self.mount(source, destination, blob, from).await?;
                holders.lock().await.push(number);
                outcome
            }
        } else {
            let outcome = self.bring(source, destination, step).await?;
            held.push(number);
            outcome
        };
        match &outcome {
            Outcome::Uploaded { attempts: 0 | 1, bytes } => {
                tracing::info!("blob {}: {bytes} bytes sent", blob.digest.short())
            }
            Outcome::Uploaded { attempts, bytes } => {
                tracing::info!("blob {}: {bytes} bytes sent, in {attempts} attempts", blob.digest.short());
            }
            Outcome::Mounted { from } => tracing::info!("blob {}: mounted from {from}", blob.digest.short()),
            Outcome::Present => tracing::info!("blob {}: there already", blob.digest.short()),
        }
        self.observer.finished(blob, &outcome);
        Ok(outcome)
    }

    /// Tells the observer that this blob is given up, unless its transfer ends well.
    pub(super) fn abandon_on_drop<'a>(&'a self, blob: &'a Descriptor) -> AbandonGuard<'a> {
        AbandonGuard { observer: &*self.observer, blob, finished: false }
    }

    fn holder(&self, held: &[RepositoryId]) -> Option<Repository> {
        held.first().and_then(|number| self.blob_locations.repository(*number))
    }

    async fn acquire_slot<S: Source>(&self, source: &S, here: &Repository, size: u64) -> TransferSlot<'_> {
        let from = source.origin().map_or("", |origin| &origin.registry);
        self.slots.acquire(from, &here.registry, size).await
    }

    async fn mount<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        blob: &Descriptor,
        from: Repository,
    ) -> Result<Outcome> {
        match destination.start_upload(blob, Some(&from)).await.map_err(|error| error.on(Side::Destination))? {
            UploadStart::Mounted => Ok(Outcome::Mounted { from: from.to_string() }),
            UploadStart::Session(session) => {
                let _slot = self.acquire_slot(source, destination.repository(), blob.size).await;
                let feed = self.feed(source, blob);
                let body = feed.open(0).await?;
                upload(destination, session, &feed, body).await?;
                Ok(Outcome::Uploaded { bytes: blob.size, attempts: feed.budget().attempts() })
            }
        }
    }

    async fn bring<S: Source, D: Destination>(&self, source: &S, destination: &D, step: &BlobStep) -> Result<Outcome> {
        let blob = &step.blob;
        let ask = !step.fresh || blob.size > SMALL_BLOB;
        if ask && is_present(destination, blob).await? {
            return Ok(Outcome::Present);
        }
        let here = destination.repository();
        if let Some(from) = self.other_holder(here, blob).await {
            return self.mount(source, destination, blob, from).await;
        }
        let _slot = self.acquire_slot(source, here, blob.size).await;
        let feed = self.feed(source, blob);
        let start = async { destination.start_upload(blob, None).await.map_err(|error| error.on(Side::Destination)) };
        let (started, body) = future::try_join(start, feed.open(0)).await?;
        if let UploadStart::Session(session) = started {
            upload(destination, session, &feed, body).await?;
        }
        Ok(Outcome::Uploaded { bytes: blob.size, attempts: feed.budget().attempts() })
    }

    /// A repository where an unchanged image has this blob. Small blobs are not looked for.
    async fn other_holder(&self, here: &Repository, blob: &Descriptor) -> Option<Repository> {
        if self.mode == Mode::SingleImage || blob.size <= SMALL_BLOB {
            return None;
        }
        let number = self.mount_candidates.holder(&here.registry, &blob.digest).await?;
        self.blob_locations.repository(number).filter(|from| from != here)
    }

    /// Reports what [`Engine::transfer`] would do with each blob.
    pub(super) async fn find_present<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        plan: &Plan,
        report: &mut Report,
    ) -> Result<()> {
        let here = destination.repository();
        let number = self.blob_locations.id_of(here);
        for step in &plan.blobs {
            let holders = self.blob_locations.holders(&here.registry, step.blob.digest);
            let mut held = holders.lock().await;
            let outcome = if held.contains(&number) || is_present(destination, &step.blob).await? {
                Outcome::Present
            } else if let Some(from) = self.holder(&held).as_ref().or(sibling_repository(source, here)) {
                Outcome::Mounted { from: from.to_string() }
            } else if let Some(from) = self.other_holder(here, &step.blob).await {
                Outcome::Mounted { from: from.to_string() }
            } else {
                Outcome::Uploaded { bytes: step.blob.size, attempts: 0 }
            };
            held.push(number);
            report.add(&step.blob, &outcome);
        }
        // For later tags the children count as written.
        for child in plan.waves.iter().rev().skip(1).flatten() {
            let scope = LockScope::Registry(here.registry.clone());
            self.locks.acquire(scope, number, child.digest()).await.into_iter().for_each(ManifestLock::finish);
        }
        Ok(())
    }

    fn feed<S: Source>(&self, source: &S, blob: &Descriptor) -> Feed<S> {
        self.observer.started(blob);
        let (observer, digest) = (self.observer.clone(), blob.digest);
        let moved = Arc::new(move |bytes| observer.moved(&digest, bytes));
        Feed::new(source.clone(), blob.clone(), Budget::new(self.retries, BLOB_PATIENCE), moved)
    }
}

/// A transfer that is under way.
pub(super) struct AbandonGuard<'a> {
    observer: &'a dyn Observer,
    blob: &'a Descriptor,
    finished: bool,
}

impl AbandonGuard<'_> {
    /// The blob is at the destination.
    pub(super) fn finish(mut self) {
        self.finished = true;
    }
}

impl Drop for AbandonGuard<'_> {
    fn drop(&mut self) {
        if !self.finished {
            self.observer.abandoned(self.blob);
        }
    }
}

/// Planned bytes of an image that are not at the destination yet.
pub(super) struct PlannedBytes<'a> {
    observer: &'a dyn Observer,
    left: u64,
}

impl<'a> PlannedBytes<'a> {
    pub(super) fn new(observer: &'a dyn Observer, plan: &Plan) -> Self {
        observer.planned(plan.blobs.len(), plan.bytes());
        Self { observer, left: plan.bytes() }
    }

    /// A blob is at the destination.
    pub(super) fn finished(&mut self, blob: &Descriptor) {
        self.left = self.left.saturating_sub(blob.size);
    }
}

impl Drop for PlannedBytes<'_> {
    fn drop(&mut self) {
        if self.left > 0 {
            self.observer.unplanned(self.left);
        }
    }
}

/// Sends the blob, and all of it once more where the source's bytes were damaged on the way.
async fn upload<S: Source, D: Destination>(
    destination: &D,
    session: D::Session,
    feed: &Feed<S>,
    body: Verified,
) -> Result<()> {
    let (mut session, mut body) = (session, body);
    loop {
        let error = match destination.upload(session, feed, body).await {
            Ok(()) => return Ok(()),
            Err(error) => error.on(Side::Destination),
        };
        if error.kind() != Kind::Mismatch || error.side() != Some(Side::Source) {
            return Err(error);
        }
        // The old session is abandoned, since it has damaged bytes.
        body = feed.reopen_after(error).await?;
        session =
            match destination.start_upload(feed.blob(), None).await.map_err(|error| error.on(Side::Destination))? {
                UploadStart::Mounted => return Ok(()),
                UploadStart::Session(session) => session,
            };
    }
}

/// Whether the blob is at the destination.
///
/// In a new repository small blobs are not looked for. A large blob may exist: an interrupted run may have sent it before
/// it wrote a tag.
async fn is_present<D: Destination>(destination: &D, blob: &Descriptor) -> Result<bool> {
    if blob.size <= SMALL_BLOB && destination.is_new().await {
        return Ok(false);
    }
    destination.has_blob(blob).await.map_err(|error| error.on(Side::Destination))
}

/// The source's repository, if it is another repository of the destination's registry. Its blobs can be mounted.
fn sibling_repository<'a, S: Source>(source: &'a S, here: &Repository) -> Option<&'a Repository> {
    source.origin().filter(|origin| origin.registry == here.registry && *origin != here)
}
