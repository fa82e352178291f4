//! regclient's regsync: a list of steps, each an image or a repository.
//!
//! ```yaml
//! version: 1
//! creds: [{ registry: docker.io, user: …, pass: … }]
//! defaults: { interval: 60m, ratelimit: { min: 100 } }
//! sync:
//!   - source: busybox:latest
//!     target: registry.example.org/library/busybox:latest
//!     type: image
//!   - source: alpine
//!     target: registry.example.org/library/alpine
//!     type: repository
//!     tags: { allow: ["3\\.\\d+"], deny: ["3\\.0"], semverRange: [">=3.5"] }
//!     referrers: true
//! ```
//! Its patterns are for the whole tag. `tags` and each of `tagSets` are sets; a tag need be in one.

use super::node::{Key, Node};
use super::read::Reader;
use super::{Aim, Dialect, Entry, Exact, Pattern, Pick, Select, TagSet, Template, Versions};
use crate::error::Result;
use crate::reference::{RegistryName, Tag};

pub(super) fn read(root: &Node, reader: &mut Reader<'_>) -> Result<()> {
    let mut defaults = Step::default();
    for (key, value) in reader.fields(root, "the file")? {
        match key.text.as_str() {
            "version" => match value.text() {
                Some("1") => {}
                _ => return Err(reader.fail(value.line, "only version 1 of regsync's files is known")),
            },
            "creds" => reader.note(key.line, "`creds` aren't used: transload login keeps credentials"),
            "defaults" => {
                for (key, value) in reader.fields(value, "`defaults`")? {
                    if defaults.common(key, value, reader)? {
                        continue;
                    }
                    match DEFAULTS.contains(&key.text.as_str()) {
                        true => reader.note(key.line, format!("`{}` isn't used: it is about regsync itself", key.text)),
                        false => ignored(key, reader),
                    }
                }
            }
            "sync" => {}
            other if other.starts_with("x-") => {}
            _ => ignored(key, reader),
        }
    }
    let steps = root.field("sync").map_or(Ok(&[][..]), |node| reader.items(node, "`sync`"))?;
    steps.iter().try_for_each(|node| step(node, defaults.clone(), reader))
}

/// What a step says, after `defaults`.
#[derive(Clone, Debug, Default)]
struct Step {
    referrers: bool,
    digest_tags: bool,
}

impl Step {
    /// Reads what `defaults` and steps both have; returns whether it was such.
    fn common(&mut self, key: &Key, value: &Node, reader: &mut Reader<'_>) -> Result<bool> {
        let what = format!("`{}`", key.text);
        match key.text.as_str() {
            "referrers" => self.referrers = reader.boolean(value, &what)?,
            "digestTags" => self.digest_tags = reader.boolean(value, &what)?,
            "referrerSource" | "referrerTarget" => {
                return Err(reader
                    .fail(key.line, format!("{what}: referrers of another repository can't be copied"))
                    .hint("copy that repository by an entry of its own"));
            }
            "forceRecursive" if reader.boolean(value, &what)? => {
                reader.note(key.line, format!("{what} isn't done: give --force to a run that should repair"));
            }
            "includeExternal" if reader.boolean(value, &what)? => {
                reader.note(key.line, format!("{what} isn't done: foreign layers stay where they are"));
            }
            // What transload does always, or what says not to do what it doesn't.
            "fastCheck" | "fastCopy" | "referrerSlow" | "forceRecursive" | "includeExternal" => {}
            name => match REMARKS.iter().find(|(known, _)| *known == name) {
                Some((_, remark)) => reader.note(key.line, format!("{what} {remark}")),
                None => return Ok(false),
            },
        }
        Ok(true)
    }
}

fn step(node: &Node, mut step: Step, reader: &mut Reader<'_>) -> Result<()> {
    let mut sets = Vec::new();
    let mut platforms = Vec::new();
    for (key, value) in reader.fields(node, "a step")? {
        match key.text.as_str() {
            "source" | "target" | "type" => {}
            "tags" => sets.extend(set(value, reader)?),
            "tagSets" => {
                for node in reader.items(value, "`tagSets`")? {
                    // One without conditions has all tags.
                    sets.push(set(node, reader)?.unwrap_or_default());
                }
            }
            "repos" => {}
            "platform" => {
                reader.note(
                    key.line,
                    "`platform`: the index is copied with that platform alone and keeps its digest; regsync writes \
                     the platform's image in its place",
                );
                platforms.push(reader.platform(value.line, reader.text(value, "`platform`")?)?);
            }
            "platforms" => {
                for (line, text) in reader.texts(value, "`platforms`")? {
                    platforms.push(reader.platform(line, text)?);
                }
            }
            _ => {
                if !step.common(key, value, reader)? {
                    ignored(key, reader);
                }
            }
        }
    }
    let (source, pick) = source(node, sets, reader)?;
    let (registry, template) = aim(node, &pick, reader)?;
    let entry = Entry {
        target: Aim::Fixed(vec![(registry, template)]),
        strip_library: false,
        platforms,
        referrers: step.referrers || step.digest_tags,
        ..reader.entry(node.line, source, pick)
    };
    reader.add(entry)
}

