//! What happened: counts, the last events, and what was wrong.

use std::collections::{BTreeMap, VecDeque};
use std::io::Write as _;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

/// Shared by all threads.
pub(crate) struct Report {
    seed: u64,
    seconds: u64,
    begun: Instant,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    counts: BTreeMap<String, u64>,
    events: VecDeque<String>,
    violations: Vec<String>,
    told: Option<Instant>,
}

impl Report {
    pub(crate) fn new(seed: u64, seconds: u64) -> Self {
        Self { seed, seconds, begun: Instant::now(), state: Mutex::default() }
    }

    /// Counts one more of this.
    pub(crate) fn count(&self, what: impl Into<String>) {
        self.add(what, 1);
    }

    pub(crate) fn add(&self, what: impl Into<String>, number: u64) {
        *self.state().counts.entry(what.into()).or_default() += number;
    }

    pub(crate) fn event(&self, what: String) {
        let line = format!("{:>8.2} s  {what}", self.begun.elapsed().as_secs_f64());
        let mut state = self.state();
        state.events.push_back(line);
        if state.events.len() > LAST {
            state.events.pop_front();
        }
    }

    /// Something is wrong. The run ends soon, and fails.
    pub(crate) fn violation(&self, what: String) {
        self.event(format!("VIOLATION: {what}"));
        self.state().violations.push(what);
    }

    pub(crate) fn has_violation(&self) -> bool {
        !self.state().violations.is_empty()
    }

    /// A line every now and then, for whoever watches a long run.
    pub(crate) fn progress(&self) {
        let mut state = self.state();
        if state.told.is_some_and(|told| told.elapsed() < Duration::from_secs(15)) {
            return;
        }
        state.told = Some(Instant::now());
        let sum = |kind| sum(&state.counts, kind);
        let line = format!(
            "soak: {:.0} s, {} faults, {} kills, {} answers checked\n",
            self.begun.elapsed().as_secs_f64(),
            sum("fault"),
            sum("kill"),
            sum("answer")
        );
        drop(std::io::stderr().write_all(line.as_bytes()));
    }

    /// Prints the figures, and fails the test if anything was wrong.
    pub(crate) fn conclude(&self) {
        let state = self.state();
        let mut text = format!("\nsoak: seed {}, {:.0} s\n", self.seed, self.begun.elapsed().as_secs_f64());
        for (what, number) in &state.counts {
            text += &format!("  {number:>12}  {what}\n");
        }
        for kind in ["fault", "kill", "answer"] {
            text += &format!("  {:>12}  {kind}s in all\n", sum(&state.counts, kind));
        }
        if !state.violations.is_empty() {
            text += "\nThe last events:\n";
            state.events.iter().for_each(|event| text += &format!("  {event}\n"));
            text += "\nViolations:\n";
            state.violations.iter().take(20).for_each(|violation| text += &format!("- {violation}\n"));
            text += &format!(
                "\nReplay it with: TRANSLOAD_SOAK_SEED={} TRANSLOAD_SOAK_SECONDS={} cargo test --test soak\n",
                self.seed, self.seconds
            );
        }
        // Not by println!, which is hidden when the test passes.
        drop(std::io::stderr().write_all(text.as_bytes()));
        assert!(state.violations.is_empty(), "seed {}: {}", self.seed, state.violations[0]);
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// The sum of all counts of one kind, such as all that begin with `fault `.
fn sum(counts: &BTreeMap<String, u64>, kind: &str) -> u64 {
    counts.iter().filter(|(what, _)| what.split(' ').next() == Some(kind)).map(|(_, number)| number).sum()
}

/// Events that a failure prints.
const LAST: usize = 120;
