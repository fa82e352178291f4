//! `transload mirror LIST`: mirrors a list of images, once or on a schedule.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

use super::super::global::{Format, Global};
use super::super::progress::Progress;
use super::super::{interval, output, prune, render};
use super::repositories::RegistryRepositories;
use super::{DestinationArgs, limits};
use crate::copy::{Engine, Mode, Observer};
use crate::error::{Error, Result};
use crate::mirror::job::Job;
use crate::mirror::list::{DestinationBase, Entry};
use crate::mirror::metrics::Metrics;
use crate::mirror::prune::KeepRecorder;
use crate::mirror::report::{self, PreviousFailures, RunReport};
use crate::mirror::run::{self, Action};
use crate::mirror::selection::Selection;
use crate::mirror::{List, Shard, load, shard};
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
        let parse = |bytes: &[u8]| load::parse(bytes, file, &args.to.overrides());
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
    let (list, to) = load::load(file, &args.to.overrides())?;
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
        let selection = Selection::new(self.shard()?, self.failed()?);
        load::log_notes(list);
        let begun = Instant::now();
        // The table shows failures. Without it they are printed one by one.
        let shown = global.output == Format::Text && !global.quiet;
        let run = RunReport::start(selection.shard(), self.dry_run, &render::registry_usage(registries));
        let done = Mutex::new((run, KeepRecorder::new(list, to, selection.shard())?));
        let ended = |event| {
            if let Some(progress) = progress {
                progress.count_image(&event);
            }
            // What stays has its lines in a log.
            let line = progress.map_or(shown, Progress::wants_image_lines);
            let line = line.then(|| render::finished_line(&event, self.dry_run)).flatten();
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.1.record(&event);
            let failure = done.0.add_event(event);
            drop(done);
            if let Some((which, error)) = failure {
                let name = format!("{} to {}", which.source, which.destination);
                output::print_failed_image(name.trim_end_matches(" to "), &error, shown);
            }
            if let Some(line) = line {
                output::note(&line);
            }
        };
        let engine = Engine::new(usize::from(self.jobs), observer).with_retries(self.retries).with_mode(Mode::List);
        let options = run::Options { action: self.action(), deadline: self.limits.deadline() };
        let wanted = |entry: &Entry, job: Option<&Job>| selection.wants(entry, job);
        run::run(list, to, &RegistryRepositories::new(registries), &engine, &options, &wanted, &ended).await;
        selection.warn_missing(list);
        let (mut run, kept) = done.into_inner().unwrap_or_else(PoisonError::into_inner);
        if self.prune.is_asked() {
            run.pruned_by(self.prune.run(&kept.finish(), registries, self.dry_run, options.deadline).await);
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
        self.limits.options(Options { pin_pushes: true, ..options }, share)
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
