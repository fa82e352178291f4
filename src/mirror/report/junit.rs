//! A run in the form of JUnit's XML, which CI systems show.

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Result, Write};

use super::{RunReport, registry};
use crate::copy::{Entry, Report};
use crate::{printable, redact};

/// The schema is nobody's standard; this is what Jenkins, GitLab and Azure DevOps all read.
pub(super) fn write(run: &RunReport, to: &mut dyn Write) -> Result<()> {
    let mut suites: BTreeMap<&str, Vec<&Entry>> = BTreeMap::new();
    for image in run.images() {
        suites.entry(registry(case_class(image))).or_default().push(image);
    }
    writeln!(to, "<?xml version=\"1.0\" encoding=\"UTF-8\"?>")?;
    let all = CaseCounts::of(run.images());
    writeln!(to, "<testsuites name=\"transload mirror\" {all} time=\"{:.3}\">", run.summary().duration_seconds)?;
    for (name, images) in &suites {
        let counts = CaseCounts::of(images.iter().copied());
        let seconds: f64 = images.iter().filter_map(|image| Some(image.ended.report()?.duration_seconds)).sum();
        let (name, started) = (Escaped(name), run.started().strftime("%Y-%m-%dT%H:%M:%S"));
        writeln!(to, "  <testsuite name=\"{name}\" {counts} time=\"{seconds:.3}\" timestamp=\"{started}\">")?;
        for image in images {
            case(image, to)?;
        }
        writeln!(to, "  </testsuite>")?;
    }
    writeln!(to, "</testsuites>")
}

fn case(image: &Entry, to: &mut dyn Write) -> Result<()> {
    let seconds = image.ended.report().map_or(0.0, |report| report.duration_seconds);
    let (class, name) = (Escaped(case_class(image)), Escaped(&image.source));
    write!(to, "    <testcase classname=\"{class}\" name=\"{name}\" time=\"{seconds:.3}\"")?;
    let Some(error) = image.ended.error() else {
        let (status, report) = (image.ended.status(), image.ended.report().cloned().unwrap_or_default());
        let Report { bytes_uploaded, bytes_skipped, pulls, .. } = report;
        let said = format!("{status}: {bytes_uploaded} bytes moved, {bytes_skipped} saved, {pulls} pulls");
        return writeln!(to, "><system-out>{said}</system-out></testcase>");
    };
    let (kind, message) = (Escaped(&error.kind), Escaped(&error.message));
    if image.ended.status() == "skipped" {
        return writeln!(to, "><skipped message=\"{message}\"/></testcase>");
    }
    write!(to, "><failure type=\"{kind}\" message=\"{message}\">{message}")?;
    if let Some(hint) = &error.hint {
        write!(to, "\nhint: {}", Escaped(hint))?;
    }
    writeln!(to, "</failure></testcase>")
}

/// Where it goes; where that isn't known, where it's from.
fn case_class(image: &Entry) -> &str {
    if image.destination.is_empty() { &image.source } else { &image.destination }
}

struct CaseCounts {
    tests: usize,
    failures: usize,
    skipped: usize,
}

impl CaseCounts {
    fn of<'a>(images: impl IntoIterator<Item = &'a Entry>) -> Self {
        images.into_iter().fold(Self { tests: 0, failures: 0, skipped: 0 }, |counts, image| Self {
            tests: counts.tests + 1,
            failures: counts.failures + usize::from(image.ended.status() == "failed"),
            skipped: counts.skipped + usize::from(image.ended.status() == "skipped"),
        })
    }
}

impl fmt::Display for CaseCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tests, failures, skipped } = self;
        write!(f, "tests=\"{tests}\" failures=\"{failures}\" errors=\"0\" skipped=\"{skipped}\"")
    }
}

/// Text within an element or between double quotes. XML 1.0 can't have most control characters at all (§2.2).
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use fmt::Write as _;
        for c in printable::line(&redact::redact_own(self.0)).chars() {
            match c {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}
