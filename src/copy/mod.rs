//! The engine: copies one image, or plans to. Knows no HTTP.
//!
//! ```text
//! resolve both ends ── equal ──> nothing to do (two requests); of some platforms the walk says so, from
//!        │                       the index at the destination
//!      walk            graph: what the source has and the destination hasn't
//!        │
//!      plan            pure: which blobs, which manifests in which waves
//!        │
//!     transfer         blobs, each once: held? mount? there? else stream
//!        │
//!   waves of manifests children first, the tag last
//!        │
//!    referrers         on request: signatures, attestations, SBOMs
//! ```

mod blob_locations;
mod concurrency;
mod document;
mod graph;
mod locks;
mod memory;
mod mount_candidates;
mod plan;
mod referrers;
mod report;
mod resolve;
mod transfer;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use tokio::time::Instant;

pub use self::blob_locations::BlobLocations;
use self::concurrency::{SMALL_SLOTS_PER_LARGE, TransferSlots};
pub use self::document::{CopyResult, Entry, Failure, Quota, RegistryUsage, Summary};
pub use self::graph::Graph;
use self::graph::{ManifestDigests, Walk};
use self::locks::{LockScope, ManifestLock, ManifestLocks};
pub(crate) use self::memory::Account;
use self::memory::Memory;
use self::mount_candidates::MountCandidates;
pub use self::plan::{BlobStep, Plan};
pub use self::report::Platforms;
pub use self::report::{NoObserver, Observer, Outcome, Report, Status};
use self::resolve::ResolvedRoot;
use self::transfer::PlannedBytes;

use crate::content::{Destination, Source};
use crate::descriptor::{Descriptor, Digest, Platform};
use crate::error::{Error, Kind, Result, Side};
use crate::manifest::Manifest;
use crate::reference::Target;

/// What is to be copied of an image, and how.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Of an index only these platforms' images; all if empty.
    pub platforms: Vec<Platform>,
    /// The one image of `platforms` instead of the index.
    pub flatten: bool,
    /// Signatures, attestations and other referrers too.
    pub referrers: bool,
    /// Walk the whole image and repair it, even if the destination's tag is the same.
    pub force: bool,
    /// Only say what would be done.
    pub dry_run: bool,
    /// Layers that are foreign (not distributable) too.
    pub include_foreign: bool,
}

/// What an engine saves. It is the engine's, not a copy's: what one copy learned serves the next one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Round trips, for an image or for a process that stays: both ends are asked at once, and the destination is asked
    /// for all that may have been removed since it was written.
    #[default]
    SingleImage,
    /// Requests, for one run over a list, whose images fill each other's round trips. The source isn't asked what its
    /// tag is where the destination hasn't that tag. What the run wrote or saw at the destination is there, and
    /// unchanged images say which blobs can be mounted.
    List,
}

/// What all copies of a run share: which repository holds which blob, and how much runs at once.
pub struct Engine {
    blob_locations: BlobLocations,
    locks: ManifestLocks,
    slots: TransferSlots,
    mount_candidates: MountCandidates,
    memory: Memory,
    jobs: usize,
    mode: Mode,
    /// Faults that are forgiven to one blob.
    retries: u32,
    observer: Arc<dyn Observer>,
}

impl Engine {
    /// An engine that moves up to `jobs` large blobs at once from each source and to each destination,
    /// and tells `observer`.
    pub fn new(jobs: usize, observer: Arc<dyn Observer>) -> Self {
        let jobs = jobs.max(1);
        Self {
            blob_locations: BlobLocations::default(),
            locks: ManifestLocks::default(),
            slots: TransferSlots::new(jobs),
            mount_candidates: MountCandidates::default(),
            memory: Memory::default(),
            jobs,
            mode: Mode::default(),
            retries: BLOB_RETRIES,
            observer,
        }
    }

