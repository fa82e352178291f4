//! One run over a list: which images it comes to, and bringing them, each source in its own time.
//!
//! ```text
//!  entries of one source ─┬─ expand ──▶ lane to one destination ──▶ window of images ──▶ Engine
//!                         └────────────▶ lane to another ─────────▶ window of images ──┤
//!  entries of another    ─── expand ──▶ …                                              ┘
//! ```
//!
//! Each source and registry of a destination has a lane and a window, so that one that waits (for Docker Hub's
//! pulls, say, or for a registry that is dead) keeps none of the others. No image waits for another one's end, save for
//! the blobs they share: those come once, by the engine's directory. An entry's tags are listed when its turn comes, so
//! a long list costs no more memory than its windows.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, future, stream};
use tokio::time::Instant;

use super::compare::compare;
use super::job::{Drift, Job};
use super::list::{Claims, DestinationBase, Entry, List, RenderedDestination, SelectedImage};
use super::queues::RegistryQueues;
use super::shared_source::{ImageReads, ManifestCache, SharedSource};
use super::tag_conflicts::TagConflicts;
use crate::content::{Destination, Source};
use crate::copy::{Engine, Report};
use crate::error::{Error, Kind, Result, Side};
use crate::panics;
use crate::reference::{RejectedTags, Repository, Target};

/// Where a run finds the repositories that its list names.
pub trait Repositories: Sync {
    /// A repository to read.
    type Source: Source;
    /// A repository to write.
    type Destination: Destination;

    /// The repository as a source.
    fn source(&self, repository: &Repository) -> Result<Self::Source>;

    /// The repository as a destination.
    fn destination(&self, repository: &Repository) -> Result<Self::Destination>;
}

/// What a run does with each image.
#[derive(Clone, Debug, Default)]
pub enum Action {
    /// Copy it, or plan to.
    Copy {
        /// Only say what would be done.
        dry_run: bool,
        /// Walk and repair images whose tag is the same.
        force: bool,
    },
    /// Only see whether the destination has it: two requests, no pull.
    #[default]
    Compare,
}

/// What a run is told besides its list.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// What is done with each image.
    pub action: Action,
    /// Until when. What hasn't begun by then is skipped, what isn't finished has failed.
    pub deadline: Option<Instant>,
}

/// What became of an image, or of an entry whose tags could not be listed.
#[derive(Debug)]
pub enum Event {
    /// Copied, unchanged or planned.
    Copied(Box<Job>, Box<Report>),
    /// Compared: what its tag is at both ends.
    Compared(Box<Job>, Drift),
    /// Not done.
    Failed(Box<Job>, Error),
    /// Nothing was moved of it: the deadline came before its turn, or before there were pulls for it.
    Skipped(Box<Job>, Error),
    /// So many more images belong to the run, or fewer: they are counted before their turn comes.
    Expected(isize),
    /// Not all of the entry's images are known: its tags could not be listed, or some are no tags.
    Unknown {
        /// The entry's line.
        line: usize,
        /// Its repository.
        source: Repository,
        /// Why.
        error: Error,
        /// Whether that's only the deadline, as for [`Self::Skipped`].
        skipped: bool,
    },
}

/// Runs over those entries of `list` that `wanted` holds for, and those of their images; tells `ended` of each.
///
/// An image's failure stops no other, nor does a panic in it. Dropping the future stops all.
pub async fn run<P: Repositories>(
    list: &List,
    to: &[DestinationBase],
    places: &P,
    engine: &Engine,
    options: &Options,
    wanted: &(dyn Fn(&Entry, Option<&Job>) -> bool + Sync),
    ended: &(dyn Fn(Event) + Sync),
) {
    let (conflicts, entries) = TagConflicts::of(&list.entries, to, |entry| wanted(entry, None));
    let (claims, manifests) = (Mutex::default(), Arc::default());
    let run = RunContext { to, places, engine, options, wanted, ended, conflicts, claims, manifests };
    let mut sources: BTreeMap<&str, Vec<WantedEntry<'_>>> = BTreeMap::new();
    let mut expected = 0;
    for (number, entry) in entries.into_iter().enumerate() {
        let goes = entry.places(to, Some("any")).unwrap_or_default();
        expected += entry.pick.exact.len() * goes.len();
        let goes = goes.into_iter().map(|(repository, _)| repository.registry.into()).collect::<BTreeSet<String>>();
        let asked = WantedEntry { number, entry, goes: goes.into_iter().collect() };
        sources.entry(&entry.source.registry).or_default().push(asked);
    }
    run.expect(expected);
    future::join_all(sources.into_values().map(|entries| run.run_source(entries).boxed_local())).await;
}

/// An entry of the run.
struct WantedEntry<'a> {
    number: usize,
    entry: &'a Entry,
    /// The registries that its images go to.
    goes: Vec<String>,
}

