//! Prepares the text of a file before its format is detected. Line numbers do not change.

use std::borrow::Cow;

use super::error::invalid_list;
use crate::error::Result;

/// Decodes the bytes of a file.
///
/// # Errors
/// For UTF-16, which tools on Windows write.
pub(super) fn decode<'b>(bytes: &'b [u8], name: &str) -> Result<Cow<'b, str>> {
    let marked = bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff");
    // UTF-16 without a byte order mark: each second byte of ASCII is 0, and the others are not.
    let head = &bytes[..bytes.len().min(64)];
    let zeros = |from: usize| head.len() > 3 && head.iter().skip(from).step_by(2).all(|byte| *byte == 0);
    let halves = zeros(0) != zeros(1);
    if marked || halves {
        return Err(invalid_list(name, 0, "it is UTF-16").hint(
            "save it as UTF-8; in PowerShell, Out-File -Encoding utf8 writes such files, and > in version 5 does not",
        ));
    }
    Ok(String::from_utf8_lossy(bytes))
}

/// The text without a byte order mark and JSON comments, and with lines that end in `\n` or `\r\n`.
pub(super) fn prepare(text: &str) -> Cow<'_, str> {
    // Editors on Windows write a byte order mark.
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut text = Cow::Borrowed(text);
    if has_lone_returns(&text) {
        // Old editors on the Mac end lines with `\r` alone.
        let crlf = text.replace("\r\n", "\n");
        text = Cow::Owned(crlf.replace('\r', "\n"));
    }
    if let Some(plain) = without_json_comments(&text) {
        text = Cow::Owned(plain);
    }
    text
}

fn has_lone_returns(text: &str) -> bool {
    let bytes = text.as_bytes();
    bytes.iter().enumerate().any(|(at, byte)| *byte == b'\r' && bytes.get(at + 1) != Some(&b'\n'))
}

/// JSON with spaces in place of `//` and `/* */` comments; `None` for other texts, and without comments.
fn without_json_comments(text: &str) -> Option<String> {
    let mut made = String::with_capacity(text.len());
    let (mut rest, mut string, mut found, mut begun) = (text, false, false, false);
    while let Some(c) = rest.chars().next() {
        let width = c.len_utf8();
        if string {
            // An escaped quote does not end the string.
            let width = if c == '\\' { 1 + rest[1..].chars().next().map_or(0, char::len_utf8) } else { width };
            made.push_str(&rest[..width]);
            rest = &rest[width..];
            string = c != '"';
            continue;
        }
        let comment = if rest.starts_with("//") {
            rest.find('\n').or(Some(rest.len()))
        } else if rest.starts_with("/*") {
            rest.find("*/").map(|at| at + 2)
        } else {
            None
        };
        if let Some(end) = comment {
            made.extend(rest[..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[end..];
            found = true;
            continue;
        }
        if !begun && !c.is_whitespace() {
            if c != '{' && c != '[' {
                return None;
            }
            begun = true;
        }
        string = c == '"';
        made.push(c);
        rest = &rest[width..];
    }
    (found && begun).then_some(made)
}

/// Whether a text is YAML or JSON instead of lines of references, by its first line that is not empty or a comment.
/// No reference has a colon before a space or at its end.
pub(super) fn is_structured(text: &str) -> bool {
    let first = text.lines().map(str::trim).find(|line| !line.is_empty() && !line.starts_with('#'));
    let structured = first.is_some_and(|line| {
        let line = line.split(" #").next().unwrap_or_default().trim_end();
        // `[::1]:5000/name`
        let v6 = line.strip_prefix('[').and_then(|rest| rest.split_once(']'));
        let is_v6 = v6.is_some_and(|(address, _)| address.parse::<std::net::Ipv6Addr>().is_ok());
        (line.starts_with(['{', '[', '"', '\'', '%', '&', '?', '!']) && !is_v6)
            || line.starts_with("---")
            || line == "-"
            || line.starts_with("- ")
            || line.ends_with(':')
            || line.contains(": ")
    });
    structured && !is_column_of_images(text)
}

/// Whether all lines are `image: REFERENCE`, as `grep image:` prints them.
fn is_column_of_images(text: &str) -> bool {
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')).peekable();
    lines.peek().is_some() && lines.all(|line| image_value(line).is_some())
}

/// The value of a line `image: nginx:1`, which may be an item of a list or quoted.
pub(super) fn image_value(line: &str) -> Option<&str> {
    let line = line.strip_prefix("- ").map_or(line, str::trim_start);
    let value = line.strip_prefix("image:").filter(|value| value.starts_with([' ', '\t']))?.trim();
    let value = value.split(" #").next().unwrap_or_default().trim_end();
    let quoted = |quote| value.strip_prefix(quote).and_then(|value| value.strip_suffix(quote));
    let value = quoted('"').or_else(|| quoted('\'')).unwrap_or(value);
    (!value.is_empty() && !value.starts_with(['{', '[', '&', '*', '|', '>']) || value.starts_with("{{"))
        .then_some(value)
}

/// The line of the first template that was not rendered (`{{ .Values.image }}`, `{% if x %}`), from 1.
pub(super) fn unrendered(text: &str) -> Option<usize> {
    let lines = text.lines().map(|line| if line.trim_start().starts_with('#') { "" } else { line });
    lines.enumerate().find(|(_, line)| line.contains("{{") || line.contains("{%")).map(|(index, _)| index + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_of_json_become_spaces() {
        for (text, expected) in [
            ("{\"a\": 1} // x", Some("{\"a\": 1}     ")),
            ("// x\n{\"a\": \"http://b\"}", Some("    \n{\"a\": \"http://b\"}")),
            ("{/* x\ny */\"a\": \"\\\"//\"}", Some("{    \n    \"a\": \"\\\"//\"}")),
            ("{\"a\": \"//\"}", None),
            ("a: b // c", None),
            ("// a", None),
            ("[1 /* open", None),
        ] {
            assert_eq!(without_json_comments(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn lines_may_end_as_old_editors_end_them() {
        assert_eq!(prepare("nginx\rredis\r"), "nginx\nredis\n");
        assert_eq!(prepare("nginx\r\nredis\r\n"), "nginx\r\nredis\r\n");
    }

    #[test]
    fn values_of_image_lines() {
        for (line, value) in [
            ("image: nginx:1", Some("nginx:1")),
            ("- image: \"nginx:1\"", Some("nginx:1")),
            ("image: 'a/b:1' # c", Some("a/b:1")),
            ("image:", None),
            ("image: {repository: a}", None),
            ("images: a", None),
            ("image: {{ .Values.x }}", Some("{{ .Values.x }}")),
        ] {
            assert_eq!(image_value(line), value, "{line}");
        }
    }
}
