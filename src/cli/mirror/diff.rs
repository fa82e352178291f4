//! `transload diff`: differences between a list's sources and its destinations.

use std::sync::{Arc, Mutex, PoisonError};

use serde::Serialize;

use super::super::global::{Format, Global};
use super::super::output;
use super::DestinationArgs;
use super::repositories::RegistryRepositories;
use crate::copy::Failure;
use crate::copy::{Engine, NoObserver};
use crate::error::Result;
use crate::mirror::job::{Drift, Job};
use crate::mirror::load;
use crate::mirror::run::{self, Action, Event};
use crate::registry::Registries;

/// Show which images of a list differ at the destination, without a transfer
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(in crate::cli) struct Args {
    /// List of images: a file, or `-` for stdin
    list: String,
    #[command(flatten)]
    to: DestinationArgs,
}

/// The document that `--output json` prints.
#[derive(Debug, Default, Serialize)]
struct Document {
    schema: u32,
    images: Vec<Line>,
    summary: Summary,
}

#[derive(Debug, Serialize)]
struct Line {
    source: String,
    destination: String,
    line: usize,
    status: &'static str,
    /// The digest at the source.
    #[serde(skip_serializing_if = "Option::is_none")]
    source_digest: Option<String>,
    /// The digest at the destination.
    #[serde(skip_serializing_if = "Option::is_none")]
    destination_digest: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Failure>,
}

#[derive(Debug, Default, Serialize)]
struct Summary {
    same: usize,
    missing: usize,
    differs: usize,
    failed: usize,
    requests: u64,
}

/// Runs the command. The exit code is 3 if images differ or could not be compared.
pub(in crate::cli) async fn run(args: &Args, global: &Global, registries: &Registries) -> Result<u8> {
    let (list, to) = load::load(&args.list, &args.to.overrides())?;
    let found = Mutex::new(Document { schema: 1, ..Document::default() });
    let ended = |event| {
        let Some(line) = line(event) else { return };
        found.lock().unwrap_or_else(PoisonError::into_inner).add(line);
    };
    let engine = Engine::new(1, Arc::new(NoObserver));
    let options = run::Options { action: Action::Compare, ..run::Options::default() };
    run::run(&list, &to, &RegistryRepositories::new(registries), &engine, &options, &|_, _| true, &ended).await;
    let mut document = found.into_inner().unwrap_or_else(PoisonError::into_inner);
    document.summary.requests = registries.known().iter().map(|(_, registry)| registry.requests()).sum();
    document.images.sort_by(|a, b| (a.line, &a.source, &a.destination).cmp(&(b.line, &b.source, &b.destination)));
    match global.output {
        Format::Json => output::print_json(&document),
        Format::Text if global.quiet => {}
        Format::Text => output::print(&document.text()),
    }
    Ok(if document.summary.same == document.images.len() { 0 } else { 3 })
}

/// The line of an image.
fn line(event: Event) -> Option<Line> {
    let of = |job: &Job, status, here, there, error| Line {
        source: job.from(),
        destination: job.to(),
        line: job.line,
        status,
        source_digest: here,
        destination_digest: there,
        error,
    };
    Some(match event {
        Event::Expected(_) => return None,
        Event::Compared(job, Drift::None) => of(&job, "same", None, None, None),
        Event::Compared(job, Drift::Missing(here)) => of(&job, "missing", Some(here.to_string()), None, None),
        Event::Compared(job, Drift::Differs { here, there }) => {
            of(&job, "differs", Some(here.to_string()), Some(there.to_string()), None)
        }
        Event::Failed(job, error) | Event::Skipped(job, error) => of(&job, "failed", None, None, Some((&error).into())),
        // A comparison copies nothing.
        Event::Copied(job, _) => of(&job, "same", None, None, None),
        Event::Unknown { line, source, error, .. } => Line {
            source: source.to_string(),
            destination: String::new(),
            line,
            status: "failed",
            source_digest: None,
            destination_digest: None,
            error: Some((&error).into()),
        },
    })
}

impl Document {
    fn add(&mut self, line: Line) {
        match line.status {
            "same" => self.summary.same += 1,
            "missing" => self.summary.missing += 1,
            "differs" => self.summary.differs += 1,
            _ => self.summary.failed += 1,
        }
        self.images.push(line);
    }

    /// The images that differ, and the sums.
    fn text(&self) -> String {
        let mut text = String::new();
        let drifted = || self.images.iter().filter(|image| image.status != "same");
        let width =
            |field: fn(&Line) -> &str| drifted().map(|image| output::format_field(field(image)).chars().count()).max();
        let source = width(|image| &image.source).unwrap_or(0);
        for image in drifted() {
            let why = image.error.as_ref().map(|error| format!(": {}", error.message)).unwrap_or_default();
            let row = format!(
                "{:8} {:source$} {}{why}",
                image.status,
                output::format_field(&image.source),
                output::format_field(&image.destination)
            );
            text += row.trim_end();
            text.push('\n');
        }
        let Summary { same, missing, differs, failed, requests } = self.summary;
        text + &format!("{same} same, {missing} missing, {differs} differ, {failed} failed; {requests} requests\n")
    }
}

const AFTER_HELP: &str = "\
It asks both ends by HEAD, which Docker Hub doesn't count as a pull.

Exit codes: 0 nothing has drifted, 3 something has or could not be compared, 1 failed, 2 usage, 130 interrupted.";
