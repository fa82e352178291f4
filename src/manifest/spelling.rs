//! Refuses names in manifests that differ from known names only in case.
//!
//! The image specification fixes the case of names, and this program reads them so. containerd, Docker and most registries
//! are Go programs, which match names in any case: of `{"layers": […], "Layers": […]}` they read the second list. So this
//! program would check one image, and a runtime would run another one (a "confused deputy").
//! <https://pkg.go.dev/encoding/json#Unmarshal>

use std::borrow::Cow;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, Error, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::go_names::fold;

/// Fails if `document`, or a descriptor in it, has a known name in another case.
///
/// # Errors
/// An error that contains the name, or that the document is not JSON.
pub(super) fn check(document: &[u8]) -> Result<(), serde_json::Error> {
    Part::Document.deserialize(&mut serde_json::Deserializer::from_slice(document))
}

/// An object of a document, or a list of such objects.
#[derive(Clone, Copy)]
enum Part {
    Document,
    Descriptor,
}

impl Part {
    fn known(self) -> &'static [&'static str] {
        match self {
            Self::Document => &[
                "schemaVersion",
                "mediaType",
                "artifactType",
                "config",
                "layers",
                "blobs",
                "manifests",
                "subject",
                "annotations",
            ],
            Self::Descriptor => {
                &["mediaType", "digest", "size", "urls", "annotations", "data", "artifactType", "platform"]
            }
        }
    }

    /// The kind of object that is the value of `name`.
    fn inner(self, name: &str) -> Option<Self> {
        let descriptors = ["config", "layers", "blobs", "manifests", "subject"];
        (matches!(self, Self::Document) && descriptors.contains(&name)).then_some(Self::Descriptor)
    }
}

impl<'de> DeserializeSeed<'de> for Part {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Part {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a manifest")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(name) = map.next_key::<Cow<'de, str>>()? {
            if !self.known().contains(&&*name) {
                let folded = fold(&name);
                if let Some(known) = self.known().iter().find(|known| fold(known) == folded) {
                    return Err(A::Error::custom(format!("it has {name:?}, which some programs read as {known:?}")));
                }
            }
            match self.inner(&name) {
                Some(inner) => map.next_value_seed(inner)?,
                None => _ = map.next_value::<IgnoredAny>()?,
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        while items.next_element_seed(self)?.is_some() {}
        Ok(())
    }

    // Other values have no names. The parser checks whether they are valid here.
    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_in_another_case_is_refused_where_it_would_be_read() {
        for wrong in [
            r#"{"layers": [], "Layers": []}"#,
            r#"{"MediaType": "x"}"#,
            "{\"manife\u{17f}ts\": []}",
            r#"{"config": {"digest": "a", "DIGEST": "b"}}"#,
            r#"{"layers": [{}, {"Size": 1}]}"#,
            r#"{"subject": {"URLs": []}}"#,
        ] {
            let said = check(wrong.as_bytes()).expect_err(wrong).to_string();
            assert!(said.contains("which some programs read as"), "{said}");
        }
        for right in [
            r#"{"schemaVersion": 2, "layers": [{"digest": "a", "platform": {"OS": "x"}}], "config": null}"#,
            // Names that are not read, and private names.
            r#"{"Vendor": {"Layers": []}, "annotations": {"Layers": "x", "layers": "y"}, "layer": 1}"#,
            r#"{"blobs": [1, -1, 1.5, "x", true, [{"digest": "a"}]]}"#,
        ] {
            check(right.as_bytes()).expect(right);
        }
    }
}