/// What is copied: by `type`.
fn source(node: &Node, sets: Vec<TagSet>, reader: &Reader<'_>) -> Result<(crate::reference::Repository, Pick)> {
    let (line, text) = place(node, "source", reader)?;
    let kind = node.field("type").and_then(Node::text).unwrap_or_default();
    match kind {
        "image" => {
            let (source, exact) = reader.reference(line, text)?;
            let exact = exact.unwrap_or_else(|| Exact { tag: Some(Tag::latest()), digest: None });
            Ok((source, Pick { exact: [exact].into(), select: None }))
        }
        "repository" => {
            let source = reader.at(line, text.parse())?;
            Ok((source, Pick { exact: [].into(), select: Some(Select { sets, ..Select::default() }) }))
        }
        "registry" => Err(reader
            .fail(line, "a whole registry can't be mirrored")
            .hint("name its repositories, a step each with `type: repository`: Docker Hub has no list of them")),
        _ => {
            let line = node.field("type").map_or(node.line, |node| node.line);
            Err(reader.fail(line, "a step's `type` is image or repository"))
        }
    }
}

/// Where to: `target`, a repository for a repository, an image for an image.
fn aim(node: &Node, pick: &Pick, reader: &Reader<'_>) -> Result<(RegistryName, Template)> {
    let (line, text) = place(node, "target", reader)?;
    let (target, exact) = reader.reference(line, text)?;
    let tag = match exact {
        Some(Exact { digest: Some(_), .. }) => {
            return Err(reader.fail(line, "a target takes a tag, not a digest"));
        }
        Some(exact) if pick.select.is_some() => {
            return Err(reader.fail(
                line,
                format!("the target names {:?}, and a repository is copied with all its tags", exact.to_string()),
            ));
        }
        Some(exact) => exact.tag,
        // Its tag is `latest` by default.
        None => pick.select.is_none().then(Tag::latest),
    };
    Ok((target.registry, Template::literal(&target.name, tag.as_deref())))
}

/// `source` or `target`: a reference that is written out.
fn place<'n>(node: &'n Node, name: &str, reader: &Reader<'_>) -> Result<(usize, &'n str)> {
    let Some(value) = node.field(name) else {
        return Err(reader.fail(node.line, format!("a step without `{name}`")));
    };
    let text = reader.text(value, &format!("`{name}`"))?;
    if text.contains("{{") {
        return Err(reader
            .fail(value.line, format!("`{name}` is a template, and none are evaluated"))
            .hint("write it out"));
    }
    if text.starts_with("ocidir://") {
        return Err(reader
            .fail(value.line, format!("`{name}` is a directory, and a list is of registries' images"))
            .hint("transload copy copies from and to directories, as oci:DIR"));
    }
    Ok((value.line, text))
}

/// `tags`, or one of `tagSets`; `None` without a condition.
fn set(node: &Node, reader: &mut Reader<'_>) -> Result<Option<TagSet>> {
    let mut set = TagSet::default();
    for (key, value) in reader.fields(node, "tags")? {
        let texts = reader.texts(value, &format!("`{}`", key.text))?;
        for (line, text) in texts {
            match key.text.as_str() {
                "allow" => set.patterns.push(reader.at(line, Pattern::whole_regex(text))?),
                "deny" => set.exclude.push(reader.at(line, Pattern::whole_regex(text))?),
                "semverRange" => set.versions.push(reader.at(line, Versions::parse(text, Dialect::Plain))?),
                _ => ignored(key, reader),
            }
        }
    }
    Ok((set != TagSet::default()).then_some(set))
}

fn ignored(key: &Key, reader: &mut Reader<'_>) {
    reader.note(key.line, format!("`{}` is nothing that regsync is known to have: it is ignored", key.text));
}

/// What is remarked and not done.
const REMARKS: [(&str, &str); 7] = [
    ("interval", "isn't used: give --interval, or run it by a CronJob"),
    ("schedule", "isn't used: give --interval, or run it by a CronJob"),
    ("ratelimit", "isn't used: give --keep-pulls for a reserve of Docker Hub's pulls"),
    ("backup", "isn't done: what a tag held before is overwritten"),
    ("hooks", "aren't run"),
    ("mediaTypes", "isn't used: whatever a tag names is copied"),
    ("referrerFilters", "isn't used: all referrers are copied"),
];

/// Keys of `defaults` about regsync itself, which mean nothing here.
const DEFAULTS: [&str; 6] = ["parallel", "blobLimit", "cacheCount", "cacheTime", "skipDockerConfig", "userAgent"];
