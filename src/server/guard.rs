//! Who may ask: whoever knows a token.

use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::{Handler, Refusal, ResponseBody, respond};
use crate::content::Body;
use crate::error::{Error, Kind, Result};

/// Tokens, as hashes. They are random and long, unlike passwords: a plain hash of one tells nothing,
/// and two of equal length are compared in a time that doesn't tell how much of them agrees.
#[derive(Clone)]
pub struct Tokens(Vec<[u8; 32]>);

/// Who may ask; clones share it. Without tokens, everyone.
#[derive(Clone, Debug, Default)]
pub struct Access(Arc<RwLock<Option<Arc<Tokens>>>>);

/// A handler behind that.
#[derive(Debug)]
pub struct Guarded<H> {
    handler: H,
    access: Access,
}

impl Tokens {
    /// One a line; `#` begins a comment.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there is none, or one is so short that it could be guessed.
    pub fn read(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let tokens: Vec<&str> = lines.collect();
        if tokens.is_empty() || tokens.iter().any(|token| token.len() < SHORTEST) {
            return Err(Error::new(Kind::Usage, format!("tokens have {SHORTEST} characters or more, one a line"))
                .hint("make one: openssl rand -hex 32"));
        }
        Ok(Self(tokens.into_iter().map(hash).collect()))
    }

    /// Whether `Authorization` has one: as `Bearer`, or as the password of `Basic` with any name.
    fn admit(&self, authorization: Option<&HeaderValue>) -> bool {
        let given = || {
            let (scheme, rest) = authorization?.to_str().ok()?.split_once(' ')?;
            if scheme.eq_ignore_ascii_case("bearer") {
                return Some(rest.trim().to_owned());
            }
            let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
            let password = pair.split_once(':')?.1.to_owned();
            scheme.eq_ignore_ascii_case("basic").then_some(password)
        };
        let Some(given) = given() else { return false };
        let given = hash(&given);
        // All of them, whichever fits.
        let same = |token: &[u8; 32]| {
            let differ = token.iter().zip(&given).fold(0, |differ, (a, b)| differ | (a ^ b));
            std::hint::black_box(differ) == 0
        };
        self.0.iter().fold(false, |known, token| known | same(token))
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl Access {
    /// From now on for those who know one of `tokens`; for everyone without.
    pub fn set(&self, tokens: Option<Tokens>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = tokens.map(Arc::new);
    }

    fn admits(&self, authorization: Option<&HeaderValue>) -> bool {
        let tokens = self.0.read().unwrap_or_else(PoisonError::into_inner).clone();
        tokens.is_none_or(|tokens| tokens.admit(authorization))
    }
}

impl<H> Guarded<H> {
    /// `handler` for those whom `access` admits.
    pub fn new(handler: H, access: Access) -> Self {
        Self { handler, access }
    }
}

impl<H: Handler> Handler for Guarded<H> {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        if self.access.admits(request.headers().get(header::AUTHORIZATION)) {
            return self.handler.handle(request).await;
        }
        // Clients look for Basic, and have a name and password for it by `login`.
        let refusal = Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "a token is needed")
            .with(header::WWW_AUTHENTICATE, "Basic realm=\"transload\"");
        let mut response = refusal.into_response();
        if request.method() == Method::HEAD {
            respond::no_body(&mut response);
        }
        response.headers_mut().insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        response
    }
}

fn hash(token: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// What can't be guessed.
const SHORTEST: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_known_as_bearer_and_as_password() {
        let tokens = Tokens::read("# old\naaaaaaaaaaaaaaaaaaaaaaaa\n\nbbbbbbbbbbbbbbbbbbbbbbbb\n").expect("tokens");
        let admits = |text: &str| tokens.admit(Some(&HeaderValue::from_str(text).expect("a value")));
        assert!(admits("Bearer aaaaaaaaaaaaaaaaaaaaaaaa") && admits("bearer bbbbbbbbbbbbbbbbbbbbbbbb"));
        let basic = |pair: &str| format!("Basic {}", STANDARD.encode(pair));
        assert!(admits(&basic("any:bbbbbbbbbbbbbbbbbbbbbbbb")));
        assert!(!admits(&basic("bbbbbbbbbbbbbbbbbbbbbbbb:any")) && !admits(&basic("bbbbbbbbbbbbbbbbbbbbbbbb")));
        for wrong in ["", "Bearer", "Bearer ", "Bearer aaaaaaaaaaaaaaaaaaaaaaa", "Digest x", "Basic !!"] {
            assert!(!admits(wrong), "{wrong}");
        }
        assert!(!tokens.admit(None));
        assert!(Tokens::read("short\n").is_err() && Tokens::read("# none\n").is_err());
    }
}
