//! Write-back: images that only a later tier had are copied into the first tier, by the copy engine.

use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};

use super::origins::RegistryOrigins;
use crate::content::Source as _;
use crate::copy::{Engine, NoObserver, Options};
use crate::error::{Error, Kind, Result};
use crate::proxy::Proxy;
use crate::proxy::upstreams::UpstreamConfig;
use crate::proxy::writeback::{CopyOutcome, Job, Queue};

/// The options of write-back.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Copy images that only a later tier had into the first tier, in the background
    #[arg(long, help_heading = "Operation")]
    write_back: bool,
    /// Read the credentials for --write-back from this file first
    #[arg(long, value_name = "FILE", requires = "write_back", help_heading = "Operation")]
    pub(super) write_back_auth_file: Option<PathBuf>,
}

impl Args {
    /// Enables write-back for the upstreams with several tiers.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there are none.
    pub(super) fn mark(&self, specs: &mut [UpstreamConfig]) -> Result<()> {
        for spec in specs.iter_mut() {
            spec.write_back = self.write_back && spec.tiers.len() > 1;
        }
        if self.write_back && !specs.iter().any(|spec| spec.write_back) {
            return Err(Error::new(Kind::Usage, "--write-back needs an upstream with several tiers")
                .hint("example: --upstream docker.io=myregistry.azurecr.io/docker.io,docker.io"));
        }
        Ok(())
    }
}

/// Copies the queued images, forever. Upstreams and credentials may change at the same time.
///
/// Written blobs are remembered, so that images with the same base can mount them. A registry may have removed them since, for
/// example by a retention policy. So after a failure all of them are forgotten.
pub(super) async fn run(queue: &Queue, proxy: &Proxy<RegistryOrigins>) {
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

async fn copy(engine: &Engine, proxy: &Proxy<RegistryOrigins>, job: Job, moved: Arc<AtomicU64>) -> Result<CopyOutcome> {
    let gone =
        || Error::new(Kind::NotFound, format!("write-back is not enabled for {}/{}", job.upstream, job.repository));
    let (source, durable) = proxy.cached_source(&job.upstream, &job.repository, moved).ok_or_else(gone)?;
    let target = job.target()?;
    let destination = proxy.origins().write_back_repository(&job.upstream, &durable)?;
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
