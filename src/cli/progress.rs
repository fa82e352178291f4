//! Bars on a terminal, and logs that don't break them.

use std::collections::HashMap;
use std::fmt;
use std::io::Write;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use super::global::{Format, Global};
use crate::copy::{Observer, Outcome};
use crate::descriptor::{Descriptor, Digest};
use crate::{printable, redact};

/// One bar for all bytes, one for each large blob in flight.
pub(super) struct Bars {
    all: MultiProgress,
    total: ProgressBar,
    flying: Mutex<HashMap<Digest, ProgressBar>>,
}

impl Bars {
    /// Bars on stderr, if it is a terminal and the user wants any.
    pub(super) fn new(global: &Global) -> Option<Self> {
        let all = MultiProgress::with_draw_target(ProgressDrawTarget::stderr_with_hz(10));
        if global.quiet || global.output == Format::Json || all.is_hidden() {
            return None;
        }
        let total = all.add(ProgressBar::new(0).with_style(style(
            "{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes} {binary_bytes_per_sec} {eta} left",
        )));
        total.set_prefix("total       ");
        total.enable_steady_tick(Duration::from_millis(200));
        let _ = BARS.set(all.clone());
        Some(Self { all, total, flying: Mutex::default() })
    }

    /// Takes all bars off the screen.
    pub(super) fn clear(&self) {
        self.total.finish_and_clear();
        let _ = self.all.clear();
    }

    /// Runs `f` with the bars away.
    pub(super) fn suspend(&self, f: impl FnOnce()) {
        self.all.suspend(f);
    }

    fn flying(&self) -> std::sync::MutexGuard<'_, HashMap<Digest, ProgressBar>> {
        self.flying.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Observer for Bars {
    fn planned(&self, _blobs: usize, bytes: u64) {
        self.total.inc_length(bytes);
    }

    fn moved(&self, blob: &Digest, bytes: u64) {
        self.total.inc(bytes);
        if let Some(bar) = self.flying().get(blob) {
            bar.inc(bytes);
        }
    }

    fn started(&self, blob: &Descriptor) {
        if blob.size < MIN_BYTES_FOR_BAR {
            return;
        }
        // Hidden until it's added: a bar of its own would draw on stderr by itself.
        let bar = ProgressBar::with_draw_target(Some(blob.size), ProgressDrawTarget::hidden())
            .with_style(style("{prefix} [{bar:30}] {binary_bytes}/{binary_total_bytes}"))
            .with_prefix(blob.digest.short());
        self.flying().insert(blob.digest, self.all.add(bar));
    }

    fn finished(&self, blob: &Descriptor, outcome: &Outcome) {
        if !matches!(outcome, Outcome::Uploaded { .. }) {
            self.total.inc(blob.size);
        }
        if let Some(bar) = self.flying().remove(&blob.digest) {
            bar.finish_and_clear();
            self.all.remove(&bar);
        }
    }
}

/// Logs go to stderr: warnings (errors only if `calm`), more by `--verbose`, or what
/// `TRANSLOAD_LOG` says.
pub(super) fn init_logs(global: &Global, calm: bool) {
    let level = match (global.quiet, global.verbose) {
        (true, _) => "error",
        (_, 0) if calm => "error",
        (_, 0) => "warn",
        (_, 1) => "transload=info",
        _ => "transload=debug",
    };
    let filter = EnvFilter::try_from_env("TRANSLOAD_LOG").unwrap_or_else(|_| EnvFilter::new(level));
    let colour = std::env::var_os("NO_COLOR").is_none() && std::io::IsTerminal::is_terminal(&std::io::stderr());
    // Only fails where a subscriber is set already.
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(|| StderrAroundBars)
        .with_ansi(colour)
        .event_format(LogLine)
        .try_init();
}

/// An event as one line: its level, its message, its fields. Whatever they hold, it stays one line, and has neither
/// secrets nor control characters: registries and clients write parts of most messages.
struct LogLine;

impl<S, N> FormatEvent<S, N> for LogLine
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, context: &FmtContext<'_, S, N>, mut to: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let level = *event.metadata().level();
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

/// Stderr, with the bars taken away while a line is written.
struct StderrAroundBars;

impl Write for StderrAroundBars {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        let write = || std::io::stderr().write_all(line);
        match BARS.get() {
            Some(bars) => bars.suspend(write)?,
            None => write()?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()).progress_chars("=> ")
}

static BARS: OnceLock<MultiProgress> = OnceLock::new();
/// Smaller blobs come and go faster than one can read.
const MIN_BYTES_FOR_BAR: u64 = 1 << 20;
