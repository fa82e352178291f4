//! Parses the body of an error response: the code, and the reason in one line of limited length.
//!
//! The distribution spec's document is `{"errors": [{"code", "message", "detail"}]}` ("Error Codes"). Registries, and
//! servers in front of them, send other forms too: RFC 9457's problem document, OAuth's `error` and `error_description`
//! (RFC 6749 §5.2), the XML of object stores, HTML pages and plain text.

use serde_json::{Map, Value};

use crate::{printable, redact};

/// The content of an error document.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Explained {
    /// The code of the most specific error.
    pub(super) code: Option<String>,
    /// The message and detail of every error, safe to print.
    pub(super) message: Option<String>,
}

/// Parses the body of an error. A body without a reason gives an empty result.
pub(super) fn explain(body: &[u8]) -> Explained {
    let entries = match serde_json::from_slice(body) {
        Ok(Value::Object(document)) => entries(&document),
        Ok(Value::String(text)) => vec![Entry { message: shorten(&text), ..Entry::default() }],
        Ok(_) => Vec::new(),
        Err(_) => vec![text_entry(&String::from_utf8_lossy(body))],
    };
    join(entries)
}

/// One error of a document.
#[derive(Debug, Default, PartialEq, Eq)]
struct Entry {
    code: String,
    message: String,
    detail: String,
}

impl Entry {
    fn is_empty(&self) -> bool {
        self.code.is_empty() && self.message.is_empty() && self.detail.is_empty()
    }

    /// The message and detail. A detail that repeats the message is left out.
    fn reason(&self) -> String {
        match (self.message.as_str(), self.detail.as_str()) {
            (message, detail) if detail.is_empty() || message.contains(detail) => message.to_owned(),
            ("", detail) => detail.to_owned(),
            (message, detail) => format!("{message} ({detail})"),
        }
    }

    /// Whether the error only states that something failed, as distribution's `UNKNOWN` does.
    fn is_vague(&self) -> bool {
        self.code == "UNKNOWN" || self.code.is_empty()
    }
}

/// The most specific error comes first. Errors with the same text are merged.
fn join(mut entries: Vec<Entry>) -> Explained {
    entries.retain(|entry| !entry.is_empty());
    if let Some(best) = entries.iter().position(|entry| !entry.is_vague()) {
        let best = entries.remove(best);
        entries.insert(0, best);
    }
    let mut texts: Vec<String> = Vec::new();
    for (at, entry) in entries.iter().enumerate() {
        let reason = entry.reason();
        let text = match (at, entry.code.as_str(), reason.as_str()) {
            (0, _, _) | (_, "", _) => reason,
            (_, code, "") => code.to_owned(),
            (_, code, reason) => format!("{code}: {reason}"),
        };
        let same = at > 0 && entries[0].code == entry.code && entries[0].reason() == entry.reason();
        if !text.is_empty() && !same && !texts.contains(&text) {
            texts.push(text);
        }
    }
    let more = texts.len().saturating_sub(MAX_ERRORS);
    texts.truncate(MAX_ERRORS);
    let mut message = texts.join("; ");
    if more > 0 {
        message += &format!("; and {more} more errors");
    }
    let code = entries.first().map(|entry| entry.code.clone());
    Explained { code: code.filter(|code| !code.is_empty()), message: Some(message).filter(|text| !text.is_empty()) }
}

fn entries(document: &Map<String, Value>) -> Vec<Entry> {
    match get(document, "errors") {
        Some(Value::Array(errors)) if !errors.is_empty() => errors.iter().map(entry).collect(),
        Some(errors @ (Value::Object(_) | Value::String(_))) => vec![entry(errors)],
        _ => vec![entry_of(document)],
    }
}

fn entry(value: &Value) -> Entry {
    match value {
        Value::Object(object) => entry_of(object),
        other => Entry { message: shorten(&flat(other, 0)), ..Entry::default() },
    }
}

