//! How the progress looks: lines that fit a terminal of any width, or one line for a log.

use crate::cli::output::format_bytes;
use crate::waits::format_seconds;

/// What is shown.
#[derive(Debug)]
pub(super) struct View {
    pub(super) images: Option<Images>,
    pub(super) work: Work,
    /// Bytes to be sent, and those that are sent.
    pub(super) planned: u64,
    pub(super) sent: u64,
    /// Bytes per second.
    pub(super) rate: u64,
    /// Seconds that are left, where the rate says it.
    pub(super) eta: Option<u64>,
    /// For how many seconds nothing came.
    pub(super) stalled: Option<u64>,
    /// What is waited for, and the time that is left.
    pub(super) waits: Vec<(String, String)>,
    pub(super) blobs: Vec<BlobView>,
    pub(super) more_blobs: usize,
}

/// Images of a list.
#[derive(Clone, Debug, Default)]
pub(super) struct Images {
    pub(super) total: usize,
    pub(super) ended: usize,
    pub(super) failed: usize,
}

/// What is under way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Work {
    /// Requests that have no size, in words.
    Manifests(&'static str),
    Blobs,
}

/// A large blob on its way.
#[derive(Debug)]
pub(super) struct BlobView {
    pub(super) digest: String,
    pub(super) arrived: u64,
    pub(super) size: u64,
    /// All bytes came from the source, and the destination has not said yet that it has the blob.
    pub(super) storing: bool,
    pub(super) stalled: Option<u64>,
}

/// The lines for a terminal of `width` columns. None is wider than that.
pub(super) fn lines(view: &View, width: usize) -> Vec<String> {
    // The last columns stay free: some terminals wrap a line that fills them all.
    let width = width.saturating_sub(3);
    let mut lines = Vec::new();
    if let Some(images) = &view.images {
        let text = images.describe();
        let short = text.trim_start_matches("image ");
        lines.push(cut(if text.len() > width { short } else { &text }, width));
    }
    match view.work {
        // A wait says more.
        Work::Manifests(_) if !view.waits.is_empty() => {}
        Work::Manifests(what) => lines.push(cut(what, width)),
        Work::Blobs => lines.push(total_line(view, width)),
    }
    lines.extend(view.waits.iter().take(MAX_WAITS).map(|(what, time)| cut_before(what, time, width)));
    if let Some(seconds) = view.stalled {
        lines.push(cut(&format!("stalled for {}", format_seconds(seconds)), width));
    }
    lines.extend(view.blobs.iter().map(|blob| blob.line(width)));
    if view.more_blobs > 0 {
        lines.push(cut(&format!("and {} more", view.more_blobs), width));
    }
    lines
}

/// One line for a log.
pub(super) fn status(view: &View) -> String {
    let mut parts = Vec::new();
    if let Some(images) = &view.images {
        parts.push(images.describe());
    }
    match view.work {
        Work::Manifests(what) => parts.push(what.to_owned()),
        Work::Blobs => {
            let mut sent =
                vec![format!("{} sent ({})", counts(view.sent, view.planned), percent(view.sent, view.planned))];
            sent.push(format!("{}/s", format_bytes(view.rate)));
            sent.extend(view.eta.map(|seconds| format!("{} left", format_seconds(seconds))));
            parts.push(sent.join(", "));
        }
    }
    parts.extend(view.waits.iter().map(|(what, time)| format!("{what}{time}")));
    parts.extend(view.stalled.map(|seconds| format!("stalled for {}", format_seconds(seconds))));
    format!("status: {}", parts.join("; "))
}

impl Images {
    /// As in "image 7 of 20, 1 failed": the one that is next to end.
    fn describe(&self) -> String {
        let number = (self.ended + 1).min(self.total);
        let failed = if self.failed == 0 { String::new() } else { format!(", {} failed", self.failed) };
        format!("image {number} of {}{failed}", self.total)
    }
}

fn total_line(view: &View, width: usize) -> String {
    let (percent, counts) = (percent(view.sent, view.planned), counts(view.sent, view.planned));
    let rate = format!("{}/s", format_bytes(view.rate));
    let time = match view.eta {
        Some(seconds) => Some(format!("{} left", format_seconds(seconds))),
        None if view.sent >= view.planned => Some("storing".to_owned()),
        None => None,
    };
    let with_time =
        |parts: &[&String]| -> Vec<String> { parts.iter().copied().chain(time.as_ref()).cloned().collect() };
    let choices = [
        with_time(&[&percent, &counts, &rate]),
        with_time(&[&percent, &rate]),
        with_time(&[&percent]),
        vec![percent.clone()],
    ];
    bar_line("total", view.sent, view.planned, &choices, width)
}

impl BlobView {
    fn line(&self, width: usize) -> String {
        let (percent, counts) = (percent(self.arrived, self.size), counts(self.arrived, self.size));
        let state = match self.stalled {
            Some(seconds) => Some(format!("stalled for {}", format_seconds(seconds))),
            None if self.storing => Some("storing".to_owned()),
            None => None,
        };
        let choices = match state {
            Some(state) => [vec![counts, state.clone()], vec![state.clone()], vec![state]],
            None => [vec![counts.clone()], vec![counts], vec![percent]],
        };
        bar_line(&self.digest, self.arrived, self.size, &choices, width)
    }
}

