//! transload's own form: YAML, or JSON.
//!
//! ```yaml
//! to: myregistry.azurecr.io/hub         # or a list; --to stands instead
//! defaults: { strip-library: true, platforms: [linux/amd64, linux/arm64] }
//! images:
//!   - nginx:1.27
//!   - source: redis
//!     tags: ["7.4", "7.2@sha256:…"]     # the second is pinned
//!   - source: quay.io/prometheus/prometheus
//!     semver: ">=2.50 <4"
//!     newest: 5
//! ```
//! `deploy/mirror.schema.json` has it all; keys that aren't there are errors.

use super::destination::parse_target;
use super::node::{Key, Node, Value};
use super::reader::Reader;
use super::{
    DestinationRule, Dialect, Entry, ImageSelection, Pattern, SelectedImage, TagFilter, TagSet, Template, Versions,
};
use crate::descriptor::Platform;
use crate::error::{Error, Result};
use crate::reference::Repository;

pub(super) fn read(root: &Node, reader: &mut Reader<'_>) -> Result<()> {
    for (key, _) in reader.fields(root, "a list")? {
        // Where anchors are kept.
        if !key.text.starts_with("x-") {
            check_key(reader, key, &TOP_KEYS, "a list")?;
        }
    }
    if let Some(to) = root.field("to") {
        for (line, text) in reader.texts(to, "`to`")? {
            let base = reader.at(line, text.parse())?;
            if !reader.to.contains(&base) {
                reader.to.push(base);
            }
        }
    }
    let defaults = ImageDefaults::defaults(root.field("defaults"), reader)?;
    let Some(images) = root.field("images") else {
        return Err(reader.fail(root.line, "it has no `images`").hint("name them under `images:`, one item each"));
    };
    for node in reader.items(images, "`images`")? {
        let entry = match &node.value {
            Value::Text(text) => plain_entry(node.line, text, &defaults, reader)?,
            Value::Map(fields) => mapping_entry(node, fields, &defaults, reader)?,
            _ => {
                return Err(reader
                    .fail(node.line, format!("an image is a reference or a mapping, and this is {}", node.kind())));
            }
        };
        reader.add(entry)?;
    }
    Ok(())
}

/// What `defaults` has, and each image may have of its own.
#[derive(Clone, Debug)]
struct ImageDefaults {
    target: Template,
    strip_library: bool,
    platforms: Vec<Platform>,
    referrers: bool,
}

impl ImageDefaults {
    fn defaults(node: Option<&Node>, reader: &Reader<'_>) -> Result<Self> {
        let mut common = Self {
            target: Template::default(),
            strip_library: reader.defaults.strip_library,
            platforms: Vec::new(),
            referrers: false,
        };
        let fields = node.map_or(Ok(&[][..]), |node| reader.fields(node, "`defaults`"))?;
        for (key, value) in fields {
            check_key(reader, key, &DEFAULTS_KEYS, "`defaults`")?;
            if key.text == "target" {
                let text = reader.text(value, "`target`")?;
                common.target = match reader.at(value.line, parse_target(text))? {
                    (None, template) => template,
                    (Some(_), _) => {
                        return Err(reader
                            .fail(value.line, format!("{text:?} names a registry, where a path is meant"))
                            .hint("destinations of the whole list stand in `to`"));
                    }
                };
            }
            common.read(key, value, reader)?;
        }
        if let Some(target) = &reader.defaults.target {
            common.target.clone_from(target);
        }
        Ok(common)
    }

    /// Reads what is of both.
    fn read(&mut self, key: &Key, value: &Node, reader: &Reader<'_>) -> Result<()> {
        match key.text.as_str() {
            "strip-library" => {
                self.strip_library = reader.boolean(value, "`strip-library`")? || reader.defaults.strip_library;
            }
            "referrers" => self.referrers = reader.boolean(value, "`referrers`")?,
            "platforms" => {
                let texts = reader.texts(value, "`platforms`")?;
                self.platforms =
                    texts.into_iter().map(|(line, text)| reader.platform(line, text)).collect::<Result<_>>()?;
            }
            _ => {}
        }
        Ok(())
    }

    fn entry(&self, line: usize, source: Repository, pick: ImageSelection, reader: &Reader<'_>) -> Entry {
        Entry {
            target: DestinationRule::Below(self.target.clone()),
            strip_library: self.strip_library,
            platforms: self.platforms.clone(),
            referrers: self.referrers,
            ..reader.entry(line, source, pick)
        }
    }
}

/// `nginx:1.27`
fn plain_entry(line: usize, text: &str, defaults: &ImageDefaults, reader: &Reader<'_>) -> Result<Entry> {
    let (source, exact) = reader.reference(line, text)?;
    let exact = exact.unwrap_or_else(SelectedImage::latest);
    Ok(defaults.entry(line, source, ImageSelection { exact: [exact].into(), select: None }, reader))
}

