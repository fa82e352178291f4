//! Who may ask: whoever knows a token, or is a user with the right password.

use std::sync::{Arc, PoisonError, RwLock};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use sha2::{Digest as _, Sha256};

use super::access_log::User;
use super::users::{Users, Verdict, Verifier};
use super::{Handler, Refusal, ResponseBody, respond};
use crate::body::Body;
use crate::error::{Error, Kind, Result};

/// Tokens, as hashes. They are random and long, unlike passwords: a plain hash of one tells nothing,
/// and two of equal length are compared in a time that doesn't tell how much of them agrees.
#[derive(Clone)]
pub struct Tokens(Vec<[u8; 32]>);

/// Who may ask; clones share it. Without tokens and users, everyone.
#[derive(Clone)]
pub struct AccessControl(Arc<Shared>);

struct Shared {
    methods: RwLock<AuthMethods>,
    /// All listeners' one: what checks may cost is bounded for the program, not for each of them.
    verifier: Arc<Verifier>,
}

/// Each of them is enough.
#[derive(Clone, Default)]
struct AuthMethods {
    tokens: Option<Arc<Tokens>>,
    users: Option<Arc<Users>>,
}

/// What a client gave.
enum GivenCredentials {
    Bearer(String),
    Basic(String, String),
}

/// A handler behind that.
#[derive(Debug)]
pub struct Guarded<H> {
    handler: H,
    access: AccessControl,
}

impl Tokens {
    /// One a line; `#` begins a comment.
    ///
    /// # Errors
    /// [`Kind::Usage`] if there is none, or one is so short that it could be guessed.
    pub fn read(text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let tokens: Vec<&str> = lines.collect();
        if tokens.is_empty() || tokens.iter().any(|token| token.len() < MIN_TOKEN_LENGTH) {
            return Err(Error::new(
                Kind::Usage,
                format!("tokens have {MIN_TOKEN_LENGTH} characters or more, one a line"),
            )
            .hint("make one: openssl rand -hex 32"));
        }
        Ok(Self(tokens.into_iter().map(hash).collect()))
    }

    /// Whether `given` is one, in a time that doesn't tell which.
    fn admit(&self, given: &str) -> bool {
        let given = hash(given);
        // All of them, whichever fits.
        let same = |token: &[u8; 32]| {
            let differ = token.iter().zip(&given).fold(0, |differ, (a, b)| differ | (a ^ b));
            std::hint::black_box(differ) == 0
        };
        self.0.iter().fold(false, |known, token| known | same(token))
    }
}

impl GivenCredentials {
    fn read(authorization: Option<&HeaderValue>) -> Option<Self> {
        let (scheme, rest) = authorization?.to_str().ok()?.split_once(' ')?;
        if scheme.eq_ignore_ascii_case("bearer") {
            return Some(Self::Bearer(rest.trim().to_owned()));
        }
        if !scheme.eq_ignore_ascii_case("basic") {
            return None;
        }
        let pair = String::from_utf8(STANDARD.decode(rest.trim()).ok()?).ok()?;
        let (name, password) = pair.split_once(':')?;
        Some(Self::Basic(name.to_owned(), password.to_owned()))
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens", self.0.len())
    }
}

impl std::fmt::Debug for AccessControl {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let AuthMethods { tokens, users } = self.methods();
        write!(f, "AccessControl({tokens:?}, {users:?})")
    }
}

impl AccessControl {
    /// For everyone, at first.
    ///
    /// # Errors
    /// If the system has no random bytes.
    pub fn new() -> Result<Self> {
        Ok(Self(Arc::new(Shared { methods: RwLock::default(), verifier: Arc::new(Verifier::new()?) })))
    }

    /// Another listener's, for everyone at first: its checks of passwords have their bounds, and what they remember,
    /// in common with this one's.
    #[must_use]
    pub fn beside(&self) -> Self {
        Self(Arc::new(Shared { methods: RwLock::default(), verifier: self.0.verifier.clone() }))
    }

    /// From now on for those who know one of `tokens`, and for `users`; for everyone without both.
    pub fn set(&self, tokens: Option<Tokens>, users: Option<Users>) {
        let methods = AuthMethods { tokens: tokens.map(Arc::new), users: users.map(Arc::new) };
        *self.0.methods.write().unwrap_or_else(PoisonError::into_inner) = methods;
    }

    fn methods(&self) -> AuthMethods {
        self.0.methods.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether who asks may, and who that is, if it's a user.
    async fn admit(&self, authorization: Option<&HeaderValue>) -> (Verdict, Option<User>) {
        let methods = self.methods();
        if methods.tokens.is_none() && methods.users.is_none() {
            return (Verdict::Known, None);
        }
        let Some(given) = GivenCredentials::read(authorization) else { return (Verdict::Unknown, None) };
        let (GivenCredentials::Bearer(secret) | GivenCredentials::Basic(_, secret)) = &given;
        // As a password it's known with any name, which tells nothing of who asks.
        if methods.tokens.is_some_and(|tokens| tokens.admit(secret)) {
            return (Verdict::Known, None);
        }
        let (Some(users), GivenCredentials::Basic(name, password)) = (methods.users, given) else {
            return (Verdict::Unknown, None);
        };
        let verdict = self.0.verifier.verify(&users, &name, &password).await;
        (verdict, (verdict == Verdict::Known).then(|| User(name.into())))
    }
}

impl<H> Guarded<H> {
    /// `handler` for those whom `access` admits.
    pub fn new(handler: H, access: AccessControl) -> Self {
        Self { handler, access }
    }
}

impl<H: Handler> Handler for Guarded<H> {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        let refusal = match self.access.admit(request.headers().get(header::AUTHORIZATION)).await {
            (Verdict::Known, user) => {
                let mut response = self.handler.handle(request).await;
                if let Some(user) = user {
                    response.extensions_mut().insert(user);
                }
                return response;
            }
            // Clients look for Basic, and have a name and password for it by `login`.
            (Verdict::Unknown, _) => {
                Refusal::new(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "a name and password, or a token, are needed")
                    .with(header::WWW_AUTHENTICATE, "Basic realm=\"transload\"")
            }
            (Verdict::Busy, _) => {
                let why = "too many passwords are being checked";
                Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "TOOMANYREQUESTS", why).with(header::RETRY_AFTER, "1")
            }
        };
        let mut response = refusal.into_response();
        if request.method() == Method::HEAD {
            respond::remove_body(&mut response);
        }
        response.headers_mut().insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        response
    }
}