fn entry_of(object: &Map<String, Value>) -> Entry {
    // Google's and Azure's management APIs nest the error in `error`.
    if let Some(Value::Object(inner)) = get(object, "error") {
        return entry_of(inner);
    }
    let text = |names: &[&str]| {
        let found = names.iter().filter_map(|name| get(object, name)).map(|value| shorten(&flat(value, 0)));
        found.into_iter().find(|text| !text.is_empty()).unwrap_or_default()
    };
    let mut entry = Entry { code: text(&["code"]), message: text(&["message", "title"]), detail: text(&DETAILS) };
    let error = text(&["error"]);
    if entry.message.is_empty() && entry.detail.is_empty() {
        entry.message = error;
    } else if entry.code.is_empty() {
        entry.code = error;
    }
    entry
}

/// A value in one line: texts as they stand, members of an object with their names. Names such as `message` say
/// nothing and are left out.
fn flat(value: &Value, depth: usize) -> String {
    if depth > MAX_DEPTH {
        return String::new();
    }
    let join = |parts: &mut dyn Iterator<Item = String>| {
        parts.filter(|part| !part.is_empty()).take(MAX_PARTS).collect::<Vec<_>>().join(", ")
    };
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Array(items) => join(&mut items.iter().map(|item| flat(item, depth + 1))),
        Value::Object(members) => join(&mut members.iter().map(|(name, member)| {
            let text = flat(member, depth + 1);
            let silent = DETAILS.iter().chain(&["message"]).any(|known| name.eq_ignore_ascii_case(known));
            if silent || text.is_empty() { text } else { format!("{name} {text}") }
        })),
    }
}

/// A member by its name in any letter case: .NET services write `Message`.
fn get<'a>(object: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    object.get(name).or_else(|| object.iter().find(|(own, _)| own.eq_ignore_ascii_case(name)).map(|(_, value)| value))
}

/// A body that is no JSON: the XML of an object store, a page of HTML, or text.
fn text_entry(text: &str) -> Entry {
    let between = |open: &str, close: &str| Some(text.split_once(open)?.1.split_once(close)?.0);
    if let Some(message) = between("<Message>", "</Message>") {
        let code = between("<Code>", "</Code>").map(shorten).unwrap_or_default();
        return Entry { code, message: shorten(message), ..Entry::default() };
    }
    let line = match between("<title>", "</title>").or_else(|| between("<h1>", "</h1>")) {
        Some(title) => title,
        None if text.trim_start().starts_with(['<', '{']) => "",
        None => text.trim_start().lines().next().unwrap_or_default(),
    };
    Entry { message: shorten(line), ..Entry::default() }
}

/// Text of a registry, fit to be shown: without our secrets, which are looked for before anything is cut, without
/// control characters, and short.
fn shorten(text: &str) -> String {
    let redacted = redact::redact_remote(text);
    let short: String = redacted.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(MAX_TEXT).collect();
    printable::line(short.trim_end_matches('.')).into_owned()
}

