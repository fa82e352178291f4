//! What a copy says: a line for each image, a summary, or one JSON document.

use std::sync::Arc;
use std::time::Duration;

use serde::Serialize;

use crate::cli::global::{Format, Global};
use crate::cli::image::Image;
use crate::cli::output;
use crate::cli::progress::Bars;
use crate::copy::{Report, Status};
use crate::error::{Error, Result};
use crate::registry::{PullQuota, Registries};

/// The document that `--output json` prints. The README describes it.
#[derive(Serialize)]
struct Document {
    /// Grows when a field changes its meaning.
    schema: u32,
    images: Vec<Entry>,
    summary: Summary,
    registries: Vec<Use>,
}

#[derive(Serialize)]
struct Entry {
    source: String,
    destination: String,
    #[serde(flatten)]
    result: Ended,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Ended {
    Done {
        status: &'static str,
        #[serde(flatten)]
        report: Box<Report>,
    },
    Failed {
        status: &'static str,
        error: Failure,
    },
}

#[derive(Serialize)]
struct Failure {
    side: Option<String>,
    kind: String,
    message: String,
    hint: Option<String>,
}

#[derive(Default, Serialize)]
struct Summary {
    copied: usize,
    unchanged: usize,
    planned: usize,
    failed: usize,
    uploaded: usize,
    mounted: usize,
    present: usize,
    pulls: usize,
    bytes_moved: u64,
    bytes_saved: u64,
    requests: u64,
    seconds: f64,
}

#[derive(Serialize)]
struct Use {
    name: String,
    requests: u64,
    pull_quota: Option<PullQuota>,
}

/// What was told so far.
pub(super) struct Told {
    text: bool,
    /// Whether each image's error is told by itself; a single one's is the program's.
    several: bool,
    bars: Option<Arc<Bars>>,
    entries: Vec<Entry>,
    summary: Summary,
}

impl Told {
    /// Nothing told yet. `several` says that each image's error is told by itself.
    pub(super) fn new(global: &Global, several: bool, bars: Option<Arc<Bars>>) -> Self {
        let text = global.output == Format::Text && !global.quiet;
        Self { text, several, bars, entries: Vec::new(), summary: Summary::default() }
    }

    /// Tells how an image ended, and returns its error.
    pub(super) fn add(&mut self, image: &Image, result: Result<Report>, dry_run: bool) -> Option<Error> {
        let (source, destination) = (image.source(), image.destination());
        let (result, error) = match result {
            Ok(report) => {
                self.summary.add(&report, dry_run);
                if self.text {
                    self.tell(|| output::print(&format!("{}\n", describe(&source, &destination, &report, dry_run))));
                }
                (Ended::done(report, dry_run), None)
            }
            Err(error) => {
                self.summary.failed += 1;
                if self.several {
                    self.tell(|| output::failure(&format!("{source} to {destination}"), &error));
                }
                (Ended::failed(&error), Some(error))
            }
        };
        self.entries.push(Entry { source, destination, result });
        error
    }

    /// Prints the summary or the document. One image's error is the program's own; of several each
    /// was told already.
    pub(super) fn finish(
        self,
        first_error: Option<Error>,
        took: Duration,
        global: &Global,
        registries: &Registries,
    ) -> Result<u8> {
        let Self { entries, mut summary, .. } = self;
        summary.seconds = took.as_secs_f64();
        let registries: Vec<Use> = registries
            .known()
            .into_iter()
            .map(|(name, registry)| Use { name, requests: registry.requests(), pull_quota: registry.quota() })
            .collect();
        summary.requests = registries.iter().map(|used| used.requests).sum();
        let (all, failed) = (entries.len(), summary.failed);
        if global.output == Format::Json {
            output::print_json(&Document { schema: 1, images: entries, summary, registries });
        } else if !global.quiet && failed < all {
            output::print(&format!("{}\n", summary.text(&registries)));
        }
        match first_error {
            None => Ok(0),
            Some(error) if all == 1 => Err(error),
            Some(_) if failed < all => Ok(3),
            Some(_) => Ok(1),
        }
    }

