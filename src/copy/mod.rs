//! The engine: copies one image, or plans to. Knows no HTTP.
//!
//! ```text
//! resolve both ends ── equal ──> nothing to do (two requests)
//!        │
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

mod directory;
mod finished;
mod graph;
mod places;
mod plan;
mod referrers;
mod report;
mod tally;
mod transfer;
mod turns;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, future, stream};
use tokio::time::Instant;

pub use self::directory::Directory;
use self::finished::Finished;
pub use self::graph::Graph;
use self::places::{Places, SMALL_FOR_LARGE};
pub use self::plan::{BlobStep, Plan};
pub use self::report::{Observer, Outcome, Report, Silent, Status};
pub use self::tally::{Ended, Entry, Failure, Platforms, Quota, Summary, Use};
use self::turns::{Turn, Turns};

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

/// What all copies of a run share: which repository holds which blob, and how much runs at once.
pub struct Engine {
    directory: Directory,
    turns: Turns,
    /// The same for blobs that are mounted: one may have the digest of a manifest, and be no manifest there.
    mounts: Turns,
    places: Places,
    finished: Finished,
    jobs: usize,
    /// Fewer requests rather than fewer round trips.
    thrifty: bool,
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
            directory: Directory::default(),
            turns: Turns::default(),
            mounts: Turns::default(),
            places: Places::new(jobs),
            finished: Finished::default(),
            jobs,
            thrifty: false,
            retries: RETRIES,
            observer,
        }
    }

    /// The same, but with so many faults forgiven to each blob instead of 8.
    #[must_use]
    pub fn with_retries(self, retries: u32) -> Self {
        Self { retries, ..self }
    }

    /// The same, for lists: the source isn't asked what its tag is where the destination hasn't that tag,
    /// which saves a request for each new image and costs a round trip, that other images fill.
    #[must_use]
    pub fn thrifty(self) -> Self {
        Self { thrifty: true, ..self }
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
        // The index that a flattened image was found in is read, not copied.
        let mut report = Report { pulls: usize::from(options.flatten), ..Report::default() };
        let mut turn = None;
        let (same, graph) = match self.root(source, target, destination, at, options).await? {
            Root::Same(root) => (Some((*root).clone()), Graph::present(*root)),
            Root::Differs(root) => {
                turn = self.turn(destination, root.digest()).await;
                let jobs = self.jobs * SMALL_FOR_LARGE;
                let graph = Graph::walk(source, destination, root, options, jobs, self.knows()).await?;
                (self.holds(destination, at, &graph, options).await?, graph)
            }
        };
        match same {
            Some(root) => {
                if self.thrifty {
                    let number = self.directory.number(destination.repository());
                    self.finished.note(destination, number, root.digest);
                }
                report.unchanged(&root, &graph);
            }
            None => self.fill(source, destination, at, &graph, options, &mut report).await?,
        }
        if options.referrers {
            report.referrers = self.referrers(source, destination, &graph, options, &mut report).await?;
        }
        if let Some(turn) = turn {
            turn.done();
        }
        report.seconds = begun.elapsed().as_secs_f64();
        Ok(report)
    }

    /// The turn to write a manifest, unless this run knows that it's there.
    async fn turn<D: Destination>(&self, destination: &D, manifest: Digest) -> Option<Turn<'_>> {
        let here = destination.repository();
        self.turns.take(&here.registry, self.directory.number(here), manifest).await
    }

    /// Finds out what to copy, or that there's nothing to do.
    async fn root<S: Source, D: Destination>(
        &self,
        source: &S,
        target: &Target,
        destination: &D,
        at: &Target,
        options: &Options,
    ) -> Result<Root> {
        if !options.force && options.platforms.is_empty() {
            let (here, there) = self.both(source, target, destination, at).await?;
            let Some(here) = here else { return read(source, target).await.map(Root::Differs) };
            if there.is_some_and(|there| there.digest == here.digest) {
                return Ok(Root::Same(Box::new(here)));
            }
            // By digest from here on: a tag that moves meanwhile is copied as it was, or fails.
            let root = read(source, &Target::Digest(here.digest)).await;
            if !root.as_ref().is_err_and(|error| error.kind() == Kind::NotFound) {
                return root.map(Root::Differs);
            }
        }
        let root = read(source, target).await?;
        if !options.flatten {
            return Ok(Root::Differs(root));
        }
        let child = graph::only_child(source, &root, &options.platforms).await?;
        let same = !options.force && destination.find(at).await?.is_some_and(|there| there.digest == child.digest());
        Ok(if same { Root::Same(Box::new(child.descriptor().clone())) } else { Root::Differs(child) })
    }

    /// What the tag is at both ends. Of the source `None` only if it wasn't asked.
    async fn both<S: Source, D: Destination>(
        &self,
        source: &S,
        target: &Target,
        destination: &D,
        at: &Target,
    ) -> Result<(Option<Descriptor>, Option<Descriptor>)> {
        let here = async {
            let found = source.resolve(target).await.map_err(|error| error.on(Side::Source))?;
            found.ok_or_else(|| absent(target))
        };
        let there = async { destination.find(at).await.map_err(|error| error.on(Side::Destination)) };
        if !self.thrifty {
            let (here, there) = future::try_join(here, there).await?;
            return Ok((Some(here), there));
        }
        // Of a repository that had no image, no tag is asked for: this run writes each once.
        let there = if destination.is_known_new() { None } else { there.await? };
        let here = match &there {
            None => None,
            // Pinned, and there.
            Some(found) if target.digest() == Some(found.digest) => there.clone(),
            Some(_) => Some(here.await?),
        };
        Ok((here, there))
    }

    /// The root, if the walk for some of an image's platforms found nothing to write: all wanted children
    /// are there, and the tag is the same. (For all platforms the tag alone says so.)
    async fn holds<D: Destination>(
        &self,
        destination: &D,
        at: &Target,
        graph: &Graph,
        options: &Options,
    ) -> Result<Option<Descriptor>> {
        let [root] = &graph.manifests[..] else { return Ok(None) };
        if options.force || options.flatten || options.platforms.is_empty() {
            return Ok(None);
        }
        let there = destination.find(at).await.map_err(|error| error.on(Side::Destination))?;
        Ok(there.is_some_and(|there| there.digest == root.digest()).then(|| root.descriptor().clone()))
    }

    /// Brings everything that the walk found, or only says what it would take.
    async fn fill<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        at: &Target,
        graph: &Graph,
        options: &Options,
        report: &mut Report,
    ) -> Result<()> {
        let plan = Plan::new(graph, options)?;
        report.planned(graph, &plan);
        self.observer.planned(plan.blobs.len(), plan.bytes());
        if options.dry_run {
            return self.look(source, destination, &plan, report).await;
        }
        self.blobs(source, destination, &plan, report).await?;
        self.manifests(destination, &plan, at).await
    }

    /// Of which children of indexes it's known that they're there. One that stays, as a proxy's does, goes by
    /// what the destination says: what was written may have been removed since.
    fn knows(&self) -> Option<&Self> {
        self.thrifty.then_some(self)
    }

    /// Whether this run wrote the manifest there; who is doing so is waited for.
    async fn has<D: Destination>(&self, destination: &D, manifest: Digest) -> bool {
        self.turn(destination, manifest).await.is_none()
    }

    async fn blobs<S: Source, D: Destination>(
        &self,
        source: &S,
        destination: &D,
        plan: &Plan,
        report: &mut Report,
    ) -> Result<()> {
        stream::iter(&plan.blobs)
            .map(|step| async move {
                let outcome = self.transfer(source, destination, step).await?;
                Ok::<_, Error>((step, outcome))
            })
            .buffer_unordered(self.jobs * (SMALL_FOR_LARGE + 1))
            .try_for_each(|(step, outcome)| {
                report.add(&step.blob, &outcome);
                future::ready(Ok(()))
            })
            .await
    }

    /// Writes the manifests, each after all that it names.
    async fn manifests<D: Destination>(&self, destination: &D, plan: &Plan, at: &Target) -> Result<()> {
        let Some((last, waves)) = plan.waves.split_last() else { return Ok(()) };
        for wave in waves {
            stream::iter(wave)
                .map(|manifest| self.put_child(destination, manifest))
                .buffer_unordered(self.jobs * SMALL_FOR_LARGE)
                .try_for_each(|()| future::ready(Ok(())))
                .await?;
        }
        for root in last {
            self.put(destination, root, at.clone()).await.map_err(|error| self.sparse(error, plan))?;
        }
        Ok(())
    }

    /// Writes a child, unless it's there.
    async fn put_child<D: Destination>(&self, destination: &D, child: &Manifest) -> Result<()> {
        let turn = self.turn(destination, child.digest()).await;
        if turn.is_none() && self.thrifty {
            return Ok(());
        }
        self.put(destination, child, Target::Digest(child.digest())).await?;
        turn.into_iter().for_each(Turn::done);
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
    fn sparse(&self, error: Error, plan: &Plan) -> Error {
        if plan.sparse && matches!(error.kind(), Kind::Registry | Kind::NotFound | Kind::Invalid) {
            return error.hint(
                "this registry takes no index without all of its platforms: copy all, or one by transload copy --platform with --flatten",
            );
        }
        error
    }
}

enum Root {
    /// The destination has it.
    Same(Box<Descriptor>),
    Differs(Manifest),
}

async fn read<S: Source>(source: &S, target: &Target) -> Result<Manifest> {
    source.manifest(target).await.map_err(|error| match error.kind() {
        Kind::NotFound => absent(target),
        _ => error.on(Side::Source),
    })
}

fn absent(target: &Target) -> Error {
    let what = match target {
        Target::Tag(tag) => format!("there is no tag {tag:?}"),
        Target::Digest(digest) => format!("there is no manifest {digest}"),
    };
    Error::new(Kind::NotFound, what)
        .on(Side::Source)
        .hint("check the name and the tag; transload tags REPOSITORY lists what there is")
}

const RETRIES: u32 = 8;
/// What a blob may be waited for in all, faults and `Retry-After` together.
const BLOB_PATIENCE: Duration = Duration::from_secs(30 * 60);