    /// The same, but with so many faults forgiven to each blob instead of 8.
    #[must_use]
    pub fn with_retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// The same, in this mode.
    #[must_use]
    pub fn with_mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// Copies what `target` is in `source` to `at` in `destination`.
    ///
    /// The tag is written last, so that an interrupted or failed copy leaves none. Dropping the
    /// future stops the copy; upload sessions stay open until their registry is told to abandon them.
    ///
    /// # Errors
    /// With the side they happened on. What was moved until then stays and isn't moved again.
    pub async fn copy<S: Source, D: Destination>(
        &self,
        source: &S,
        target: &Target,
        destination: &D,
        at: &Target,
        options: &Options,
    ) -> Result<Report> {
        let begun = Instant::now();
        let (root, pulls) = self.resolve_root(source, target, destination, at, options).await?;
        let mut report = Report { pulls, ..Report::default() };
        let held = match root {
            ResolvedRoot::Same(root) => {
                let graph = Graph::present(*root.clone());
                self.unchanged(destination, &root, &graph, &mut report);
                graph.into_digests()
            }
            ResolvedRoot::Read(root, from) => {
                Box::pin(self.copy_image(source, destination, (root, from), at, options, &mut report)).await?
            }
        };
        // No turn is held any more, and no manifest: what refers to an image may hold it too, and would wait for this.
        if options.referrers {
            report.referrers = self.referrers(source, destination, held, options, &mut report).await?;
        }
        report.duration_seconds = begun.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Copies the image with this root. Gives back which manifests it has.
    async fn copy_image<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        (root, from): (Manifest, Side),
        at: &Target,
        options: &Options,
        report: &mut Report,
    ) -> Result<ManifestDigests> {
        let account = self.memory.account();
        let digest = root.digest();
        let (_alone, root) = if memory::is_small(&root) {
            (self.lock_source(source, destination, digest).await, root)
        } else {
            // Many may wait: none of them keeps a large manifest meanwhile.
            drop(root);
            let alone = self.lock_source(source, destination, digest).await;
            account.wait_for_lane().await;
            let root = match from {
                Side::Destination => destination.existing_manifest(&digest).await,
                _ => source.manifest(&Target::Digest(digest)).await,
            };
            report.pulls += usize::from(from == Side::Source);
            (alone, root.map_err(|error| error.on(from))?)
        };
        account.root(&root).await?;
        let walk = Walk { account: &account, jobs: self.jobs * SMALL_SLOTS_PER_LARGE, knows: self.knows() };
        let graph = walk.run(source, destination, (root, from), options).await?;
        report.pulls += graph.pulls;
        match &graph.manifests[..] {
            [root] if from == Side::Destination => {
                self.unchanged(destination, root.descriptor(), &graph, report);
            }
            _ => {
                let plan = Plan::new(&graph, options)?;
                let (blobs, bytes) = (plan.blobs.len(), plan.bytes());
                let manifests = graph.manifests.len();
                tracing::info!("{}: manifests: {manifests}, blobs: {blobs} ({bytes} bytes)", destination.repository());
                report.planned(&graph, &plan);
                self.write_image(source, destination, &plan, at, options, report).await?;
            }
        }
        Ok(graph.into_digests())
    }

