//! Explains malformed YAML: the mistake in a sentence, and a correction.

use serde_saphyr::Error as Yaml;
use serde_saphyr::budget::BudgetBreach;

use super::error::invalid_list;
use super::text::unrendered;
use crate::error::Error;

/// The error of a file, in place of the parser's.
pub(super) fn explain(error: &Yaml, text: &str, name: &str) -> Error {
    let error = error.without_snippet();
    let line = error.location().and_then(|location| usize::try_from(location.line()).ok()).unwrap_or_default();
    if let Some(line) = unrendered(text) {
        return invalid_list(name, line, "a template was not rendered")
            .hint("render it first, for example: helm template … | transload mirror check -");
    }
    match error {
        Yaml::MultipleDocuments { .. } | Yaml::Budget { breach: BudgetBreach::Documents { .. }, .. } => invalid_list(
            name,
            second_document(text).unwrap_or(line),
            "another YAML document begins; a list is one document",
        )
        .hint("remove the line --- if both are one list, or use a file for each document"),
        Yaml::Budget { .. }
        | Yaml::AliasReplayLimitExceeded { .. }
        | Yaml::AliasReplayStackDepthExceeded { .. }
        | Yaml::AliasExpansionLimitExceeded { .. } => {
            invalid_list(name, line, "it is nested too deeply, or its aliases expand to too much")
                .hint("replace the aliases by their values, or split the list")
        }
        Yaml::UnknownAnchor { .. } => invalid_list(name, line, "an alias (*) has no anchor (&) of its name before it")
            .hint("put a value that begins with * in quotes, as \"*\""),
        Yaml::RecursiveReferencesRequireWeakTypes { .. } => {
            invalid_list(name, line, "an alias stands in its own anchor").hint("replace it by its value")
        }
        Yaml::AliasError { error, .. } => explain(error, text, name),
        _ => by_text(text, line, name),
    }
}

/// The line where a second document begins.
fn second_document(text: &str) -> Option<usize> {
    let mut content = false;
    for (index, line) in text.lines().enumerate() {
        let trimmed = line.trim();
        if content && (line.starts_with("---") || trimmed == "...") {
            return Some(index + 1);
        }
        content |=
            !trimmed.is_empty() && !trimmed.starts_with('#') && !line.starts_with("---") && !line.starts_with('%');
    }
    None
}

/// Finds the mistake by the text of the line, and by brackets and quotes that are open there.
fn by_text(text: &str, line: usize, name: &str) -> Error {
    let lines: Vec<&str> = text.lines().collect();
    let at = |line: usize| line.checked_sub(1).and_then(|index| lines.get(index)).copied().unwrap_or_default();
    let json = text.trim_start().starts_with('{');
    // The parser reports some mistakes one line late.
    for line in [line, line.saturating_sub(1)] {
        let content = at(line);
        if !json && content.starts_with(|c: char| c.is_whitespace()) && indent(content).contains('\t') {
            return invalid_list(name, line, "the line begins with a tab, and YAML is indented by spaces")
                .hint("put spaces in place of the tab");
        }
    }
    if let Some((line, open)) = unclosed(text) {
        return invalid_list(name, line, format!("the {open} here is never closed")).hint(match open {
            '[' | '{' => "close it, and put values that have brackets in them in quotes",
            _ => "close it; a quote in a quoted text is written twice ('') or after a backslash (\\\")",
        });
    }
    for line in [line, line.saturating_sub(1)] {
        let content = at(line).trim();
        let value = content.split_once(": ").map_or(content, |(_, value)| value);
        let value = value.strip_prefix("- ").unwrap_or(value).trim();
        if value.starts_with(['@', '`', '%', '*', '&', '!', '|', '>', ',']) {
            return invalid_list(
                name,
                line,
                format!("a value begins with {:?}, which means something else to YAML", &value[..1]),
            )
            .hint("put the value in quotes");
        }
        let within = value.get(1..).unwrap_or_default();
        if !json && value.starts_with(['{', '[']) && (within.contains(['{', '[']) || !within.ends_with(['}', ']'])) {
            return invalid_list(name, line, "something between these brackets ends them, or begins others")
                .hint("put texts that have brackets, commas or colons in them in quotes");
        }
        if value.contains(": ") || (content.contains(": ") && value.ends_with(':')) {
            return invalid_list(name, line, "there are two colons with a space in one line")
                .hint("put the value in quotes, or begin a new line for the second key");
        }
        let quoted = |quote: char| value.starts_with(quote) && value[1..].contains(quote) && !value.ends_with(quote);
        if quoted('"') || quoted('\'') {
            return invalid_list(name, line, "something follows a text in quotes")
                .hint("put the whole value in quotes, or none of it");
        }
    }
    let what = if json { "this is no JSON" } else { "this is no YAML" };
    invalid_list(name, line, format!("{what}: the line does not continue what stands before it")).hint(if json {
        "between values there is a comma, and all names and texts are in quotes"
    } else {
        "indent it as the line before; a key is followed by a colon and a space, an item begins with - and a space"
    })
}

fn indent(line: &str) -> &str {
    &line[..line.len() - line.trim_start().len()]
}

/// The first bracket or quote that is still open at the end, and its line.
fn unclosed(text: &str) -> Option<(usize, char)> {
    let mut open: Vec<(usize, char)> = Vec::new();
    let mut line = 1;
    let mut before = '\n';
    let mut chars = text.chars().peekable();
    while let Some(c) = chars.next() {
        let quote = open.last().map(|(_, c)| *c).filter(|c| ['"', '\''].contains(c));
        // These characters are special only at the beginning of a value.
        let begins = [' ', '\n', '[', '{', ',', ':', '\t'].contains(&before);
        match (c, quote) {
            ('\n', _) => line += 1,
            ('\\', Some('"')) => _ = chars.next(),
            (_, Some(end)) if c == end => _ = open.pop(),
            (_, Some(_)) => {}
            ('#', None) if [' ', '\n', '\t'].contains(&before) => while chars.next_if(|c| *c != '\n').is_some() {},
            ('"' | '\'', None) if begins => open.push((line, c)),
            ('[' | '{', None) if begins => open.push((line, c)),
            (']', None) => _ = open.pop_if(|(_, c)| *c == '['),
            ('}', None) => _ = open.pop_if(|(_, c)| *c == '{'),
            _ => {}
        }
        before = c;
    }
    open.first().copied()
}
