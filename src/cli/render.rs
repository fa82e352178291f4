//! How results of copies are told to people: one image's line, the sums, what a registry still allows.
//! The same words for `copy` and `mirror`.

use std::time::Duration;

use super::output::{self, format_field};
use crate::copy::{Entry, Quota, RegistryUsage, Report, Status, Summary};
use crate::mirror::prune::Plan;
use crate::mirror::report::RunReport;
use crate::mirror::run::Event;
use crate::registry::Registries;

/// What the registries of a run were asked so far.
pub(super) fn registry_usage(registries: &Registries) -> Vec<RegistryUsage> {
    let known = registries.known().into_iter();
    known
        .map(|(name, registry)| RegistryUsage {
            name,
            requests: registry.requests(),
            pulls: registry.pulls(),
            pull_limit: registry.quota().map(|quota| Quota {
                limit: quota.limit,
                remaining: quota.remaining,
                window_seconds: quota.window,
                source: quota.source,
            }),
        })
        .collect()
}

/// The line of an image of a list that is done, or would be.
pub(super) fn finished_line(event: &Event, dry_run: bool) -> Option<String> {
    match event {
        Event::Copied(job, report) => Some(image_line(&job.from(), &job.to(), report, dry_run)),
        _ => None,
    }
}

/// An image that is there now, or would be.
pub(super) fn image_line(source: &str, destination: &str, report: &Report, dry_run: bool) -> String {
    let (source, destination) = (format_field(source), format_field(destination));
    let digest = report.digest.map(|digest| format!(" ({})", digest.short())).unwrap_or_default();
    if report.status == Status::Unchanged {
        let more = if report.referrers > 0 {
            format!(", {}", output::count_noun(report.referrers, "referrer"))
        } else {
            String::new()
        };
        return format!("unchanged: {source} is at {destination}{digest}{more}");
    }
    let verb = if dry_run { "would copy" } else { "copied" };
    let mut parts = vec![output::count_noun(report.manifests_written, "manifest")];
    let (sent, mounted) = if dry_run { ("to send", "to mount") } else { ("sent", "mounted") };
    let blobs =
        [(report.blobs_uploaded, sent), (report.blobs_mounted, mounted), (report.blobs_present, "there already")];
    parts.extend(
        blobs
            .iter()
            .filter(|(number, _)| *number > 0)
            .map(|(number, what)| format!("{} {what}", output::count_noun(*number, "blob"))),
    );
    if report.blobs_foreign > 0 {
        parts.push(format!(
            "{} left where they are (--include-foreign copies them)",
            output::count_noun(report.blobs_foreign, "foreign layer")
        ));
    }
    if report.referrers > 0 {
        parts.push(output::count_noun(report.referrers, "referrer"));
    }
    let moved = if dry_run { "to move" } else { "moved" };
    let bytes = output::format_bytes(report.bytes_uploaded);
    format!("{verb}: {source} to {destination}{digest}: {}; {bytes} {moved}", parts.join(", "))
}

/// A run over a list: a line for each image, those that failed last with why, then the sums. What several
/// in a row ended by is told below the last of them.
pub(super) fn run_summary(run: &RunReport) -> String {
    let mut images: Vec<&Entry> = run.images().iter().collect();
    images.sort_by_key(|image| (image.ended.error().is_some(), image.ended.status() == "failed"));
    let width =
        |text: fn(&Entry) -> &str| run.images().iter().map(|image| format_field(text(image)).chars().count()).max();
    let source = width(|image| &image.source).unwrap_or(0);
    let destination = width(|image| &image.destination).unwrap_or(0);
    let moved = if run.is_dry() { "to move" } else { "moved" };
    let mut text = String::new();
    for (nth, image) in images.iter().enumerate() {
        let status = image.ended.status();
        let row = format!(
            "{status:STATUS_WIDTH$}  {:source$}  {:destination$}",
            format_field(&image.source),
            format_field(&image.destination)
        );
        text += row.trim_end();
        if let Some(report) = image.ended.report().filter(|report| report.status == Status::Copied) {
            let (sent, saved) =
                (output::format_bytes(report.bytes_uploaded), output::format_bytes(report.bytes_skipped));
            let pulls = output::count_noun(report.pulls, "pull");
            text += &format!("  {sent:>11} {moved}, {saved:>11} saved, {pulls}");
        }
        text.push('\n');
        let next = images.get(nth + 1).and_then(|next| next.ended.error());
        if let Some(error) = image.ended.error().filter(|error| Some(*error) != next) {
            text += &format!("{:STATUS_WIDTH$}  {}\n", "", error.message);
            if let Some(hint) = &error.hint {
                text += &format!("{:STATUS_WIDTH$}  hint: {hint}\n", "");
            }
        }
    }
    if let Some(plan) = run.prune() {
        text += &prune(plan);
    }
    text + &summary(run.summary(), run.registries()) + "\n"
}

