//! Lines: one reference each, or a reference and where it goes.
//!
//! ```text
//! # a comment
//! nginx:1.27
//! redis:7.4@sha256:…            # pinned
//! quay.io/a/b:v1  web/b         # below the run's destinations, under this path
//! ghcr.io/o/r:v2  my.azurecr.io/o/r
//! --platform=linux/arm64 alpine:3.21
//! ```
//! `oc image mirror -f` writes `SRC=DST`; that is read too, and so are `SRC => DST`, `SRC -> DST`, and the lines
//! that `grep image:` leaves of a manifest.

use super::destination::parse_target;
use super::reader::Reader;
use super::text::image_value;
use super::{DestinationRule, ImageSelection, SelectedImage};
use crate::descriptor::Platform;
use crate::error::Result;
use crate::reference::looks_like_host;

pub(super) fn read(text: &str, reader: &mut Reader<'_>) -> Result<()> {
    for (index, line) in text.lines().enumerate() {
        let said = line.split_once(['#']).filter(|(before, _)| before.is_empty() || before.ends_with([' ', '\t']));
        let said = said.map_or(line, |(said, _)| said).trim();
        if !said.is_empty() {
            entry(index + 1, image_value(said).unwrap_or(said), reader)?;
        }
    }
    Ok(())
}

/// A line without its comment.
fn entry(line: usize, said: &str, reader: &mut Reader<'_>) -> Result<()> {
    let template = said.contains("{{");
    let mut words: Vec<&str> = if template { vec![said] } else { said.split_whitespace().collect() };
    let platform = platform(line, &mut words, reader)?;
    let (source, to) = match words[..] {
        [pair] if !template => {
            let arrow = pair.split_once("=>").or_else(|| pair.split_once("->")).or_else(|| pair.split_once('='));
            arrow.map_or((pair, None), |(source, to)| (source, Some(to)))
        }
        [source] => (source, None),
        [source, to] | [source, "=>" | "->" | "=", to] => (source, Some(to)),
        _ => {
            let hint = match words.first() {
                Some(&"REPOSITORY") => "docker images --format '{{.Repository}}:{{.Tag}}' writes a list",
                _ => "write nginx:1.27, or nginx:1.27 web/nginx for another target; a comment begins with #",
            };
            let what = format!("{} words, where a line has one reference, or two", words.len());
            return Err(reader.fail(line, what).hint(hint));
        }
    };
    let (source, exact) = reader.reference(line, source)?;
    let exact = exact.unwrap_or_else(SelectedImage::latest);
    let mut entry = reader.entry(line, source, ImageSelection { exact: [exact].into(), select: None });
    entry.platforms.extend(platform);
    if let Some(to) = to {
        entry.target = match reader.at(line, parse_target(to))? {
            (Some(registry), template) => DestinationRule::Fixed(vec![(registry, template)]),
            (None, template) => DestinationRule::Below(template),
        };
        if !to.contains(['/', '{']) && !looks_like_host(to) {
            let text =
                format!("{to:?} is the repository that the image goes to; a tag is written as {}:{to}", entry.source);
            reader.note(line, text);
        }
    }
    reader.add(entry)
}

/// `--platform=linux/arm64` before a reference, as docker's commands have it.
fn platform(line: usize, words: &mut Vec<&str>, reader: &Reader<'_>) -> Result<Option<Platform>> {
    let Some(&first) = words.first().filter(|word| word.starts_with("--")) else { return Ok(None) };
    let (value, used) = match (first.strip_prefix("--platform"), words.get(1)) {
        (Some(""), Some(value)) => (*value, 2),
        (Some(value), _) if value.starts_with('=') => (&value[1..], 1),
        _ => {
            return Err(reader
                .fail(line, format!("{first:?} is no option of a line"))
                .hint("only --platform=OS/ARCHITECTURE may stand before a reference"));
        }
    };
    words.drain(..used);
    reader.platform(line, value).map(Some)
}
