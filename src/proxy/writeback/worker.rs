//! The worker: copies the queued images by the copy engine, through the proxy's cache.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use super::{CopyOutcome, Job, Queue};
use crate::content::{Destination, Source};
use crate::copy::{Engine, NoObserver, Options};
use crate::error::{Error, Kind, Result};
use crate::proxy::{Origins, Proxy};
use crate::reference::Repository;

/// Gives access to the repositories of first tiers, for writing.
pub(crate) trait WriteBackOrigins: Origins {
    /// A repository for reading and writing.
    type FirstTier: Source + Destination;

    /// The repository of this name in the first tier of the upstream `upstream`. Sends no request.
    fn first_tier(&self, upstream: &str, repository: &Repository) -> Result<Self::FirstTier>;
}

/// Copies the queued images, forever. Upstreams and credentials may change at the same time.
///
/// Written blobs are remembered, so that images with the same base can mount them. A registry may have removed them since, for
/// example by a retention policy. So after a failure all of them are forgotten.
pub(crate) async fn run<O: WriteBackOrigins>(queue: &Queue, proxy: &Proxy<O>) {
    let new = || Arc::new(Engine::new(2, Arc::new(NoObserver)));
    let shared = Mutex::new(new());
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let copied = async |job, moved| {
        let engine = lock().clone();
        let done = copy(&engine, proxy, job, moved).await;
        let mut shared = lock();
        // Running copies keep the old engine, and may fail as well.
        if done.is_err() && Arc::ptr_eq(&shared, &engine) {
            *shared = new();
        }
        done
    };
    queue.run(|job, moved| Box::pin(copied(job, moved))).await;
}

async fn copy<O: WriteBackOrigins>(
    engine: &Engine,
    proxy: &Proxy<O>,
    job: Job,
    moved: Arc<AtomicU64>,
) -> Result<CopyOutcome> {
    let gone =
        || Error::new(Kind::NotFound, format!("write-back is not enabled for {}/{}", job.upstream, job.repository));
    let (source, durable) = proxy.cached_source(&job.upstream, &job.repository, moved).ok_or_else(gone)?;
    let target = job.target()?;
    let destination = proxy.origins().first_tier(&job.upstream, &durable)?;
    // The first tier may have a tag, but did not answer when it was asked: its tag is not overwritten.
    match destination.resolve(&target).await {
        Ok(Some(_)) => return Ok(CopyOutcome::Present),
        Ok(None) => {}
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    engine.copy(&source, &target, &destination, &target, &Options::default()).await?;
    Ok(CopyOutcome::Copied)
}
