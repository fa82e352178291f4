//! `transload mirror LIST`: mirrors a list of images, once or on a schedule.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::super::global::{Format, Global};
use super::super::progress::Bars;
use super::super::{interval, output, prune, render};
use super::repositories::RegistryRepositories;
use super::{DestinationArgs, check, limits};
use crate::copy::{Engine, NoObserver, Observer};
use crate::error::{Error, Result};
use crate::mirror::job::Job;
use crate::mirror::list::{DestinationBase, Entry};
use crate::mirror::metrics::Metrics;
use crate::mirror::prune::KeepSet;
use crate::mirror::report::{self, ImageId, PreviousFailures, RunReport};
use crate::mirror::run::{self, Action, Event};
use crate::mirror::{List, Shard, shard};
use crate::reference::{Reference, Repository};
use crate::registry::{Options, Registries};

/// Arguments of a run.
#[derive(Debug, clap::Args)]
pub(super) struct RunArgs {
    /// List of images: a file, or `-` for stdin
    #[arg(required = true)]
    list: Option<String>,
    #[command(flatten)]
    to: DestinationArgs,
    /// Only print what would be copied
    #[arg(long)]
    dry_run: bool,
    /// Check everything again even if the tags match, and repair it
    #[arg(long)]
    force: bool,
    /// Large blobs in parallel, for each source and each destination
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// Retries per blob; more while a large blob makes progress
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1000))]
    retries: u32,
    /// Copy only this part of the list: 3/8 is the third of eight parts, /8 the part of JOB_COMPLETION_INDEX.
    /// A repository stays in its part
    #[arg(long, value_name = "N/OF")]
    shard: Option<shard::ShardSpec>,
    /// Copy only the images that failed or were skipped in this JSON report
    #[arg(long, value_name = "FILE")]
    retry_failed: Option<PathBuf>,
    /// Also write the report to this file, as JSON
    #[arg(long, value_name = "FILE")]
    report: Option<PathBuf>,
    /// Also write the report to this file, as JUnit XML
    #[arg(long, value_name = "FILE")]
    junit: Option<PathBuf>,
    #[command(flatten)]
    limits: limits::Args,
    #[command(flatten)]
    prune: prune::Args,
    #[command(flatten)]
    interval: interval::Args,
}

/// Runs the list, once or on a schedule. Returns the exit code.
pub(super) async fn run(args: &RunArgs, global: &Global, registries: &Registries) -> Result<u8> {
    let file = args.list.as_deref().unwrap_or("-");
    if args.interval.is_scheduled() {
        let parse = |bytes: &[u8]| check::parse_list(bytes, file, &args.to);
        let once = async |(list, to): &(List, Vec<DestinationBase>), metrics: &Metrics| {
            let done = args.run_once((list, to), global, registries, None, Arc::new(metrics.clone())).await?;
            args.print_report(&done, global)?;
            Ok(done)
        };
        return args.interval.run(Path::new(file), parse, once).await;
    }
    let (list, to) = check::open_list(file, &args.to)?;
    let bars = Bars::new(global).map(Arc::new);
    let observer: Arc<dyn Observer> = match &bars {
        Some(bars) => bars.clone(),
        None => Arc::new(NoObserver),
    };
    let done = args.run_once((&list, &to), global, registries, bars.as_ref(), observer).await?;
    if let Some(bars) = &bars {
        bars.clear();
    }
    args.print_report(&done, global)?;
    Ok(done.exit_code())
}

impl RunArgs {
    fn shard(&self) -> Result<Option<Shard>> {
        let index = std::env::var("JOB_COMPLETION_INDEX").ok();
        self.shard.map(|asked| asked.settle(index.as_deref())).transpose()
    }

    fn failed(&self) -> Result<Option<PreviousFailures>> {
        let read = |path: &PathBuf| {
            let bytes = report::read(path)
                .map_err(|error| Error::unreadable(format!("read --retry-failed {}", path.display()), &error))?;
            PreviousFailures::read(&path.display().to_string(), &bytes)
        };
        self.retry_failed.as_ref().map(read).transpose()
    }

