//! Scopes, tokens, and the requests that get them.
//!
//! Sources: distribution's token and OAuth2 specifications, ACR's documents on `/oauth2/token`.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::Method;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value};
use tokio::time::Instant;

use super::scope::Scope;
use crate::credentials::{Secret, encode_form};
use crate::error::{Error, Kind, Result};
use crate::go_names::fold;
use crate::registry::azure::is_acr;
use crate::registry::call::Payload;
use crate::registry::client::{Registry, Response, read_small};
use crate::registry::error::token_error;
use crate::registry::limits::parallelism::retry_after;
use crate::registry::web_page;

#[derive(Clone)]
pub(in crate::registry) struct Token {
    pub(in crate::registry) value: Secret,
    pub(in crate::registry) renew: Instant,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(***)")
    }
}

/// A token endpoint's answer.
#[derive(Default)]
pub(in crate::registry) struct Answer {
    /// `token` or `access_token`: the same thing by two names. Some write both, and leave one empty.
    token: Option<String>,
    pub(in crate::registry) refresh_token: Option<String>,
    /// A number, or text with a number: both are seen (RFC 6749 §5.1 says a number).
    expires_in: Value,
}

impl Answer {
    pub(in crate::registry) async fn read(response: Response, registry: &Registry, user: Option<&str>) -> Result<Self> {
        let status = response.status();
        let wait = retry_after(response.headers());
        let page = web_page::instead("the token endpoint", &response).filter(|_| web_page::stands_in(status));
        let body = read_small(response, 1 << 20).await?;
        if status.is_success() {
            // What stands between is more likely to say this than the registry.
            return Self::parse(&body).map_err(|error| page.unwrap_or(error));
        }
        if let Some(page) = page {
            return Err(page);
        }
        Err(token_error(status, &body, wait, (&registry.name, user)))
    }

    /// Reads the document as Go programs do: names in any letter case, `null` as if it were not there. A value that is
    /// empty, or of another type, is not there either.
    fn parse(body: &[u8]) -> Result<Self> {
        let document: Map<String, Value> = serde_json::from_slice(body)
            // What stands between is more likely to say this than the registry.
            .map_err(|_| Error::new(Kind::Registry, "the token endpoint's answer is not JSON").transient(None))?;
        let mut answer = Self::default();
        let mut access_token = None;
        for (name, value) in document {
            let field = match fold(&name).as_str() {
                "token" => &mut answer.token,
                "access_token" => &mut access_token,
                "refresh_token" => &mut answer.refresh_token,
                "expires_in" => {
                    answer.expires_in = value;
                    continue;
                }
                _ => continue,
            };
            if let Value::String(text) = value {
                // What isn't used is a secret all the same.
                drop(Secret::new(text.as_str()));
                *field = Some(text).filter(|text| !text.trim().is_empty());
            }
        }
        answer.token = answer.token.or(access_token);
        Ok(answer)
    }

    pub(in crate::registry) fn token(self) -> Result<Token> {
        let value = self.token.ok_or_else(|| Error::new(Kind::Registry, "the token endpoint gave no token"))?;
        // 60 s where nothing is said (distribution's token specification); ACR says it in the token only.
        let life = number(&self.expires_in).and_then(lifetime).or_else(|| jwt_life(&value)).unwrap_or(DEFAULT_LIFETIME);
        Ok(Token { renew: renewal(life), value: Secret::new(value) })
    }
}

/// When a token that lives this long is renewed: a while before its end, so that a request which
/// starts with it also ends with it. Every lifetime is limited to [`MAX_LIFETIME`]: it comes from outside.
pub(in crate::registry) fn renewal(life: Duration) -> Instant {
    let life = life.min(MAX_LIFETIME);
    Instant::now() + (life - (life / 10).min(Duration::from_secs(30)))
}

/// The time until a JWT's `exp`, by its own `iat` where it has one (clocks differ). `None` if it is over.
pub(in crate::registry) fn jwt_life(token: &str) -> Option<Duration> {
    #[derive(Deserialize)]
    struct Claims {
        exp: Value,
        #[serde(default)]
        iat: Value,
    }
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?.trim_end_matches('=')).ok()?;
    let claims: Claims = serde_json::from_slice(&payload).ok()?;
    let issued = number(&claims.iat).unwrap_or(crate::clock::timestamp().as_second() as f64);
    lifetime(number(&claims.exp)? - issued)
}

