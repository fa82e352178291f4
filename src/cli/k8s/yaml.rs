//! A JSON document as YAML, for people to read and kubectl to take.

use serde_json::Value;

use crate::error::{Error, Kind, Result};

/// The document, with a line break at its end.
///
/// kubectl reads YAML 1.1, where `no`, `012` and `1:30` are no strings: the serializer quotes what any version of YAML
/// can take for anything else. A string stays on its line, however long it is.
pub(super) fn document(value: &Value) -> Result<String> {
    let options = serde_saphyr::ser_options! { prefer_block_scalars: false };
    serde_saphyr::to_string_with_options(value, options)
        .map_err(|error| Error::new(Kind::Internal, format!("the document is not written as YAML: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn looks_as_people_write_it() {
        let value = json!({
            "apiVersion": "v1",
            "metadata": { "name": "a", "labels": {}, "annotations": { "x/y": "no" } },
            "list": [{ "name": "acr", "n": 1 }, { "name": "1e3" }, "bare", [], ["in", true, null]],
            "data": { ".dockerconfigjson": "eyJ=" },
        });
        let text = document(&value).expect("YAML");
        assert_eq!(
            text,
            r#"apiVersion: v1
metadata:
  name: a
  labels: {}
  annotations:
    x/y: "no"
list:
- name: acr
  "n": 1
- name: "1e3"
- bare
- []
- - in
  - true
  - null
data:
  .dockerconfigjson: eyJ=
"#
        );
        assert_eq!(read(&text), value);
    }

    #[test]
    fn strings_stay_strings() {
        for string in [
            "",
            "~",
            "null",
            "Null",
            "yes",
            "NO",
            "on",
            "Y",
            "true",
            "12",
            "0x1",
            "1e3",
            "1:30",
            ".inf",
            ".NaN",
            "-",
            "- a",
            "a: b",
            "a:",
            "a #b",
            "#",
            "{}",
            "[",
            "*a",
            "&a",
            "!t",
            "|",
            ">",
            "%",
            "@a",
            "`",
            "\"",
            "'",
            " a",
            "a ",
            "a\nb: c",
            "a\r\n",
            "\t",
            "\u{7f}",
            "\u{85}",
            "\u{2028}",
            "\u{feff}",
            "\u{fffe}",
            "ä",
            "😀",
            "---",
            "...",
            "=",
            "<<",
            "2020-01-01",
            "\\",
            "\0",
            "?",
            "? a",
            "r:t",
            "r@sha256:0",
            "e1",
            "E5",
            "i",
            "a:5000/b:c",
        ] {
            let value = json!({ "k": string, string: [string] });
            assert_eq!(read(&document(&value).expect("YAML")), value, "{string:?}");
        }
    }

    fn read(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    proptest! {
        #[test]
        fn any_string_comes_back(string in any::<String>(), key in any::<String>()) {
            let value = json!({ key: [string] });
            prop_assert_eq!(read(&document(&value).expect("YAML")), value);
        }
    }
}
