//! The document `index.json`. No I/O.
//!
//! What other tools wrote into it is kept: fields and entries that aren't known here go out again
//! as they came.

use serde_json::{Map, Value, json};
use std::collections::HashSet;

use super::names::REF_NAME;
use crate::descriptor::{Descriptor, Digest, MediaType};
use crate::error::{Error, Kind, Result};
use crate::manifest::Manifest;

/// The roots of a layout.
#[derive(Clone, Debug)]
pub(super) struct Index {
    rest: Map<String, Value>,
    entries: Vec<Entry>,
}

#[derive(Clone, Debug)]
struct Entry {
    raw: Value,
    /// `None` if it can't be read, such as one with another hash algorithm.
    known: Option<Descriptor>,
}

impl Index {
    pub(super) fn empty() -> Self {
        let mut rest = Map::new();
        rest.insert("schemaVersion".into(), json!(2));
        rest.insert("mediaType".into(), json!(MediaType::OCI_INDEX));
        Self { rest, entries: Vec::new() }
    }

    pub(super) fn parse(bytes: &[u8]) -> Result<Self> {
        let wrong = |why: String| Error::new(Kind::Invalid, format!("index.json is malformed: {why}"));
        let mut rest: Map<String, Value> = serde_json::from_slice(bytes).map_err(|error| wrong(error.to_string()))?;
        let entries = match rest.remove("manifests") {
            Some(Value::Array(entries)) => entries,
            // Go writes `null` for an empty slice.
            None | Some(Value::Null) => Vec::new(),
            Some(_) => return Err(wrong("manifests is not a list".into())),
        };
        let entries = entries.into_iter().map(|raw| Entry { known: serde_json::from_value(raw.clone()).ok(), raw });
        Ok(Self { rest, entries: entries.collect() })
    }

    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut document = self.rest.clone();
        document.insert("manifests".into(), self.entries.iter().map(|entry| entry.raw.clone()).collect());
        // Writing a `Value` to memory can't fail.
        serde_json::to_vec_pretty(&Value::Object(document)).unwrap_or_default()
    }

    /// The entries, in the order of the file.
    pub(super) fn entries(&self) -> impl DoubleEndedIterator<Item = &Descriptor> {
        self.entries.iter().filter_map(|entry| entry.known.as_ref())
    }

    /// Lists `manifest`, under `name` where one is given. Says whether anything changed.
    ///
    /// An image's children are written before their index, so they come in here as roots first;
    /// their index takes them out again. What remains are the roots.
    pub(super) fn put(&mut self, manifest: &Manifest, name: Option<&str>) -> bool {
        let digest = manifest.digest();
        let added = entry(manifest, name);
        let mut same = self.entries().filter(|old| match name {
            Some(name) => old.annotations.get(REF_NAME).is_some_and(|old| old == name),
            None => old.digest == digest,
        });
        // Another tool may have left two of one name: then both give way.
        let is_listed = match (same.next(), name) {
            (Some(old), Some(_)) => *old == added && same.next().is_none(),
            (old, _) => old.is_some(),
        };
        drop(same);
        if is_listed {
            return self.drop_children(manifest);
        }
        self.entries.retain(|old| match (&old.known, name) {
            (Some(old), Some(name)) => {
                let replaced = old.annotations.get(REF_NAME).is_some_and(|old| old == name);
                !(replaced || old.digest == digest && old.annotations.is_empty())
            }
            _ => true,
        });
        let raw = serde_json::to_value(&added).unwrap_or_default();
        self.entries.push(Entry { raw, known: Some(added) });
        self.drop_children(manifest);
        true
    }

    fn drop_children(&mut self, parent: &Manifest) -> bool {
        let children: HashSet<Digest> = parent.contents().manifests.iter().map(|child| child.digest).collect();
        let before = self.entries.len();
        // A referrer (it has an artifact type) stays: it's found only here.
        self.entries.retain(|entry| {
            !entry.known.as_ref().is_some_and(|known| {
                children.contains(&known.digest) && known.annotations.is_empty() && known.artifact_type.is_none()
            })
        });
        self.entries.len() != before
    }
}

fn entry(manifest: &Manifest, name: Option<&str>) -> Descriptor {
    let mut entry = manifest.descriptor().clone();
    if manifest.contents().subject.is_some() {
        entry.artifact_type = Some(manifest.contents().artifact_type.clone().unwrap_or_default());
    }
    if let Some(name) = name {
        entry.annotations.insert(REF_NAME.into(), name.to_owned());
    }
    entry
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::tests::{image, index_of, referrer};

    fn shown(index: &Index) -> Vec<(Digest, Option<&str>)> {
        index.entries().map(|e| (e.digest, e.annotations.get(REF_NAME).map(String::as_str))).collect()
    }

    #[test]
    fn a_tag_is_replaced_in_place_of_another() {
        let (one, two) = (image("1"), image("2"));
        let mut index = Index::empty();
        assert!(index.put(&one, Some("v1")) && index.put(&one, Some("v2")) && index.put(&two, Some("v1")));
        assert_eq!(shown(&index), [(one.digest(), Some("v2")), (two.digest(), Some("v1"))]);
        assert!(!index.put(&two, Some("v1")), "nothing to write");
        let twice = index.to_bytes();
        let twice = String::from_utf8(twice).expect("text").replace("\"v2\"", "\"v1\"");
        let mut index = Index::parse(twice.as_bytes()).expect("reads");
        assert_eq!(index.entries().count(), 2);
        assert!(index.put(&two, Some("v1")));
        assert_eq!(shown(&index), [(two.digest(), Some("v1"))]);
    }

    #[test]
    fn only_roots_remain() {
        let (one, two) = (image("1"), image("2"));
        let parent = index_of(&[&one, &two]);
        let mut index = Index::empty();
        index.put(&one, None);
        index.put(&two, None);
        index.put(&parent, Some("v1"));
        assert_eq!(shown(&index), [(parent.digest(), Some("v1"))]);
        index.put(&one, Some("single"));
        index.put(&two, None);
        assert!(index.put(&parent, Some("v1")), "a child that came again goes again");
        assert_eq!(shown(&index), [(parent.digest(), Some("v1")), (one.digest(), Some("single"))]);
    }

    #[test]
    fn a_referrer_stays_and_a_name_replaces_no_name() {
        let (one, about) = (image("1"), referrer(&image("1"), "sig"));
        let mut index = Index::empty();
        index.put(&about, None);
        index.put(&index_of(&[&about]), Some("odd"));
        assert!(index.entries().any(|entry| entry.digest == about.digest()));
        index.put(&one, None);
        index.put(&one, Some("v1"));
        assert_eq!(index.entries().filter(|entry| entry.digest == one.digest()).count(), 1);
    }

    #[test]
    fn foreign_fields_survive() {
        let text = r#"{"schemaVersion":2,"x":{"y":[1]},"manifests":[{"mediaType":"m","digest":"md9:0","size":1,"data":"eA=="}]}"#;
        let mut index = Index::parse(text.as_bytes()).expect("reads");
        assert_eq!(index.entries().count(), 0);
        index.put(&image("1"), Some("v1"));
        let written: Value = serde_json::from_slice(&index.to_bytes()).expect("JSON");
        assert_eq!(written["x"]["y"][0], 1);
        assert_eq!(written["manifests"][0]["data"], "eA==");
        assert_eq!(written["manifests"].as_array().map(Vec::len), Some(2));
    }
}
