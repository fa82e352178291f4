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
//! `tags` and each of `tagSets` are sets; a tag need be in one. Each pattern stands between `^` and `$`.
//!
//! Rules: <https://regclient.org/usage/regsync/>, and
//! <https://github.com/regclient/regclient/blob/main/pkg/regsync/root.go>.

use super::node::{Key, Node};
use super::reader::Reader;
use super::template::{Scope, evaluate};
use super::{
    DestinationRule, Dialect, Entry, ImageSelection, Pattern, SelectedImage, TagFilter, TagSet, Template, Versions,
};
use crate::error::Result;
use crate::reference::{RegistryName, Tag};

pub(super) fn read(root: &Node, reader: &mut Reader<'_>) -> Result<()> {
    let mut defaults = Step::default();
    for (key, value) in reader.fields(root, "the file")? {
        match key.text.as_str() {
            "version" => match value.text() {
                Some("0" | "1") => {}
                _ => return Err(reader.fail(value.line, "only version 1 of regsync's files is known")),
            },
            "creds" => credentials(key, value, reader)?,
            "defaults" => {
                for (key, value) in reader.fields(value, "`defaults`")? {
                    if defaults.common(key, value, reader)? {
                        continue;
                    }
                    match DEFAULTS.contains(&key.text.as_str()) {
                        true => reader.note(key.line, format!("`{}` isn't used: it is about regsync itself", key.text)),
                        false => reader.ignored(key, TOOL),
                    }
                }
            }
            "sync" => {}
            other if other.starts_with("x-") => {}
            _ => reader.ignored(key, TOOL),
        }
    }
    let steps = root.field("sync").map_or(Ok(&[][..]), |node| reader.items(node, "`sync`"))?;
    let mut undone = Vec::new();
    for node in steps {
        step(node, defaults.clone(), &mut undone, reader)?;
    }
    let Some((first, why)) = undone.first() else { return Ok(()) };
    let lines: Vec<String> = undone.iter().map(|(line, _)| line.to_string()).collect();
    let what = match &lines[..] {
        [_] => format!("this template can't be evaluated: {why}"),
        [all @ .., last] => {
            format!("the templates at lines {} and {last} can't be evaluated; the first: {why}", all.join(", "))
        }
        [] => return Ok(()),
    };
    Err(reader.fail(*first, what).hint(
        "write them out; of templates, .Sync and the functions env, default, lower, upper, split, join, index, json, \
         print and printf are known",
    ))
}

