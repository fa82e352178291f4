//! dregsy's tasks: from one registry to another, with mappings of paths.
//!
//! ```yaml
//! relay: skopeo
//! tasks:
//!   - name: task1
//!     interval: 60
//!     source: { registry: source-registry.acme.com, auth: … }
//!     target: { registry: dest-registry.acme.com, auth: …, skip-tls-verify: true }
//!     mappings:
//!       - from: test/image
//!         to: archive/test/image
//!         tags: ['0.1.0', 'semver: >=1.31.0 <1.31.9', 'regex: 1\.26\.[0-9]-(glibc|musl)', 'keep: latest 5']
//!         platform: linux/arm64
//!       - from: test/another-image
//! ```
//! A tag need fit one of them, and each `keep:`; tags that are named are copied whatever `keep:` says, save for
//! `keep: latest`, which counts them. A pattern gets the `^` and `$` that it lacks; `!` before it inverts it.
//!
//! Rules: <https://github.com/xelalexv/dregsy#tag-filtering>, and
//! <https://github.com/xelalexv/dregsy/blob/master/internal/pkg/tags/tagset.go>.

use std::collections::BTreeSet;

use super::native::parse_tag;
use super::node::{Key, Node};
use super::reader::Reader;
use super::skopeo::repository;
use super::{
    DestinationRule, Dialect, Entry, ImageSelection, Latest, Pattern, SelectedImage, TagFilter, TagSet, Template,
    Versions,
};
use crate::error::{Error, Result};
use crate::reference::Repository;

pub(super) fn read(root: &Node, reader: &mut Reader<'_>) -> Result<()> {
    for (key, _) in reader.fields(root, "the file")? {
        match key.text.as_str() {
            "tasks" => {}
            "relay" | "skopeo" | "docker" | "lister" | "watch" | "dockerhost" | "api-version" => {
                reader.note(key.line, format!("`{}` isn't used: it is about dregsy itself", key.text));
            }
            other if other.starts_with("x-") => {}
            _ => reader.ignored(key, TOOL),
        }
    }
    let tasks = root.field("tasks").map_or(Ok(&[][..]), |node| reader.items(node, "`tasks`"))?;
    tasks.iter().try_for_each(|node| task(node, reader))
}

fn task(node: &Node, reader: &mut Reader<'_>) -> Result<()> {
    for (key, _) in reader.fields(node, "a task")? {
        match key.text.as_str() {
            "source" | "target" | "mappings" | "name" | "verbose" => {}
            "interval" => reader.note(key.line, "`interval` isn't used: give --interval, or run it by a CronJob"),
            _ => reader.ignored(key, TOOL),
        }
    }
    let source = registry(node, "source", reader)?;
    let target = registry(node, "target", reader)?;
    let mappings = node.field("mappings").map_or(Ok(&[][..]), |node| reader.items(node, "`mappings`"))?;
    mappings.iter().try_for_each(|node| mapping(node, source, target, reader))
}

/// The registry of a task's source or target.
fn registry<'n>(task: &'n Node, side: &str, reader: &mut Reader<'_>) -> Result<&'n str> {
    let Some(node) = task.field(side) else {
        return Err(reader.fail(task.line, format!("a task without a `{side}`")));
    };
    let (mut registry, mut insecure) = (None, None);
    for (key, value) in reader.fields(node, &format!("`{side}`"))? {
        match key.text.as_str() {
            "registry" => registry = Some(reader.text(value, "`registry`")?),
            "auth" | "auth-refresh" => {
                reader.note(key.line, format!("`{}` isn't used: transload login keeps credentials", key.text));
            }
            "skip-tls-verify" => insecure = reader.boolean(value, "`skip-tls-verify`")?.then_some(key.line),
            "lister" => reader.note(key.line, "`lister` isn't used: repositories must be named"),
            _ => reader.ignored(key, TOOL),
        }
    }
    let registry = registry.ok_or_else(|| reader.fail(node.line, format!("`{side}` has no `registry`")))?;
    // For a public ECR registry an account may stand before it.
    let registry = registry.rsplit_once('@').map_or(registry, |(_, registry)| registry);
    if let Some(line) = insecure {
        reader.note(line, format!("`skip-tls-verify` isn't done: give --insecure-registry {registry}"));
    }
    Ok(registry)
}

fn mapping(node: &Node, source: &str, target: &str, reader: &mut Reader<'_>) -> Result<()> {
    let (mut from, mut to) = (None, None);
    let mut pick = ImageSelection::default();
    let mut platforms = None;
    for (key, value) in reader.fields(node, "a mapping")? {
        match key.text.as_str() {
            "from" => from = Some((value.line, reader.text(value, "`from`")?)),
            "to" if value.is_null() => {}
            "to" => to = Some((value.line, reader.text(value, "`to`")?)),
            "tags" | "digests" => {}
            "platform" => platforms = Some(platform(key, value, reader)?),
            "preserve-digests" => {}
            _ => reader.ignored(key, TOOL),
        }
    }
    let Some((line, from)) = from else { return Err(reader.fail(node.line, "a mapping without `from`")) };
    if from.starts_with("regex:") {
        return Err(reader
            .fail(line, "repositories by pattern can't be mirrored")
            .hint("name them, a mapping each: Docker Hub has no list of them"));
    }
    let source = repository(line, source, from.trim_start_matches('/'), reader)?;
    tags(node, &source, &mut pick, reader)?;
    let (line, path) = mapped(from, to, line, reader)?;
    let target = repository(line, target, &path, reader)?;
    if platforms.is_none() {
        reader.note(node.line, "all platforms are copied; dregsy's default is that of its machine");
    }
    let entry = Entry {
        target: DestinationRule::Fixed(vec![(target.registry, Template::literal(&target.name, None))]),
        strip_library: false,
        platforms: platforms.unwrap_or_default(),
        ..reader.entry(node.line, source, pick)
    };
    reader.add(entry)
}

