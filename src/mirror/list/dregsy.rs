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
//! Its patterns are for the whole tag, `!` before one inverts it. A tag need fit one of them, and each `keep:`.

use super::node::{Key, Node};
use super::own::tag;
use super::read::Reader;
use super::skopeo::repository;
use super::{Aim, Dialect, Entry, Exact, Pattern, Pick, Select, TagSet, Template, Versions};
use crate::error::{Error, Result};
use crate::reference::Repository;

pub(super) fn read(root: &Node, reader: &mut Reader<'_>) -> Result<()> {
    for (key, _) in reader.fields(root, "the file")? {
        match key.text.as_str() {
            "tasks" => {}
            "relay" | "skopeo" | "docker" | "lister" | "watch" => {
                reader.note(key.line, format!("`{}` isn't used: it is about dregsy itself", key.text));
            }
            other if other.starts_with("x-") => {}
            _ => ignored(key, reader),
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
            _ => ignored(key, reader),
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
    let mut registry = None;
    for (key, value) in reader.fields(node, &format!("`{side}`"))? {
        match key.text.as_str() {
            "registry" => registry = Some(reader.text(value, "`registry`")?),
            "auth" | "auth-refresh" => {
                reader.note(key.line, format!("`{}` isn't used: transload login keeps credentials", key.text));
            }
            "skip-tls-verify" if reader.boolean(value, "`skip-tls-verify`")? => {
                reader.note(key.line, "`skip-tls-verify` isn't done: give --insecure-registry");
            }
            "skip-tls-verify" => {}
            "lister" => reader.note(key.line, "`lister` isn't used: repositories must be named"),
            _ => ignored(key, reader),
        }
    }
    registry.ok_or_else(|| reader.fail(node.line, format!("`{side}` has no `registry`")))
}

fn mapping(node: &Node, source: &str, target: &str, reader: &mut Reader<'_>) -> Result<()> {
    let (mut from, mut to) = (None, None);
    let mut pick = Pick::default();
    let mut platforms = None;
    for (key, value) in reader.fields(node, "a mapping")? {
        match key.text.as_str() {
            "from" => from = Some((value.line, reader.text(value, "`from`")?)),
            "to" if value.is_null() => {}
            "to" => to = Some((value.line, reader.text(value, "`to`")?)),
            "tags" | "digests" => {}
            "platform" => platforms = Some(platform(key, value, reader)?),
            "preserve-digests" => {}
            _ => ignored(key, reader),
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
        target: Aim::Fixed(vec![(target.registry, Template::literal(&target.name, None))]),
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
fn tags(node: &Node, source: &Repository, pick: &mut Pick, reader: &mut Reader<'_>) -> Result<()> {
    let mut select = Select::default();
    for (line, text) in node.field("tags").map_or(Ok(Vec::new()), |node| reader.texts(node, "`tags`"))? {
        let whole = |text: &str| match text.trim().strip_prefix('!') {
            Some(text) => Pattern::whole_regex(text).map(Pattern::inverted),
            None => Pattern::whole_regex(text.trim()),
        };
        let mut set = TagSet::default();
        match text.split_once(':') {
            Some(("semver", range)) => {
                set.versions.push(reader.at(line, Versions::parse(range.trim(), Dialect::Plain))?)
            }
            Some(("regex", pattern)) => set.patterns.push(reader.at(line, whole(pattern))?),
            Some(("keep", rest)) => match rest.trim().strip_prefix("latest ").map(|count| count.trim().parse()) {
                Some(Ok(count)) if count > 0 => select.newest = count,
                Some(_) => return Err(reader.fail(line, format!("{text:?} keeps no number of tags"))),
                None => select.keep.push(reader.at(line, whole(rest))?),
            },
            _ => {
                pick.exact.insert(tag(line, text, &source.to_string(), reader)?);
            }
        }
        if set != TagSet::default() {
            select.sets.push(set);
        }
    }
    let verbatim = !pick.exact.is_empty();
    // `keep:` is for those too.
    pick.exact
        .retain(|exact: &Exact| exact.tag.as_ref().is_none_or(|tag| select.keep.iter().all(|keep| keep.matches(tag))));
    for (line, text) in node.field("digests").map_or(Ok(Vec::new()), |node| reader.texts(node, "`digests`"))? {
        let digest = text.parse().map_err(|error: Error| reader.fail(line, error.to_string()))?;
        pick.exact.insert(Exact { tag: None, digest: Some(digest) });
    }
    if select.newest > 0 && verbatim {
        return Err(reader
            .fail(node.line, "`keep: latest` beside tags by name can't be done")
            .hint("put the tags in a mapping of their own, or in a regex"));
    }
    if !select.sets.is_empty() || (!verbatim && pick.exact.is_empty()) || select.newest > 0 {
        pick.select = Some(select);
    }
    if pick.exact.is_empty() && pick.select.is_none() {
        return Err(reader.fail(node.line, "nothing is left of a mapping's tags: `keep` fits none of them"));
    }
    Ok(())
}

fn ignored(key: &Key, reader: &mut Reader<'_>) {
    reader.note(key.line, format!("`{}` is nothing that dregsy is known to have: it is ignored", key.text));
}