    /// The turn to write a manifest, unless this run knows that it's there.
    async fn lock_manifest<D: Destination>(&self, destination: &D, manifest: Digest) -> Option<ManifestLock<'_>> {
        let here = destination.repository();
        let scope = LockScope::Registry(here.registry.clone());
        self.locks.acquire(scope, self.blob_locations.id_of(here), manifest).await
    }

    /// The turn to read what a manifest names and to bring it from this source's registry, unless this run knows
    /// that it's there. Of an image's tags the first one does, and the others find it there. Another source's wait
    /// for the writing alone: one that is held back, as Docker Hub is without pulls, holds up none of them.
    async fn lock_source<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        manifest: Digest,
    ) -> Option<ManifestLock<'_>> {
        let here = self.blob_locations.id_of(destination.repository());
        let from = source.origin().map(|origin| origin.registry.clone());
        self.locks.acquire(LockScope::Source(from, here), here, manifest).await
    }

    fn unchanged<D: Destination>(&self, destination: &D, root: &Descriptor, graph: &Graph, report: &mut Report) {
        if self.mode == Mode::List {
            let number = self.blob_locations.id_of(destination.repository());
            self.mount_candidates.add_image(destination, number, root.digest);
        }
        report.unchanged(root, graph);
    }

    /// Does what is planned in its root's turn, or only looks.
    async fn write_image<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        plan: &Plan,
        at: &Target,
        options: &Options,
        report: &mut Report,
    ) -> Result<()> {
        let Some(root) = plan.waves.last().and_then(|last| last.first()) else { return Ok(()) };
        let manifest_lock = self.lock_manifest(destination, root.digest()).await;
        if options.dry_run {
            self.find_present(source, destination, plan, report).await?;
        } else {
            self.copy_blobs(source, destination, plan, report).await?;
            self.put_manifests(destination, plan, at).await?;
        }
        manifest_lock.into_iter().for_each(ManifestLock::finish);
        Ok(())
    }

    /// Of which children of indexes it's known that they're there. One that stays, as a proxy's does, goes by
    /// what the destination says: what was written may have been removed since.
    fn knows(&self) -> Option<&Self> {
        (self.mode == Mode::List).then_some(self)
    }

    async fn copy_blobs<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        plan: &Plan,
        report: &mut Report,
    ) -> Result<()> {
        let mut planned = PlannedBytes::new(&*self.observer, plan);
        stream::iter(&plan.blobs)
            .map(|step| async move {
                let guard = self.abandon_on_drop(&step.blob);
                let outcome = self.transfer(source, destination, step).await?;
                guard.finish();
                Ok::<_, Error>((step, outcome))
            })
            .buffer_unordered(self.jobs * (SMALL_SLOTS_PER_LARGE + 1))
            .try_for_each(|(step, outcome)| {
                report.add(&step.blob, &outcome);
                planned.finished(&step.blob);
                future::ready(Ok(()))
            })
            .await
    }

    /// Writes the manifests, each after all that it names.
    async fn put_manifests<D: Destination>(&self, destination: &D, plan: &Plan, at: &Target) -> Result<()> {
        let Some((last, waves)) = plan.waves.split_last() else { return Ok(()) };
        for wave in waves {
            stream::iter(wave)
                .map(|manifest| self.put_child(destination, manifest))
                .buffer_unordered(self.jobs * SMALL_SLOTS_PER_LARGE)
                .try_for_each(|()| future::ready(Ok(())))
                .await?;
        }
        for root in last {
            self.put(destination, root, at.clone()).await.map_err(|error| self.explain_sparse(error, plan))?;
        }
        Ok(())
    }

    /// Writes a child, unless it's there.
    async fn put_child<D: Destination>(&self, destination: &D, child: &Manifest) -> Result<()> {
        let manifest_lock = self.lock_manifest(destination, child.digest()).await;
        if manifest_lock.is_none() && self.mode == Mode::List {
            return Ok(());
        }
        self.put(destination, child, Target::Digest(child.digest())).await?;
        manifest_lock.into_iter().for_each(ManifestLock::finish);
        Ok(())
    }

    async fn put<D: Destination>(&self, destination: &D, manifest: &Manifest, at: Target) -> Result<()> {
        let pushed = destination.put_manifest(manifest, &at).await.map_err(|error| error.on(Side::Destination))?;
        match &manifest.contents().subject {
            Some(subject) if !pushed.lists_referrer => self.list_referrer(destination, subject, manifest).await,
            _ => Ok(()),
        }
    }

    /// Registries may refuse an index of which they don't hold all children.
    fn explain_sparse(&self, error: Error, plan: &Plan) -> Error {
        if plan.sparse && matches!(error.kind(), Kind::Registry | Kind::NotFound | Kind::Invalid) {
            return error.hint(
                "this registry takes no index without all of its platforms: copy all, or one by transload copy --platform with --flatten",
            );
        }
        error
    }
}

const BLOB_RETRIES: u32 = 8;
/// What a blob may be waited for in all, faults and `Retry-After` together.
const BLOB_PATIENCE: Duration = Duration::from_secs(30 * 60);