/// A number as JSON has it, or as text. Fractions occur (RFC 7519 §2, "NumericDate").
fn number(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    }
}

/// So many seconds, at most [`MAX_LIFETIME`]. `None` for less than one, and for what is no number.
fn lifetime(seconds: f64) -> Option<Duration> {
    (seconds >= 1.0).then(|| Duration::from_secs_f64(seconds.min(MAX_LIFETIME.as_secs_f64())))
}

/// The form of a token request. ACR takes `scope` repeated, distribution's OAuth2 page says one
/// with spaces.
pub(in crate::registry) fn form(scope: &Scope, service: &str, grant: &[(&str, &str)], repeat: bool) -> String {
    let texts: Vec<String> = if repeat { scope.texts().collect() } else { vec![scope.to_string()] };
    let mut pairs = vec![("service", service), ("client_id", "transload")];
    pairs.extend(grant);
    pairs.extend(texts.iter().map(|text| ("scope", text.as_str())));
    encode_form(&pairs)
}

pub(in crate::registry) async fn refresh(
    registry: &Registry,
    scope: &Scope,
    realm: &Url,
    service: &str,
    token: &Secret,
) -> Result<Response> {
    let grant = [("grant_type", "refresh_token"), ("refresh_token", token.reveal())];
    post(registry, realm.clone(), form(scope, service, &grant, is_acr(&registry.name))).await
}

pub(in crate::registry) async fn post(registry: &Registry, url: Url, form: String) -> Result<Response> {
    let headers = HeaderMap::from_iter([(CONTENT_TYPE, HeaderValue::from_static("application/x-www-form-urlencoded"))]);
    registry.ask_token(Method::POST, url, headers, Payload::Bytes(Bytes::from(form))).await
}

pub(in crate::registry) fn basic(username: &str, password: &Secret) -> Result<HeaderValue> {
    let pair = STANDARD.encode(format!("{username}:{}", password.reveal()));
    password.also_sent_as(&pair);
    sensitive(format!("Basic {pair}"))
}

pub(in crate::registry) fn bearer(token: &Secret) -> Result<HeaderValue> {
    sensitive(format!("Bearer {}", token.reveal()))
}