    /// One run.
    async fn run_once(
        &self,
        (list, to): (&List, &[DestinationBase]),
        global: &Global,
        registries: &Registries,
        bars: Option<&Arc<Bars>>,
        observer: Arc<dyn Observer>,
    ) -> Result<RunReport> {
        let (shard, failed) = (self.shard()?, self.failed()?);
        log_notes(list);
        let ours = |entry: &Entry| shard.is_none_or(|shard| shard.contains(&entry.source));
        let again = Mutex::new(BTreeSet::new());
        let concerned = failed.as_ref().map(failed_destinations);
        let wanted = |entry: &Entry, job: Option<&Job>| {
            ours(entry)
                && concerned.as_ref().is_none_or(|concerned| concerned.contains(&entry.source))
                && failed.as_ref().zip(job).is_none_or(|(failed, job)| {
                    let holds = failed.holds(&job.from(), &job.to());
                    holds && again.lock().unwrap_or_else(PoisonError::into_inner).insert((job.from(), job.to()))
                })
        };
        let begun = Instant::now();
        // The table shows failures. Without it they are printed one by one.
        let shown = global.output == Format::Text && !global.quiet;
        let run = RunReport::start(shard.as_ref(), self.dry_run, &render::registry_usage(registries));
        let keep_set = KeepSet::of_list(list, to, shard.as_ref())?;
        let done = Mutex::new((run, KeepRecorder { keep_set, list, to }));
        let ended = |event| {
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.1.record(&event);
            let failure = add_event(&mut done.0, event);
            drop(done);
            if let Some((which, error)) = failure {
                let name = format!("{} to {}", which.source, which.destination);
                let print = || output::print_failed_image(name.trim_end_matches(" to "), &error, shown);
                bars.map_or_else(print, |bars| bars.suspend(print));
            }
        };
        let engine = Engine::new(usize::from(self.jobs), observer).with_retries(self.retries).thrifty();
        let options = run::Options { action: self.action(), deadline: self.limits.deadline() };
        run::run(list, to, &RegistryRepositories::new(registries), &engine, &options, &wanted, &ended).await;
        if let Some(failed) = &failed {
            let again = again.into_inner().unwrap_or_else(PoisonError::into_inner);
            warn_missing(failed, &again, list, shard.as_ref());
        }
        let (mut run, held) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        if self.prune.is_asked() {
            run.pruned_by(self.prune.run(&held.keep_set, registries, self.dry_run, options.deadline).await);
        }
        run.finish(begun.elapsed(), render::registry_usage(registries));
        Ok(run)
    }

    pub(super) fn is_scheduled(&self) -> bool {
        self.interval.is_scheduled()
    }

    /// Adds the flags of this command to the options of registries.
    pub(super) fn options(&self, options: Options) -> Result<Options> {
        let share = self.shard()?.map_or(1, Shard::count);
        self.limits.options(options, share)
    }

    fn action(&self) -> Action {
        Action::Copy { dry_run: self.dry_run, force: self.force }
    }

    /// Prints the report and writes its files.
    fn print_report(&self, done: &RunReport, global: &Global) -> Result<()> {
        if let Some(path) = &self.report {
            report::save(path, |to| done.json(to))?;
        }
        if let Some(path) = &self.junit {
            report::save(path, |to| done.junit(to))?;
        }
        match global.output {
            Format::Json => output::print_json(done),
            Format::Text if global.quiet => {}
            Format::Text => output::print(&render::run_summary(done)),
        }
        Ok(())
    }
}

/// Records the images of the list at its targets, for [`prune`].
struct KeepRecorder<'a> {
    keep_set: KeepSet,
    list: &'a List,
    to: &'a [DestinationBase],
}

impl KeepRecorder<'_> {
    fn record(&mut self, event: &Event) {
        match event {
            Event::Copied(job, _) | Event::Compared(job, _) => self.keep_set.keep(&job.destination, &job.at),
            Event::Failed(job, _) => {
                self.keep_set.keep(&job.destination, &job.at);
                self.keep_set.keep_all(&job.destination, format!("{} failed", job.from()));
            }
            Event::Skipped(job, _) => {
                self.keep_set.keep(&job.destination, &job.at);
                self.keep_set.keep_all(&job.destination, format!("{} was skipped", job.from()));
            }
            Event::Unknown { line, source, .. } => {
                let (list, line) = (self.list, *line);
                for entry in list.entries.iter().filter(|entry| entry.line == line && entry.source == *source) {
                    self.keep_set.keep_all_of_entry(entry, self.to, "not all tags of its source are known");
                }
            }
        }
    }
}

/// Logs the notes of a list.
pub(in crate::cli) fn log_notes(list: &List) {
    for note in &list.notes {
        match note.line {
            0 => tracing::warn!("{}", note.text),
            line => tracing::warn!("line {line}: {}", note.text),
        }
    }
}

