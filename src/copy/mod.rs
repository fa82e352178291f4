//! The engine: copies one image, or plans to. It knows no HTTP.
//!
//! ```text
//! resolve both ends ── equal ──> nothing to do (two requests); with selected platforms the walk finds that out,
//!        │                       from the index at the destination
//!      walk            graph: manifests that the destination lacks
//!        │
//!      plan            pure: the blobs, and the manifests in waves
//!        │
//!     transfer         blobs, each once: known? mount? exists? else stream
//!        │
//!   waves of manifests children first, the tag last
//!        │
//!    referrers         on request: signatures, attestations, SBOMs
//! ```

mod artifact_tags;
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

use self::artifact_tags::ArtifactTagLists;
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

/// The options of a copy.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Copy only the images of these platforms from an index; all if empty.
    pub platforms: Vec<Platform>,
    /// Copy the one image of `platforms` instead of the index.
    pub flatten: bool,
    /// Also copy signatures, attestations and other referrers.
    pub referrers: bool,
    /// Walk the whole image and repair it, even if the destination's tag is the same.
    pub force: bool,
    /// Only report what would be done.
    pub dry_run: bool,
    /// Also copy foreign (not distributable) layers.
    pub include_foreign: bool,
}

/// The cost that an engine reduces. The mode belongs to the engine, since each copy uses what earlier copies learned.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Mode {
    /// Fewer round trips, for one image or for a long-running process. Both ends are asked at once. The destination is asked
    /// again for content that may have been removed since it was written.
    #[default]
    SingleImage,
    /// Fewer requests, for one run over a list, where the round trips of many images overlap. The source's tag is resolved
    /// only if the destination has the tag. Content that the run wrote or saw at the destination is not asked for again.
    /// Blobs of unchanged images can be mounted.
    List,
}

/// The state that all copies of a run share: known blob locations, locks, limits.
pub struct Engine {
    blob_locations: BlobLocations,
    locks: ManifestLocks,
    slots: TransferSlots,
    mount_candidates: MountCandidates,
    artifact_tags: ArtifactTagLists,
    memory: Memory,
    jobs: usize,
    mode: Mode,
    /// Retries for each blob.
    retries: u32,
    observer: Arc<dyn Observer>,
}

impl Engine {
    /// An engine that transfers up to `jobs` large blobs at once from each source and to each destination, and reports to
    /// `observer`.
    pub fn new(jobs: usize, observer: Arc<dyn Observer>) -> Self {
        let jobs = jobs.max(1);
        Self {
            blob_locations: BlobLocations::default(),
            locks: ManifestLocks::default(),
            slots: TransferSlots::new(jobs),
            mount_candidates: MountCandidates::default(),
            artifact_tags: ArtifactTagLists::default(),
            memory: Memory::default(),
            jobs,
            mode: Mode::default(),
            retries: BLOB_RETRIES,
            observer,
        }
    }

    /// The engine with this number of retries for each blob instead of 8.
    #[must_use]
    pub fn with_retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// The engine in this mode.
    #[must_use]
    pub fn with_mode(self, mode: Mode) -> Self {
        Self { mode, ..self }
    }

    /// Copies the image `target` of `source` to `at` in `destination`.
    ///
    /// The tag is written last, so an interrupted or failed copy leaves none. Dropping the future stops the copy. Its upload
    /// sessions stay open until the caller abandons them.
    ///
    /// # Errors
    /// Each error has its side. Content that was already copied stays, and the next copy uses it.
    pub async fn copy<S: Source, D: Destination>(
        &self,
        source: &S,
        target: &Target,
        destination: &D,
        at: &Target,
        options: &Options,
    ) -> Result<Report> {
        let begun = Instant::now();
        let destination = &destination.for_one_image();
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
        // No lock and no manifest is held here. An index may contain the image that it refers to, and would wait for this.
        if options.referrers {
            report.referrers = self.referrers((source, target), destination, held, options, &mut report).await?;
        }
        report.duration_seconds = begun.elapsed().as_secs_f64();
        Ok(report)
    }

    /// Copies the image with this root. Returns the digests of its manifests.
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
            // Many images may wait here. None of them keeps a large manifest meanwhile.
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

    /// The lock to write a manifest. `None` if this run knows that the destination has it.
    async fn lock_manifest<D: Destination>(&self, destination: &D, manifest: Digest) -> Option<ManifestLock<'_>> {
        let here = destination.repository();
        let scope = LockScope::Registry(here.registry.clone());
        self.locks.acquire(scope, self.blob_locations.id_of(here), manifest).await
    }

    /// The lock to read the content of a manifest from this source's registry. `None` if this run knows that the destination
    /// has it. The first of several tags of an image copies the content, and the others find it. Copies from another source
    /// wait only for the write lock, so a source that is held back does not block them.
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

    /// Executes the plan under the write lock of its root. A dry run only reports it.
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

    /// The engine, if its knowledge of existing children may be used. A long-running process asks the destination instead,
    /// since children may have been removed.
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

    /// Writes the manifests, each after the manifests that it names.
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

    /// Writes a child, unless the run knows that the destination has it.
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

    /// Adds a hint if the registry may have refused a sparse index.
    fn explain_sparse(&self, error: Error, plan: &Plan) -> Error {
        if plan.sparse && matches!(error.kind(), Kind::Registry | Kind::NotFound | Kind::Invalid) {
            return error.hint(
                "this registry may refuse an index without all of its platforms: copy all, or one by transload copy --platform with --flatten",
            );
        }
        error
    }
}

const BLOB_RETRIES: u32 = 8;
/// The total waiting time for a blob, for backoff and `Retry-After` together.
const BLOB_PATIENCE: Duration = Duration::from_secs(30 * 60);
