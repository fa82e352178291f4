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

/// Whether, and as whom.
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
    /// Marks the upstreams that have several tiers.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there are none.
    pub(super) fn mark(&self, specs: &mut [UpstreamConfig]) -> Result<()> {
        for spec in specs.iter_mut() {
            spec.write_back = self.write_back && spec.tiers.len() > 1;
        }
        if self.write_back && !specs.iter().any(|spec| spec.write_back) {
            return Err(Error::new(Kind::Usage, "--write-back needs an upstream with several tiers")
                .hint("write such as --upstream docker.io=myregistry.azurecr.io/docker.io,docker.io"));
        }
        Ok(())
    }
}

/// Works the queue off, for ever. Which upstreams are written to, and as whom, may change meanwhile.
///
/// What was written is believed to be there, so that images of one base have it mounted. It may have been removed
/// since, by a registry's retention say: so after a failure nothing is believed any more.
pub(super) async fn run(queue: &Queue, proxy: &Proxy<RegistryOrigins>) {
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

async fn copy(engine: &Engine, proxy: &Proxy<RegistryOrigins>, job: Job, moved: Arc<AtomicU64>) -> Result<CopyOutcome> {
    let gone = || Error::new(Kind::NotFound, format!("nothing is written back of {}/{}", job.upstream, job.repository));
    let (source, durable) = proxy.cached_source(&job.upstream, &job.repository, moved).ok_or_else(gone)?;
    let target = job.target()?;
    let destination = proxy.origins().write_back_repository(&job.upstream, &durable)?;
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
