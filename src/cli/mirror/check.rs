//! `transload mirror check`: what a list means, without any network; and the schema of lists.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use serde::Serialize;

use super::super::global::{Format, Global};
use super::super::output;
use super::DestinationArgs;
use crate::descriptor::Platform;
use crate::error::{Error, Result};
use crate::mirror::list::{DestinationBase, Entry, ImageDestination, Note, SelectedImage};
use crate::mirror::{List, load};
use crate::reference::RegistryName;

/// Explain a list without network access: images, targets, and what is ignored
#[derive(Debug, clap::Args)]
pub(super) struct CheckArgs {
    /// List of images: a file, or `-` for stdin
    #[arg(value_name = "FILE")]
    list: String,
    #[command(flatten)]
    to: DestinationArgs,
}

/// Runs `check`.
pub(super) fn run(args: &CheckArgs, global: &Global) -> Result<u8> {
    let overrides = args.to.overrides();
    let (list, name) = load::read(&args.list, &overrides.defaults)?;
    let known = load::destinations(&list, &name, &overrides)?;
    // Without a destination a list can be checked all the same.
    let somewhere = [DestinationBase { registry: RegistryName::not_chosen(), prefix: String::new() }];
    let to = if known.is_empty() { &somewhere[..] } else { &known };
    list.check(to, &name)?;
    let document = Document::of(&list, &known, to, !args.to.to.is_empty())?;
    match global.output {
        Format::Json => output::print_json(&document),
        Format::Text => output::print(&document.text(&name)),
    }
    Ok(0)
}

/// Prints the schema.
pub(super) fn schema() -> Result<u8> {
    output::print(include_str!("../../../deploy/mirror.schema.json"));
    Ok(0)
}

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    format: &'static str,
    to: Vec<String>,
    entries: Vec<EntrySummary>,
    notes: Vec<Remark>,
}

/// An entry, and what is known of its images.
#[derive(Debug, Serialize)]
struct EntrySummary {
    line: usize,
    source: String,
    images: Vec<Image>,
    /// Which tags, for people; the repository's list says which those are.
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Tags>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    platforms: Vec<String>,
    referrers: bool,
}

#[derive(Debug, Serialize)]
struct Image {
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    digest: Option<String>,
    to: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Tags {
    select: String,
    to: Vec<String>,
}

#[derive(Debug, Serialize)]
struct Remark {
    line: usize,
    text: String,
}

impl Document {
    /// `given`: the destinations are those of the command line.
    fn of(list: &List, known: &[DestinationBase], to: &[DestinationBase], given: bool) -> Result<Self> {
        let mut notes = list.notes.clone();
        if known.is_empty() && list.entries.iter().any(Entry::needs_destination) {
            let text = "no destination is known: give --to, here and to a run".to_owned();
            notes.insert(0, Note { line: 0, text });
        }
        let fixed = list.entries.iter().filter(|entry| !entry.needs_destination()).count();
        if given && !known.is_empty() && fixed > 0 {
            let of = list.entries.len();
            let text =
                format!("{fixed} of {of} entries name their own registry: they go there, and not to {}", known[0]);
            notes.insert(0, Note { line: 0, text });
        }
        notes.extend(list.repeated(to)?);
        notes.extend(list.overlaps(to)?);
        Ok(Self {
            schema: 1,
            format: list.form.name(),
            to: known.iter().map(DestinationBase::to_string).collect(),
            entries: list.entries.iter().map(|entry| EntrySummary::of(entry, to)).collect::<Result<_>>()?,
            notes: notes.into_iter().map(|note| Remark { line: note.line, text: note.text }).collect(),
        })
    }

    fn text(&self, name: &str) -> String {
        let to = if self.to.is_empty() { String::new() } else { format!(", to {}", self.to.join(", ")) };
        let entries = if self.entries.len() == 1 { "entry" } else { "entries" };
        let mut text = format!("{name}: a list ({}) of {} {entries}{to}\n", self.format, self.entries.len());
        let width = self.entries.last().map_or(1, |entry| entry.line.to_string().len());
        for entry in &self.entries {
            let mut line = format!("{:>width$}", entry.line);
            for (what, to) in entry.rows() {
                let to: Vec<String> = to.iter().map(|place| output::format_field(shorten_reference(place))).collect();
                let (what, extent) =
                    (output::format_field(shorten_reference(&what)), output::format_field(entry.extent()));
                let _ = writeln!(text, "{line}  {what} -> {}{extent}", to.join(", "));
                // The line stands before the first of its images.
                line = " ".repeat(width);
            }
        }
        for note in &self.notes {
            let line = if note.line == 0 { String::new() } else { format!("line {}: ", note.line) };
            let _ = writeln!(text, "note: {line}{}", output::format_field(&note.text));
        }
        text
    }
}

impl EntrySummary {
    fn of(entry: &Entry, to: &[DestinationBase]) -> Result<Self> {
        let image = |exact: &SelectedImage| {
            let places = entry.places(to, exact.tag.as_deref())?;
            let to = places.iter().map(|place| destination_text(place, exact)).collect();
            Ok(Image {
                tag: exact.tag.clone().map(String::from),
                digest: exact.digest.map(|digest| digest.to_string()),
                to,
            })
        };
        let tags = |select: &crate::mirror::list::TagFilter| {
            // What a template makes of the tag is shown by its placeholder's name.
            let places = entry.places(to, Some("TAG"))?;
            let show = |place: &ImageDestination| match place.1.as_deref() {
                None | Some("TAG") => place.0.to_string(),
                Some(tag) => format!("{}:{tag}", place.0),
            };
            Ok::<_, Error>(Tags { select: select.to_string(), to: places.iter().map(show).collect() })
        };
        Ok(Self {
            line: entry.line,
            source: entry.source.to_string(),
            images: entry.pick.exact.iter().map(image).collect::<Result<_>>()?,
            tags: entry.pick.select.as_ref().map(tags).transpose()?,
            platforms: entry.platforms.iter().map(Platform::to_string).collect::<BTreeSet<_>>().into_iter().collect(),
            referrers: entry.referrers,
        })
    }

    /// What is copied, and where to.
    fn rows(&self) -> impl Iterator<Item = (String, &[String])> {
        let images = self.images.iter().map(|image| {
            let tag = image.tag.as_ref().map_or(String::new(), |tag| format!(":{tag}"));
            let digest = image.digest.as_ref().map_or(String::new(), |digest| format!("@{digest}"));
            (format!("{}{tag}{digest}", self.source), &image.to[..])
        });
        let tags = self.tags.iter().map(|tags| (format!("{}: {}", self.source, tags.select), &tags.to[..]));
        images.chain(tags)
    }

    /// ` (linux/amd64, with referrers)`
    fn extent(&self) -> String {
        let mut parts: Vec<&str> = self.platforms.iter().map(String::as_str).collect();
        parts.extend(self.referrers.then_some("with referrers"));
        if parts.is_empty() { String::new() } else { format!(" ({})", parts.join(", ")) }
    }
}

/// A reference for people: its digest is cut.
fn shorten_reference(reference: &str) -> String {
    match reference.rsplit_once("@sha") {
        Some((name, digest)) if digest.len() > 20 => format!("{name}@sha{}…", &digest[..16]),
        _ => reference.to_owned(),
    }
}

/// A place as a reference.
fn destination_text((repository, tag): &ImageDestination, exact: &SelectedImage) -> String {
    match (tag, &exact.digest) {
        (Some(tag), _) => format!("{repository}:{tag}"),
        (None, Some(digest)) => format!("{repository}@{digest}"),
        (None, None) => repository.to_string(),
    }
}
