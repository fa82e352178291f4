//! JSON objects as Go's encoding/json reads them into structs: Docker, podman and the kubelet are Go programs.
//!
//! Names match fields in any letter case. Members for one field are read in the order of the file: a later string
//! replaces an earlier one, a later object is merged into an earlier one, and `null` clears an object but leaves a
//! string as it is. <https://pkg.go.dev/encoding/json#Unmarshal>

use std::fmt;

use serde::de::{Deserialize, Deserializer, MapAccess, Visitor};
use serde::ser::{Serialize, SerializeMap as _, Serializer};
use serde_json::Value;

pub(super) use crate::go_names::fold;

/// Reads a member into a field that is a string.
pub(super) fn set_string(field: &mut Option<String>, value: Option<String>) {
    if value.is_some() {
        *field = value;
    }
}

/// Reads a member into a field that is a map.
pub(super) fn merge_map<M: Default + IntoIterator + Extend<M::Item>>(field: &mut Option<M>, value: Option<M>) {
    match value {
        Some(value) => field.get_or_insert_default().extend(value),
        None => *field = None,
    }
}

/// The members of an object, with their raw values. A name may occur several times.
#[derive(Default)]
pub(super) struct Members(pub(super) Vec<(String, Value)>);

impl Members {
    /// The values of all members for the field `name`.
    pub(super) fn matching(&self, name: &str) -> impl Iterator<Item = &Value> {
        self.0.iter().filter(move |(own, _)| fold(own) == name).map(|(_, value)| value)
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Members, A::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }
        deserializer.deserialize_map(Read)
    }
}

impl Serialize for Members {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_stay_as_they_are() {
        let text = r#"{"b":1,"a":{"z":null},"A":[],"b":2}"#;
        let members: Members = serde_json::from_str(text).expect("an object");
        assert_eq!(serde_json::to_string(&members).expect("JSON"), text);
        assert_eq!(members.matching("a").count(), 2);
        assert!(serde_json::from_str::<Members>("[]").is_err());
    }
}