fn platform(key: &Key, value: &Node, reader: &mut Reader<'_>) -> Result<Vec<crate::descriptor::Platform>> {
    match reader.text(value, "`platform`")? {
        "all" => Ok(Vec::new()),
        text => {
            reader.note(
                key.line,
                "`platform`: the index is copied with that platform alone and keeps its digest; dregsy writes the \
                 platform's image in its place",
            );
            Ok(vec![reader.platform(value.line, text)?])
        }
    }
}

/// The path at the target: `to`, which may be a replacement in `from` by a regular expression.
fn mapped(from: &str, to: Option<(usize, &str)>, line: usize, reader: &Reader<'_>) -> Result<(usize, String)> {
    let Some((line, to)) = to else { return Ok((line, from.trim_start_matches('/').to_owned())) };
    let Some(expression) = to.strip_prefix("regex:") else {
        return Ok((line, to.trim_start_matches('/').to_owned()));
    };
    let Some((pattern, replacement)) = expression.split_once(',') else {
        return Err(reader
            .fail(line, "`to` has a regular expression without a replacement")
            .hint("write regex:THIS,THAT"));
    };
    reader.at(line, Pattern::regex(pattern))?;
    let regex = regex::Regex::new(pattern).map_err(|_| reader.fail(line, "`to` has no regular expression"))?;
    // It sees paths with their first slash.
    let path = format!("/{}", from.trim_start_matches('/'));
    Ok((line, regex.replace_all(&path, replacement).trim_start_matches('/').to_owned()))
}

/// `tags` and `digests`: which images; all tags without any.
fn tags(node: &Node, source: &Repository, pick: &mut ImageSelection, reader: &mut Reader<'_>) -> Result<()> {
    let mut select = TagFilter::default();
    let mut named = BTreeSet::new();
    let mut count = 0;
    for (line, text) in node.field("tags").map_or(Ok(Vec::new()), |node| reader.texts(node, "`tags`"))? {
        match text.trim().split_once(':') {
            Some(("semver", range)) => {
                let versions = vec![reader.at(line, Versions::parse(range.trim(), Dialect::Dregsy))?];
                select.sets.push(TagSet { versions, ..TagSet::default() });
            }
            Some(("regex", text)) => {
                let patterns = vec![pattern(line, text, reader)?];
                select.sets.push(TagSet { patterns, ..TagSet::default() });
            }
            Some(("keep", rest)) => match limit(line, rest, reader)? {
                Some(limit) => count = limit,
                None => select.keep.push(pattern(line, rest, reader)?),
            },
            _ => _ = named.insert(parse_tag(line, text.trim(), &source.to_string(), reader)?),
        }
    }
    for (line, text) in node.field("digests").map_or(Ok(Vec::new()), |node| reader.texts(node, "`digests`"))? {
        let digest = text.parse().map_err(|error: Error| reader.fail(line, error.to_string()))?;
        pick.exact.insert(SelectedImage { tag: None, digest: Some(digest) });
    }
    let selects = !select.sets.is_empty() || (named.is_empty() && pick.exact.is_empty());
    match (count, selects) {
        (0, _) => pick.exact.extend(named),
        (count, true) => select.latest = Some(Latest { count, named }),
        (count, false) => pick.exact.extend(Latest { count, named }.of_named()),
    }
    if selects {
        pick.select = Some(select);
    }
    Ok(())
}

/// What follows `regex:` and `keep:`.
fn pattern(line: usize, text: &str, reader: &mut Reader<'_>) -> Result<Pattern> {
    let text = text.trim();
    let (inverted, text) = text.strip_prefix('!').map_or((false, text), |text| (true, text));
    let pattern = reader.pattern(line, Pattern::anchored(text))?;
    Ok(if inverted { pattern.inverted() } else { pattern })
}

/// The number of `keep: latest N`; 0 is no limit. `None` for a pattern.
fn limit(line: usize, rest: &str, reader: &Reader<'_>) -> Result<Option<usize>> {
    let text = rest.trim();
    let Some(count) = text.strip_prefix("latest").filter(|count| count.starts_with([' ', '\t'])) else {
        return Ok(None);
    };
    match count.trim().parse() {
        // Without the space it is a pattern to dregsy, which no tag fits.
        Ok(count) if rest.starts_with([' ', '\t']) => Ok(Some(count)),
        _ => Err(reader
            .fail(line, format!("\"keep:{rest}\" keeps no number of tags"))
            .hint("write it with its spaces, as in keep: latest 5")),
    }
}

const TOOL: &str = "dregsy";
