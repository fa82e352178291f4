//! Write-back: what only an original had is copied into the durable tier, by the copy engine.

use std::path::PathBuf;
use std::sync::Arc;

use prometheus_client::registry::Registry;

use crate::cli::global::Global;
use crate::content::Source as _;
use crate::copy::{Engine, Options, Silent};
use crate::credentials::Credentials;
use crate::error::{Error, Kind, Result};
use crate::proxy::Settings;
use crate::proxy::world::Spec;
use crate::proxy::writeback::{Done, Job, Queue};
use crate::registry::{self, Registries};

/// Whether, and as whom.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Copy what only an original had into the upstream's first registry, in the background
    #[arg(long, help_heading = "Operation")]
    write_back: bool,
    /// Look for the credentials of that in this file first
    #[arg(long, value_name = "FILE", requires = "write_back", help_heading = "Operation")]
    write_back_auth_file: Option<PathBuf>,
}

/// The queue, and what it takes to work it off.
pub(super) struct WriteBack {
    pub(super) queue: Queue,
    registries: Registries,
    engine: Engine,
    upstreams: Vec<Spec>,
}

impl Args {
    /// Reads the queue of the cache's directory; `None` where nothing is to be written.
    ///
    /// # Errors
    /// If the credentials can't be read.
    pub(super) fn open(
        &self,
        settings: &Settings,
        global: &Global,
        metrics: &mut Registry,
    ) -> Result<Option<WriteBack>> {
        if !self.write_back {
            return Ok(None);
        }
        let mut places = global.settings()?;
        if let Some(file) = &self.write_back_auth_file {
            places.auth_files.insert(0, file.clone());
        }
        let credentials = Credentials::load(&places)?;
        // Connections and limits of its own: pulls come first.
        let registries = Registries::new(registry::Options { credentials, ..global.options()? });
        let queue = Queue::open(&settings.cache.dir, metrics);
        let engine = Engine::new(2, Arc::new(Silent));
        Ok(Some(WriteBack { queue, registries, engine, upstreams: settings.upstreams.clone() }))
    }
}

impl WriteBack {
    /// Works the queue off, for ever.
    pub(super) async fn run(&self) {
        self.queue.run(|job| Box::pin(self.copy(job))).await;
    }

    async fn copy(&self, job: Job) -> Result<Done> {
        let gone = || Error::new(Kind::NotFound, format!("there is no upstream {} with that tier", job.upstream));
        let spec = self.upstreams.iter().find(|spec| spec.name == job.upstream).ok_or_else(gone)?;
        let (from, to) = (spec.tiers.get(job.tier).ok_or_else(gone)?, spec.tiers.first().ok_or_else(gone)?);
        if job.tier == 0 {
            return Err(gone());
        }
        let target = job.target()?;
        let source = self.registries.repository(&from.repository(&job.repository))?;
        let destination = self.registries.repository(&to.repository(&job.repository))?;
        // It may only have been silent when it was asked: what it calls by a tag is its own business.
        match destination.resolve(&target).await {
            Ok(Some(_)) => return Ok(Done::Present),
            Ok(None) => {}
            Err(error) if error.kind() == Kind::NotFound => {}
            Err(error) => return Err(error),
        }
        self.engine.copy(&source, &target, &destination, &target, &Options::default()).await?;
        Ok(Done::Copied)
    }
}
