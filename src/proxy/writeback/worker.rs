//! The worker: copies what is in the queue by the copy engine, through the proxy's cache.

use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use super::{CopyOutcome, Job, Queue};
use crate::content::{Destination, Source};
use crate::copy::{Engine, NoObserver, Options};
use crate::error::{Error, Kind, Result};
use crate::proxy::{Origins, Proxy};
use crate::reference::Repository;

/// Gives the repositories of first tiers, to be written.
pub trait WriteBackOrigins: Origins {
    /// A repository that can be asked, and written.
    type FirstTier: Source + Destination;

    /// The repository of this name in the first tier of the upstream `upstream`. Asks nobody yet.
    fn first_tier(&self, upstream: &str, repository: &Repository) -> Result<Self::FirstTier>;
}

/// Works the queue off, for ever. Which upstreams are written to, and as whom, may change meanwhile.
///
/// What was written is believed to be there, so that images of one base have it mounted. It may have been removed
/// since, by a registry's retention say: so after a failure nothing is believed any more.
pub async fn run<O: WriteBackOrigins>(queue: &Queue, proxy: &Proxy<O>) {
    let new = || Arc::new(Engine::new(2, Arc::new(NoObserver)));
    let shared = Mutex::new(new());
    let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
    let copied = async |job, moved| {
        let engine = lock().clone();
        let done = copy(&engine, proxy, job, moved).await;
        let mut shared = lock();
        // Others that began with the same one fail by themselves, if they do.
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
    let gone = || Error::new(Kind::NotFound, format!("nothing is written back of {}/{}", job.upstream, job.repository));
    let (source, durable) = proxy.cached_source(&job.upstream, &job.repository, moved).ok_or_else(gone)?;
    let target = job.target()?;
    let destination = proxy.origins().first_tier(&job.upstream, &durable)?;
    // It may only have been silent when it was asked: what it calls by a tag is its own business.
    match destination.resolve(&target).await {
        Ok(Some(_)) => return Ok(CopyOutcome::Present),
        Ok(None) => {}
        Err(error) if error.kind() == Kind::NotFound => {}
        Err(error) => return Err(error),
    }
    engine.copy(&source, &target, &destination, &target, &Options::default()).await?;
    Ok(CopyOutcome::Copied)
}