/// What was pruned, or would be, and what was spared and why.
fn prune(plan: &Plan) -> String {
    let mut text = String::new();
    let removing = plan.done && plan.refused.is_none();
    for part in &plan.repositories {
        for going in &part.deletions {
            let (what, why) = match (&going.kept_reason, going.deleted) {
                (Some(why), _) => ("kept", format!("  {}", format_field(why))),
                (None, true) => ("removed", String::new()),
                (None, false) if removing => ("left", String::new()),
                (None, false) => ("obsolete", String::new()),
            };
            text += &format!(
                "{what:STATUS_WIDTH$}  {}:{}{why}\n",
                format_field(&part.repository),
                format_field(&going.tag)
            );
        }
        let not = part.kept_reason.as_ref().map(|why| (why, None));
        let not = not.or_else(|| part.error.as_ref().map(|error| (&error.message, error.hint.as_ref())));
        if let Some((why, hint)) = not {
            let what = if part.deletions.is_empty() { "spared" } else { "failed" };
            text += &format!("{what:STATUS_WIDTH$}  {}: {}\n", format_field(&part.repository), format_field(why));
            text += &hint.map(|hint| format!("{:STATUS_WIDTH$}  hint: {hint}\n", "")).unwrap_or_default();
        }
    }
    if let Some(refused) = &plan.refused {
        let hint = refused.hint.as_deref().unwrap_or_default();
        return text
            + &format!("{:STATUS_WIDTH$}  {}\n{:STATUS_WIDTH$}  hint: {hint}\n", "refused", refused.message, "");
    }
    let young: usize = plan.repositories.iter().map(|part| part.too_young).sum();
    let young = if young > 0 { format!("; {young} more are too young, or of unknown age") } else { String::new() };
    text + &match removing {
        true => format!("{} removed{young}\n", output::count_noun(plan.deletions(), "obsolete tag")),
        false if plan.planned_deletions() == 0 => format!("no tags to prune{young}\n"),
        false => format!(
            "{}, which --prune=delete removes{young}\n",
            output::count_noun(plan.planned_deletions(), "obsolete tag")
        ),
    }
}

/// The sums, and the pulls that were spent and are left.
pub(super) fn summary(summary: &Summary, registries: &[RegistryUsage]) -> String {
    let images = [
        (summary.copied, "copied"),
        (summary.unchanged, "unchanged"),
        (summary.planned, "planned"),
        (summary.skipped.unwrap_or(0), "skipped"),
        (summary.failed, "failed"),
    ];
    let images: Vec<String> =
        images.iter().filter(|(number, _)| *number > 0).map(|(number, what)| format!("{number} {what}")).collect();
    let images = if images.is_empty() { "nothing to do".to_owned() } else { images.join(", ") };
    let moved = if summary.planned > 0 { "to move" } else { "moved" };
    let mut text = format!(
        "{images}; {} {moved}, {} saved; {} requests; {}",
        output::format_bytes(summary.bytes_uploaded),
        output::format_bytes(summary.bytes_skipped),
        summary.requests,
        output::format_duration(Duration::from_secs_f64(summary.duration_seconds)),
    );
    if let Some(requests) = summary.requests_planned {
        let pulls = output::count_noun(summary.pulls, "pull");
        text += &format!("\na run would make about {requests} requests, and cost {pulls}, as this look did");
    }
    for used in registries {
        let Some(quota) = &used.pull_limit else { continue };
        let pulls = output::count_noun(usize::try_from(used.pulls).unwrap_or(usize::MAX), "pull");
        let (name, left, limit, hours) = (&used.name, quota.remaining, quota.limit, quota.window_seconds / 3600);
        text += &format!("\n{name}: {pulls} counted; {left} of {limit} left in {hours} h");
    }
    text
}

