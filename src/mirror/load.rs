//! Loads a list for a run: reads its bytes, and checks it with the run's destinations.

use std::io::Read as _;

use super::List;
use super::list::{Defaults, DestinationBase, Entry};
use crate::error::{Error, Kind, Result, Side};

/// Settings of a run that replace those of its list.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// Destinations, in place of those of the list.
    pub(crate) to: Vec<DestinationBase>,
    /// Allow destinations that have no effect because all entries name their own registry.
    pub(crate) keep_targets: bool,
    /// Other settings.
    pub(crate) defaults: Defaults,
}

/// Reads and checks a list for a run, with `-` from stdin.
pub(crate) fn load(file: &str, overrides: &Overrides) -> Result<(List, Vec<DestinationBase>)> {
    let (list, name) = read(file, &overrides.defaults)?;
    checked(list, &name, overrides)
}

/// The same for bytes of a list.
pub(crate) fn parse(bytes: &[u8], name: &str, overrides: &Overrides) -> Result<(List, Vec<DestinationBase>)> {
    checked(List::parse_bytes(bytes, name, &overrides.defaults)?, name, overrides)
}

/// Reads a list, with `-` from stdin, without a check. Returns it and its name for messages.
pub(crate) fn read(file: &str, defaults: &Defaults) -> Result<(List, String)> {
    let name = if file == "-" { "stdin" } else { file };
    let mut text = Vec::new();
    // One byte more than the limit, to detect longer files. A list on the command line may be a pipe: `<(command)` or
    // `/dev/stdin`.
    let result = match file {
        "-" => std::io::stdin().lock().take(List::MAX_BYTES + 1).read_to_end(&mut text),
        _ => std::fs::File::open(file).and_then(|file| file.take(List::MAX_BYTES + 1).read_to_end(&mut text)),
    };
    result.map_err(|error| Error::unreadable(format!("read {name}"), &error))?;
    let list = List::parse_bytes(&text, name, defaults)?;
    Ok((list, name.to_owned()))
}

fn checked(list: List, name: &str, overrides: &Overrides) -> Result<(List, Vec<DestinationBase>)> {
    let to = destinations(&list, name, overrides)?;
    list.check(&to, name)?;
    Ok((list, to))
}

/// The destinations of the run: those of the command line, or else those of the list. Empty if no entry needs them.
///
/// # Errors
/// If the command line names destinations or a path, and all entries name their own. The run would write to those,
/// which is probably not intended.
pub(crate) fn destinations(list: &List, name: &str, overrides: &Overrides) -> Result<Vec<DestinationBase>> {
    let Overrides { to, keep_targets, defaults } = overrides;
    let mut fixed = list.entries.iter().filter(|entry| !entry.needs_destination());
    let some = list.entries.iter().any(Entry::needs_destination);
    match fixed.next() {
        Some(first) if !some => {
            let flag = if !to.is_empty() { "--to" } else { "--target" };
            if (!to.is_empty() || defaults.target.is_some()) && !keep_targets {
                let places = first.places(&[], Some("TAG")).unwrap_or_default();
                let example = places.first().map_or(String::new(), |(place, _)| format!(", such as {place}"));
                let what = format!("{flag} has no effect: all entries name their own registry{example}");
                return Err(Error::new(Kind::Usage, format!("{name}: {what}")).on(Side::Local).hint(format!(
                    "remove {flag} to copy there, or add --keep-targets; or change the targets in the list"
                )));
            }
            Ok(Vec::new())
        }
        _ if to.is_empty() => Ok(list.to.clone()),
        _ => Ok(to.clone()),
    }
}

/// Logs the notes of a list.
pub(crate) fn log_notes(list: &List) {
    for note in &list.notes {
        match note.line {
            0 => tracing::warn!("{}", note.text),
            line => tracing::warn!("line {line}: {}", note.text),
        }
    }
}