    fn tell(&self, print: impl FnOnce()) {
        match &self.bars {
            Some(bars) => bars.suspend(print),
            None => print(),
        }
    }
}

fn describe(source: &str, destination: &str, report: &Report, dry_run: bool) -> String {
    let digest = report.digest.map(|digest| format!(" ({})", digest.short())).unwrap_or_default();
    if report.status == Status::Unchanged {
        let more = if report.referrers > 0 {
            format!(", {}", output::count(report.referrers, "referrer"))
        } else {
            String::new()
        };
        return format!("unchanged: {source} is at {destination}{digest}{more}");
    }
    let verb = if dry_run { "would copy" } else { "copied" };
    let mut parts = vec![output::count(report.manifests, "manifest")];
    let (sent, mounted) = if dry_run { ("to send", "to mount") } else { ("sent", "mounted") };
    let blobs = [(report.uploaded, sent), (report.mounted, mounted), (report.present, "there already")];
    parts.extend(
        blobs
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{} {what}", output::count(*number, "blob"))),
    );
    if report.foreign > 0 {
        parts.push(format!(
            "{} left where they are (--include-foreign copies them)",
            output::count(report.foreign, "foreign layer")
        ));
    }
    if report.referrers > 0 {
        parts.push(output::count(report.referrers, "referrer"));
    }
    let moved = if dry_run { "to move" } else { "moved" };
    let bytes = output::bytes(report.bytes_moved);
    format!("{verb}: {source} to {destination}{digest}: {}; {bytes} {moved}", parts.join(", "))
}

impl Ended {
    fn done(report: Report, dry_run: bool) -> Self {
        let status = match report.status {
            Status::Unchanged => "unchanged",
            Status::Copied if dry_run => "planned",
            Status::Copied => "copied",
        };
        Self::Done { status, report: Box::new(report) }
    }

    fn failed(error: &Error) -> Self {
        Self::Failed {
            status: "failed",
            error: Failure {
                side: error.side().map(|side| side.to_string()),
                kind: format!("{:?}", error.kind()).to_ascii_lowercase(),
                message: error.to_string(),
                hint: error.hint_text().map(str::to_owned),
            },
        }
    }
}

impl Summary {
    fn add(&mut self, report: &Report, dry_run: bool) {
        match report.status {
            Status::Unchanged => self.unchanged += 1,
            Status::Copied if dry_run => self.planned += 1,
            Status::Copied => self.copied += 1,
        }
        self.uploaded += report.uploaded;
        self.mounted += report.mounted;
        self.present += report.present;
        self.pulls += report.pulls;
        self.bytes_moved += report.bytes_moved;
        self.bytes_saved += report.bytes_saved;
    }

    fn text(&self, registries: &[Use]) -> String {
        let images = [
            (self.copied, "copied"),
            (self.unchanged, "unchanged"),
            (self.planned, "planned"),
            (self.failed, "failed"),
        ];
        let images: Vec<String> =
            images.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
        let moved = if self.planned > 0 { "to move" } else { "moved" };
        let mut text = format!(
            "{}; {} {moved}, {} saved; {} requests; {}",
            images.join(", "),
            output::bytes(self.bytes_moved),
            output::bytes(self.bytes_saved),
            self.requests,
            output::time(Duration::from_secs_f64(self.seconds)),
        );
        for (name, quota) in registries.iter().filter_map(|used| Some((&used.name, used.pull_quota.as_ref()?))) {
            let (left, limit, hours) = (quota.remaining, quota.limit, quota.window / 3600);
            text += &format!(
                "\n{name}: {} counted; {left} of {limit} left in {hours} h",
                output::count(self.pulls, "pull")
            );
        }
        text
    }
}
