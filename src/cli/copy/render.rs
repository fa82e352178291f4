//! The output of `copy`: a line for each image and a summary, or one JSON document.

use std::time::Duration;

use serde::Serialize;

use crate::cli::global::{Format, Global};
use crate::cli::image::CopyRequest;
use crate::cli::{output, render};
use crate::copy::{CopyResult, Entry, RegistryUsage, Report, Summary};
use crate::error::{Error, Result};
use crate::registry::Registries;

/// The document that `--output json` prints. docs/reference/json.md describes it.
#[derive(Serialize)]
struct Document {
    /// The version of the format. It grows when a field changes its meaning.
    schema: u32,
    images: Vec<Entry>,
    summary: Summary,
    registries: Vec<RegistryUsage>,
}

/// Prints results, and collects them for the summary or the document.
pub(super) struct CopyOutput {
    text: bool,
    /// Whether each image's error is printed by itself. The error of a single image is the error of the program.
    several: bool,
    entries: Vec<Entry>,
    summary: Summary,
}

impl CopyOutput {
    /// An output without results. With `several`, each image's error is printed by itself.
    pub(super) fn new(global: &Global, several: bool) -> Self {
        let text = global.output == Format::Text && !global.quiet;
        Self { text, several, entries: Vec::new(), summary: Summary::default() }
    }

    /// Prints the result of an image, and returns its error.
    pub(super) fn add(&mut self, image: &CopyRequest, result: Result<Report>, dry_run: bool) -> Option<Error> {
        let (source, destination) = (image.source(), image.destination());
        match &result {
            Ok(report) if self.text => {
                let line = render::image_line(&source, &destination, report, dry_run);
                output::print(&format!("{line}\n"));
            }
            Err(error) if self.several => {
                output::print_image_error(&format!("{source} to {destination}"), error);
            }
            _ => {}
        }
        let (ended, error) = match result {
            Ok(report) => (CopyResult::new(Ok(report), dry_run), None),
            Err(error) => (CopyResult::new(Err(&error), dry_run), Some(error)),
        };
        self.summary.add(&ended);
        self.entries.push(Entry { source, destination, line: None, ended });
        error
    }

    /// Prints which names of the source's list of tags are left out, and returns the error.
    pub(super) fn reject(&mut self, source: String, error: Error) -> Error {
        output::print_image_error(&source, &error);
        let ended = CopyResult::new(Err(&error), false);
        self.summary.add(&ended);
        self.entries.push(Entry { source, destination: String::new(), line: None, ended });
        error
    }

    /// Prints the summary or the document. Returns the error of a single image. Errors of several images were printed
    /// before.
    pub(super) fn finish(
        self,
        first_error: Option<Error>,
        took: Duration,
        global: &Global,
        registries: &Registries,
    ) -> Result<u8> {
        let Self { entries, mut summary, .. } = self;
        summary.duration_seconds = took.as_secs_f64();
        let registries = render::registry_usage(registries);
        summary.requests = registries.iter().map(|used| used.requests).sum();
        let (all, failed) = (entries.len(), summary.failed);
        if global.output == Format::Json {
            output::print_json(&Document { schema: 1, images: entries, summary, registries });
        } else if !global.quiet && failed < all {
            output::print(&format!("{}\n", render::summary(&summary, &registries)));
        }
        match first_error {
            None => Ok(0),
            Some(error) if all == 1 => Err(error),
            Some(_) if failed < all => Ok(3),
            Some(_) => Ok(1),
        }
    }
}
