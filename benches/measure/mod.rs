//! What the benchmarks of whole runs have in common: samples, medians, and time(1).
#![expect(clippy::unwrap_used, reason = "a benchmark's own faults")]

use std::process::Command;

use crate::support::Registry;

/// One run of one tool.
#[derive(Clone, Copy, Default)]
pub(crate) struct Sample {
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
    pub(crate) mib: f64,
    pub(crate) from: f64,
    pub(crate) to: f64,
}

impl Sample {
    /// Runs a command under time(1), which alone tells CPU and peak memory of a child.
    pub(crate) fn of(tool: &str, adapt: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("/usr/bin/time");
        command.args(["-q", "-f", "%e %U %S %M"]);
        adapt(&mut command);
        let done = command.output().unwrap();
        let stderr = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{tool}: {stderr}");
        let numbers: Vec<f64> = stderr.lines().last().unwrap().split(' ').map(|word| word.parse().unwrap()).collect();
        Self { wall: numbers[0], cpu: numbers[1] + numbers[2], mib: numbers[3] / 1024.0, ..Self::default() }
    }

    /// With the requests that both registries have logged.
    pub(crate) fn counted(self, source: &Registry, destination: &Registry) -> Self {
        Self { from: source.requests().len() as f64, to: destination.requests().len() as f64, ..self }
    }

    /// The median of each figure.
    pub(crate) fn median(samples: &[Self]) -> Self {
        let median = |of: fn(&Self) -> f64| {
            let mut values: Vec<f64> = samples.iter().map(of).collect();
            values.sort_by(f64::total_cmp);
            values[values.len() / 2]
        };
        Self {
            wall: median(|s| s.wall),
            cpu: median(|s| s.cpu),
            mib: median(|s| s.mib),
            from: median(|s| s.from),
            to: median(|s| s.to),
        }
    }

    /// The row of a table; `gib` says what the CPU seconds are shared out over, if that makes sense.
    pub(crate) fn row(&self, case: &str, tool: &str, gib: Option<f64>) -> String {
        let Self { wall, cpu, mib, from, to } = self;
        let per_gib = gib.map_or_else(|| "-".to_owned(), |gib| format!("{:.2}", cpu / gib));
        format!("| {case} | {tool} | {wall:.2} | {cpu:.3} | {per_gib} | {mib:.0} | {from:.0} + {to:.0} |")
    }
}
