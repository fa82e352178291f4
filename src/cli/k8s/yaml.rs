//! A JSON document as YAML, for people and kubectl.
//!
//! kubectl reads YAML 1.1, in which `no`, `012` and `1:30` are not strings. A string is written without quotes only
//! if it is a string in all versions of YAML, and else in the quotes of JSON, which YAML shares.

use serde_json::Value;

/// The document, with a line break at its end.
pub(super) fn document(value: &Value) -> String {
    let mut text = String::new();
    block(value, 0, &mut text);
    text
}

/// Writes a value on its own lines with an indent.
fn block(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            for (name, value) in fields {
                text.push_str(&" ".repeat(indent));
                text.push_str(&scalar(name));
                text.push(':');
                below(value, indent, text);
            }
        }
        Value::Array(entries) if !entries.is_empty() => {
            for entry in entries {
                let mut inner = String::new();
                block(entry, indent + 2, &mut inner);
                text.push_str(&" ".repeat(indent));
                text.push_str("- ");
                text.push_str(inner.trim_start_matches(' '));
            }
        }
        value => {
            text.push_str(&" ".repeat(indent));
            text.push_str(&flow(value));
            text.push('\n');
        }
    }
}

/// Writes the value after `name:`.
fn below(value: &Value, indent: usize, text: &mut String) {
    match value {
        Value::Object(fields) if !fields.is_empty() => {
            text.push('\n');
            block(value, indent + 2, text);
        }
        Value::Array(entries) if !entries.is_empty() => {
            text.push('\n');
            block(value, indent, text);
        }
        value => {
            text.push(' ');
            text.push_str(&flow(value));
            text.push('\n');
        }
    }
}

fn flow(value: &Value) -> String {
    match value {
        Value::String(string) => scalar(string),
        // Empty lists and objects, numbers, booleans and null are the same in JSON and YAML.
        value => value.to_string(),
    }
}

fn scalar(text: &str) -> String {
    const WORDS: [&str; 7] = ["true", "false", "yes", "no", "on", "off", "null"];
    let first = text.bytes().next().is_some_and(|b| b.is_ascii_alphabetic())
        // `.dockerconfigjson` is a string; `.inf` and `.nan` are numbers.
        || text.len() > 5 && text.starts_with('.') && text.as_bytes()[1].is_ascii_alphabetic();
    let plain = first
        && text.len() > 1
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._/@:-".contains(&b))
        && !text.ends_with(':')
        && !WORDS.contains(&text.to_ascii_lowercase().as_str());
    if plain { text.to_owned() } else { quoted(text) }
}

/// A string in the quotes of JSON, in ASCII: YAML forbids some characters that JSON allows.
fn quoted(text: &str) -> String {
    let json = Value::from(text).to_string();
    json.chars()
        .map(|c| match c {
            ' '..='~' => c.to_string(),
            c => c.encode_utf16(&mut [0; 2]).iter().map(|unit| format!("\\u{unit:04x}")).collect(),
        })
        .collect()
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
        let text = document(&value);
        assert_eq!(
            text,
            r#"apiVersion: v1
metadata:
  name: "a"
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
  .dockerconfigjson: "eyJ="
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
            assert_eq!(read(&document(&value)), value, "{string:?}");
        }
    }

    fn read(text: &str) -> Value {
        serde_saphyr::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
    }

    proptest! {
        #[test]
        fn any_string_comes_back(string in any::<String>(), key in any::<String>()) {
            let value = json!({ key: [string] });
            prop_assert_eq!(read(&document(&value)), value);
        }
    }
}