fn mapping_entry(node: &Node, fields: &[(Key, Node)], defaults: &ImageDefaults, reader: &Reader<'_>) -> Result<Entry> {
    for (key, _) in fields {
        check_key(reader, key, &IMAGE_KEYS, "an image")?;
    }
    let Some(source) = node.field("source") else {
        return Err(reader.fail(node.line, "an image without a `source`").hint("write where it is, as source: nginx"));
    };
    let (repository, exact) = reader.reference(source.line, reader.text(source, "`source`")?)?;
    let mut common = defaults.clone();
    let mut pick = ImageSelection::default();
    let (mut set, mut exclude, mut newest, mut target_node) = (TagSet::default(), Vec::new(), 0, None);
    for (key, value) in fields {
        common.read(key, value, reader)?;
        match key.text.as_str() {
            "target" => target_node = Some(value),
            "tags" => {
                for (line, text) in reader.texts(value, "`tags`")? {
                    pick.exact.insert(parse_tag(line, text, &repository.to_string(), reader)?);
                }
            }
            "glob" => set.patterns.extend(patterns(value, "`glob`", Pattern::glob, reader)?),
            "regex" => set.patterns.extend(patterns(value, "`regex`", Pattern::regex, reader)?),
            "exclude" => exclude.extend(patterns(value, "`exclude`", Pattern::glob, reader)?),
            "exclude-regex" => exclude.extend(patterns(value, "`exclude-regex`", Pattern::regex, reader)?),
            "semver" => {
                set.versions.extend(patterns(value, "`semver`", |text| Versions::parse(text, Dialect::Native), reader)?)
            }
            "newest" => newest = count(value, reader)?,
            _ => {}
        }
    }
    let selects = set != TagSet::default() || newest > 0;
    if !exclude.is_empty() && !selects {
        return Err(reader
            .fail(node.line, "there is nothing that `exclude` could take from")
            .hint("add a pattern: `glob: \"*\"` is all tags"));
    }
    if let Some(exact) = exact {
        if selects || !pick.exact.is_empty() {
            return Err(reader
                .fail(source.line, format!("the source names {:?}, and other keys name tags too", exact.to_string()))
                .hint("write the repository alone in `source`, and its tags under `tags`"));
        }
        pick.exact.insert(exact);
    }
    if selects {
        let sets = if set == TagSet::default() { Vec::new() } else { vec![set] };
        pick.select = Some(TagFilter { sets, exclude, newest, ..TagFilter::default() });
    } else if pick.exact.is_empty() {
        pick.exact.insert(SelectedImage::latest());
    }
    let mut entry = common.entry(node.line, repository, pick, reader);
    if let Some(node) = target_node {
        entry.target = destination_rule(node, reader)?;
    }
    Ok(entry)
}

/// A path below the run's destinations, or one or several registries with paths.
fn destination_rule(node: &Node, reader: &Reader<'_>) -> Result<DestinationRule> {
    let texts = reader.texts(node, "`target`")?;
    let mut fixed = Vec::new();
    for (line, text) in &texts {
        match reader.at(*line, parse_target(text))? {
            (Some(registry), template) => fixed.push((registry, template)),
            (None, template) if texts.len() == 1 => return Ok(DestinationRule::Below(template)),
            (None, _) => {
                return Err(reader
                    .fail(*line, format!("{text:?} names no registry"))
                    .hint("several targets are registries with paths, such as myregistry.azurecr.io/web/nginx"));
            }
        }
    }
    if fixed.is_empty() {
        return Err(reader.fail(node.line, "`target` is empty").hint("leave it out for the default"));
    }
    Ok(DestinationRule::Fixed(fixed))
}

/// `1.27`, `1.27@sha256:…`, `sha256:…`
pub(super) fn parse_tag(line: usize, text: &str, repository: &str, reader: &Reader<'_>) -> Result<SelectedImage> {
    let joined = if text.starts_with("sha256:") || text.starts_with("sha512:") {
        format!("{repository}@{text}")
    } else {
        format!("{repository}:{text}")
    };
    let wrong = |error: Option<Error>| {
        let made = reader.fail(line, format!("{text:?} is not a tag"));
        let hint = error.as_ref().and_then(Error::hint_text).unwrap_or("write a tag, a digest, or tag@digest");
        made.hint(hint)
    };
    let (found, exact) = super::reader::reference(&joined).map_err(|error| wrong(Some(error)))?;
    exact.filter(|_| found.to_string() == repository).ok_or_else(|| wrong(None))
}

