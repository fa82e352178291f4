//! What a run came to: the document of `--output json` and `--report FILE`, and JUnit's XML.
//!
//! ```text
//! Run::begin ── add, add, … ── finish ──> text (cli), JSON, JUnit
//!                                           │
//!                                Failed::read <── --retry-failed
//! ```
//! One line of a list of 10,000 images takes some 400 bytes: see [`RunReport::add`].

mod events;
mod junit;
mod redacting_writer;
mod save;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

pub use self::save::{read, save};

use super::Shard;
use super::prune::Plan;
use crate::copy::{CopyResult, Entry, Platforms, RegistryUsage, Report, Summary};
use crate::error::{Error, Kind, Result, Side};

/// A run over a list, as far as it came.
#[derive(Clone, Debug, Serialize)]
pub struct RunReport {
    /// Grows when a field changes its meaning.
    schema: u32,
    started: Timestamp,
    ended: Timestamp,
    dry_run: bool,
    shard: Option<String>,
    images: Vec<Entry>,
    summary: Summary,
    registries: Vec<RegistryUsage>,
    #[serde(skip_serializing_if = "Option::is_none")]
    prune: Option<Plan>,
    /// What the registries had been asked before: in interval mode they live longer than a run.
    #[serde(skip)]
    before: BTreeMap<String, RegistryUsage>,
    #[serde(skip)]
    platforms: BTreeSet<Platforms>,
}

/// Which image of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageId {
    /// `registry/repository:tag`, or with `@digest`.
    pub source: String,
    /// Where to; empty where a repository's tags aren't known, so that `source` is all of them.
    pub destination: String,
    /// The line of the list that it's from.
    pub line: usize,
}

impl RunReport {
    /// A run that begins now. `registries` is what they were asked until now: nothing in the first run.
    pub fn start(shard: Option<&Shard>, dry_run: bool, registries: &[RegistryUsage]) -> Self {
        let started = crate::clock::timestamp();
        Self {
            schema: SCHEMA_VERSION,
            started,
            ended: started,
            dry_run,
            shard: shard.map(ToString::to_string),
            images: Vec::new(),
            summary: Summary { skipped: Some(0), ..Summary::default() },
            registries: Vec::new(),
            prune: None,
            before: registries.iter().map(|used| (used.name.clone(), used.clone())).collect(),
            platforms: BTreeSet::new(),
        }
    }

    /// Notes how an image ended. Its platforms are kept once for all images that have the same.
    pub fn add(&mut self, which: ImageId, mut result: Result<Report, &Error>) {
        if let Ok(report) = &mut result {
            match self.platforms.get(&report.platforms) {
                Some(known) => report.platforms = known.clone(),
                None => drop(self.platforms.insert(report.platforms.clone())),
            }
        }
        self.push(which, CopyResult::new(result, self.dry_run));
    }

    /// Notes an image of which nothing was moved: the deadline came before its turn, or before there were
    /// pulls for it.
    pub fn skip(&mut self, which: ImageId, why: &Error) {
        self.push(which, CopyResult::skipped(why));
    }

    fn push(&mut self, which: ImageId, ended: CopyResult) {
        self.summary.add(&ended);
        if let Some(report) = ended.report().filter(|_| self.dry_run) {
            *self.summary.requests_planned.get_or_insert(0) += report.requests_planned();
        }
        let ImageId { mut source, mut destination, line } = which;
        source.shrink_to_fit();
        destination.shrink_to_fit();
        self.images.push(Entry { source, destination, line: u32::try_from(line).ok(), ended });
    }

    /// Notes what was pruned, or would be.
    pub fn pruned_by(&mut self, plan: Plan) {
        self.prune = Some(plan);
    }

    /// Ends the run: puts its images in the order of the list, and counts what `registries` were asked
    /// since it began.
    pub fn finish(&mut self, took: Duration, registries: Vec<RegistryUsage>) {
        self.ended = crate::clock::timestamp();
        self.summary.duration_seconds = took.as_secs_f64();
        self.registries = registries;
        for used in &mut self.registries {
            if let Some(before) = self.before.get(&used.name) {
                used.requests = used.requests.saturating_sub(before.requests);
                used.pulls = used.pulls.saturating_sub(before.pulls);
            }
        }
        self.summary.requests = self.registries.iter().map(|used| used.requests).sum();
        self.images.sort_by(|a, b| (a.line, &a.source, &a.destination).cmp(&(b.line, &b.source, &b.destination)));
    }

    /// When it began.
    pub fn started(&self) -> Timestamp {
        self.started
    }

