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
use super::lanes::Lanes;
use super::list::{Base, Claims, Entry, Exact, List, Made};
use super::reading::{Reading, Shared, Shelf};
use super::rivals::Rivals;
use crate::content::{Destination, Source};
use crate::copy::{Engine, Report};
use crate::descriptor::{Digest, Platform};
use crate::error::{Error, Kind, Result, Side};
use crate::panics;
use crate::reference::{Rejected, Repository, Target};

/// Where a run finds the repositories that its list names.
pub trait Places: Sync {
    /// A repository to read.
    type Source: Source;
    /// A repository to write.
    type Destination: Destination;

    /// The repository as a source.
    fn source(&self, repository: &Repository) -> Result<Self::Source>;

    /// The repository as a destination.
    fn destination(&self, repository: &Repository) -> Result<Self::Destination>;
}

/// One image of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Job {
    /// The line of the list that asks for it, from 1.
    pub line: usize,
    /// Where it's read.
    pub source: Repository,
    /// What is read: the tag, or the digest that it's pinned to.
    pub read: Target,
    /// Where it's written.
    pub destination: Repository,
    /// Under what.
    pub at: Target,
    /// Only these platforms.
    pub platforms: Vec<Platform>,
    /// With its referrers.
    pub referrers: bool,
    /// What should be the tag there and is none: such a job is only reported.
    pub no_tag: Option<String>,
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

/// How a destination's tag stands to its source's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Drift {
    /// It's the same.
    None,
    /// The destination hasn't it.
    Missing(Digest),
    /// It's another image.
    Differs {
        /// At the source.
        here: Digest,
        /// At the destination.
        there: Digest,
    },
}

impl Job {
    /// The source as users write it.
    pub fn from(&self) -> String {
        self.source.at(self.read.clone()).to_string()
    }

    /// The destination as users write it.
    pub fn to(&self) -> String {
        match &self.no_tag {
            Some(text) => format!("{}:{}", self.destination, text.escape_debug()),
            None => self.destination.at(self.at.clone()).to_string(),
        }
    }
}

/// Runs over those entries of `list` that `wanted` holds for, and those of their images; tells `ended` of each.
///
/// An image's failure stops no other, nor does a panic in it. Dropping the future stops all.
pub async fn run<P: Places>(
    list: &List,
    to: &[Base],
    places: &P,
    engine: &Engine,
    options: &Options,
    wanted: &(dyn Fn(&Entry, Option<&Job>) -> bool + Sync),
    ended: &(dyn Fn(Event) + Sync),
) {
    let (rivals, entries) = Rivals::of(&list.entries, to, |entry| wanted(entry, None));
    let (claims, shelf) = (Mutex::default(), Arc::default());
    let run = Run { to, places, engine, options, wanted, ended, rivals, claims, shelf };
    let mut sources: BTreeMap<&str, Vec<Asked<'_>>> = BTreeMap::new();
    for (number, entry) in entries.into_iter().enumerate() {
        let goes = entry.places(to, Some("any")).unwrap_or_default();
        let goes = goes.into_iter().map(|(repository, _)| repository.registry.into()).collect::<BTreeSet<String>>();
        let asked = Asked { number, entry, goes: goes.into_iter().collect() };
        sources.entry(&entry.source.registry).or_default().push(asked);
    }
    future::join_all(sources.into_values().map(|entries| run.source(entries).boxed_local())).await;
}

/// An entry of the run.
struct Asked<'a> {
    number: usize,
    entry: &'a Entry,
    /// The registries that its images go to.
    goes: Vec<String>,
}

/// An image that waits for its turn.
struct Turn {
    job: Job,
    /// With its other destinations, as far as they are about as far.
    reading: Arc<Reading>,
}

/// What the sources of a run share.
struct Run<'a, P> {
    to: &'a [Base],
    places: &'a P,
    engine: &'a Engine,
    options: &'a Options,
    wanted: &'a (dyn Fn(&Entry, Option<&Job>) -> bool + Sync),
    ended: &'a (dyn Fn(Event) + Sync),
    /// Whose tags may meet.
    rivals: Rivals,
    /// Which image goes to which destination tag.
    claims: Mutex<Claims>,
    /// What they have read.
    shelf: Arc<Shelf>,
}