fn patterns<T>(node: &Node, what: &str, parse: impl Fn(&str) -> Result<T>, reader: &Reader<'_>) -> Result<Vec<T>> {
    let texts = reader.texts(node, what)?;
    if texts.is_empty() {
        return Err(reader.fail(node.line, format!("{what} is empty")).hint("leave it out, or write a pattern"));
    }
    texts.into_iter().map(|(line, text)| reader.at(line, parse(text))).collect()
}

fn count(node: &Node, reader: &Reader<'_>) -> Result<usize> {
    let number =
        node.text().and_then(|text| text.parse::<usize>().ok()).filter(|number| (1..=100_000).contains(number));
    number.ok_or_else(|| reader.fail(node.line, "`newest` is a number from 1 to 100000"))
}

/// Whether a key is one of those that there are.
fn check_key(reader: &Reader<'_>, key: &Key, keys: &[&str], of: &str) -> Result<()> {
    if keys.contains(&key.text.as_str()) {
        return Ok(());
    }
    let error = reader.fail(key.line, format!("{of} has no {:?}", key.text));
    let all: Vec<&str> = keys.iter().copied().filter(|name| !name.starts_with('$')).collect();
    Err(error.hint(format!("there are {}", all.join(", "))))
}

/// Keys of the document.
pub(super) const TOP_KEYS: [&str; 4] = ["to", "defaults", "images", "$schema"];

/// Keys of `defaults`.
const DEFAULTS_KEYS: [&str; 4] = ["target", "strip-library", "platforms", "referrers"];

/// Keys of an image.
const IMAGE_KEYS: [&str; 12] = [
    "source",
    "target",
    "tags",
    "glob",
    "regex",
    "semver",
    "newest",
    "exclude",
    "exclude-regex",
    "platforms",
    "referrers",
    "strip-library",
];

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::mirror::List;

    fn schema() -> serde_json::Value {
        serde_json::from_str(include_str!("../../../deploy/mirror.schema.json")).expect("the schema is JSON")
    }

    fn properties(of: &serde_json::Value) -> BTreeSet<&str> {
        of["properties"].as_object().expect("properties").keys().map(String::as_str).collect()
    }

    #[test]
    fn the_schema_has_the_keys_that_are_read_and_no_others() {
        let schema = schema();
        assert_eq!(properties(&schema), TOP_KEYS.into());
        assert_eq!(properties(&schema["$defs"]["defaults"]), DEFAULTS_KEYS.into());
        assert_eq!(properties(&schema["$defs"]["image"]), IMAGE_KEYS.into());
        for part in [&schema, &schema["$defs"]["defaults"], &schema["$defs"]["image"]] {
            assert_eq!(part["additionalProperties"], false);
        }
    }

    /// Each type that the schema gives a key is taken, and the others refused.
    #[test]
    fn values_are_taken_as_the_schema_has_them() {
        let schema = schema();
        let samples = [
            ("string", "\"x\""),
            ("number", "1.5"),
            ("integer", "3"),
            ("boolean", "true"),
            ("array", "[\"x\"]"),
            ("object", "{\"x\": 1}"),
        ];
        for key in IMAGE_KEYS.into_iter().filter(|key| *key != "source") {
            let allowed = types(&schema, &schema["$defs"]["image"]["properties"][key]);
            for (kind, sample) in samples {
                let sample = match (key, kind) {
                    ("semver", "string") => "\"^1\"",
                    ("semver", "array") => "[\"^1\"]",
                    ("platforms", "string") => "\"linux/amd64\"",
                    ("platforms", "array") => "[\"linux/amd64\"]",
                    ("target", "array") => "[\"a.io/x\"]",
                    _ => sample,
                };
                let select = if key.starts_with("exclude") { "\"glob\": \"*\", " } else { "" };
                let text = format!("{{\"images\": [{{\"source\": \"nginx\", {select}\"{key}\": {sample}}}]}}");
                let may = allowed.contains(kind) || (kind == "integer" && allowed.contains("number"));
                // YAML's scalars are read as text: what JSON would call a number may be meant as one.
                let lenient = ["boolean", "number", "integer"].contains(&kind) && allowed.contains("string");
                if !lenient {
                    assert_eq!(List::read(&text, "list").is_ok(), may, "{text}");
                }
            }
        }
    }

    fn types<'s>(schema: &'s serde_json::Value, of: &'s serde_json::Value) -> BTreeSet<&'s str> {
        let mut all = BTreeSet::new();
        match &of["type"] {
            serde_json::Value::String(one) => all.extend([one.as_str()]),
            serde_json::Value::Array(several) => all.extend(several.iter().filter_map(|one| one.as_str())),
            _ => {}
        }
        if let Some(name) = of["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/")) {
            all.extend(types(schema, &schema["$defs"][name]));
        }
        all.extend(of["anyOf"].as_array().into_iter().flatten().flat_map(|one| types(schema, one)));
        all
    }
}
