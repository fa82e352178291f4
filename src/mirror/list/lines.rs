//! Lines: one reference each, or a reference and where it goes.
//!
//! ```text
//! # a comment
//! nginx:1.27
//! redis:7.4@sha256:…            # pinned
//! quay.io/a/b:v1  web/b         # below the run's destinations, under this path
//! ghcr.io/o/r:v2  my.azurecr.io/o/r
//! ```
//! `oc image mirror -f` writes `SRC=DST`; that is read too.

use super::place::target;
use super::read::Reader;
use super::{Aim, Exact, Pick};
use crate::error::Result;
use crate::reference::Tag;

pub(super) fn read(text: &str, reader: &mut Reader<'_>) -> Result<()> {
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let said = line.split_once(['#']).filter(|(before, _)| before.is_empty() || before.ends_with([' ', '\t']));
        let said = said.map_or(line, |(said, _)| said).trim();
        if said.is_empty() {
            continue;
        }
        let words: Vec<&str> = said.split_whitespace().collect();
        let (source, to) = match words[..] {
            [pair] => pair.split_once('=').map_or((pair, None), |(source, to)| (source, Some(to))),
            [source, to] => (source, Some(to)),
            _ => {
                return Err(reader
                    .fail(number, format!("{} words, where a line has one reference, or two", words.len()))
                    .hint("a comment begins with #"));
            }
        };
        let (source, exact) = reader.reference(number, source)?;
        let exact = exact.unwrap_or_else(|| Exact { tag: Some(Tag::latest()), digest: None });
        let mut entry = reader.entry(number, source, Pick { exact: [exact].into(), select: None });
        if let Some(to) = to {
            entry.target = match reader.at(number, target(to))? {
                (Some(registry), template) => Aim::Fixed(vec![(registry, template)]),
                (None, template) => Aim::Below(template),
            };
        }
        reader.add(entry)?;
    }
    Ok(())
}