impl<P: Places> Run<'_, P> {
    /// All images of one source.
    async fn source(&self, entries: Vec<Asked<'_>>) {
        let lanes = &Lanes::new(entries.iter().map(|asked| &asked.goes[..]));
        // Its own future for each entry: one that waits for room in the lanes stops no other's request.
        let expand = stream::iter(&entries).for_each_concurrent(LISTINGS, async |asked| {
            self.rivals.turn(asked.number).await;
            self.expand(asked.entry, lanes).await;
            self.rivals.done(asked.number);
            lanes.filled(&asked.goes);
        });
        let work = lanes.names().into_iter().map(|registry| {
            let turns = stream::unfold(registry, async |registry| Some((lanes.next(&registry).await?, registry)));
            turns.for_each_concurrent(WINDOW, |turn| self.image(turn).boxed_local())
        });
        future::join(expand, future::join_all(work)).await;
    }

    /// Queues an entry's images.
    async fn expand(&self, entry: &Entry, lanes: &Lanes<Turn>) {
        let images = AssertUnwindSafe(self.images(entry, lanes)).catch_unwind().await;
        let Err(undone) = images.unwrap_or_else(|panic| Err(panics::error(&*panic).into())) else { return };
        let (line, source) = (entry.line, entry.source.clone());
        (self.ended)(match undone {
            Undone::Failed(error) => {
                let error = error.doing(format!("mirror {source}"));
                Event::Unknown { line, source, error, skipped: false }
            }
            // Of a list of tags nothing is moved.
            Undone::Cut(error) | Undone::Skipped(error) => Event::Unknown { line, source, error, skipped: true },
        });
    }

    /// Queues the images that an entry names, then those that it picks from the repository's tags, as
    /// the pages of their list arrive.
    async fn images(&self, entry: &Entry, lanes: &Lanes<Turn>) -> Result<(), Undone> {
        for exact in &entry.pick.exact {
            self.queue(entry, exact, lanes).await?;
        }
        if !entry.pick.needs_list() {
            return Ok(());
        }
        let source = self.places.source(&entry.source)?;
        let mut chooser = entry.pick.chooser()?;
        let mut pages = source.tags();
        let mut rejected = Rejected::default();
        loop {
            // What is queued already isn't cut off with it.
            let page = async { pages.try_next().await.map_err(|error| error.on(Side::Source)) };
            let Some(page) = self.within_deadline(page).await? else { break };
            rejected.add(page.malformed);
            for tag in page.tags {
                if let Some(exact) = chooser.offer(tag) {
                    self.queue(entry, &exact, lanes).await?;
                }
            }
        }
        for exact in chooser.finish() {
            self.queue(entry, &exact, lanes).await?;
        }
        rejected.error(&entry.source).map_or(Ok(()), |error| Err(error.on(Side::Source).into()))
    }

    /// Queues an image for each of its destinations. One that can't be, or is another image's, fails alone.
    async fn queue(&self, entry: &Entry, exact: &Exact, lanes: &Lanes<Turn>) -> Result<()> {
        let read = exact.digest.map(Target::Digest).or_else(|| exact.tag.clone().map(Target::Tag));
        let Some(read) = read else { return Ok(()) };
        let places = entry.each_place(self.to, exact.tag.as_deref())?;
        lanes.wanted().await;
        let reading = Arc::new(Reading::new(&self.shelf, &entry.source));
        for Made { repository: destination, tag, text } in places {
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
                continue;
            }
            match claimed {
                Ok(_) => self.line_up(job, &reading, lanes),
                Err(error) => self.fail(Box::new(job), error),
            }
        }
        Ok(())
    }

    /// Puts an image at the end of its lane. Where that lags behind, what is read for other destinations would have to
    /// be kept for too many images: those there are read for themselves.
    fn line_up(&self, job: Job, reading: &Arc<Reading>, lanes: &Lanes<Turn>) {
        let registry = job.destination.registry.clone();
        let reading = match lanes.length(&registry) {
            0..KEPT => reading.clone(),
            _ => Arc::new(Reading::new(&self.shelf, &job.source)),
        };
        lanes.push(&registry, Turn { job, reading });
    }

    fn fail(&self, job: Box<Job>, error: Error) {
        let error = error.doing(format!("mirror {}", job.from()));
        (self.ended)(Event::Failed(job, error));
    }

    async fn image(&self, Turn { job, reading }: Turn) {
        let done = self.within_deadline(panics::caught(self.act(&job, reading))).await;
        let job = Box::new(job);
        match done {
            Ok(Done::Copied(report)) => (self.ended)(Event::Copied(job, report)),
            Ok(Done::Compared(drift)) => (self.ended)(Event::Compared(job, drift)),
            Err(Undone::Skipped(error)) => (self.ended)(Event::Skipped(job, error)),
            Err(Undone::Failed(error) | Undone::Cut(error)) => self.fail(job, error),
        }
    }

    /// Does `work` unless the deadline has passed, and ends it when it comes.
    async fn within_deadline<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T, Undone> {
        let Some(deadline) = self.options.deadline else { return Ok(work.await?) };
        if Instant::now() >= deadline {
            return Err(Undone::Skipped(late()));
        }
        // Who waits until the deadline by himself says better than we can what for.
        match tokio::time::timeout_at(deadline + GRACE, work).await {
            // Who waited for pulls until the deadline has moved nothing yet: its manifests come first.
            Ok(Err(error)) if error.is_quota() && Instant::now() >= deadline => Err(Undone::Skipped(error)),
            Ok(done) => Ok(done?),
            Err(_) => Err(Undone::Cut(late())),
        }
    }

    async fn act(&self, job: &Job, reading: Arc<Reading>) -> Result<Done> {
        let source = Shared::new(self.places.source(&job.source)?, reading);
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
enum Undone {
    Failed(Error),
    /// Broken off by the deadline.
    Cut(Error),
    /// Not begun by the deadline.
    Skipped(Error),
}

impl From<Error> for Undone {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

/// The deadline came first.
pub(super) fn late() -> Error {
    Error::new(Kind::Timeout, "the deadline has passed").hint("the next run goes on from here")
}

/// Images on their way from one source to one registry that are worked on at once: most of them wait for blobs that
/// others bring, or for a place.
const WINDOW: usize = 48;
/// Images in a lane for which is kept what others read of them.
const KEPT: usize = 64;
/// Repositories of one source whose tags are listed at once.
const LISTINGS: usize = 4;
const GRACE: Duration = Duration::from_millis(200);