/// An image that waits for its turn.
struct QueuedImage {
    job: Job,
    /// With its other destinations, as far as they are about as far.
    reads: Arc<ImageReads>,
}

/// What the sources of a run share.
struct RunContext<'a, P> {
    to: &'a [DestinationBase],
    places: &'a P,
    engine: &'a Engine,
    options: &'a Options,
    wanted: &'a (dyn Fn(&Entry, Option<&Job>) -> bool + Sync),
    ended: &'a (dyn Fn(Event) + Sync),
    /// Whose tags may meet.
    conflicts: TagConflicts,
    /// Which image goes to which destination tag.
    claims: Mutex<Claims>,
    /// What they have read.
    manifests: Arc<ManifestCache>,
}

impl<P: Repositories> RunContext<'_, P> {
    /// All images of one source.
    async fn run_source(&self, entries: Vec<WantedEntry<'_>>) {
        let queues = &RegistryQueues::new(entries.iter().map(|asked| &asked.goes[..]));
        // Its own future for each entry: one that waits for room in the lanes stops no other's request.
        let expand = stream::iter(&entries).for_each_concurrent(CONCURRENT_LISTINGS, async |asked| {
            self.conflicts.wait_for_turn(asked.number).await;
            self.expand(asked.entry, queues).await;
            self.conflicts.finish(asked.number);
            queues.source_finished(&asked.goes);
        });
        let work = queues.names().into_iter().map(|registry| {
            let queued_images =
                stream::unfold(registry, async |registry| Some((queues.next(&registry).await?, registry)));
            queued_images.for_each_concurrent(CONCURRENT_IMAGES, |queued| self.run_image(queued).boxed_local())
        });
        future::join(expand, future::join_all(work)).await;
    }

    /// Queues an entry's images.
    async fn expand(&self, entry: &Entry, queues: &RegistryQueues<QueuedImage>) {
        let images = AssertUnwindSafe(self.queue_images(entry, queues)).catch_unwind().await;
        let Err(undone) = images.unwrap_or_else(|panic| Err(panics::panic_error(&*panic).into())) else { return };
        let (line, source) = (entry.line, entry.source.clone());
        (self.ended)(match undone {
            NotDone::Failed(error) => {
                let error = error.doing(format!("mirror {source}"));
                Event::Unknown { line, source, error, skipped: false }
            }
            // Of a list of tags nothing is moved.
            NotDone::Cut(error) | NotDone::Skipped(error) => Event::Unknown { line, source, error, skipped: true },
        });
    }

    /// Queues the images that an entry names, then those that it picks from the repository's tags, as
    /// the pages of their list arrive.
    async fn queue_images(&self, entry: &Entry, queues: &RegistryQueues<QueuedImage>) -> Result<(), NotDone> {
        for exact in &entry.pick.exact {
            self.queue(entry, exact, queues).await?;
        }
        if !entry.pick.needs_tag_list() {
            return Ok(());
        }
        let source = self.places.source(&entry.source)?;
        let mut chooser = entry.pick.chooser()?;
        let mut pages = source.tags();
        let mut rejected = RejectedTags::default();
        loop {
            // What is queued already isn't cut off with it.
            let page = async { pages.try_next().await.map_err(|error| error.on(Side::Source)) };
            let Some(page) = self.within_deadline(page).await? else { break };
            rejected.add(page.malformed);
            for tag in page.tags {
                if let Some(exact) = chooser.offer(tag) {
                    self.queue_listed(entry, &exact, queues).await?;
                }
            }
        }
        for exact in chooser.finish() {
            self.queue_listed(entry, &exact, queues).await?;
        }
        rejected.error(&entry.source).map_or(Ok(()), |error| Err(error.on(Side::Source).into()))
    }

    /// Queues an image that was found in the list of tags.
    async fn queue_listed(
        &self,
        entry: &Entry,
        exact: &SelectedImage,
        queues: &RegistryQueues<QueuedImage>,
    ) -> Result<()> {
        self.expect(entry.each_place(self.to, exact.tag.as_deref())?.len());
        self.queue(entry, exact, queues).await
    }

    /// So many more images belong to the run.
    fn expect(&self, more: usize) {
        (self.ended)(Event::Expected(isize::try_from(more).unwrap_or(isize::MAX)));
    }

    /// Queues an image for each of its destinations. One that can't be, or is another image's, fails alone.
    async fn queue(&self, entry: &Entry, exact: &SelectedImage, queues: &RegistryQueues<QueuedImage>) -> Result<()> {
        let read = exact.digest.map(Target::Digest).or_else(|| exact.tag.clone().map(Target::Tag));
        let Some(read) = read else { return Ok(()) };
        let places = entry.each_place(self.to, exact.tag.as_deref())?;
        queues.until_low().await;
        let reads = Arc::new(ImageReads::new(&self.manifests, &entry.source));
        for RenderedDestination { repository: destination, tag, text } in places {
            let at = tag.as_ref().ok().cloned().flatten().map_or_else(|| read.clone(), Target::Tag);
            let no_tag = text.filter(|_| tag.is_err());
            let claimed = tag.and_then(|tag| {
                let place = (destination.clone(), tag);
                self.claims.lock().unwrap_or_else(PoisonError::into_inner).claim(&place, entry, exact)
            });
            let job = Job {
                line: entry.line,
                source: entry.source.clone(),
                read: read.clone(),
                destination,
                at,
                platforms: entry.platforms.clone(),
                referrers: entry.referrers,
                no_tag,
            };
            // Nothing to be done twice.
            if matches!(claimed, Ok(false)) || !(self.wanted)(entry, Some(&job)) {
                (self.ended)(Event::Expected(-1));
                continue;
            }
            match claimed {
                Ok(_) => self.enqueue(job, &reads, queues),
                Err(error) => self.fail(Box::new(job), error),
            }
        }
        Ok(())
    }

    /// Puts an image at the end of its lane. Where that lags behind, what is read for other destinations would have to
    /// be kept for too many images: those there are read for themselves.
    fn enqueue(&self, job: Job, reads: &Arc<ImageReads>, queues: &RegistryQueues<QueuedImage>) {
        let registry = job.destination.registry.clone();
        let reads = match queues.len_of(&registry) {
            0..MAX_PREREAD_IMAGES => reads.clone(),
            _ => Arc::new(ImageReads::new(&self.manifests, &job.source)),
        };
        queues.push(&registry, QueuedImage { job, reads });
    }

    fn fail(&self, job: Box<Job>, error: Error) {
        let error = error.doing(format!("mirror {}", job.from()));
        (self.ended)(Event::Failed(job, error));
    }

    async fn run_image(&self, QueuedImage { job, reads }: QueuedImage) {
        let done = self.within_deadline(panics::catch_panic(self.perform(&job, reads))).await;
        let job = Box::new(job);
        match done {
            Ok(Done::Copied(report)) => (self.ended)(Event::Copied(job, report)),
            Ok(Done::Compared(drift)) => (self.ended)(Event::Compared(job, drift)),
            Err(NotDone::Skipped(error)) => (self.ended)(Event::Skipped(job, error)),
            Err(NotDone::Failed(error) | NotDone::Cut(error)) => self.fail(job, error),
        }
    }

    /// Does `work` unless the deadline has passed, and ends it when it comes.
    async fn within_deadline<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T, NotDone> {
        let Some(deadline) = self.options.deadline else { return Ok(work.await?) };
        if Instant::now() >= deadline {
            return Err(NotDone::Skipped(deadline_passed()));
        }
        // Who waits until the deadline by himself says better than we can what for.
        match tokio::time::timeout_at(deadline + DEADLINE_GRACE, work).await {
            // Who waited for pulls until the deadline has moved nothing yet: its manifests come first.
            Ok(Err(error)) if error.is_quota() && Instant::now() >= deadline => Err(NotDone::Skipped(error)),
            Ok(done) => Ok(done?),
            Err(_) => Err(NotDone::Cut(deadline_passed())),
        }
    }

    async fn perform(&self, job: &Job, reads: Arc<ImageReads>) -> Result<Done> {
        let source = SharedSource::new(self.places.source(&job.source)?, reads);
        let destination = self.places.destination(&job.destination)?;
        let Action::Copy { dry_run, force } = self.options.action else {
            return compare(job, &source, &destination).await.map(Done::Compared);
        };
        let options = crate::copy::Options {
            platforms: job.platforms.clone(),
            referrers: job.referrers,
            force,
            dry_run,
            ..crate::copy::Options::default()
        };
        let mut copied = self.engine.copy(&source, &job.read, &destination, &job.at, &options).await?;
        copied.pulls = copied.pulls.saturating_sub(source.given());
        Ok(Done::Copied(Box::new(copied)))
    }
}

enum Done {
    Copied(Box<Report>),
    Compared(Drift),
}

/// Why something isn't done.
enum NotDone {
    Failed(Error),
    /// Broken off by the deadline.
    Cut(Error),
    /// Not begun by the deadline.
    Skipped(Error),
}

impl From<Error> for NotDone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The deadline came first.
pub(super) fn deadline_passed() -> Error {
    Error::new(Kind::Timeout, "the deadline has passed").hint("the next run goes on from here")
}

/// Images on their way from one source to one registry that are worked on at once: most of them wait for blobs that
/// others bring, or for a place.
const CONCURRENT_IMAGES: usize = 48;
/// Images in a lane for which is kept what others read of them.
const MAX_PREREAD_IMAGES: usize = 64;
/// Repositories of one source whose tags are listed at once.
const CONCURRENT_LISTINGS: usize = 4;
const DEADLINE_GRACE: Duration = Duration::from_millis(200);
