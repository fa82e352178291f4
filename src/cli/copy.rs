//! `transload copy`: one image or all tags of a repository, to one or several destinations.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures_util::{StreamExt as _, stream};
use serde::Serialize;

use super::global::{Format, Global};
use super::image::{From, Image};
use super::output;
use super::progress::Bars;
use crate::content::Source as _;
use crate::copy::{Engine, Observer, Options, Report, Silent, Status};
use crate::descriptor::Platform;
use crate::error::{Error, Kind, Result, Side};
use crate::reference::{Goal, Location};
use crate::registry::{PullQuota, Registries};

/// Copy an image, every platform of it, byte for byte
#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub(super) struct Args {
    /// What to copy, then where to: `hello-world`, `ghcr.io/o/r:tag`, `ghcr.io/o/r@sha256:…`, `oci:DIR[:TAG]`;
    /// a destination may be a registry alone, which keeps the repository's path and tag
    #[arg(required = true, num_args = 1.., value_names = ["SRC", "DST"])]
    images: Vec<String>,
    /// Copy these platforms only; the index stays as it is, and is sparse (repeatable, or by commas)
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_delimiter = ',')]
    platform: Vec<Platform>,
    /// Copy the one image of --platform instead of the index
    #[arg(long, requires = "platform")]
    flatten: bool,
    /// Copy all tags of the repository
    #[arg(long)]
    all_tags: bool,
    /// Copy signatures, attestations and other referrers too
    #[arg(long)]
    referrers: bool,
    /// Walk and repair the image although the destination's tag is the same
    #[arg(long)]
    force: bool,
    /// Only say what would be moved
    #[arg(long)]
    dry_run: bool,
    /// Copy foreign (not distributable) layers too
    #[arg(long)]
    include_foreign: bool,
    /// Leave out `library/` of Docker Hub's official images
    #[arg(long)]
    strip_library: bool,
    /// Large blobs at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=256))]
    jobs: u16,
    /// How often a blob is tried again after a fault; large ones more, as long as they get on
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u32).range(0..=1000))]
    retries: u32,
    /// Upload in chunks of this size, such as 16MiB (ACR: always; others: one request a blob)
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(super) chunk_size: Option<u64>,
}

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

/// Runs the command; returns the exit code.
pub(super) async fn run(args: &Args, global: &Global, registries: &Registries) -> Result<u8> {
    let (location, goals) = args.ends()?;
    let source = From::settle(location.clone()).await?;
    let begun = Instant::now();
    let bars = Bars::new(global).map(Arc::new);
    let observer: Arc<dyn Observer> = match &bars {
        Some(bars) => bars.clone(),
        None => Arc::new(Silent),
    };
    let engine = Engine::new(usize::from(args.jobs), observer).with_retries(args.retries);
    let options = args.options();
    let mut told = Told {
        text: global.output == Format::Text && !global.quiet,
        several: args.all_tags || goals.len() > 1,
        bars: bars.clone(),
        entries: Vec::new(),
        summary: Summary::default(),
    };
    let mut first_error = None;
    let mut after: Option<String> = None;
    loop {
        let sources =
            if args.all_tags { page(registries, &location, &source, &mut after).await? } else { vec![source.clone()] };
        if sources.is_empty() {
            break;
        }
        let images = sources
            .iter()
            .flat_map(|source| goals.iter().map(|goal| Image::new(source.clone(), goal.clone(), args.strip_library)));
        let mut copies = stream::iter(images)
            .map(|image| {
                let (engine, options) = (&engine, &options);
                async move {
                    let result = image.copy(registries, engine, options).await;
                    (image, result)
                }
            })
            .buffer_unordered(IMAGES_AT_ONCE);
        while let Some((image, result)) = copies.next().await {
            if let Some(error) = told.add(&image, result, args.dry_run) {
                first_error.get_or_insert(error);
            }
        }
        if !args.all_tags {
            break;
        }
    }
    if let Some(bars) = &bars {
        bars.clear();
    }
    told.summary.seconds = begun.elapsed().as_secs_f64();
    finish(told, first_error, global, registries)
}

