//! `Link` (RFC 8288), as registries write it: where the next page of a list is.

use http::HeaderMap;
use http::header::LINK;
use reqwest::Url;

use crate::error::{Error, Kind, Result};
use crate::registry::urls::percent_decode;

/// The query of the next page of the list at `current`. `None` if no header names a next page: the list ends here.
///
/// Only the query is taken from the header. Scheme, host and port stay the registry's own: behind a proxy that
/// terminates TLS, registries write `http://` or an internal host name. The path must be that of `current`.
///
/// # Errors
/// [`Kind::Registry`] for a link that cannot be understood, for several next pages, and for a next page that is
/// not a page of this list: the list would be incomplete.
pub(in crate::registry) fn next_query(headers: &HeaderMap, current: &Url) -> Result<Option<String>> {
    let mut next = None;
    for value in headers.get_all(LINK) {
        let text = std::str::from_utf8(value.as_bytes()).map_err(|_| unclear("it is not UTF-8"))?;
        for target in next_targets(text)? {
            let query = query_of(&target, current)?;
            if next.replace(query.clone()).is_some_and(|other| other != query) {
                return Err(unclear("it names several next pages"));
            }
        }
    }
    Ok(next)
}

fn unclear(why: &str) -> Error {
    let what = format!("the Link header of the list is not understood, so the list may be incomplete: {why}");
    Error::new(Kind::Registry, what)
}

fn query_of(target: &str, current: &Url) -> Result<String> {
    let url = current.join(target).ok().filter(|url| !target.is_empty() && matches!(url.scheme(), "http" | "https"));
    let url = url.ok_or_else(|| unclear("its target is not a URL"))?;
    // A registry may escape the slashes of a repository's name.
    if percent_decode(url.path()) != percent_decode(current.path()) {
        return Err(unclear("the next page is not a page of this list"));
    }
    let query = url.query().filter(|query| !query.is_empty()).ok_or_else(|| unclear("its target has no query"))?;
    if query.len() > MAX_QUERY {
        return Err(unclear("its target is too long"));
    }
    Ok(query.to_owned())
}

/// The targets of all links of one header whose relation is `next`.
fn next_targets(header: &str) -> Result<Vec<String>> {
    let (mut targets, mut rest) = (Vec::new(), header.trim_start_matches(SEPARATORS));
    while !rest.is_empty() {
        let (target, parameters) = target(rest)?;
        let (relations, after) = relations(parameters)?;
        if relations.ok_or_else(|| unclear("it has no rel"))?.split_whitespace().any(is_next) {
            targets.push(target.to_owned());
        }
        rest = after.trim_start_matches(SEPARATORS);
    }
    Ok(targets)
}

fn is_next(relation: &str) -> bool {
    relation.eq_ignore_ascii_case("next")
}

/// A link's target, and what follows it. zot before 2.0.1 writes it without angle brackets.
fn target(link: &str) -> Result<(&str, &str)> {
    match link.strip_prefix('<') {
        Some(rest) => {
            let (target, after) = rest.split_once('>').ok_or_else(|| unclear("a target does not end"))?;
            Ok((target.trim(), after))
        }
        None => {
            let end = link.find(';').ok_or_else(|| unclear("it has no rel"))?;
            Ok((link[..end].trim(), &link[end..]))
        }
    }
}

/// A link's `rel` and the text after its last parameter. Only the first `rel` counts (RFC 8288 §3.3).
fn relations(parameters: &str) -> Result<(Option<String>, &str)> {
    let (mut relations, mut rest) = (None, parameters.trim_start());
    while let Some(parameter) = rest.strip_prefix(';') {
        let parameter = parameter.trim_start();
        let end = parameter.find([';', ',', '=']).unwrap_or(parameter.len());
        let (name, after) = parameter.split_at(end);
        rest = after;
        if let Some(value) = after.strip_prefix('=') {
            let (value, after) = value_of(value.trim_start())?;
            if name.trim().eq_ignore_ascii_case("rel") {
                relations.get_or_insert(value);
            }
            rest = after.trim_start();
        }
    }
    if rest.is_empty() || rest.starts_with(',') {
        return Ok((relations, rest));
    }
    Err(unclear("a parameter does not end"))
}

/// A token or a quoted string, and what follows it.
fn value_of(text: &str) -> Result<(String, &str)> {
    let Some(quote) = text.chars().next().filter(|first| matches!(first, '"' | '\'')) else {
        let end = text.find([';', ',']).unwrap_or(text.len());
        return Ok((text[..end].trim().to_owned(), &text[end..]));
    };
    let (mut value, mut characters) = (String::new(), text.char_indices().skip(1));
    while let Some((at, character)) = characters.next() {
        match character {
            _ if character == quote => return Ok((value, &text[at + 1..])),
            '\\' => value.extend(characters.next().map(|(_, escaped)| escaped)),
            other => value.push(other),
        }
    }
    Err(unclear("a quoted value does not end"))
}

