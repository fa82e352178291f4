//! YAML and JSON as a tree in which each value knows its line, and scalars are the text that was written:
//! a tag `1.10` is no number.

use std::collections::HashMap;

use serde::de::{Deserialize, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_saphyr::{Location, Spanned};

use super::malformed::explain;
use crate::error::Result;

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// Where it begins; an alias, where it stands.
    pub(super) line: usize,
    pub(super) value: Value,
}

#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    /// Nothing, `~`, `null`.
    Null,
    Text(String),
    List(Vec<Node>),
    Map(Vec<(Key, Node)>),
}

/// A key of a mapping.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Key {
    pub(super) line: usize,
    pub(super) text: String,
}

impl Node {
    /// Reads a document. `name` is the file's, for errors.
    pub(super) fn parse(text: &str, name: &str) -> Result<Self> {
        let raw: Spanned<Raw> =
            serde_saphyr::from_str_with_options(text, options()).map_err(|error| explain(&error, text, name))?;
        Ok(Self::of(raw, text))
    }

    fn of(raw: Spanned<Raw>, text: &str) -> Self {
        let line = line_of(&raw.referenced);
        let value = match raw.value {
            Raw::Null => Value::Null,
            Raw::Text(text) => Value::Text(text),
            Raw::Plain(shown) => Value::Text(literal_text(&raw.defined, text).unwrap_or(shown)),
            Raw::List(items) => Value::List(items.into_iter().map(|item| Self::of(item, text)).collect()),
            Raw::Map(fields) => Value::Map(
                fields
                    .into_iter()
                    .map(|(key, value)| {
                        let line = line_of(&key.referenced);
                        (Key { line, text: key.value }, Self::of(value, text))
                    })
                    .collect(),
            ),
        };
        Self { line, value }
    }

    /// Of equal keys of a mapping leaves the last, as Go's YAML version 2 and JSON do; returns the keys that went,
    /// each with the line of the one that stays.
    pub(super) fn keep_last_keys(&mut self) -> Vec<(Key, usize)> {
        let mut gone = Vec::new();
        match &mut self.value {
            Value::Map(fields) => {
                let last: HashMap<String, usize> =
                    fields.iter().enumerate().map(|(at, (key, _))| (key.text.clone(), at)).collect();
                let mut stays: Vec<(Key, Self)> = Vec::with_capacity(last.len());
                let lines: Vec<usize> = fields.iter().map(|(key, _)| key.line).collect();
                for (at, (key, value)) in std::mem::take(fields).into_iter().enumerate() {
                    match last.get(&key.text) {
                        Some(last) if *last != at => {
                            let line = lines.get(*last).copied().unwrap_or_default();
                            gone.push((key, line));
                        }
                        _ => stays.push((key, value)),
                    }
                }
                *fields = stays;
                gone.extend(fields.iter_mut().flat_map(|(_, value)| value.keep_last_keys()));
            }
            Value::List(items) => gone.extend(items.iter_mut().flat_map(Self::keep_last_keys)),
            Value::Null | Value::Text(_) => {}
        }
        gone
    }

    /// The text of a scalar.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The fields of a mapping.
    pub(super) fn fields(&self) -> Option<&[(Key, Self)]> {
        match &self.value {
            Value::Map(fields) => Some(fields),
            _ => None,
        }
    }

    /// The items of a list.
    pub(super) fn items(&self) -> Option<&[Self]> {
        match &self.value {
            Value::List(items) => Some(items),
            _ => None,
        }
    }

    /// A field of a mapping.
    pub(super) fn field(&self, name: &str) -> Option<&Self> {
        self.fields()?.iter().find(|(key, _)| key.text == name).map(|(_, value)| value)
    }

    pub(super) fn is_null(&self) -> bool {
        self.value == Value::Null
    }

