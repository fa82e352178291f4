//! Ends the program on a signal that nothing else can act on.
//!
//! Signals are futures here, so a command that waits inside a system call does not see them: for the other end of a named
//! pipe that is given as `--retry-failed` or as a list, or for a line of stdin. A task on another thread sees them, and
//! ends the program if the command does not answer.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use super::{Signals, output};
use crate::error::{Error, Kind};

/// A future that waits for a signal has seen one.
static SEEN: AtomicBool = AtomicBool::new(false);

/// Says that the command acts on a signal.
pub(super) fn seen() {
    SEEN.store(true, Ordering::SeqCst);
}

/// Watches from now on, for as long as the runtime runs.
pub(super) fn start() {
    let Some(mut caught) = Signals::new() else { return };
    tokio::spawn(async move {
        loop {
            let signal = caught.next().await;
            tokio::time::sleep(GRACE).await;
            if !SEEN.swap(false, Ordering::SeqCst) {
                let error = Error::new(Kind::Interrupted, format!("interrupted by {signal}"));
                output::print_error(&error);
                std::process::exit(error.exit_code().into());
            }
        }
    });
}

/// How long the command may take to see the signal.
const GRACE: Duration = Duration::from_secs(2);
