//! The file of `skopeo sync --src yaml`: for each registry, repositories with their tags.
//!
//! ```yaml
//! registry.example.com:
//!   images:
//!     busybox: []                  # all tags
//!     redis: ["1.0", "sha256:…"]
//!   images-by-tag-regex: { nginx: ^1\.13\.[12]-alpine-perl$ }
//!   images-by-semver: { alpine: ">= 3.12.0" }
//!   credentials: { username: john, password: … }
//!   tls-verify: true
//!   cert-dir: /home/john/certs
//! ```
//! Rules: <https://github.com/containers/skopeo/blob/main/docs/skopeo-sync.1.md>, and
//! <https://github.com/containers/skopeo/blob/main/cmd/skopeo/sync.go>.

use super::native::parse_tag;
use super::node::{Key, Node};
use super::reader::Reader;
use super::{DestinationRule, Dialect, ImageSelection, Pattern, TagFilter, TagSet, Template, Versions};
use crate::error::Result;
use crate::reference::{DOCKER_HUB, Repository};

pub(super) fn read(root: &Node, reader: &mut Reader<'_>) -> Result<()> {
    if reader.defaults.target.is_none() {
        reader.note(
            0,
            "repositories are named at the destination as by skopeo sync without --scoped, by what follows the last \
             slash; --target '{registry}/{repository}' is --scoped, --target '{repository}' keeps the path",
        );
    }
    reader.note(0, "all platforms are copied, as by skopeo sync --all");
    for (registry, node) in reader.fields(root, "the file")? {
        if IMAGES.iter().all(|name| node.field(name).is_none_or(is_empty)) {
            reader.note(registry.line, format!("{} has no images: it is passed over, as by skopeo", registry.text));
        }
        for (key, value) in reader.fields(node, "a registry")? {
            match key.text.as_str() {
                "images" => images(&registry.text, value, reader)?,
                "images-by-tag-regex" => selected(&registry.text, key, value, reader, |line, text, reader| {
                    let patterns = vec![reader.pattern(line, Pattern::regex(text))?];
                    Ok(TagSet { patterns, ..TagSet::default() })
                })?,
                "images-by-semver" => selected(&registry.text, key, value, reader, |line, text, reader| {
                    let versions = vec![reader.at(line, Versions::parse(text, Dialect::Skopeo))?];
                    Ok(TagSet { versions, ..TagSet::default() })
                })?,
                "credentials" => reader.note(key.line, "`credentials` aren't used: transload login keeps them"),
                "tls-verify" if reader.boolean(value, "`tls-verify`")? => {}
                "tls-verify" => reader.note(
                    key.line,
                    format!("`tls-verify: false` isn't done: give --insecure-registry {}", registry.text),
                ),
                "cert-dir" => reader.note(key.line, "`cert-dir` isn't read: give --ca-file"),
                other => reader.note(key.line, format!("`{other}` is nothing that skopeo sync has: it is ignored")),
            }
        }
    }
    Ok(())
}

/// `images`: repositories with their tags and digests; all tags where none are named.
fn images(registry: &str, node: &Node, reader: &mut Reader<'_>) -> Result<()> {
    for (key, tags) in reader.fields(node, "`images`")? {
        let source = source(registry, key, reader)?;
        let mut pick = ImageSelection::default();
        for (line, text) in reader.texts(tags, "a repository's tags")? {
            pick.exact.insert(parse_tag(line, text, &source.to_string(), reader)?);
        }
        if pick.exact.is_empty() {
            pick.select = Some(TagFilter::default());
        }
        add(key.line, source, pick, reader)?;
    }
    Ok(())
}

/// `images-by-…`: repositories with one condition each.
fn selected(
    registry: &str,
    key: &Key,
    node: &Node,
    reader: &mut Reader<'_>,
    set: impl Fn(usize, &str, &mut Reader<'_>) -> Result<TagSet>,
) -> Result<()> {
    for (repository, condition) in reader.fields(node, &format!("`{}`", key.text))? {
        let source = source(registry, repository, reader)?;
        let text = reader.text(condition, "a repository's condition")?;
        let set = set(condition.line, text, reader)?;
        let select = TagFilter { sets: vec![set], ..TagFilter::default() };
        add(repository.line, source, ImageSelection { exact: [].into(), select: Some(select) }, reader)?;
    }
    Ok(())
}

/// Nothing, or a list or mapping without items.
fn is_empty(node: &Node) -> bool {
    node.is_null() || node.fields().is_some_and(<[_]>::is_empty) || node.items().is_some_and(<[_]>::is_empty)
}

fn add(line: usize, source: Repository, pick: ImageSelection, reader: &mut Reader<'_>) -> Result<()> {
    let mut entry = reader.entry(line, source, pick);
    if reader.defaults.target.is_none() {
        entry.target = DestinationRule::Below(Template::literal("{name}", None));
    }
    reader.add(entry)
}

fn source(registry: &str, key: &Key, reader: &Reader<'_>) -> Result<Repository> {
    repository(key.line, registry, &key.text, reader)
}

/// A repository of a registry, both by name.
pub(super) fn repository(line: usize, registry: &str, name: &str, reader: &Reader<'_>) -> Result<Repository> {
    let text = format!("{}/{name}", registry.trim_end_matches('/'));
    let repository: Repository = reader.at(line, text.parse())?;
    // `registry` alone is no host to Docker's rule, and would be a namespace of Docker Hub.
    let is_hub = registry.contains(DOCKER_HUB) || registry.contains("docker.com");
    if repository.is_docker_hub() && !is_hub {
        return Err(reader
            .fail(line, format!("{registry:?} is no registry"))
            .hint("a registry has a dot, a port, or is localhost"));
    }
    Ok(repository)
}

/// What holds a registry's repositories.
pub(super) const IMAGES: [&str; 3] = ["images", "images-by-tag-regex", "images-by-semver"];