fn hash(token: impl AsRef<[u8]>) -> [u8; 32] {
    Sha256::digest(token).into()
}

/// What can't be guessed.
const MIN_TOKEN_LENGTH: usize = 20;

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(pair: &str) -> String {
        format!("Basic {}", STANDARD.encode(pair))
    }

    async fn admit(access: &AccessControl, text: &str) -> (Verdict, Option<String>) {
        let (verdict, user) = access.admit(Some(&HeaderValue::from_str(text).expect("a value"))).await;
        (verdict, user.map(|user| user.0.to_string()))
    }

    #[tokio::test]
    async fn tokens_are_known_as_bearer_and_as_password() {
        let tokens = Tokens::read("# old\naaaaaaaaaaaaaaaaaaaaaaaa\n\nbbbbbbbbbbbbbbbbbbbbbbbb\n").expect("tokens");
        let access = AccessControl::new().expect("access");
        assert_eq!(access.admit(None).await.0, Verdict::Known, "nobody is kept out yet");
        access.set(Some(tokens), None);
        for right in ["Bearer aaaaaaaaaaaaaaaaaaaaaaaa", "bearer bbbbbbbbbbbbbbbbbbbbbbbb"] {
            assert_eq!(admit(&access, right).await, (Verdict::Known, None), "{right}");
        }
        assert_eq!(admit(&access, &basic("any:bbbbbbbbbbbbbbbbbbbbbbbb")).await, (Verdict::Known, None));
        let (turned, bare) = (basic("bbbbbbbbbbbbbbbbbbbbbbbb:any"), basic("bbbbbbbbbbbbbbbbbbbbbbbb"));
        for wrong in ["", "Bearer", "Bearer ", "Bearer aaaaaaaaaaaaaaaaaaaaaaa", "Digest x", "Basic !!", &turned, &bare]
        {
            assert_eq!(admit(&access, wrong).await, (Verdict::Unknown, None), "{wrong}");
        }
        assert_eq!(access.admit(None).await.0, Verdict::Unknown);
        assert!(Tokens::read("short\n").is_err() && Tokens::read("# none\n").is_err());
    }

    /// One listener's users are nobody to another, though the checks have their memory in common.
    #[tokio::test]
    async fn listeners_have_users_of_their_own_and_bounds_in_common() {
        let users = |password: &str| {
            Users::read(&format!("anna:{}\n", bcrypt::hash(password, 4).expect("a hash"))).expect("users")
        };
        let first = AccessControl::new().expect("access");
        let other = first.beside();
        first.set(None, Some(users("secret")));
        assert_eq!(other.admit(None).await.0, Verdict::Known, "nobody is kept out yet");
        other.set(None, Some(users("other")));
        assert_eq!(admit(&first, &basic("anna:secret")).await.0, Verdict::Known);
        assert_eq!(admit(&other, &basic("anna:secret")).await, (Verdict::Unknown, None));
        assert_eq!(admit(&other, &basic("anna:other")).await.0, Verdict::Known);
        assert_eq!(admit(&first, &basic("anna:other")).await.0, Verdict::Unknown);
        // All that may be checked at once is being checked by the one: the other has to wait, too.
        let all = first.0.verifier.hold();
        assert_eq!(admit(&other, &basic("anna:wrong")).await.0, Verdict::Busy);
        assert_eq!(admit(&other, &basic("anna:other")).await.0, Verdict::Known, "it's remembered");
        drop(all);
    }

    #[tokio::test]
    async fn users_are_known_by_name_beside_tokens() {
        let token = "aaaaaaaaaaaaaaaaaaaaaaaa";
        let users = format!("anna:{}\n", bcrypt::hash("a:secret", 4).expect("a hash"));
        let users = Users::read(&users).expect("users");
        let access = AccessControl::new().expect("access");
        access.set(Some(Tokens::read(token).expect("tokens")), Some(users.clone()));
        assert_eq!(admit(&access, &basic("anna:a:secret")).await, (Verdict::Known, Some("anna".to_owned())));
        // The name with a token was never looked at.
        assert_eq!(admit(&access, &basic(&format!("anna:{token}"))).await, (Verdict::Known, None));
        access.set(None, Some(users));
        for wrong in [basic("anna:secret"), basic(&format!("anna:{token}")), "Bearer a:secret".to_owned()] {
            assert_eq!(admit(&access, &wrong).await, (Verdict::Unknown, None), "{wrong}");
        }
        assert_eq!(admit(&access, &basic("anna:a:secret")).await.0, Verdict::Known);
        assert_eq!(access.admit(None).await.0, Verdict::Unknown);
        assert!(!format!("{access:?}").contains("anna"), "{access:?}");
    }
}
