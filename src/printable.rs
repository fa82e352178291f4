//! Escapes control characters in text from outside, for terminals, logs and reports. Pure.
//!
//! Tags, annotations, platforms, media types and error messages come from registries and images. Their control characters
//! could move the cursor, hide text, forge log lines, or change the visible order of text (CVE-2021-42574). Here each one
//! becomes visible: `\u{1b}`, `\n`.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Whether a terminal or an editor shows this character as itself, in its place.
///
/// It does not for C0, DEL and C1 controls, line and paragraph separators, direction marks, embeddings and isolates,
/// characters without width, and tag characters.
pub(crate) fn is_safe(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{fffe}' | '\u{ffff}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

/// Escapes text for a part of one line. Newlines are escaped too.
pub(crate) fn line(text: &str) -> Cow<'_, str> {
    escape(text, is_safe, |c, to| match c {
        '\n' => to.push_str("\\n"),
        '\r' => to.push_str("\\r"),
        '\t' => to.push_str("\\t"),
        _ => _ = write!(to, "{}", c.escape_unicode()),
    })
}

/// Escapes text of several lines that this program laid out. Newlines stay.
pub(crate) fn lines(text: &str) -> Cow<'_, str> {
    escape(
        text,
        |c| c == '\n' || is_safe(c),
        |c, to| match c {
            '\r' => to.push_str("\\r"),
            '\t' => to.push_str("\\t"),
            _ => _ = write!(to, "{}", c.escape_unicode()),
        },
    )
}

/// Escapes a JSON document. Unsafe characters become `\uXXXX` (RFC 8259 §7), so the document stays equal. Whitespace
/// between tokens stays.
pub(crate) fn json(document: &str) -> Cow<'_, str> {
    escape(
        document,
        |c| matches!(c, '\n' | '\r' | '\t') || is_safe(c),
        |c, to| {
            for unit in c.encode_utf16(&mut [0; 2]) {
                let _ = write!(to, "\\u{unit:04x}");
            }
        },
    )
}

fn escape(text: &str, keep: impl Fn(char) -> bool, write: impl Fn(char, &mut String)) -> Cow<'_, str> {
    let Some(first) = text.find(|c| !keep(c)) else { return Cow::Borrowed(text) };
    let mut escaped = String::with_capacity(text.len() + 16);
    escaped.push_str(&text[..first]);
    for c in text[first..].chars() {
        if keep(c) {
            escaped.push(c);
        } else {
            write(c, &mut escaped);
        }
    }
    Cow::Owned(escaped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_acts_on_a_terminal() {
        assert_eq!(line("a\u{1b}]0;x\u{7}b"), "a\\u{1b}]0;x\\u{7}b");
        assert_eq!(line("a\nb\r\tc"), "a\\nb\\r\\tc");
        assert_eq!(line("\u{9b}31m\u{7f}\u{0}"), "\\u{9b}31m\\u{7f}\\u{0}");
        assert_eq!(
            line("\u{202e}cba\u{2066}\u{200f}\u{61c}\u{2028}"),
            "\\u{202e}cba\\u{2066}\\u{200f}\\u{61c}\\u{2028}"
        );
        assert_eq!(line("\u{feff}\u{200b}\u{e0041}"), "\\u{feff}\\u{200b}\\u{e0041}");
        assert_eq!(lines("a\nb\u{1b}\r"), "a\nb\\u{1b}\\r");
    }

    #[test]
    fn text_of_people_stays() {
        for text in ["", "docker.io/library/nginx:1.27", "Grüße, 世界, שלום 🦀", "C:\\new\\u{1b}"] {
            assert!(matches!(line(text), Cow::Borrowed(same) if same == text), "{text}");
        }
    }

    #[test]
    fn json_is_the_same_document() {
        let value = serde_json::json!({ "a\u{9b}": ["\u{202e}\u{1b}\n", "\u{e0041}", "ü"] });
        let text = serde_json::to_string_pretty(&value).expect("JSON");
        let escaped = json(&text);
        assert!(escaped.chars().all(|c| c == '\n' || is_safe(c)) && escaped.contains('ü'), "{escaped}");
        assert_eq!(serde_json::from_str::<serde_json::Value>(&escaped).expect("JSON"), value);
    }
}