/// Members that hold the reason where `message` does not: distribution and RFC 9457 (`detail`), Docker's token
/// endpoint (`details`), OAuth (`error_description`), and others.
const DETAILS: [&str; 6] = ["detail", "details", "error_description", "reason", "description", "errorMessage"];
/// Characters of one message or detail.
const MAX_TEXT: usize = 200;
/// Errors of one document that are shown.
const MAX_ERRORS: usize = 4;
/// Parts of one detail that are shown, and how deep they may be nested.
const MAX_PARTS: usize = 8;
const MAX_DEPTH: usize = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn said(body: &str) -> String {
        let Explained { code, message } = explain(body.as_bytes());
        format!("{}|{}", code.unwrap_or_default(), message.unwrap_or_default())
    }

    #[test]
    fn bodies_of_all_kinds_are_read() {
        for (body, expected) in [
            (r#"{"errors":[{"code":"DENIED","message":"no.","detail":{}}]}"#, "DENIED|no"),
            ("<html><head><title>413 Request Entity Too Large</title></head></html>", "|413 Request Entity Too Large"),
            ("<html><body><h1>Blocked\n by policy</h1></body></html>", "|Blocked by policy"),
            ("Too Many Requests (HAP429)", "|Too Many Requests (HAP429)"),
            ("", "|"),
            (r#"{"errors":[]}"#, "|"),
            (r#"{"errors":null}"#, "|"),
            ("[]", "|"),
            (r#""quota exceeded""#, "|quota exceeded"),
            (r#"{"errors":["no space"]}"#, "|no space"),
            (r#"{"errors":"no space"}"#, "|no space"),
            (r#"{"errors":[{"status":404,"message":"not here"}]}"#, "|not here"),
            (r#"{"errors":[{"code":404,"message":"not here"}]}"#, "404|not here"),
            (r#"{"message":"insufficient rights"}"#, "|insufficient rights"),
            (r#"{"Message":"insufficient rights"}"#, "|insufficient rights"),
            (
                r#"{"error":"invalid_grant","error_description":"the token has expired"}"#,
                "invalid_grant|the token has expired",
            ),
            (r#"{"error":"immutable tag"}"#, "|immutable tag"),
            (r#"{"error":{"code":403,"message":"no access","status":"PERMISSION_DENIED"}}"#, "403|no access"),
            (r#"{"details":"incorrect username or password"}"#, "|incorrect username or password"),
            (r#"{"title":"Bad","detail":"immutable tag","status":400}"#, "|Bad (immutable tag)"),
            (
                "<?xml version=\"1.0\"?><Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>",
                "AccessDenied|Access Denied",
            ),
        ] {
            assert_eq!(said(body), expected, "{body}");
        }
    }

    #[test]
    fn details_are_shown_whatever_their_form() {
        let of = |detail: &str| {
            said(&format!(r#"{{"errors":[{{"code":"MANIFEST_INVALID","message":"invalid","detail":{detail}}}]}}"#))
        };
        for (detail, expected) in [
            (r#"{"message":"it does not match the schema"}"#, "invalid (it does not match the schema)"),
            (r#""sha256:52bf""#, "invalid (sha256:52bf)"),
            (r#"{"digest":"sha256:52bf"}"#, "invalid (digest sha256:52bf)"),
            (r#"[{"Action":"push","Class":"","Type":"repository"}]"#, "invalid (Action push, Type repository)"),
            (r#"{"a":{"b":{"reason":"deep"}}}"#, "invalid (a b deep)"),
            (r#"{"a":{"b":{"c":{"d":{"e":{"f":"too deep"}}}}}}"#, "invalid"),
            ("7", "invalid (7)"),
            ("null", "invalid"),
            ("[]", "invalid"),
            (r#""invalid""#, "invalid"),
        ] {
            assert_eq!(of(detail), format!("MANIFEST_INVALID|{expected}"), "{detail}");
        }
    }

    #[test]
    fn of_several_errors_the_one_that_says_most_comes_first() {
        let several = r#"{"errors":[{"code":"UNKNOWN","message":"unknown error"},
            {"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown","detail":"sha256:1"},
            {"code":"MANIFEST_BLOB_UNKNOWN","message":"blob unknown","detail":"sha256:2"}]}"#;
        assert_eq!(
            said(several),
            "MANIFEST_BLOB_UNKNOWN|blob unknown (sha256:1); UNKNOWN: unknown error; MANIFEST_BLOB_UNKNOWN: blob \
             unknown (sha256:2)"
        );
        let same =
            r#"{"errors":[{"code":"UNKNOWN","message":"unknown error"},{"code":"UNKNOWN","message":"unknown error"}]}"#;
        assert_eq!(said(same), "UNKNOWN|unknown error");
    }

    #[test]
    fn what_is_shown_is_bounded_and_printable() {
        let many: Vec<Value> =
            (0..1000).map(|nth| serde_json::json!({"code": "X", "message": format!("no {nth}")})).collect();
        let text = said(&serde_json::json!({ "errors": many }).to_string());
        assert!(text.ends_with("; and 996 more errors"), "{text}");
        let long = serde_json::json!({"errors": [{"code": "x".repeat(9000), "message": "\u{1b}[2Jy\n".repeat(9000),
            "detail": {"a": ["z".repeat(9000), "\u{202e}"]}}]});
        let text = said(&long.to_string());
        assert!(text.len() < 3000 && !text.contains(['\u{1b}', '\n', '\u{202e}']), "{} {text}", text.len());
    }

    proptest! {
        #[test]
        fn any_body_is_read_without_panic(body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = explain(&body);
        }
    }
}
