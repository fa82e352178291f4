//! `transload mirror check`: explains a list without network access; and the schema of lists.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::io::Read as _;

use serde::Serialize;

use super::super::global::{Format, Global};
use super::super::output;
use super::DestinationArgs;
use crate::descriptor::Platform;
use crate::error::{Error, Kind, Result, Side};
use crate::mirror::List;
use crate::mirror::list::{Defaults, DestinationBase, Entry, ImageDestination, Note, SelectedImage};
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

pub(super) fn run(args: &CheckArgs, global: &Global) -> Result<u8> {
    let (list, name) = read_list(&args.list, &args.to.defaults())?;
    let known = destinations(&list, &name, &args.to)?;
    // A list can be checked without a destination too.
    let somewhere = [DestinationBase { registry: RegistryName::not_chosen(), prefix: String::new() }];
    let to = if known.is_empty() { &somewhere[..] } else { &known };
    // Reading the list has checked it with its own destinations.
    if known != list.to {
        list.check(to, &name)?;
    }
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

/// Reads a list, with `-` from stdin. Returns it and its name for messages.
pub(in crate::cli) fn read_list(file: &str, defaults: &Defaults) -> Result<(List, String)> {
    let name = if file == "-" { "stdin" } else { file };
    let mut text = Vec::new();
    // One byte more than the limit, to detect longer files. A list on the command line may be a pipe: `<(command)` or
    // `/dev/stdin`.
    let result = match file {
        "-" => std::io::stdin().lock().take(List::MAX_BYTES + 1).read_to_end(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(List::MAX_BYTES + 1).read_to_end(&mut text)),
    };
    result.map_err(|error| Error::unreadable(format!("read {name}"), &error))?;
    let list = List::read_bytes(&text, name, defaults)?;
    Ok((list, name.to_owned()))
}

/// Reads and checks a list with the destinations of the run.
pub(super) fn open_list(file: &str, to: &DestinationArgs) -> Result<(List, Vec<DestinationBase>)> {
    let (list, name) = read_list(file, &to.defaults())?;
    validate_list(list, &name, to)
}

/// The same for bytes of a list.
pub(super) fn parse_list(bytes: &[u8], name: &str, to: &DestinationArgs) -> Result<(List, Vec<DestinationBase>)> {
    validate_list(List::read_bytes(bytes, name, &to.defaults())?, name, to)
}

fn validate_list(list: List, name: &str, to: &DestinationArgs) -> Result<(List, Vec<DestinationBase>)> {
    let to = destinations(&list, name, to)?;
    // Reading the list has checked it with its own destinations. A list without any may lack them now.
    if to != list.to || to.is_empty() {
        list.check(&to, name)?;
    }
    Ok((list, to))
}

/// The destinations of the run: those of the command line, or else those of the list. Empty if no entry needs them.
///
/// # Errors
/// If the command line names destinations or a path, and all entries name their own. The run would write to those,
/// which is probably not intended.
fn destinations(list: &List, name: &str, to: &DestinationArgs) -> Result<Vec<DestinationBase>> {
    let mut fixed = list.entries.iter().filter(|entry| !entry.needs_destination());
    let some = list.entries.iter().any(Entry::needs_destination);
    match fixed.next() {
        Some(first) if !some => {
            let flag = if !to.to.is_empty() { "--to" } else { "--target" };
            if (!to.to.is_empty() || to.target.is_some()) && !to.keep_targets {
                let places = first.places(&[], Some("TAG")).unwrap_or_default();
                let example = places.first().map_or(String::new(), |(place, _)| format!(", such as {place}"));
                let what = format!("{flag} has no effect: all entries name their own registry{example}");
                return Err(Error::new(Kind::Usage, format!("{name}: {what}")).on(Side::Local).hint(format!(
                    "remove {flag} to copy there, or add --keep-targets; or change the targets in the list"
                )));
            }
            Ok(Vec::new())
        }
        _ if to.to.is_empty() => Ok(list.to.clone()),
        _ => Ok(to.to.clone()),
    }
}

#[derive(Debug, Serialize)]
struct Document {
    schema: u32,
    format: &'static str,
    to: Vec<String>,
    entries: Vec<EntrySummary>,
    notes: Vec<Remark>,
}

/// An entry with its images.
#[derive(Debug, Serialize)]
struct EntrySummary {
    line: usize,
    source: String,
    images: Vec<Image>,
    /// The filter of tags, as text.
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
    /// `given`: the destinations come from the command line.
    fn of(list: &List, known: &[DestinationBase], to: &[DestinationBase], given: bool) -> Result<Self> {
        let mut notes = list.notes.clone();
        if known.is_empty() && list.entries.iter().any(Entry::needs_destination) {
            let text = "no destination is known: add --to, here and to a run".to_owned();
            notes.insert(0, Note { line: 0, text });
        }
        let fixed = list.entries.iter().filter(|entry| !entry.needs_destination()).count();
        if given && !known.is_empty() && fixed > 0 {
            let of = list.entries.len();
            let text = format!(
                "{fixed} of {of} entries name their own registry: they are copied there, and not to {}",
                known[0]
            );
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
                // Only the first row of an entry has its line.
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
            // A template shows the tag by its placeholder's name.
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

    /// Each source with its targets.
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

/// A reference with a short digest.
fn shorten_reference(reference: &str) -> String {
    match reference.rsplit_once("@sha") {
        Some((name, digest)) if digest.len() > 20 => format!("{name}@sha{}…", &digest[..16]),
        _ => reference.to_owned(),
    }
}

/// A target as a reference.
fn destination_text((repository, tag): &ImageDestination, exact: &SelectedImage) -> String {
    match (tag, &exact.digest) {
        (Some(tag), _) => format!("{repository}:{tag}"),
        (None, Some(digest)) => format!("{repository}@{digest}"),
        (None, None) => repository.to_string(),
    }
}
