//! Loading a list for a run: its bytes, the destinations that the run has, and one check of both.

use std::io::Read as _;

use super::List;
use super::list::{Defaults, DestinationBase, Entry};
use crate::error::{Error, Kind, Result, Side};

/// What a run says besides its list: where images go, and how entries without a target are placed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Overrides {
    /// Destinations of the run, in place of those of the list.
    pub(crate) to: Vec<DestinationBase>,
    /// Destinations have no effect on entries that name their own registry, and that is meant.
    pub(crate) keep_targets: bool,
    /// The rest.
    pub(crate) defaults: Defaults,
}

/// Reads and checks a list for a run, `-` being stdin.
pub(crate) fn load(file: &str, overrides: &Overrides) -> Result<(List, Vec<DestinationBase>)> {
    let (list, name) = read(file, &overrides.defaults)?;
    checked(list, &name, overrides)
}

/// The same for bytes that were read already.
pub(crate) fn parse(bytes: &[u8], name: &str, overrides: &Overrides) -> Result<(List, Vec<DestinationBase>)> {
    checked(List::parse_bytes(bytes, name, &overrides.defaults)?, name, overrides)
}

/// Reads a list, `-` being stdin; and its name for people. It is not checked.
pub(crate) fn read(file: &str, defaults: &Defaults) -> Result<(List, String)> {
    let name = if file == "-" { "stdin" } else { file };
    let mut text = Vec::new();
    // One byte more than there may be tells that there is more. A list that the user names on the command line may
    // be a pipe: `<(command)` or `/dev/stdin`.
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

/// The run's destinations: those of the command line, else the list's; none where no entry goes to them.
///
/// # Errors
/// If the command line names destinations or a path, and all entries name their own: the run would write to
/// those, which is hardly meant.
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
                    "leave {flag} out to copy there, or give --keep-targets; or change the targets in the list"
                )));
            }
            Ok(Vec::new())
        }
        _ if to.is_empty() => Ok(list.to.clone()),
        _ => Ok(to.clone()),
    }
}

/// Logs what of the list isn't done, or done otherwise.
pub(crate) fn log_notes(list: &List) {
    for note in &list.notes {
        match note.line {
            0 => tracing::warn!("{}", note.text),
            line => tracing::warn!("line {line}: {}", note.text),
        }
    }
}
