//! What goes to stdout and stderr, and how sizes and times look.
//!
//! Everything is printed by these functions, so that no secret and no control character of someone else's gets out.

use std::io::Write as _;
use std::sync::OnceLock;
use std::time::Duration;

use tracing::Level;

use super::logs;
use super::progress::around_bars;
use crate::error::Error;
use crate::{printable, redact};

/// Why something could not be printed, if so.
static OUTPUT_ERROR: OnceLock<Error> = OnceLock::new();

/// Prints lines on stdout, without secrets and control characters. A text of someone else's within them must be a
/// [`format_field`], or its newlines make lines of their own.
pub(super) fn print(text: &str) {
    print_exact(&printable::lines(&redact::redact_own(text)));
}

/// A text of someone else's, such as a tag or an annotation, as a part of one line.
pub(super) fn format_field(text: impl std::fmt::Display) -> String {
    printable::line(&text.to_string()).into_owned()
}

/// Prints text on stdout as it is, which must be our own: the manual, a document that holds a secret on purpose.
/// A reader that has gone is no error (`transload … | head`); a full disk is one, that [`output_error`] tells at the end: what
/// the command does is worth more than what it says.
pub(super) fn print_exact(text: &str) {
    let write = || {
        let mut out = std::io::stdout().lock();
        out.write_all(text.as_bytes()).and_then(|()| out.flush())
    };
    match around_bars(write) {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            OUTPUT_ERROR.get_or_init(|| Error::io("write to stdout", &error));
        }
        _ => {}
    }
}

/// The first error of [`print_exact`].
pub(super) fn output_error() -> Option<&'static Error> {
    OUTPUT_ERROR.get()
}

/// Prints a document on stdout. Strings keep all their characters: those that a terminal would obey are written as
/// `\uXXXX`. Secrets are replaced.
pub(super) fn print_json(document: &impl serde::Serialize) {
    if let Ok(text) = serde_json::to_string_pretty(document) {
        print_exact(&(printable::json(&redact::redact_own(&text)) + "\n"));
    }
}

/// Prints a line on stderr.
pub(super) fn note(text: &str) {
    print_line(Level::INFO, "", text, None);
}

fn print_line(level: Level, kind: &str, message: &str, hint: Option<&str>) {
    let text = printable::lines(&redact::redact_own(&logs::line(level, kind, message, hint))).into_owned();
    around_bars(|| {
        let _ = writeln!(std::io::stderr().lock(), "{text}");
    });
}

/// Says at once that an image failed; also why, unless a table at the end will.
pub(super) fn print_failed_image(image: &str, error: &Error, table: bool) {
    if table {
        print_line(Level::ERROR, "", &format!("failed: {image}"), None)
    } else {
        print_image_error(image, error)
    }
}

/// Prints the error of one image among several.
pub(super) fn print_image_error(image: &str, error: &Error) {
    let hint = error.hint_text().map(|hint| format!(" (hint: {hint})")).unwrap_or_default();
    print_line(Level::ERROR, "", &format!("failed: {image}: {error}{hint}"), None);
}

/// Prints an error, and what to do about it.
pub(super) fn print_error(error: &Error) {
    print_line(Level::ERROR, "error: ", &error.to_string(), error.hint_text());
}

/// `1.5 MiB`.
pub(super) fn format_bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut value = count as f64 / 1024.0;
    let mut unit = 0;
    while value >= 999.95 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    format!("{value:.1} {}", UNITS[unit])
}

/// `0.42 s`, `12 s`, `3 min 5 s`.
pub(super) fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs_f64();
    match seconds {
        ..10.0 => format!("{seconds:.2} s"),
        ..100.0 => format!("{seconds:.0} s"),
        _ => format!("{} min {} s", duration.as_secs() / 60, duration.as_secs() % 60),
    }
}

/// `1 blob`, `2 blobs`.
pub(super) fn count_noun(number: usize, noun: &str) -> String {
    if number == 1 { format!("1 {noun}") } else { format!("{number} {noun}s") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_and_times_for_people() {
        assert_eq!(format_bytes(1023), "1023 B");
        assert_eq!(format_bytes(1536), "1.5 KiB");
        assert_eq!(format_bytes(1024 * 1024 - 1), "1.0 MiB");
        assert_eq!(format_bytes(5 << 30), "5.0 GiB");
        assert_eq!(format_duration(Duration::from_millis(420)), "0.42 s");
        assert_eq!(format_duration(Duration::from_secs(185)), "3 min 5 s");
        assert_eq!(count_noun(1, "blob"), "1 blob");
    }
}
