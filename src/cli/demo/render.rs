//! Output of the demo: text, a JSON document, or nothing.

use std::collections::BTreeMap;
use std::io::IsTerminal as _;

use serde::Serialize;

use super::tally::{Counts, Tally};
use crate::cli::global::{Format, Global};
use crate::cli::output;

/// The output, and whether all comparisons succeeded.
pub(super) struct DemoOutput {
    aloud: bool,
    colour: bool,
    document: Document,
}

/// The document of `--output json`.
#[derive(Serialize)]
struct Document {
    schema: u32,
    held: bool,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    title: &'static str,
    command: String,
    registries: BTreeMap<&'static str, Counts>,
    pulls: usize,
    checks: Vec<Check>,
}

#[derive(Serialize)]
struct Check {
    what: String,
    held: bool,
}

impl DemoOutput {
    pub(super) fn new(global: &Global) -> Self {
        // no-color.org: any value but the empty one.
        let plain = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self {
            aloud: global.output == Format::Text && !global.quiet,
            colour: std::io::stdout().is_terminal() && !plain,
            document: Document { schema: 1, held: true, steps: Vec::new() },
        }
    }

    /// Whether the output is text for people.
    pub(super) fn is_text(&self) -> bool {
        self.aloud
    }

    pub(super) fn all_passed(&self) -> bool {
        self.document.held
    }

    pub(super) fn print(&self, text: &str) {
        if self.aloud {
            // With colours. All names in it are the demo's own.
            output::print_exact(&format!("{text}\n"));
        }
    }

    /// Begins a step: its title, and its command as on the command line.
    pub(super) fn step(&mut self, title: &'static str, command: &str) {
        let number = self.document.steps.len() + 1;
        self.print(&format!("\n{}\n{}", self.bold(&format!("{number}. {title}")), self.bold(&format!("$ {command}"))));
        let step =
            Step { title, command: command.to_owned(), registries: BTreeMap::new(), pulls: 0, checks: Vec::new() };
        self.document.steps.push(step);
    }

    /// The requests that the Hub counted, if any, and how many of them were pulls.
    pub(super) fn counted_by_hub(&mut self, name: &'static str, tally: &Tally, pulls: usize) {
        let noun = if pulls == 0 { "no pull".to_owned() } else { output::count_noun(pulls, "pull") };
        self.add(name, tally, &format!("; {noun} counted"));
        if let Some(step) = self.document.steps.last_mut() {
            step.pulls = pulls;
        }
    }

    /// The requests that another registry counted, if any.
    pub(super) fn counted_by(&mut self, name: &'static str, tally: &Tally) {
        self.add(name, tally, "");
    }

    fn add(&mut self, name: &'static str, tally: &Tally, more: &str) {
        if tally.requests() == 0 {
            return;
        }
        self.print(&format!("  {name:5}  {}{more}", tally.text()));
        if let Some(step) = self.document.steps.last_mut() {
            step.registries.insert(name, tally.counts());
        }
    }

    /// A comparison, and whether it succeeded.
    pub(super) fn check(&mut self, held: bool, what: impl Into<String>) {
        let what = what.into();
        let mark = if held { self.paint("32", "ok   ") } else { self.paint("1;31", "FAILED") };
        self.print(&format!("  {mark}  {what}"));
        self.document.held &= held;
        if let Some(step) = self.document.steps.last_mut() {
            step.checks.push(Check { what, held });
        }
    }

    /// Prints the document for `--output json`.
    pub(super) fn finish(&self, global: &Global) {
        if global.output == Format::Json {
            output::print_json(&self.document);
        }
    }

    pub(super) fn bold(&self, text: &str) -> String {
        self.paint("1", text)
    }

    fn paint(&self, code: &str, text: &str) -> String {
        if self.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn one_comparison_that_fails_fails_all() {
        let cli = Cli::try_parse_from(["transload", "demo", "--quiet"]).expect("a command line");
        let mut demo_output = DemoOutput::new(&cli.global);
        demo_output.step("A step", "transload demo");
        demo_output.check(true, "this held");
        assert!(demo_output.all_passed());
        demo_output.check(false, "this did not");
        demo_output.check(true, "this held again");
        assert!(!demo_output.all_passed());
    }
}
