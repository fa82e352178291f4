//! One run over a list: finds its images, and copies them.
//!
//! ```text
//!  entries of one source ─┬─ expand ──▶ queue to one destination ──▶ window of images ──▶ Engine
//!                         └────────────▶ queue to another ─────────▶ window of images ──┤
//!  entries of another    ─── expand ──▶ …                                              ┘
//! ```
//!
//! Each pair of a source and a destination's registry has a queue and a window. So a registry that is slow, dead or
//! out of pulls does not delay the others. Images wait for each other only because of shared blobs, which the engine
//! copies once. Tags of an entry are listed when its turn comes, so the memory of a run does not depend on the length
//! of the list.

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

/// Opens the repositories of a list.
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

/// The work of a run for each image.
#[derive(Clone, Debug, Default)]
pub enum Action {
    /// Copy the image, or plan it.
    Copy {
        /// Only plan.
        dry_run: bool,
        /// Check all of an image and repair it, also if the tags are equal.
        force: bool,
    },
    /// Only compare the tags: two requests, no pull.
    #[default]
    Compare,
}

/// Settings of a run.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// The work for each image.
    pub action: Action,
    /// The end of the run. Images that have not begun are skipped; unfinished ones fail.
    pub deadline: Option<Instant>,
}

/// The result of an image, or of an entry whose tags could not be listed.
#[derive(Debug)]
pub enum Event {
    /// Copied, unchanged or planned.
    Copied(Box<Job>, Box<Report>),
    /// Compared.
    Compared(Box<Job>, Drift),
    /// Not done.
    Failed(Box<Job>, Error),
    /// Nothing was moved: its turn, or its pulls, came after the deadline.
    Skipped(Box<Job>, Error),
    /// So many more images belong to the run, or fewer: they are counted before their turn comes.
    Expected(isize),
    /// Not all of the entry's images are known: its tags could not be listed, or some are no tags.
    Unknown {
        /// The entry's line.
        line: usize,
        /// The entry's repository.
        source: Repository,
        /// The reason.
        error: Error,
        /// Whether the deadline is the reason, as for [`Self::Skipped`].
        skipped: bool,
    },
}

/// Runs over the entries of `list`, and the images of them, that `wanted` accepts. Each result is passed to `ended`.
///
/// A failure or a panic of one image does not stop the others. Dropping the future stops all.
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
        let places = entry.places(to, Some("any")).unwrap_or_default();
        expected += entry.pick.exact.len() * places.len();
        let registries: BTreeSet<String> =
            places.into_iter().map(|(repository, _)| repository.registry.into()).collect();
        let entry = WantedEntry { number, entry, registries: registries.into_iter().collect() };
        sources.entry(&entry.entry.source.registry).or_default().push(entry);
    }
    run.expect(expected);
    future::join_all(sources.into_values().map(|entries| run.run_source(entries).boxed_local())).await;
}

/// An entry of the run.
struct WantedEntry<'a> {
    number: usize,
    entry: &'a Entry,
    /// The registries of its destinations.
    registries: Vec<String>,
}

/// An image in a queue.
struct QueuedImage {
    job: Job,
    /// Answers of the source, shared with its other destinations if those are about as far.
    reads: Arc<ImageReads>,
}

/// Shared by the sources of a run.
struct RunContext<'a, P> {
    to: &'a [DestinationBase],
    places: &'a P,
    engine: &'a Engine,
    options: &'a Options,
    wanted: &'a (dyn Fn(&Entry, Option<&Job>) -> bool + Sync),
    ended: &'a (dyn Fn(Event) + Sync),
    /// Entries whose tags may conflict.
    conflicts: TagConflicts,
    /// The image of each destination tag.
    claims: Mutex<Claims>,
    /// Manifests that were read.
    manifests: Arc<ManifestCache>,
}

impl<P: Repositories> RunContext<'_, P> {
    /// Copies all images of one source.
    async fn run_source(&self, entries: Vec<WantedEntry<'_>>) {
        let queues = &RegistryQueues::new(entries.iter().map(|wanted| &wanted.registries[..]));
        // A future for each entry, so that one that waits for room in a queue does not delay other requests.
        let expand = stream::iter(&entries).for_each_concurrent(CONCURRENT_LISTINGS, async |wanted| {
            self.conflicts.wait_for_turn(wanted.number).await;
            self.expand(wanted.entry, queues).await;
            self.conflicts.finish(wanted.number);
            queues.source_finished(&wanted.registries);
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
            // Listing tags moves nothing.
            NotDone::Interrupted(error) | NotDone::Skipped(error) => {
                Event::Unknown { line, source, error, skipped: true }
            }
        });
    }

    /// Queues the images that an entry names, then the tags that it selects, page by page.
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
            // Images that are queued already go on.
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
            // Listed twice: copied once.
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

    /// Appends an image to its queue. If the queue is far behind the others, the image shares no answers with its
    /// other destinations, so that they are not kept for long.
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
            Err(NotDone::Failed(error) | NotDone::Interrupted(error)) => self.fail(job, error),
        }
    }

    /// Runs `work` until the deadline.
    async fn within_deadline<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T, NotDone> {
        let Some(deadline) = self.options.deadline else { return Ok(work.await?) };
        if Instant::now() >= deadline {
            return Err(NotDone::Skipped(deadline_passed()));
        }
        // Work that waits for the deadline itself has the better error.
        match tokio::time::timeout_at(deadline + DEADLINE_GRACE, work).await {
            // Pulls are needed before anything is moved.
            Ok(Err(error)) if error.is_quota() && Instant::now() >= deadline => Err(NotDone::Skipped(error)),
            Ok(done) => Ok(done?),
            Err(_) => Err(NotDone::Interrupted(deadline_passed())),
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

/// Why an image was not done.
enum NotDone {
    Failed(Error),
    /// Interrupted by the deadline.
    Interrupted(Error),
    /// Not begun by the deadline.
    Skipped(Error),
}

impl From<Error> for NotDone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The error for a deadline.
pub(super) fn deadline_passed() -> Error {
    Error::new(Kind::Timeout, "the deadline has passed").hint("the next run continues")
}

/// Images in progress from one source to one registry. Most of them wait for blobs of other images, or for a free
/// slot.
const CONCURRENT_IMAGES: usize = 48;
/// How far a queue may be behind and still share answers.
const MAX_PREREAD_IMAGES: usize = 64;
/// How many repositories of one source are listed at once.
const CONCURRENT_LISTINGS: usize = 4;
const DEADLINE_GRACE: Duration = Duration::from_millis(200);