const SEPARATORS: [char; 3] = [' ', '\t', ','];
/// In bytes. Servers refuse request lines that are longer than 8 KiB.
const MAX_QUERY: usize = 8 << 10;

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use proptest::prelude::*;

    fn next(links: &[&str]) -> Result<Option<String>> {
        let current = Url::parse("https://r.io/v2/a/b/tags/list?n=2").expect("a URL");
        let mut headers = HeaderMap::new();
        for link in links {
            headers.append(LINK, HeaderValue::from_bytes(link.as_bytes()).expect("a header"));
        }
        next_query(&headers, &current)
    }

    #[test]
    fn links_as_registries_write_them() {
        for link in [
            r#"</v2/a/b/tags/list?n=2&last=x>; rel="next""#,
            r#"</v2/a/b/tags/list?n=2&last=x>;rel=next"#,
            r#"/v2/a/b/tags/list?n=2&last=x; rel="next""#,
            r#"<https://r.io/v2/a/b/tags/list?n=2&last=x>; rel="next""#,
            r#"<http://r.io/v2/a/b/tags/list?n=2&last=x>; rel="next""#,
            r#"<http://registry.internal:5000/v2/a/b/tags/list?n=2&last=x>; rel="next""#,
            r#"<//other/v2/a/b/tags/list?n=2&last=x>; rel="next""#,
            r#"</v2/a%2Fb/tags/list?n=2&last=x>; rel="next""#,
            r#"<?n=2&last=x>; rel="next""#,
            r#"<list?n=2&last=x>; rel="next""#,
            r#"< /v2/a/b/tags/list?n=2&last=x > ; title="a, b; c" ; REL = "Next""#,
            r#"</v2/a/b/tags/list?n=2&last=x>; rel="prefetch  NEXT""#,
            r#"</v2/a/b/tags/list?n=2&last=x>; rel='next'; rel="prev""#,
            r#"</v2/a/b/tags/list?last=a>; rel=prev, </v2/a/b/tags/list?n=2&last=x>; rel=next"#,
            r#", </v2/a/b/tags/list?n=2&last=x>; crossorigin; rel=next ,"#,
        ] {
            assert_eq!(next(&[link]).ok().flatten().as_deref(), Some("n=2&last=x"), "{link}");
        }
        let two = [r#"</v2/a/b/tags/list?last=a>; rel="first""#, r#"</v2/a/b/tags/list?token=a,b;c>; rel="next""#];
        assert_eq!(next(&two).ok().flatten().as_deref(), Some("token=a,b;c"));
    }

    #[test]
    fn other_relations_are_the_end() {
        for links in [&[][..], &[""], &[r#"</v2/a/b/tags/list?n=2>; rel="prev""#, "<x>; rel=first, <y>; rel=last"]] {
            assert_eq!(next(links).ok(), Some(None), "{links:?}");
        }
    }

    #[test]
    fn what_is_not_understood_is_an_error() {
        for link in [
            "/v2/a/b/tags/list?n=2&last=x",
            "</v2/a/b/tags/list?n=2&last=x>",
            "</v2/a/b/tags/list?n=2&last=x; rel=next",
            r#"</v2/a/b/tags/list?last=x>; rel="next"#,
            r#"</v2/a/b/tags/list?last=x> rel="next""#,
            r#"</v2/a/b/tags/list?last=x>; rel="next" x"#,
            r#"</v2/a/b/tags/list>; rel="next""#,
            r#"<>; rel="next""#,
            r#"<ftp://r.io/v2/a/b/tags/list?last=x>; rel="next""#,
            r#"<https://r.io:x/v2/a/b/tags/list?last=x>; rel="next""#,
            r#"</v2/a/b/manifests/x?last=x>; rel="next""#,
            r#"</v2/c/tags/list?last=x>; rel="next""#,
            r#"</v2/a/b/../c/tags/list?last=x>; rel="next""#,
            r#"</v2/a/b/tags/list?last=x>; rel=next, </v2/a/b/tags/list?last=y>; rel=next"#,
            "\u{fffd}; =",
        ] {
            let error = next(&[link]).expect_err(link);
            assert!(error.to_string().contains("the list may be incomplete"), "{link}: {error}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(LINK, HeaderValue::from_bytes(b"<?last=\xff>; rel=next").expect("a header"));
        assert!(next_query(&headers, &Url::parse("https://r.io/v2/a/tags/list").expect("a URL")).is_err());
        assert!(next(&[&format!("<?last={}>; rel=next", "x".repeat(MAX_QUERY))]).is_err());
    }

    proptest! {
        #[test]
        fn any_header_is_read_without_panic(header in "[ -~é]{0,80}") {
            let _ = next_targets(&header);
        }
    }
}
