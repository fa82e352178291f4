//! Logs on stderr, as text or JSON, which don't break progress bars.

use std::fmt;
use std::io::Write;
use std::sync::OnceLock;

use clap::ValueEnum;
use serde_json::{Map, Value};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::global::Global;
use super::progress::around_bars;
use crate::{clock, printable, redact};

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub(super) enum LogFormat {
    /// Lines for people
    #[default]
    Text,
    /// A JSON object in each line, with `timestamp`, `level` and `message`
    Json,
}

/// What all lines on stderr have in common.
#[derive(Clone, Copy, Debug, Default)]
struct Style {
    format: LogFormat,
    /// Whether the program runs until it is asked to stop: its lines of text begin with the time.
    stays: bool,
    /// Whether events begin with the time too: in a program that stays, and with `-vv`.
    timestamps: bool,
}

/// Logs go to stderr: warnings (errors only if `calm`), more by `--verbose`, or what `TRANSLOAD_LOG` says. The lines of
/// a program that `stays` begin with the time.
pub(super) fn init(global: &Global, calm: bool, stays: bool) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) if calm => "error",
        (_, 0) => "warn",
        (_, 1) => "transload=info",
        _ => "transload=debug",
    };
    let filter = EnvFilter::try_from_env("TRANSLOAD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    let style = Style { format: global.log_format, stays, timestamps: stays || global.verbose > 1 };
    let _ = STYLE.set(style);
    // Only fails where a subscriber is set already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| StderrAroundBars)
        .with_ansi(colour)
        .event_format(LogLine(style))
        .try_init();
}

/// Lines of the program itself as they stand on stderr. `kind` is what they begin with for people, as in "error: "; a
/// JSON line has the `level` instead.
pub(super) fn line(level: Level, kind: &str, message: &str, hint: Option<&str>) -> String {
    let style = STYLE.get().copied().unwrap_or_default();
    if style.format == LogFormat::Json {
        let fields = [("message", Some(message)), ("hint", hint)].into_iter();
        let fields = fields.filter_map(|(name, text)| Some((name.to_owned(), text?.trim_end().into())));
        return json(level, fields.collect());
    }
    let time = if style.stays { format!("{} ", time()) } else { String::new() };
    let hint = hint.map(|hint| format!("\n{time}hint: {hint}")).unwrap_or_default();
    format!("{time}{kind}{message}{hint}")
}

/// The time now, in UTC, as RFC 3339 has it.
fn time() -> String {
    clock::timestamp().strftime("%Y-%m-%dT%H:%M:%S%.3fZ").to_string()
}

/// An event in one line, without secrets and control characters of someone else's.
fn json(level: Level, fields: Map<String, Value>) -> String {
    let mut line = Map::new();
    line.insert("timestamp".to_owned(), time().into());
    line.insert("level".to_owned(), level.as_str().into());
    line.extend(fields);
    let text = Value::Object(line).to_string();
    printable::json(&redact::redact_own(&text)).to_string()
}

/// An event as one line: its level, its message, its fields. Whatever they hold, it stays one line, and has neither
/// secrets nor control characters: registries and clients write parts of most messages.
struct LogLine(Style);

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
        if self.0.format == LogFormat::Json {
            let mut fields = JsonFields::default();
            event.record(&mut fields);
            return writeln!(to, "{}", json(level, fields.0));
        }
        if self.0.timestamps {
            write!(to, "{} ", time())?;
        }
        let colour = match level {
            Level::ERROR => 31,
            Level::WARN => 33,
            Level::INFO => 32,
            Level::DEBUG => 34,
            Level::TRACE => 35,
        };
        if to.has_ansi_escapes() {
            write!(to, "\u{1b}[{colour}m{level:>5}\u{1b}[0m ")?;
        } else {
            write!(to, "{level:>5} ")?;
        }
        let mut text = String::new();
        context.field_format().format_fields(Writer::new(&mut text), event)?;
        writeln!(to, "{}", printable::line(&redact::redact_own(&text)))
    }
}

/// The fields of an event.
#[derive(Default)]
struct JsonFields(Map<String, Value>);

impl JsonFields {
    fn add(&mut self, field: &Field, value: Value) {
        self.0.insert(field.name().to_owned(), value);
    }
}

impl Visit for JsonFields {
    fn record_f64(&mut self, field: &Field, value: f64) {
        self.add(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.add(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.add(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.add(field, value.into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.add(field, value.into());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.add(field, format!("{value:?}").into());
    }
}

/// Stderr, with the bars taken away while a line is written.
struct StderrAroundBars;

impl Write for StderrAroundBars {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        around_bars(|| std::io::stderr().write_all(line))?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

static STYLE: OnceLock<Style> = OnceLock::new();

#[cfg(test)]
mod tests {
    use super::*;

    /// Text of someone else's stays inside its string: no line and no field of its own.
    #[test]
    fn a_json_line_is_one_harmless_line() {
        let evil = "a\u{1b}[2J\n{\"level\":\"ERROR\"}\u{202e}";
        let fields = [("message".to_owned(), evil.into())].into_iter().collect();
        let line = json(Level::WARN, fields);
        assert!(!line.chars().any(|c| c.is_control() || c == '\u{202e}'), "{line:?}");
        let read: Value = serde_json::from_str(&line).expect("JSON");
        assert_eq!((&read["level"], &read["message"]), (&"WARN".into(), &evil.into()));
        let time = read["timestamp"].as_str().expect("a time");
        assert!(time.parse::<jiff::Timestamp>().is_ok() && time.ends_with('Z'), "{time}");
    }
}