/// The width of `unchanged`.
const STATUS_WIDTH: usize = 9;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::copy::Failure;
    use crate::error::{Error, Kind, Side};
    use crate::mirror::prune::{RepositoryPlan, TagDeletion};
    use crate::mirror::report::ImageId;

    fn which(line: usize, source: &str, destination: &str) -> ImageId {
        ImageId { source: source.into(), destination: destination.into(), line }
    }

    #[test]
    fn a_runs_table() {
        let mut ended = RunReport::start(None, false, &[]);
        let limited = Error::new(Kind::Limited, "docker.io answered 429").on(Side::Source).hint("wait");
        ended.add(which(1, "docker.io/a/long-name:1", "r.io/a/long-name:1"), Err(&limited));
        let copied = Report { bytes_uploaded: 2048, bytes_skipped: 1, pulls: 2, ..Report::default() };
        ended.add(which(2, "docker.io/a/b:1", "r.io/a/b:1"), Ok(copied));
        ended.add(
            which(3, "docker.io/a/c:1", "r.io/a/c:1"),
            Ok(Report { status: Status::Unchanged, ..Report::default() }),
        );
        let quota = Quota { limit: 100, remaining: 98, window_seconds: 21600, source: None };
        let hub = RegistryUsage { name: "docker.io".into(), requests: 5, pulls: 3, pull_limit: Some(quota) };
        ended.finish(Duration::from_secs(2), vec![hub]);
        let expected = "\
copied     docker.io/a/b:1          r.io/a/b:1      2.0 KiB moved,         1 B saved, 2 pulls
unchanged  docker.io/a/c:1          r.io/a/c:1
failed     docker.io/a/long-name:1  r.io/a/long-name:1
           source: docker.io answered 429
           hint: wait
1 copied, 1 unchanged, 1 failed; 2.0 KiB moved, 1 B saved; 5 requests; 2.00 s
docker.io: 3 pulls counted; 98 of 100 left in 6 h
";
        assert_eq!(run_summary(&ended), expected);
    }

    /// A deadline may leave thousands: why, is told once for all in a row.
    #[test]
    fn what_ended_alike_is_told_once() {
        let mut ended = RunReport::start(None, false, &[]);
        let late = Error::new(Kind::Timeout, "the deadline has passed").hint("go on");
        ended.add(which(1, "a/failed:1", "r/failed:1"), Err(&Error::new(Kind::Denied, "no")));
        for nth in 2..4 {
            ended.skip(which(nth, &format!("a/{nth}:1"), &format!("r/{nth}:1")), &late);
        }
        ended.finish(Duration::from_secs(2), vec![]);
        let expected = "\
skipped    a/2:1       r/2:1
skipped    a/3:1       r/3:1
           the deadline has passed
           hint: go on
failed     a/failed:1  r/failed:1
           no
2 skipped, 1 failed; 0 B moved, 0 B saved; 0 requests; 2.00 s
";
        assert_eq!(run_summary(&ended), expected);
    }

    #[test]
    fn what_is_pruned() {
        let going = |tag: &str, gone, stayed: Option<&str>| TagDeletion {
            tag: tag.into(),
            digest: None,
            written_at: None,
            companion: false,
            deleted: gone,
            kept_reason: stayed.map(str::to_owned),
        };
        let part = |name: &str| RepositoryPlan { repository: format!("r.io/{name}"), ..RepositoryPlan::default() };
        let denied = Failure::from(&Error::new(Kind::Denied, "no").hint("ask for the right"));
        let mut plan = Plan {
            repositories: vec![
                RepositoryPlan {
                    deletions: vec![going("1", false, None), going("2", false, None)],
                    too_young: 3,
                    ..part("a")
                },
                RepositoryPlan { kept_reason: Some("x failed".into()), ..part("b") },
                RepositoryPlan { error: Some(denied.clone()), ..part("c") },
            ],
            refused: None,
            done: false,
        };
        let expected = "\
obsolete   r.io/a:1
obsolete   r.io/a:2
spared     r.io/b: x failed
spared     r.io/c: no
           hint: ask for the right
2 obsolete tags, which --prune=delete removes; 3 more are too young, or of unknown age
";
        assert_eq!(prune(&plan), expected);
        plan.done = true;
        plan.repositories.truncate(1);
        plan.repositories[0].deletions =
            vec![going("1", true, None), going("2", false, Some("needed by \"3\"")), going("3", false, None)];
        plan.repositories[0].error = Some(denied.clone());
        let expected = "\
removed    r.io/a:1
kept       r.io/a:2  needed by \"3\"
left       r.io/a:3
failed     r.io/a: no
           hint: ask for the right
1 obsolete tag removed; 3 more are too young, or of unknown age
";
        assert_eq!(prune(&plan), expected);
        plan.refused = Some(denied);
        assert!(prune(&plan).ends_with("refused    no\n           hint: ask for the right\n"), "{}", prune(&plan));
    }
}