    /// When it ended.
    pub fn ended(&self) -> Timestamp {
        self.ended
    }

    /// Whether nothing was to be moved.
    pub fn is_dry(&self) -> bool {
        self.dry_run
    }

    /// Its images; after [`Self::finish`] in the order of the list.
    pub fn images(&self) -> &[Entry] {
        &self.images
    }

    /// The sums.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// What the registries were asked in this run.
    pub fn registries(&self) -> &[RegistryUsage] {
        &self.registries
    }

    /// What was pruned, or would be, if that was asked for.
    pub fn prune(&self) -> Option<&Plan> {
        self.prune.as_ref()
    }

    /// How many tags were removed.
    pub fn pruned(&self) -> usize {
        self.prune.as_ref().map_or(0, Plan::deletions)
    }

    /// 0 if all is done, 3 if some images failed or were skipped, or what was to be pruned; 1 if all were.
    pub fn exit_code(&self) -> u8 {
        let undone = self.summary.failed + self.summary.skipped.unwrap_or(0);
        match undone {
            0 if self.prune.as_ref().is_some_and(Plan::failed) => 3,
            0 => 0,
            _ if undone < self.summary.images() => 3,
            _ => 1,
        }
    }

    /// Writes the JSON document.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn json(&self, to: &mut dyn std::io::Write) -> std::io::Result<()> {
        use std::io::Write as _;
        let mut safe = redacting_writer::RedactingWriter::new(to);
        serde_json::to_writer_pretty(&mut safe, self)?;
        safe.write_all(b"\n")
    }

    /// Writes JUnit's XML: a suite for each destination's registry, a case for each image.
    ///
    /// # Errors
    /// Those of `to`.
    pub fn junit(&self, to: &mut dyn std::io::Write) -> std::io::Result<()> {
        junit::write(self, to)
    }
}

/// What failed, or was skipped, in a run before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PreviousFailures(BTreeSet<(String, String)>);

impl PreviousFailures {
    /// Reads the document of a run. `name` is the file's, for errors.
    ///
    /// # Errors
    /// [`Kind::Usage`] if it isn't one, or is one of a release to come.
    pub fn read(name: &str, bytes: &[u8]) -> Result<Self> {
        let wrong = |why: String| {
            Error::new(Kind::Usage, format!("{name} is not the report of a mirror run: {why}"))
                .on(Side::Local)
                .hint("give the file that --report wrote, or what --output json printed")
        };
        if bytes.trim_ascii_start().starts_with(b"<") {
            return Err(wrong("it is XML, as --junit writes it".into()));
        }
        let document: Document = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        match document.schema {
            Some(SCHEMA_VERSION) => {}
            Some(other) => return Err(wrong(format!("its schema is {other}, where {SCHEMA_VERSION} is known here"))),
            None => return Err(wrong("it has no \"schema\"".into())),
        }
        let Some(images) = document.images.filter(|_| document.started.is_some()) else {
            return Err(wrong("it has no \"started\" and \"images\"".into()));
        };
        let undone = images.into_iter().filter(|image| matches!(image.status.as_str(), "failed" | "skipped"));
        Ok(Self(undone.map(|image| (image.source, image.destination)).collect()))
    }

    /// Whether this image is among them, by itself or with all of its repository, whose tags weren't known.
    pub fn holds(&self, source: &str, destination: &str) -> bool {
        // A set of pairs can't be asked by borrowed ones.
        self.0.contains(&(source.to_owned(), destination.to_owned()))
            || self.0.contains(&(repository(source).to_owned(), String::new()))
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether nothing failed.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Source and destination of each.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(source, destination)| (source.as_str(), destination.as_str()))
    }
}

#[derive(Deserialize)]
struct Document {
    schema: Option<u32>,
    started: Option<serde::de::IgnoredAny>,
    images: Option<Vec<Image>>,
}

#[derive(Deserialize)]
struct Image {
    source: String,
    destination: String,
    status: String,
}

/// The repository of `registry/repository:tag`, or of `…@digest`.
fn repository(reference: &str) -> &str {
    let name = reference.split('@').next().unwrap_or(reference);
    match name.rsplit_once(':') {
        Some((repository, tag)) if !tag.contains('/') => repository,
        _ => name,
    }
}

/// The registry of `registry/repository:tag`.
fn registry(reference: &str) -> &str {
    reference.split('/').next().unwrap_or(reference)
}

const SCHEMA_VERSION: u32 = 1;

#[cfg(test)]
mod tests;