/// Prints the summary or the document. One image's error is the program's own; of several each
/// was told already.
fn finish(told: Told, first_error: Option<Error>, global: &Global, registries: &Registries) -> Result<u8> {
    let Told { entries, mut summary, .. } = told;
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

/// What was told so far.
struct Told {
    text: bool,
    /// Whether each image's error is told by itself; a single one's is the program's.
    several: bool,
    bars: Option<Arc<Bars>>,
    entries: Vec<Entry>,
    summary: Summary,
}

impl Told {
    /// Tells how an image ended, and returns its error.
    fn add(&mut self, image: &Image, result: Result<Report>, dry_run: bool) -> Option<Error> {
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

impl Args {
    fn ends(&self) -> Result<(Location, BTreeSet<Goal>)> {
        let (source, goals) = match &self.images[..] {
            [_] => {
                return Err(Error::new(Kind::Usage, "there is no destination")
                    .hint("name one behind the source: transload copy hello-world myregistry.azurecr.io"));
            }
            [source, goals @ ..] => (source, goals),
            [] => return Err(Error::new(Kind::Usage, "there is nothing to copy")),
        };
        let source: Location = source.parse()?;
        let goals = goals.iter().map(|goal| goal.parse()).collect::<Result<BTreeSet<Goal>>>()?;
        if self.all_tags {
            self.check_all_tags(&source, &goals)?;
        }
        Ok((source, goals))
    }

    fn check_all_tags(&self, source: &Location, goals: &BTreeSet<Goal>) -> Result<()> {
        let written = self.images.first().map(String::as_str).unwrap_or_default();
        let last = written.rsplit('/').next().unwrap_or_default();
        if !matches!(source, Location::Registry(..)) || last.contains(':') || last.contains('@') {
            return Err(Error::new(
                Kind::Usage,
                format!("--all-tags takes a repository, and {written:?} is more or less than that"),
            )
            .hint("leave out the tag or digest"));
        }
        if goals.iter().any(|goal| matches!(goal, Goal::Repository { tag: Some(_), .. } | Goal::Layout(_, Some(_)))) {
            return Err(Error::new(Kind::Usage, "--all-tags writes many tags, and the destination names one")
                .hint("leave out its tag"));
        }
        Ok(())
    }

    fn options(&self) -> Options {
        Options {
            platforms: self.platform.clone(),
            flatten: self.flatten,
            referrers: self.referrers,
            force: self.force,
            dry_run: self.dry_run,
            include_foreign: self.include_foreign,
        }
    }
}

/// The next page of a repository's tags, as sources.
async fn page(
    registries: &Registries,
    location: &Location,
    source: &From,
    after: &mut Option<String>,
) -> Result<Vec<From>> {
    let Location::Registry(reference, _) = location else { return Ok(Vec::new()) };
    let repo = registries.repository(&reference.repository)?;
    let tags = repo.tags(after.as_deref()).await.map_err(|error| error.on(Side::Source))?;
    *after = tags.last().cloned();
    Ok(tags.into_iter().map(|tag| source.with_tag(tag)).collect())
}

/// `16MiB`, `4M`, `1048576`.
fn parse_size(text: &str) -> Result<u64> {
    let wrong = || Error::new(Kind::Usage, format!("{text:?} is not a size such as 16MiB"));
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        _ => return Err(wrong()),
    };
    let size = text[..digits].parse::<u64>().ok().and_then(|number| number.checked_mul(unit)).ok_or_else(wrong)?;
    if size < 1 << 20 {
        return Err(Error::new(Kind::Usage, format!("chunks of {size} bytes are too small: each is a request"))
            .hint("1MiB or more"));
    }
    Ok(size)
}

/// Images of `--all-tags` or of several destinations that are worked on at once.
const IMAGES_AT_ONCE: usize = 8;

const AFTER_HELP: &str = "\
Examples:
  transload copy hello-world myregistry.azurecr.io
  transload copy nginx:1.27 myregistry.azurecr.io/web/nginx --platform linux/amd64,linux/arm64
  transload copy quay.io/o/r myregistry.azurecr.io --all-tags --referrers
  transload copy ghcr.io/o/r:v1 oci:./images";
