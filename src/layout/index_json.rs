//! The outer structure of `index.json`: an object with a list. Nothing else of it is parsed. No I/O.

use std::fmt;

use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::value::RawValue;

/// The document, as slices of the file's bytes.
pub(super) struct IndexJson<'a> {
    pub(super) fields: Vec<(String, &'a RawValue)>,
    pub(super) entries: Vec<&'a RawValue>,
}

impl<'de> Deserialize<'de> for IndexJson<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = IndexJson<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut read = IndexJson { fields: Vec::new(), entries: Vec::new() };
                let mut is_listed = false;
                while let Some(key) = map.next_key::<String>()? {
                    let wrong = match key.as_str() {
                        "manifests" if is_listed => "two fields \"manifests\"",
                        "manifests" => {
                            is_listed = true;
                            read.entries = map.next_value_seed(Entries)?;
                            continue;
                        }
                        _ if read.fields.len() == MAX_FIELDS => "too many fields",
                        _ => {
                            read.fields.push((key, map.next_value()?));
                            continue;
                        }
                    };
                    return Err(serde::de::Error::custom(wrong));
                }
                Ok(read)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

/// A list, or `null`, which Go writes for an empty slice.
struct Entries;

impl<'de> DeserializeSeed<'de> for Entries {
    type Value = Vec<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of manifests")
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(Vec::new())
    }

    fn visit_seq<S: SeqAccess<'de>>(self, mut list: S) -> Result<Self::Value, S::Error> {
        let mut entries = Vec::new();
        while entries.len() < MAX_ENTRIES {
            match list.next_element()? {
                Some(entry) => entries.push(entry),
                None => return Ok(entries),
            }
        }
        match list.next_element::<IgnoredAny>()? {
            None => Ok(entries),
            Some(_) => Err(serde::de::Error::custom(format!("more than {MAX_ENTRIES} manifests are listed"))),
        }
    }
}

/// The limit of fields besides the entries. The image spec defines six.
const MAX_FIELDS: usize = 100;

/// The limit of entries: more than fit into the largest file, since the smallest useful entry has about 150 bytes.
pub(super) const MAX_ENTRIES: usize = 500_000;