/// Marked so that the HTTP library neither logs nor indexes it.
pub(in crate::registry) fn sensitive(text: String) -> Result<HeaderValue> {
    let mut value = HeaderValue::from_str(&text)
        .map_err(|_| Error::new(Kind::Unauthorized, "the stored credential has characters that HTTP does not allow"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A token that the user stored says nothing of its end; a 401 will.
pub(in crate::registry) const STORED_TOKEN_LIFETIME: Duration = Duration::from_secs(365 * 24 * 3600);
/// No token is kept for longer, whatever its lifetime.
const MAX_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// The lifetime of a token that states none (distribution, "Token Authentication Specification").
const DEFAULT_LIFETIME: Duration = Duration::from_secs(60);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::auth::RepositoryName;
    use crate::registry::auth::scope::MAX_MOUNT_SOURCES;

    fn scope() -> Scope {
        Scope::push(&"r.io/a/b".parse().expect("a repository"))
    }

    #[test]
    fn scopes_are_few_and_exact() {
        assert_eq!(scope().to_string(), "repository:a/b:pull,push");
        let mount = scope().mounting(&"r.io/c".parse().expect("a repository"));
        assert_eq!(mount.to_string(), "repository:a/b:pull,push repository:c:pull");
        let acr = form(&mount, "r.io", &[("grant_type", "refresh_token")], true);
        assert_eq!(acr.matches("scope=").count(), 2, "{acr}");
        assert!(acr.contains("scope=repository%3Aa%2Fb%3Apull%2Cpush"), "{acr}");
    }

    #[test]
    fn a_token_mounts_from_a_few() {
        let names: Vec<RepositoryName> =
            (0..20).map(|n| format!("r{n}").as_str().into()).chain(["a/b".into()]).collect();
        let wide = scope().mounting(&"r.io/c".parse().expect("a repository")).with(&names).with(["c".into()].iter());
        assert_eq!(wide.from().len(), MAX_MOUNT_SOURCES);
        assert_eq!((wide.from()[0].as_str(), wide.from()[1].as_str()), ("c", "r0"), "what is needed comes first");
        assert_eq!(scope().with(["a/b".into()].iter()), scope(), "never from itself");
    }

    #[test]
    fn a_jwt_says_its_own_life() {
        let token = format!("x.{}.y", URL_SAFE_NO_PAD.encode(br#"{"iat":1000,"exp":5500}"#));
        assert_eq!(jwt_life(&token), Some(Duration::from_secs(4500)));
        assert_eq!(jwt_life("opaque"), None);
    }

    /// Seconds until the token of this answer is renewed.
    fn renewed(answer: &str) -> u64 {
        let now = Instant::now();
        let answer = Answer::parse(answer.as_bytes()).expect("an answer");
        (answer.token().expect("a token").renew - now).as_secs()
    }

    #[tokio::test]
    async fn the_field_that_holds_a_token_is_taken() {
        for answer in [
            r#"{"token":"x"}"#,
            r#"{"access_token":"x"}"#,
            r#"{"token":"","access_token":"x"}"#,
            r#"{"token":"x","access_token":""}"#,
            r#"{"token":null,"access_token":"x","refresh_token":null,"expires_in":null}"#,
            r#"{"token":{},"access_token":"x","issued_at":7,"scope":null}"#,
            r#"{"Token":" ","Access_Token":"x"}"#,
            r#"{"token":"x","access_token":"y"}"#,
        ] {
            let token = Answer::parse(answer.as_bytes()).and_then(Answer::token).expect(answer);
            assert_eq!(token.value.reveal(), "x", "{answer}");
        }
        for answer in [r#"{}"#, r#"{"token":"","access_token":null}"#, r#"{"token":7}"#] {
            let error = Answer::parse(answer.as_bytes()).and_then(Answer::token).expect_err(answer);
            assert!(error.to_string().contains("gave no token"), "{answer}: {error}");
        }
        assert!(Answer::parse(b"[]").and_then(Answer::token).is_err_and(|error| error.is_transient()));
        let empty = Answer::parse(br#"{"refresh_token":""}"#).expect("an answer");
        assert!(empty.refresh_token.is_none(), "an exchange without a token");
    }

    #[tokio::test(start_paused = true)]
    async fn lifetimes_are_limited_whatever_is_said() {
        let day = 24 * 3600 - 30;
        for (said, seconds) in [
            ("3600", 3570),
            ("3600.9", 3570),
            (r#""3600""#, 3570),
            (r#"" 3600.0 ""#, 3570),
            ("1e300", day),
            ("18446744073709551615", day),
            ("99999999999999999999999", day),
            (r#""inf""#, day),
            // Not a lifetime.
            ("0", 54),
            ("-1", 54),
            ("-9223372036854775808", 54),
            (r#""NaN""#, 54),
            (r#""soon""#, 54),
            ("null", 54),
            ("{}", 54),
            ("[1]", 54),
        ] {
            assert_eq!(renewed(&format!(r#"{{"token":"x","expires_in":{said}}}"#)), seconds, "{said}");
        }
        assert_eq!(renewed(r#"{"token":"x"}"#), 54);
    }

    #[tokio::test(start_paused = true)]
    async fn lifetimes_of_a_jwt_are_limited_too() {
        let day = 24 * 3600 - 30;
        for (claims, seconds) in [
            (r#"{"iat":1000,"exp":4600}"#, 3570),
            (r#"{"iat":1000.5,"exp":4600.5}"#, 3570),
            (r#"{"iat":0,"exp":18446744073709551615}"#, day),
            (r#"{"exp":18446744073709551615}"#, day),
            (r#"{"iat":-9223372036854775808,"exp":9223372036854775807}"#, day),
            (r#"{"iat":18446744073709551615,"exp":1}"#, 54),
            (r#"{"exp":-1}"#, 54),
            (r#"{"exp":"never"}"#, 54),
            ("{}", 54),
        ] {
            let token = format!("x.{}.y", URL_SAFE_NO_PAD.encode(claims));
            assert_eq!(renewed(&format!(r#"{{"access_token":"{token}"}}"#)), seconds, "{claims}");
        }
    }
}
