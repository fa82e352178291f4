//! Errors of a list, with file and line.

use crate::error::{Error, Kind, Side};

/// An error at a line of a file; line 0 is the whole file.
pub(super) fn invalid_list(name: &str, line: usize, what: impl Into<String>) -> Error {
    let what = what.into();
    let what = if line == 0 { format!("{name}: {what}") } else { format!("{name}:{line}: {what}") };
    Error::new(Kind::Usage, what).on(Side::Local)
}

/// Adds the line to an error, and keeps its hint.
pub(super) fn error_at(name: &str, line: usize, error: Error) -> Error {
    let made = invalid_list(name, line, error.to_string());
    match error.hint_text() {
        Some(hint) => made.hint(hint),
        None => made,
    }
}
