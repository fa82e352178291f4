//! Which URL a response came from, and which URL its `Location` means.

use http::HeaderMap;
use http::header::LOCATION;
use reqwest::Url;

use super::address::same_origin;

/// Where a response came from, after redirects. In the response's extensions.
#[derive(Clone, Debug)]
struct AnsweredBy {
    url: Url,
    /// Redirects led there from another origin.
    is_elsewhere: bool,
}

/// Notes that the response to a request to `asked` came from `url`.
pub(super) fn note_origin<B>(response: &mut http::Response<B>, asked: &Url, url: Url) {
    let is_elsewhere = !same_origin(asked, &url);
    response.extensions_mut().insert(AnsweredBy { url, is_elsewhere });
}

/// The URL that the response came from; `None` if none was noted.
pub(super) fn answered_by<B>(response: &http::Response<B>) -> Option<&Url> {
    response.extensions().get::<AnsweredBy>().map(|from| &from.url)
}

/// The URL that the response came from, if redirects led to another origin than the one that was asked.
pub(super) fn redirected_to<B>(response: &http::Response<B>) -> Option<&Url> {
    response.extensions().get::<AnsweredBy>().filter(|from| from.is_elsewhere).map(|from| &from.url)
}

/// The URL that the `Location` of an answer from `asked` names; `None` if there is none, or it is no URL.
pub(super) fn of(headers: &HeaderMap, asked: &Url) -> Option<Url> {
    joined(asked, headers.get(LOCATION)?.to_str().ok()?)
}

/// The URL that `text`, which the answer from `asked` has, means: relative to `asked` (RFC 9110 §10.2.2).
///
/// A registry behind a proxy that ends TLS often calls itself `http`: its own host and port by `https` is meant.
/// Nothing is sent in clear.
pub(super) fn joined(asked: &Url, text: &str) -> Option<Url> {
    let mut url = asked.join(text).ok()?;
    let same_host = url.host_str() == asked.host_str();
    let same_port = url.port().is_none() || url.port() == asked.port_or_known_default();
    if asked.scheme() == "https" && url.scheme() == "http" && same_host && same_port {
        url.set_scheme("https").ok()?;
        url.set_port(asked.port()).ok()?;
    }
    Some(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(asked: &str, text: &str) -> String {
        let asked = Url::parse(asked).expect("a URL");
        joined(&asked, text).map(String::from).unwrap_or_default()
    }

    #[test]
    fn a_location_is_relative_to_what_answered() {
        let asked = "https://r.io:8443/v2/a/blobs/uploads/";
        assert_eq!(of(asked, "0fa3?x=1"), "https://r.io:8443/v2/a/blobs/uploads/0fa3?x=1");
        assert_eq!(of(asked, "/upload/0fa3"), "https://r.io:8443/upload/0fa3");
        assert_eq!(of(asked, "//other.io/x"), "https://other.io/x");
        assert_eq!(of(asked, "https://[/"), "");
    }

    #[test]
    fn the_own_host_is_never_asked_in_clear() {
        for (asked, text, url) in [
            ("https://r.io/", "http://r.io/x", "https://r.io/x"),
            ("https://r.io/", "http://r.io:80/x", "https://r.io/x"),
            ("https://r.io/", "http://r.io:443/x", "https://r.io/x"),
            ("https://r.io:8443/", "http://r.io/x", "https://r.io:8443/x"),
            ("https://r.io:8443/", "http://r.io:8443/x", "https://r.io:8443/x"),
            ("https://r.io:8443/", "HTTP://R.IO:8443/x", "https://r.io:8443/x"),
            // Another port, another host, and a registry that is asked by http: as they stand.
            ("https://r.io/", "http://r.io:8080/x", "http://r.io:8080/x"),
            ("https://r.io/", "http://other.io/x", "http://other.io/x"),
            ("http://r.io:5000/", "http://r.io:5000/x", "http://r.io:5000/x"),
        ] {
            assert_eq!(of(asked, text), url, "{asked} {text}");
        }
    }
}
