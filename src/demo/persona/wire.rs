//! Small readers and writers of HTTP heads that the personas share.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, HeaderMap, HeaderValue};
use http::request::Parts;
use http::{Response, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};

use super::Answer;

/// The host (and port) a request is for: `Host`, or HTTP/2's `:authority`.
pub(super) fn host(head: &Parts) -> String {
    let named = head.headers.get(HOST).and_then(|value| value.to_str().ok());
    let named = named.or_else(|| head.uri.authority().map(|authority| authority.as_str()));
    named.unwrap_or_default().to_ascii_lowercase()
}

/// A request header as text; empty counts as absent.
pub(super) fn header<'a>(head: &'a Parts, name: &str) -> Option<&'a str> {
    head.headers.get(name)?.to_str().ok().filter(|value| !value.is_empty())
}

/// `Content-Length`, where the client sent one that is a number.
pub(super) fn content_length(head: &Parts) -> Option<u64> {
    header(head, CONTENT_LENGTH.as_str())?.parse().ok()
}

/// What an `Authorization` header holds.
pub(super) enum Credential {
    None,
    Basic { user: String, password: String },
    Bearer(String),
    Unreadable,
}

pub(super) fn credential(head: &Parts) -> Credential {
    let Some(value) = header(head, AUTHORIZATION.as_str()) else {
        return Credential::None;
    };
    let Some((scheme, rest)) = value.split_once(' ') else {
        return Credential::Unreadable;
    };
    if scheme.eq_ignore_ascii_case("bearer") {
        return Credential::Bearer(rest.trim().to_owned());
    }
    let decoded = STANDARD.decode(rest.trim()).ok().and_then(|bytes| String::from_utf8(bytes).ok());
    match decoded.as_deref().and_then(|text| text.split_once(':')) {
        Some((user, password)) if scheme.eq_ignore_ascii_case("basic") => {
            Credential::Basic { user: user.to_owned(), password: password.to_owned() }
        }
        _ => Credential::Unreadable,
    }
}

/// A query or an `application/x-www-form-urlencoded` body, decoded, in order, repeats kept.
pub(super) struct Form(Vec<(String, String)>);

impl Form {
    pub(super) fn of_query(head: &Parts) -> Self {
        Self::parse(head.uri.query().unwrap_or_default())
    }

    pub(super) fn parse(text: &str) -> Self {
        Self(form_urlencoded::parse(text.as_bytes()).into_owned().collect())
    }

    pub(super) fn first(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|pair| pair.0 == name).map(|pair| pair.1.as_str())
    }

    pub(super) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |pair| pair.0 == name).map(|pair| pair.1.as_str())
    }
}

/// The address a persona answers at for one of its parts: a host, or a host and a path.
#[derive(Debug, Clone)]
pub(super) struct Base {
    /// As configured, without a slash at the end.
    pub(super) url: String,
    authority: String,
    path: String,
}

impl Base {
    pub(super) fn new(url: &str) -> Self {
        let url = url.trim_end_matches('/').to_owned();
        let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        Self { authority: authority.to_ascii_lowercase(), path: path.to_owned(), url }
    }

    /// What stands after the base in the request's path, if the request is for this base.
    pub(super) fn serves<'a>(&self, head: &'a Parts) -> Option<&'a str> {
        let rest = head.uri.path().strip_prefix(&self.path)?;
        let whole = rest.is_empty() || rest.starts_with('/');
        (whole && host(head) == self.authority).then_some(rest)
    }
}

pub(super) fn set(headers: &mut HeaderMap, name: &'static str, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

pub(super) fn text(status: StatusCode, content_type: &'static str, body: impl Into<String>) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::from(body.into())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
}

pub(super) fn json(status: StatusCode, body: &Value) -> Answer {
    text(status, "application/json; charset=utf-8", body.to_string())
}

/// The distribution API's error document.
pub(super) fn errors(status: StatusCode, code: &str, message: &str) -> Answer {
    json(status, &error_document(code, message))
}

pub(super) fn error_document(code: &str, message: &str) -> Value {
    json!({"errors": [{"code": code, "message": message, "detail": null}]})
}

/// The pages an openresty or nginx writes by itself, before a registry is asked.
pub(super) fn page(status: StatusCode, title: &str, detail: &str) -> Answer {
    let body = format!(
        "<html>\r\n<head><title>{title}</title></head>\r\n<body>\r\n<center><h1>{title}</h1></center>\r\n\
         <center>{detail}</center>\r\n<hr><center>openresty</center>\r\n</body>\r\n</html>\r\n"
    );
    text(status, "text/html", body)
}

/// openresty's page before the registry (harbor#23015).
pub(super) fn too_large() -> Answer {
    let title = "413 Request Entity Too Large";
    page(StatusCode::PAYLOAD_TOO_LARGE, title, "AzureContainerRegistry")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_keep_repeats_and_decode() {
        let form = Form::parse("scope=repository%3Aa%2Fb%3Apull&scope=x+y&empty=");
        assert_eq!(form.all("scope").collect::<Vec<_>>(), ["repository:a/b:pull", "x y"]);
        assert_eq!(form.first("empty"), Some(""));
        assert_eq!(form.first("none"), None);
    }

    #[test]
    fn a_base_serves_its_host_and_path_only() {
        let base = Base::new("https://Auth.docker.io/token");
        let head = |host: &str, path: &str| {
            let request = http::Request::builder().uri(path).header(HOST, host).body(());
            request.map(|request| request.into_parts().0).expect("a request")
        };
        assert_eq!(base.serves(&head("auth.docker.io", "/token?service=x")), Some(""));
        assert_eq!(base.serves(&head("auth.docker.io", "/tokens")), None);
        assert_eq!(base.serves(&head("auth.docker.io.evil.example", "/token")), None);
    }
}
