//! `transload mirror LIST`: a whole list of images, once or on a schedule.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::super::global::{Format, Global};
use super::super::progress::Progress;
use super::super::{interval, output, prune, render};
use super::repositories::RegistryRepositories;
use super::{DestinationArgs, check, limits};
use crate::copy::{Engine, Observer};
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

/// What a run takes.
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

/// Runs the list, once or on schedule; returns the exit code.
pub(super) async fn run(args: &RunArgs, global: &Global, registries: &Registries) -> Result<u8> {
    let file = args.list.as_deref().unwrap_or("-");
    if args.interval.is_scheduled() {
        let parse = |bytes: &[u8]| check::parse_list(bytes, file, &args.to);
        let mut number = 0_u64;
        let once = async |(list, to): &(List, Vec<DestinationBase>), metrics: &Metrics| {
            number += 1;
            args.print_separator(number, global);
            let done = args.run_once((list, to), global, registries, None, Arc::new(metrics.clone())).await?;
            args.print_report(&done, global)?;
            Ok(done)
        };
        return args.interval.run(Path::new(file), parse, once).await;
    }
    let (list, to) = check::open_list(file, &args.to)?;
    let progress = Progress::start(global);
    let done = args.run_once((&list, &to), global, registries, Some(&*progress), progress.clone()).await?;
    progress.clear();
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
        progress: Option<&Progress>,
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
        // Why something failed is told once: by the table, where there is one.
        let shown = global.output == Format::Text && !global.quiet;
        let run = RunReport::start(shard.as_ref(), self.dry_run, &render::registry_usage(registries));
        let keep_set = KeepSet::of_list(list, to, shard.as_ref())?;
        let done = Mutex::new((run, KeepRecorder { keep_set, list, to }));
        let ended = |event| {
            if let Some(progress) = progress {
                count_image(progress, &event);
            }
            // What stays has its lines in a log.
            let line = progress.map_or(!global.quiet, Progress::wants_image_lines);
            let line = line.then(|| finished_line(&event, self.dry_run)).flatten();
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.1.record(&event);
            let failure = add_event(&mut done.0, event);
            drop(done);
            if let Some((which, error)) = failure {
                let name = format!("{} to {}", which.source, which.destination);
                output::print_failed_image(name.trim_end_matches(" to "), &error, shown);
            }
            if let Some(line) = line {
                output::note(&line);
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

    /// How registries are asked, by this command's flags.
    pub(super) fn options(&self, options: Options) -> Result<Options> {
        let share = self.shard()?.map_or(1, Shard::count);
        self.limits.options(options, share)
    }

    fn action(&self) -> Action {
        Action::Copy { dry_run: self.dry_run, force: self.force }
    }

    /// Separates the reports of runs that follow each other, if they are read by people.
    fn print_separator(&self, number: u64, global: &Global) {
        if global.output == Format::Text && !global.quiet {
            let time = crate::clock::timestamp().strftime("%F %H:%M:%S UTC");
            output::print(&format!("--- run {number}, {time} ---\n"));
        }
    }

    /// Prints the run, and writes its files.
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

/// Counts an image for the progress.
pub(in crate::cli) fn count_image(progress: &Progress, event: &Event) {
    match event {
        Event::Expected(more) => progress.expect_images(*more),
        Event::Unknown { .. } => {
            progress.expect_images(1);
            progress.image_ended(true);
        }
        Event::Failed(..) => progress.image_ended(true),
        Event::Copied(..) | Event::Compared(..) | Event::Skipped(..) => progress.image_ended(false),
    }
}

/// The line of an image that is done, or would be.
pub(in crate::cli) fn finished_line(event: &Event, dry_run: bool) -> Option<String> {
    match event {
        Event::Copied(job, report) => Some(render::image_line(&job.from(), &job.to(), report, dry_run)),
        _ => None,
    }
}

/// What the list holds of its targets, for [`prune`].
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
            Event::Expected(_) => {}
            Event::Unknown { line, source, .. } => {
                let (list, line) = (self.list, *line);
                for entry in list.entries.iter().filter(|entry| entry.line == line && entry.source == *source) {
                    self.keep_set.keep_all_of_entry(entry, self.to, "not all tags of its source are known");
                }
            }
        }
    }
}

/// Says what of the list isn't done, or done otherwise.
pub(in crate::cli) fn log_notes(list: &List) {
    for note in &list.notes {
        match note.line {
            0 => tracing::warn!("{}", note.text),
            line => tracing::warn!("line {line}: {}", note.text),
        }
    }
}

/// Says what failed before and isn't asked for any more: a list or a destination that's another one would end as
/// well as if all were done.
fn warn_missing(failed: &PreviousFailures, again: &BTreeSet<(String, String)>, list: &List, shard: Option<&Shard>) {
    let listed = |source: &str| list.entries.iter().any(|entry| entry.source.to_string() == source);
    let others = |source: &str| {
        let source: Option<Reference> = source.parse().ok();
        shard.zip(source).is_some_and(|(shard, source)| !shard.contains(&source.repository))
    };
    let mut missed = failed.iter().filter(|(source, destination)| {
        // Of a repository whose tags weren't known, any may have failed.
        let known = if destination.is_empty() { listed(source) } else { contains_pair(again, source, destination) };
        !known && !others(source)
    });
    if let Some((source, destination)) = missed.next() {
        let to = if destination.is_empty() { String::new() } else { format!(" to {destination}") };
        let more = missed.count();
        let more = if more == 0 { String::new() } else { format!(", and {more} more") };
        tracing::warn!("what failed before isn't in the list, or goes elsewhere now: {source}{to}{more}");
    }
}

/// The repositories of which something failed: no other's tags need to be listed.
fn failed_destinations(failed: &PreviousFailures) -> BTreeSet<Repository> {
    failed.iter().filter_map(|(source, _)| source.parse::<Reference>().ok()).map(|source| source.repository).collect()
}

fn contains_pair(pairs: &BTreeSet<(String, String)>, source: &str, destination: &str) -> bool {
    pairs.contains(&(source.to_owned(), destination.to_owned()))
}

/// Adds what happened to the run; gives back a failure, to be told at once. What is skipped is told at the
/// end: it would be the rest of the list.
pub(in crate::cli) fn add_event(done: &mut RunReport, event: Event) -> Option<(ImageId, Error)> {
    match event {
        Event::Copied(job, report) => {
            done.add(image_id(&job), Ok(*report));
            None
        }
        Event::Compared(..) | Event::Expected(_) => None,
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

    /// Nothing goes of a repository of which not all is known; and it isn't even looked at.
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
            assert_eq!(plan.repositories[0].spared.as_deref(), Some(why));
            assert_eq!(registries.known().len(), 0);
        }
    }
}