/// Warns about images that failed before and are not in the list any more. With another list or destination, the run
/// would end as if all were done.
fn warn_missing(failed: &PreviousFailures, again: &BTreeSet<(String, String)>, list: &List, shard: Option<&Shard>) {
    let listed = |source: &str| list.entries.iter().any(|entry| entry.source.to_string() == source);
    let others = |source: &str| {
        let source: Option<Reference> = source.parse().ok();
        shard.zip(source).is_some_and(|(shard, source)| !shard.contains(&source.repository))
    };
    let mut missed = failed.iter().filter(|(source, destination)| {
        // If a repository's tags were unknown, any of its images may have failed.
        let known = if destination.is_empty() { listed(source) } else { contains_pair(again, source, destination) };
        !known && !others(source)
    });
    if let Some((source, destination)) = missed.next() {
        let to = if destination.is_empty() { String::new() } else { format!(" to {destination}") };
        let more = missed.count();
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        tracing::warn!(
            "images that failed before are not in the list, or have another destination: {source}{to}{more}"
        );
    }
}

/// The repositories in which images failed. Tags of others need not be listed.
fn failed_destinations(failed: &PreviousFailures) -> BTreeSet<Repository> {
    failed.iter().filter_map(|(source, _)| source.parse::<Reference>().ok()).map(|source| source.repository).collect()
}

fn contains_pair(pairs: &BTreeSet<(String, String)>, source: &str, destination: &str) -> bool {
    pairs.contains(&(source.to_owned(), destination.to_owned()))
}

/// Adds an event to the report. Returns a failure, which is printed at once. Skipped images are reported at the end,
/// since they may be the rest of the list.
pub(in crate::cli) fn add_event(done: &mut RunReport, event: Event) -> Option<(ImageId, Error)> {
    match event {
        Event::Copied(job, report) => {
            done.add(image_id(&job), Ok(*report));
            None
        }
        Event::Compared(..) => None,
        Event::Failed(job, error) => {
            done.add(image_id(&job), Err(&error));
            Some((image_id(&job), error))
        }
        Event::Skipped(job, why) => {
            done.skip(image_id(&job), &why);
            None
        }
        Event::Unknown { line, source, error, skipped } => {
            let which = ImageId { source: source.to_string(), destination: String::new(), line };
            if skipped {
                done.skip(which, &error);
                return None;
            }
            done.add(which.clone(), Err(&error));
            Some((which, error))
        }
    }
}

fn image_id(job: &Job) -> ImageId {
    ImageId { source: job.from(), destination: job.to(), line: job.line }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;
    use crate::mirror::prune::{self, plan};
    use crate::reference::Target;

    /// Nothing is removed from a repository whose images are not all known, and its tags are not listed.
    #[tokio::test]
    async fn what_was_skipped_or_failed_or_is_not_known_spares_its_repository() {
        let list = List::read("images: [{source: s.io/a, glob: '*'}]\n", "list").expect("a list");
        let to = ["r.io/x".parse().expect("a destination")];
        let job = || {
            let (source, destination) = ["s.io/a", "r.io/x/a"].map(|name| name.parse().expect("a repository")).into();
            let tag = Target::Tag("1".into());
            Box::new(Job {
                line: 1,
                source,
                read: tag.clone(),
                destination,
                at: tag,
                platforms: vec![],
                referrers: false,
                no_tag: None,
            })
        };
        let late = || Error::new(Kind::Timeout, "late");
        let unknown = Event::Unknown { line: 1, source: job().source, error: late(), skipped: false };
        for (event, why) in [
            (Event::Skipped(job(), late()), "s.io/a:1 was skipped"),
            (Event::Failed(job(), late()), "s.io/a:1 failed"),
            (unknown, "not all tags of its source are known"),
        ] {
            let mut held =
                KeepRecorder { keep_set: KeepSet::of_list(&list, &to, None).expect("claims"), list: &list, to: &to };
            held.record(&event);
            let registries = Registries::new(Options::default());
            let open = |repository: &Repository| registries.repository(repository);
            let plan = plan(&held.keep_set, open, &prune::Options::default(), crate::clock::timestamp()).await;
            assert_eq!(plan.repositories[0].kept_reason.as_deref(), Some(why));
            assert_eq!(registries.known().len(), 0);
        }
    }
}