/// `creds`: nothing of it is used; what of it changes how a registry is asked is told.
fn credentials(key: &Key, node: &Node, reader: &mut Reader<'_>) -> Result<()> {
    reader.note(key.line, "`creds` aren't used: transload login keeps credentials");
    for node in reader.items(node, "`creds`")? {
        let text = |name: &str| node.field(name).and_then(Node::text);
        let registry = text("registry").unwrap_or("HOST");
        for (key, value) in reader.fields(node, "an item of `creds`")? {
            match (key.text.as_str(), value.text()) {
                ("tls", Some(tls @ ("disabled" | "insecure"))) => {
                    reader.note(key.line, format!("`tls: {tls}` isn't done: give --insecure-registry {registry}"));
                }
                ("scheme", Some("http")) => {
                    reader.note(key.line, format!("`scheme: http` isn't done: give --insecure-registry {registry}"));
                }
                ("hostname", Some(host)) if host != registry => {
                    reader.note(key.line, format!("`hostname` isn't used: {registry} is asked itself, and not {host}"));
                }
                ("regcert", _) => reader.note(key.line, "`regcert` isn't read: give --ca-file"),
                ("mirrors", _) => reader.note(key.line, format!("`mirrors` aren't used: {registry} is asked itself")),
                ("pathPrefix", _) => {
                    reader.note(key.line, "`pathPrefix` isn't used: write the path in `source` and `target`");
                }
                _ => {}
            }
        }
    }
    Ok(())
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

fn step(node: &Node, mut step: Step, undone: &mut Vec<(usize, String)>, reader: &mut Reader<'_>) -> Result<()> {
    let mut sets = Vec::new();
    let mut platforms = Vec::new();
    for (key, value) in reader.fields(node, "a step")? {
        match key.text.as_str() {
            "source" | "target" | "type" => {}
            "tags" => sets.extend(tag_set(value, reader)?),
            "tagSets" => {
                for node in reader.items(value, "`tagSets`")? {
                    // One without conditions has all tags.
                    sets.push(tag_set(node, reader)?.unwrap_or_default());
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
                    reader.ignored(key, TOOL);
                }
            }
        }
    }
    let Some([source, target]) = ends(node, undone, reader)? else { return Ok(()) };
    let (source, pick) = picked(node, (source.0, &source.1), sets, reader)?;
    let (registry, template) = destination_rule((target.0, &target.1), &pick, reader)?;
    let entry = Entry {
        target: DestinationRule::Fixed(vec![(registry, template)]),
        strip_library: false,
        platforms,
        referrers: step.referrers || step.digest_tags,
        ..reader.entry(node.line, source, pick)
    };
    reader.add(entry)
}

/// What is copied: by `type`.
fn picked(
    node: &Node,
    (line, text): (usize, &str),
    sets: Vec<TagSet>,
    reader: &mut Reader<'_>,
) -> Result<(crate::reference::Repository, ImageSelection)> {
    let kind = node.field("type").and_then(Node::text).unwrap_or_default();
    match kind {
        "image" => {
            if !sets.is_empty() {
                let text = "`tags` are for a repository: of `type: image`, regsync copies the image of `source` alone";
                reader.note(line, text);
            }
            let (source, exact) = reader.reference(line, text)?;
            let exact = exact.unwrap_or_else(SelectedImage::latest);
            Ok((source, ImageSelection { exact: [exact].into(), select: None }))
        }
        "repository" => {
            let source = reader.repository(line, text)?;
            Ok((source, ImageSelection { exact: [].into(), select: Some(TagFilter { sets, ..TagFilter::default() }) }))
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
fn destination_rule(
    (line, text): (usize, &str),
    pick: &ImageSelection,
    reader: &Reader<'_>,
) -> Result<(RegistryName, Template)> {
    let (target, exact) = reader.at(line, super::reader::reference(text))?;
    let tag = match exact {
        Some(SelectedImage { digest: Some(_), .. }) => {
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

/// `source` and `target`, their templates evaluated; `None` where one can't be, which `undone` holds then.
fn ends(
    node: &Node,
    undone: &mut Vec<(usize, String)>,
    reader: &mut Reader<'_>,
) -> Result<Option<[(usize, String); 2]>> {
    let (source_line, source) = parse_location(node, "source", reader)?;
    let (target_line, target) = parse_location(node, "target", reader)?;
    let (mut texts, before) = (Vec::new(), undone.len());
    for (line, text) in [(source_line, source), (target_line, target)] {
        if !text.contains("{{") {
            texts.push((line, text.to_owned()));
            continue;
        }
        // regsync evaluates `source` first, and `target` sees what came out.
        let source = texts.first().map_or(source, |(_, source)| source);
        let field = |path: &str| match path {
            ".Sync.Source" => Some(source.to_owned()),
            ".Sync.Target" => Some(target.to_owned()),
            _ => {
                let known = ["Type", "Platform", "Backup", "Schedule"];
                let name = path.strip_prefix(".Sync.").filter(|name| known.contains(name))?;
                Some(node.field(&name.to_lowercase()).and_then(Node::text).unwrap_or_default().to_owned())
            }
        };
        let Some(environment) = reader.defaults.environment else {
            undone.push((line, "there is no environment".to_owned()));
            continue;
        };
        match evaluate(text, &Scope { field: &field, variable: &environment }) {
            Ok(made) => {
                if let Some(variable) = made.unset.first() {
                    let empty =
                        made.text.starts_with('/') || made.text.ends_with([':', '/']) || made.text.contains("//");
                    if empty || made.text.is_empty() {
                        return Err(reader
                            .fail(
                                line,
                                format!(
                                    "{:?} is what is left of {text:?}: the environment has no {variable}",
                                    made.text
                                ),
                            )
                            .hint(format!("set it, as in {variable}=… transload mirror …")));
                    }
                    reader.note(line, format!("the environment has no {variable}: it is empty, as in regsync"));
                }
                texts.push((line, made.text.trim().to_owned()));
            }
            Err(why) => undone.push((line, why)),
        }
    }
    let [source, target] = &texts[..] else { return Ok(None) };
    let ends = [source.clone(), target.clone()];
    for (name, (line, text)) in [("source", source), ("target", target)] {
        if text.starts_with("ocidir://") {
            return Err(reader
                .fail(*line, format!("`{name}` is a directory, and a list is of registries' images"))
                .hint("transload copy copies from and to directories, as oci:DIR"));
        }
    }
    Ok((undone.len() == before).then_some(ends))
}

/// `source` or `target`, as it is written.
fn parse_location<'n>(node: &'n Node, name: &str, reader: &Reader<'_>) -> Result<(usize, &'n str)> {
    let Some(value) = node.field(name) else {
        return Err(reader.fail(node.line, format!("a step without `{name}`")));
    };
    Ok((value.line, reader.text(value, &format!("`{name}`"))?))
}

/// `tags`, or one of `tagSets`; `None` without a condition.
fn tag_set(node: &Node, reader: &mut Reader<'_>) -> Result<Option<TagSet>> {
    let mut set = TagSet::default();
    for (key, value) in reader.fields(node, "tags")? {
        for (line, text) in reader.texts_or_empty(value, &format!("`{}`", key.text))? {
            match key.text.as_str() {
                "allow" => set.patterns.push(reader.pattern(line, Pattern::enclosed(text))?),
                "deny" => set.exclude.push(reader.pattern(line, Pattern::enclosed(text))?),
                // An empty one is passed over.
                "semverRange" if text.is_empty() => {}
                "semverRange" => set.versions.push(reader.at(line, Versions::parse(text, Dialect::Regsync))?),
                _ => reader.ignored(key, TOOL),
            }
        }
    }
    Ok((set != TagSet::default()).then_some(set))
}

const TOOL: &str = "regsync";

/// What is remarked and not done.
const REMARKS: [(&str, &str); 7] = [
    ("interval", "isn't used: give --interval, or run it by a CronJob"),
    ("schedule", "isn't used: give --interval, or run it by a CronJob"),
    ("ratelimit", "isn't used: give --reserve-pulls for a reserve of Docker Hub's pulls"),
    ("backup", "isn't done: what a tag held before is overwritten"),
    ("hooks", "aren't run"),
    ("mediaTypes", "isn't used: whatever a tag names is copied"),
    ("referrerFilters", "isn't used: all referrers are copied"),
];

/// Keys of `defaults` about regsync itself, which mean nothing here.
const DEFAULTS: [&str; 6] = ["parallel", "blobLimit", "cacheCount", "cacheTime", "skipDockerConfig", "userAgent"];