    /// What it is, for errors.
    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// What a file is read into first: scalars that aren't text lose how they were written, and find it by
/// their place.
#[derive(Debug)]
enum Raw {
    Null,
    Text(String),
    /// A number or boolean, as it would be written.
    Plain(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("a value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_str<E>(self, text: &str) -> Result<Raw, E> {
        Ok(Raw::Text(text.to_owned()))
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Raw, E> {
        Ok(Raw::Plain(value.to_string()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(field) = fields.next_entry()? {
            map.push(field);
        }
        Ok(Raw::Map(map))
    }
}

fn line_of(location: &Location) -> usize {
    usize::try_from(location.line()).unwrap_or_default()
}

/// A scalar as it stands in the file.
fn literal_text(place: &Location, text: &str) -> Option<String> {
    let from = usize::try_from(place.span().byte_offset()?).ok()?;
    let length = usize::try_from(place.span().byte_len()?).ok()?;
    text.get(from..from + length).map(|text| text.trim().to_owned())
}

/// Bounds that no list needs, and that keep a hostile file from taking memory or stack.
fn options() -> serde_saphyr::Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            // image-syncer has lists of tags in its keys; YAML stops at 1,024 characters.
            simple_key_max_lookahead: 1 << 16,
            max_depth: 24,
            max_documents: 1,
            max_nodes: 20 * MAX_ENTRIES,
            max_events: 40 * MAX_ENTRIES,
            max_aliases: 10_000,
            max_anchors: 1_000,
            max_merge_keys: 10_000,
        },
        alias_limits: serde_saphyr::alias_limits! { max_total_replayed_events: 200_000, max_replay_stack_depth: 8 },
        with_snippet: false,
        // Which of them counts, the form of the list says.
        duplicate_keys: serde_saphyr::options::DuplicateKeyPolicy::PassThrough,
    }
}

/// Entries that a list may have.
pub(super) const MAX_ENTRIES: usize = 100_000;

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Node {
        Node::parse(text, "list.yaml").unwrap_or_else(|error| panic!("{error}"))
    }

    /// A tree in one line: each value after its line.
    fn shown(node: &Node) -> String {
        let value = match &node.value {
            Value::Null => "~".to_owned(),
            Value::Text(text) => format!("{text:?}"),
            Value::List(items) => format!("[{}]", items.iter().map(shown).collect::<Vec<_>>().join(" ")),
            Value::Map(fields) => {
                let field = |(key, value): &(Key, Node)| format!("{}:{}={}", key.line, key.text, shown(value));
                format!("{{{}}}", fields.iter().map(field).collect::<Vec<_>>().join(" "))
            }
        };
        format!("{}{value}", node.line)
    }

    #[test]
    fn scalars_are_as_written() {
        let text =
            "tags: [1.10, 22.04, 0x1F, 1_000, 010, 1e3, true, No, ~, null, '1.0', \"2.0\", .5, v1, -1]\nempty:\n";
        let expected =
            ["1.10", "22.04", "0x1F", "1_000", "010", "1e3", "true", "No", "", "", "1.0", "2.0", ".5", "v1", "-1"];
        let root = read(text);
        let tags = root.field("tags").and_then(Node::items).expect("a list");
        let texts: Vec<&str> = tags.iter().map(|tag| tag.text().unwrap_or_default()).collect();
        assert_eq!(texts, expected);
        assert!(root.field("empty").is_some_and(Node::is_null));
        // JSON, and beyond ASCII: places are bytes.
        let root = read("{\"grüße\": [1.10, \"ü\", 2.50]}");
        assert_eq!(shown(&root), r#"1{1:grüße=1[1"1.10" 1"ü" 1"2.50"]}"#);
    }

    #[test]
    fn lines_of_values_and_keys() {
        let text = "# a comment\n\na: x\nb:\n  - y\n  -\n    c: 1.10\n    d:\n      z\n1.27: {e: f,\n  g: h}\n";
        assert_eq!(
            shown(&read(text)),
            r#"3{3:a=3"x" 4:b=5[5"y" 7{7:c=7"1.10" 8:d=9"z"}] 10:1.27=10{10:e=10"f" 11:g=11"h"}}"#
        );
    }

    #[test]
    fn anchors_and_merges() {
        let text = "x: &x {a: 1.10}\ny: *x\nz:\n  <<: *x\n  b: 2\n";
        assert_eq!(shown(&read(text)), r#"1{1:x=1{1:a=1"1.10"} 2:y=2{2:a=2"1.10"} 3:z=4{5:b=5"2" 4:a=4"1.10"}}"#);
    }

    #[test]
    fn what_is_malformed_has_its_line() {
        let billion = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\n\
                       d: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\n";
        let deep = format!("a: {}1{}", "[".repeat(100), "]".repeat(100));
        for (text, line, why) in [
            ("a: 1\nb: [1\nc: 2\n", "list.yaml:", ""),
            ("a: b: c\n", "list.yaml:1: ", ""),
            ("a: *x\n", "list.yaml:1: ", ""),
            ("a: 1\n---\nb: 1\n", "list.yaml:", ""),
            (billion, "list.yaml:", ""),
            (&deep, "list.yaml:1: ", ""),
        ] {
            let error = Node::parse(text, "list.yaml").expect_err(text);
            let said = error.to_string();
            assert!(said.starts_with(&format!("local: {line}")), "{said}");
            assert!(said.contains(why) && !said.contains('\n') && !said.contains(" at line "), "{said}");
            assert_eq!(error.exit_code(), 2);
        }
    }
}
