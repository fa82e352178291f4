//! How a copy or a run over a list goes: bars on a terminal, a status line from time to time elsewhere.

mod lines;
mod state;

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressState, ProgressStyle};

use self::state::State;
use super::global::{Format, Global};
use super::{faults, output};
use crate::copy::{Observer, Outcome};
use crate::descriptor::{Descriptor, Digest};
use crate::mirror::run::Event;
use crate::waits;

/// The progress of the command. It observes the engine.
pub(super) struct Progress {
    state: Arc<Mutex<State>>,
    bar: Option<ProgressBar>,
    status: Option<tokio::task::AbortHandle>,
    /// Whether a line is to be printed for each image as it finishes: where no bars show it.
    lines: bool,
}

impl Progress {
    /// Shows progress on stderr until [`Self::clear`]: bars if it is a terminal and the results are text, else a line
    /// each [`STATUS_INTERVAL`]. With `--quiet` it only counts.
    pub(super) fn start(global: &Global) -> Arc<Self> {
        waits::watch();
        let state = Arc::new(Mutex::new(State::new(Instant::now())));
        // A command has one progress.
        let _ = CURRENT.set(state.clone());
        let target = ProgressDrawTarget::stderr_with_hz(10);
        let terminal = !target.is_hidden();
        let bar = (terminal && !global.quiet && global.output == Format::Text).then(|| draw(target, state.clone()));
        let logs = !terminal && !global.quiet;
        let status = logs.then(|| tokio::spawn(print_status(state.clone())).abort_handle());
        // A document names each image at the end.
        let lines = logs && global.output == Format::Text;
        Arc::new(Self { state, bar, status, lines })
    }

    /// Stops showing it.
    pub(super) fn clear(&self) {
        if let Some(status) = &self.status {
            status.abort();
        }
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }

    /// Whether a line is to be printed for each image as it finishes.
    pub(super) fn wants_image_lines(&self) -> bool {
        self.lines
    }

    /// The destination keeps what it has of an unfinished blob.
    pub(super) fn set_keeps_partial(&self) {
        self.state().keeps_partial = true;
    }

    /// Counts what became of an image of a list.
    pub(super) fn count_image(&self, event: &Event) {
        let mut state = self.state();
        match event {
            Event::Expected(more) => state.expect_images(*more),
            Event::Unknown { .. } => {
                state.expect_images(1);
                state.image_ended(true);
            }
            Event::Failed(..) => state.image_ended(true),
            Event::Copied(..) | Event::Compared(..) | Event::Skipped(..) => state.image_ended(false),
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.clear();
    }
}

impl Observer for Progress {
    fn planned(&self, _blobs: usize, bytes: u64) {
        self.state().planned(bytes);
    }

    fn started(&self, blob: &Descriptor) {
        self.state().started(blob, Instant::now());
    }

    fn moved(&self, blob: &Digest, bytes: u64) {
        self.state().moved(blob, bytes, Instant::now());
    }

    fn finished(&self, blob: &Descriptor, outcome: &Outcome) {
        self.state().finished(blob, outcome, Instant::now());
    }

    fn abandoned(&self, blob: &Descriptor) {
        self.state().abandoned(blob);
    }

    fn unplanned(&self, bytes: u64) {
        self.state().unplanned(bytes);
    }
}

/// What an interrupted command kept, and what it did not; `None` if it copies nothing. To be asked while the copies are
/// still there.
pub(super) fn kept() -> Option<String> {
    CURRENT.get().map(|state| lock(state).kept())
}

/// Runs `f` with the bars away, if there are any. It must not print by another call of this.
pub(super) fn around_bars<T>(f: impl FnOnce() -> T) -> T {
    match BAR.get() {
        Some(bar) => bar.suspend(f),
        None => f(),
    }
}

/// A bar whose text is made anew each time that it is drawn. The text has as many lines as it needs, each of which fits
/// the terminal.
fn draw(target: ProgressDrawTarget, state: Arc<Mutex<State>>) -> ProgressBar {
    let text = move |_: &ProgressState, to: &mut dyn std::fmt::Write| {
        let view = lock(&state).view(Instant::now(), waiting());
        let _ = to.write_str(&lines::lines(&view, width()).join("\n"));
    };
    let style = ProgressStyle::with_template("{lines}").unwrap_or_else(|_| ProgressStyle::default_bar());
    // Hidden at first, or it would be drawn with the default style.
    let bar = ProgressBar::hidden().with_style(style.with_key("lines", text));
    bar.set_draw_target(target);
    bar.enable_steady_tick(Duration::from_millis(200));
    let _ = BAR.set(bar.clone());
    bar
}

async fn print_status(state: Arc<Mutex<State>>) {
    let every = faults::status_interval().unwrap_or(STATUS_INTERVAL);
    loop {
        tokio::time::sleep(every).await;
        let view = lock(&state).view(Instant::now(), waiting());
        output::note(&lines::status(&view));
    }
}

/// The waits of the process: each text, and the time that is left.
fn waiting() -> Vec<(String, String)> {
    let now = tokio::time::Instant::now();
    waits::current().iter().map(|wait| wait.describe(now)).collect()
}

/// The columns of the terminal.
fn width() -> usize {
    match rustix::termios::tcgetwinsize(rustix::stdio::stderr()) {
        Ok(size) if size.ws_col > 0 => usize::from(size.ws_col),
        _ => 80,
    }
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

static CURRENT: OnceLock<Arc<Mutex<State>>> = OnceLock::new();
static BAR: OnceLock<ProgressBar> = OnceLock::new();
/// How often the status is printed where no bars are.
const STATUS_INTERVAL: Duration = Duration::from_secs(30);