/// A line with a label, a bar, and the first of the choices that leaves room for a bar; without the label if no other
/// way does.
fn bar_line(label: &str, done: u64, total: u64, choices: &[Vec<String>], width: usize) -> String {
    for parts in choices {
        let text = parts.join("  ");
        for (label, least) in [(format!("{label} "), 12), (String::new(), 10)] {
            let taken = label.chars().count() + 1 + text.chars().count();
            if let Some(room) = width.checked_sub(taken).filter(|room| *room >= least) {
                return format!("{label}{} {text}", bar(done, total, room.min(MAX_BAR)));
            }
        }
    }
    cut(&choices.last().map(|parts| parts.join("  ")).unwrap_or_default(), width)
}

/// A bar of `width` columns, brackets included.
fn bar(done: u64, total: u64, width: usize) -> String {
    let room = width.saturating_sub(2);
    let share = if total == 0 { 0.0 } else { (done as f64 / total as f64).min(1.0) };
    let full = (share * room as f64) as usize;
    let head = usize::from(full < room && done > 0);
    format!("[{}{}{}]", "=".repeat(full), ">".repeat(head), " ".repeat(room - full - head))
}

/// Never 100% before all is done.
fn percent(done: u64, total: u64) -> String {
    let share = if total == 0 { 0.0 } else { (done as f64 / total as f64).min(1.0) };
    format!("{:>3}%", (share * 100.0) as u64)
}

/// `12.3 MiB/1.0 GiB`; `12.3/45.0 MiB` where the units are the same.
fn counts(done: u64, total: u64) -> String {
    let (done, total) = (format_bytes(done), format_bytes(total));
    match (done.split_once(' '), total.split_once(' ')) {
        (Some((number, unit)), Some((_, same))) if unit == same => format!("{number}/{total}"),
        _ => format!("{done}/{total}"),
    }
}

/// The text, cut to so many columns.
fn cut(text: &str, width: usize) -> String {
    cut_before(text, "", width)
}

/// The text and its end, of which the text is cut, so that all has at most so many columns.
fn cut_before(text: &str, end: &str, width: usize) -> String {
    let (length, end_length) = (text.chars().count(), end.chars().count());
    if length + end_length <= width {
        return format!("{text}{end}");
    }
    match width.checked_sub(end_length + 1) {
        Some(room) => format!("{}…{end}", text.chars().take(room).collect::<String>()),
        None => end.trim_start_matches(", ").chars().take(width).collect(),
    }
}

/// The columns of a bar at most.
const MAX_BAR: usize = 60;
/// Waits that have a line of their own.
const MAX_WAITS: usize = 3;

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn view() -> View {
        let blob = |arrived, storing, stalled| BlobView {
            digest: "0123456789ab".into(),
            arrived,
            size: 45 * MIB,
            storing,
            stalled,
        };
        View {
            images: Some(Images { total: 20, ended: 6, failed: 1 }),
            work: Work::Blobs,
            planned: 1500 * MIB,
            sent: 405 * MIB,
            rate: 3_355_443,
            eta: Some(342),
            stalled: Some(12),
            waits: vec![
                ("waiting for registry-with-a-long-name.example.com (429)".into(), ", 6 s".into()),
                ("quay.io: connection lost".into(), ", retrying in 4 s".into()),
            ],
            blobs: vec![blob(12 * MIB, false, None), blob(45 * MIB, true, None), blob(0, false, Some(7))],
            more_blobs: 3,
        }
    }

    #[test]
    fn no_line_is_wider_than_the_terminal() {
        for width in 20..=240 {
            for eta in [None, Some(9), Some(100_000)] {
                for sent in [0, 1, 405 * MIB, 1500 * MIB] {
                    let view = View { eta, sent, ..view() };
                    for line in lines(&view, width) {
                        assert!(line.chars().count() <= width - 3, "{width}: {line:?}");
                    }
                }
            }
        }
    }

    /// The seconds of a wait are what one wants to know: they are never cut.
    #[test]
    fn at_20_40_and_80_columns() {
        assert_eq!(
            lines(&view(), 20),
            [
                "7 of 20, 1 failed",
                "[==>       ]  27%",
                "waiting for…, 6 s",
                "retrying in 4 s",
                "stalled for 12 s",
                "[==>       ]  26%",
                "storing",
                "stalled for 7 s",
                "and 3 more",
            ]
        );
        assert_eq!(
            lines(&view(), 40),
            [
                "image 7 of 20, 1 failed",
                "[===>         ]  27%  5 min 42 s left",
                "waiting for registry-with-a-lon…, 6 s",
                "quay.io: connection…, retrying in 4 s",
                "stalled for 12 s",
                "[=====>               ] 12.0/45.0 MiB",
                "[============] 45.0/45.0 MiB  storing",
                "[                   ] stalled for 7 s",
                "and 3 more",
            ]
        );
        assert_eq!(
            lines(&view(), 80),
            [
                "image 7 of 20, 1 failed",
                "total [====>            ]  27%  405.0 MiB/1.5 GiB  3.2 MiB/s  5 min 42 s left",
                "waiting for registry-with-a-long-name.example.com (429), 6 s",
                "quay.io: connection lost, retrying in 4 s",
                "stalled for 12 s",
                "0123456789ab [============>                                   ] 12.0/45.0 MiB",
                "0123456789ab [=======================================] 45.0/45.0 MiB  storing",
                "0123456789ab [                                ] 0 B/45.0 MiB  stalled for 7 s",
                "and 3 more",
            ]
        );
    }
}
