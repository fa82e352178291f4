//! Tokens: one for each repository and side, fetched once by whoever needs it first, renewed before it
//! expires. A mount needs a token for two repositories: it takes the place of the destination's own one,
//! and is asked for with the repositories that others were mounted from, as this one soon will be too.
//!
//! Sources: distribution's token and OAuth2 specifications, Docker Hub's and ACR's documents
//! (`/oauth2/exchange` and `/oauth2/token`).

pub(super) mod acr_exchange;
pub(super) mod challenge;
pub(super) mod mount_scopes;
pub(super) mod scope;
pub(super) mod token;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use http::header::{AUTHORIZATION, HeaderMap, HeaderValue};
use http::{Method, StatusCode};
use tokio::sync::OnceCell;
use tokio::time::Instant;

use self::challenge::{Challenge, realm_is_trusted};
use self::mount_scopes::MountScopes;
use self::scope::{Access, Scope};
use self::token::{Answer, STORED_TOKEN_LIFETIME, Token, basic, bearer, form, post, refresh};
use super::azure::is_acr;
use super::call::Payload;
use super::client::Registry;
use super::location::joined;
use crate::credentials::Credential;
use crate::credentials::entra::Entra;
use crate::error::{Error, Kind, Result};
use crate::reference::{Repository, RepositoryName};
use crate::retry::Budget;

/// How a registry wants to be asked, as all of its accounts know.
#[derive(Debug, Default)]
pub(super) struct SharedChallenge {
    challenge: Mutex<Option<Challenge>>,
    /// It answered: what it wants is known.
    answered: AtomicBool,
    /// Held by the first who asks; the others would be sent away just the same (401), each by itself.
    first: tokio::sync::Mutex<()>,
}

/// The first one who asks a registry. Ended by its drop, even without an answer: if there is none, the
/// others needn't find that out one after another.
pub(super) struct FirstRequest<'a> {
    wanted: &'a SharedChallenge,
    _guard: tokio::sync::MutexGuard<'a, ()>,
}

impl Drop for FirstRequest<'_> {
    fn drop(&mut self) {
        self.wanted.answered.store(true, Ordering::Release);
    }
}

/// One account at one registry, and the tokens that it was given.
#[derive(Debug)]
pub(super) struct Auth {
    wanted: Arc<SharedChallenge>,
    /// The account, where it isn't whoever is stored.
    given: Option<Credential>,
    tokens: Mutex<HashMap<(Repository, Access), TokenSlot>>,
    /// Where a token was answered with a Basic challenge: see [`Auth::challenged_by_basic`].
    basic: Mutex<HashSet<(Repository, Access)>>,
    mount_scopes: Mutex<MountScopes>,
    /// An ACR refresh token that was had for an Entra token.
    pub(super) exchanged: tokio::sync::Mutex<Option<Token>>,
    /// Set up when it's first needed.
    pub(super) entra: OnceCell<Option<Entra>>,
    /// There's no identity here: found out once.
    pub(super) without_identity: AtomicBool,
    username: Mutex<Option<String>>,
}

/// Lets go of half of the tokens that nobody is about to use: those that end first, if they haven't ended already.
fn evict_token(tokens: &mut HashMap<(Repository, Access), TokenSlot>) {
    // Who holds a slot got it under the lock that we have.
    let idle = tokens.iter().filter(|(_, slot)| Arc::strong_count(slot) == 1);
    let ends = |slot: &TokenSlot| slot.try_lock().ok().and_then(|token| token.as_ref().map(|(token, _)| token.renew));
    let mut idle: Vec<_> = idle.map(|(key, slot)| (ends(slot), key.clone())).collect();
    idle.sort_by_key(|(ends, _)| *ends);
    for (_, key) in idle.drain(..idle.len().div_ceil(2)) {
        tokens.remove(&key);
    }
}

/// A repository's token, and what it may mount from.
type TokenSlot = Arc<tokio::sync::Mutex<Option<(Token, Vec<RepositoryName>)>>>;

impl Auth {
    pub(super) fn new(wanted: &Arc<SharedChallenge>, given: Option<Credential>) -> Self {
        let username = match &given {
            Some(Credential::Basic { username, .. }) => Some(username.clone()),
            _ => None,
        };
        Self {
            wanted: wanted.clone(),
            given,
            tokens: Mutex::default(),
            basic: Mutex::default(),
            mount_scopes: Mutex::default(),
            exchanged: tokio::sync::Mutex::new(None),
            entra: OnceCell::new(),
            without_identity: AtomicBool::new(false),
            username: Mutex::new(username),
        }
    }

    /// As whom we asked last, for messages. `None` while anonymous.
    pub(super) fn username(&self) -> Option<String> {
        self.username.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits while somebody else asks the registry for the first time. To be held until the answer is
    /// here and was learnt from.
    pub(super) async fn first_request(&self) -> Option<FirstRequest<'_>> {
        let wanted = &*self.wanted;
        if wanted.answered.load(Ordering::Acquire) {
            return None;
        }
        let guard = wanted.first.lock().await;
        (!wanted.answered.load(Ordering::Acquire)).then_some(FirstRequest { wanted, _guard: guard })
    }

    /// The `Authorization` for a request of `scope`; none before the registry asked for one.
    pub(super) async fn authorization(&self, registry: &Registry, scope: &Scope) -> Result<Option<HeaderValue>> {
        let challenge = self.challenge().clone();
        if matches!(challenge, Some(Challenge::Bearer { .. }))
            && self.wants_basic(scope)
            && let Some(Credential::Basic { username, password }) = self.credential(registry, scope).await?
        {
            return basic(&username, &password).map(Some);
        }
        match challenge {
            None => Ok(None),
            Some(Challenge::Basic) => match self.credential(registry, scope).await? {
                Some(Credential::Basic { username, password }) => basic(&username, &password).map(Some),
                Some(Credential::Bearer(token)) => bearer(&token).map(Some),
                _ => Ok(None),
            },
            Some(Challenge::Bearer { realm, service, .. }) => {
                // Whoever comes first fetches it; the others wait here and find it.
                let slot = self.slot(scope);
                let mut slot = slot.lock().await;
                let living = slot.take().filter(|(token, _)| token.renew > Instant::now());
                let covers = |from: &[RepositoryName]| scope.from().iter().all(|name| from.contains(name));
                let (token, from) = match living {
                    Some((token, from)) if covers(&from) => (token, from),
                    other => {
                        let before = other.map(|(_, from)| from).unwrap_or_default();
                        self.fetch_wide(registry, scope, &before, &realm, service.as_deref()).await?
                    }
                };
                let header = bearer(&token.value)?;
                *slot = Some((token, from));
                Ok(Some(header))
            }
        }
    }

    /// A token for `scope` and for mounts that may come, and what it may mount from.
    async fn fetch_wide(
        &self,
        registry: &Registry,
        scope: &Scope,
        before: &[RepositoryName],
        realm: &str,
        service: Option<&str>,
    ) -> Result<(Token, Vec<RepositoryName>)> {
        let wide = if scope.pushes() { self.mount_scopes().widen(scope, before) } else { scope.clone() };
        let fetched = match self.fetch(registry, &wide, scope, realm, service).await {
            // Some servers refuse all where they'd refuse a part.
            Err(error) if wide != *scope && !error.is_transient() => {
                self.mount_scopes().give_up();
                return Ok((self.fetch(registry, scope, scope, realm, service).await?, scope.from().to_vec()));
            }
            other => other?,
        };
        Ok((fetched, wide.from().to_vec()))
    }

    /// A blob was mounted from this repository.
    pub(super) fn mounted_from(&self, name: &RepositoryName) {
        self.mount_scopes().mounted(name);
    }

    fn mount_scopes(&self) -> MutexGuard<'_, MountScopes> {
        self.mount_scopes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn challenge(&self) -> MutexGuard<'_, Option<Challenge>> {
        self.wanted.challenge.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, scope: &Scope) -> TokenSlot {
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.len() >= MAX_TOKENS {
            evict_token(&mut tokens);
        }
        tokens.entry((scope.repository.clone(), scope.access)).or_default().clone()
    }

    /// The name that the registry has for its token endpoint, once it was asked.
    pub(super) fn service(&self) -> Option<String> {
        match &*self.challenge() {
            Some(Challenge::Bearer { service, .. }) => service.clone(),
            _ => None,
        }
    }

    /// The registry answered 401 to a request signed with `used`. Says whether to ask again: yes
    /// if there's a new challenge to answer, or a token to renew.
    pub(super) async fn on_challenge(
        &self,
        challenge: Option<Challenge>,
        scope: &Scope,
        used: Option<&HeaderValue>,
    ) -> bool {
        let Some(challenge) = challenge else { return false };
        let denied = matches!(&challenge, Challenge::Bearer { error: Some(error), .. } if error == "insufficient_scope" || error == "denied");
        let is_bearer = matches!(challenge, Challenge::Bearer { .. });
        if let Some(used) = used.filter(|_| !is_bearer)
            && matches!(*self.challenge(), Some(Challenge::Bearer { .. }))
        {
            return is_token(used) && self.challenged_by_basic(scope).await;
        }
        let first = self.challenge().replace(challenge).is_none();
        if !is_bearer {
            return first || used.is_none();
        }
        if used.is_some_and(|used| !is_token(used)) {
            self.prefer_tokens(scope);
        }
        let slot = self.slot(scope);
        let mut held = slot.lock().await;
        // Only the token that failed: another task may have renewed it already.
        if held.as_ref().and_then(|(token, _)| bearer(&token.value).ok()).as_ref() != used {
            return used.is_none() || !denied;
        }
        if denied && held.as_ref().is_some_and(|(_, from)| from.len() > scope.from().len()) {
            // Perhaps a server that gives but one of the scopes that are asked for, and not the right one.
            *held = None;
            self.mount_scopes().give_up();
            return true;
        }
        // A mount that may not be says nothing against the token's other uses.
        if !denied || scope.from().is_empty() {
            *held = None;
        }
        used.is_none() || !denied
    }

    /// A token was answered with a Basic challenge: Harbor does so where it does not take the token (goharbor/harbor
    /// issue 18856). It is answered once for each repository and access: by the password from then on, or by a new
    /// token where there is no password.
    async fn challenged_by_basic(&self, scope: &Scope) -> bool {
        *self.slot(scope).lock().await = None;
        let mut basic = self.basic.lock().unwrap_or_else(PoisonError::into_inner);
        if basic.len() >= MAX_TOKENS {
            basic.clear();
        }
        basic.insert((scope.repository.clone(), scope.access))
    }

    fn wants_basic(&self, scope: &Scope) -> bool {
        let basic = self.basic.lock().unwrap_or_else(PoisonError::into_inner);
        !basic.is_empty() && basic.contains(&(scope.repository.clone(), scope.access))
    }

    /// The password was answered with a Bearer challenge.
    fn prefer_tokens(&self, scope: &Scope) {
        let mut basic = self.basic.lock().unwrap_or_else(PoisonError::into_inner);
        basic.remove(&(scope.repository.clone(), scope.access));
    }

    async fn credential(&self, registry: &Registry, scope: &Scope) -> Result<Option<Credential>> {
        let found = match &self.given {
            Some(given) => Some(given.clone()),
            None => registry.options.credentials.find(&scope.repository).await?,
        };
        if let Some(credential) = &found {
            registry.guard_credential(credential).await?;
        }
        let name = match &found {
            Some(Credential::Basic { username, .. }) => Some(username.clone()),
            Some(_) => Some("the stored token".to_owned()),
            None => None,
        };
        self.set_username(name);
        Ok(found)
    }

    pub(super) fn set_username(&self, name: Option<String>) {
        *self.username.lock().unwrap_or_else(PoisonError::into_inner) = name;
    }

    /// Fetches a token for `wide`; `scope` is what it's needed for.
    async fn fetch(
        &self,
        registry: &Registry,
        wide: &Scope,
        scope: &Scope,
        realm: &str,
        service: Option<&str>,
    ) -> Result<Token> {
        let doing = match scope.to_string().as_str() {
            // Only the credentials are tried.
            "" => format!("get a token of {}", registry.name),
            scope => format!("get a token for {scope} of {}", registry.name),
        };
        let budget = Budget::new(4, Duration::from_secs(120));
        loop {
            let fetched = self.fetch_once(registry, wide, realm, service).await;
            match fetched.map_err(|error| error.doing(doing.clone())) {
                Ok(token) => return Ok(token),
                Err(error) => budget.retry(error).await?,
            }
        }
    }

    async fn fetch_once(
        &self,
        registry: &Registry,
        scope: &Scope,
        realm: &str,
        service: Option<&str>,
    ) -> Result<Token> {
        let base = registry.base().await?.clone();
        let mut realm =
            joined(&base, realm).ok_or_else(|| Error::new(Kind::Registry, "its token realm is not a URL"))?;
        registry.policy.check(&base, &realm)?;
        let mut credential = self.credential(registry, scope).await?;
        if credential.is_none() && is_acr(&registry.name) && realm_is_trusted(&base, &realm, &[]) {
            credential = self.identity(registry, &base, service).await?.map(Credential::RefreshToken);
        }
        if credential.is_some() && !realm_is_trusted(&base, &realm, &registry.options.realms) {
            let host = realm.host_str().unwrap_or_default();
            return Err(Error::new(
                Kind::Refused,
                format!("{} wants its credentials given to {host}, which is another site", registry.name),
            )
            .hint(format!("if that is right, allow it by --allow-realm {host}")));
        }
        let service = service.unwrap_or_default();
        let response = match credential {
            Some(Credential::Bearer(token)) => {
                return Ok(Token { value: token, renew: Instant::now() + STORED_TOKEN_LIFETIME });
            }
            Some(Credential::RefreshToken(token)) => {
                let response = refresh(registry, scope, &realm, service, &token).await?;
                let refused = matches!(response.status(), StatusCode::BAD_REQUEST | StatusCode::UNAUTHORIZED);
                // A login by `az acr login` or `--azure` lasts three hours; the identity itself goes on. What
                // was had for it may have ended too: earlier than it said, or by somebody's hand.
                let identity = if refused && is_acr(&registry.name) {
                    self.forget_exchanged(&token).await;
                    self.identity(registry, &base, Some(service)).await?
                } else {
                    None
                };
                match identity.filter(|identity| *identity != token) {
                    Some(identity) => refresh(registry, scope, &realm, service, &identity).await?,
                    None => response,
                }
            }
            other => {
                let basic_header = match &other {
                    Some(Credential::Basic { username, password }) => Some(basic(username, password)?),
                    _ => None,
                };
                let password_realm = realm.clone();
                {
                    let mut query = realm.query_pairs_mut();
                    if !service.is_empty() {
                        query.append_pair("service", service);
                    }
                    scope.texts().for_each(|text| {
                        query.append_pair("scope", &text);
                    });
                }
                let headers =
                    basic_header.map(|value| HeaderMap::from_iter([(AUTHORIZATION, value)])).unwrap_or_default();
                let response = registry.ask_token(Method::GET, realm, headers, Payload::Empty).await?;
                match (&other, response.status()) {
                    // A server that knows OAuth2's form only (distribution's "oauth2" page).
                    (
                        Some(Credential::Basic { username, password }),
                        StatusCode::NOT_FOUND | StatusCode::METHOD_NOT_ALLOWED,
                    ) => {
                        let grant =
                            [("grant_type", "password"), ("username", username), ("password", password.reveal())];
                        post(registry, password_realm, form(scope, service, &grant, is_acr(&registry.name))).await?
                    }
                    _ => response,
                }
            }
        };
        let user = self.username();
        let answer = Answer::read(response, registry, user.as_deref()).await;
        match answer {
            // The identity that would be taken was held back: that is what the user can change.
            Err(error) if user.is_none() && error.kind() == Kind::Unauthorized && is_acr(&registry.name) => {
                let held_back = registry.guard_identity().await.err();
                let hint = held_back.as_ref().and_then(Error::hint_text);
                Err(match hint {
                    Some(hint) => error.hint_instead(format!("no Azure identity is sent without verified TLS: {hint}")),
                    None => error,
                })
            }
            answer => answer?.token(),
        }
    }
}

/// Whether an `Authorization` holds a token.
fn is_token(header: &HeaderValue) -> bool {
    header.as_bytes().starts_with(b"Bearer ")
}

/// Tokens kept at once: each is a few kilobytes, and a list may have any number of repositories.
const MAX_TOKENS: usize = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn tokens_that_end_first_are_forgotten_where_there_are_many() {
        let auth = Auth::new(&Arc::default(), None);
        let scope = |nth: usize| Scope::push(&format!("r.io/a/{nth}").parse().expect("a repository"));
        let (now, held) = (Instant::now(), auth.slot(&scope(1)));
        for nth in 0..MAX_TOKENS {
            let renew = now + Duration::from_secs(u64::try_from(nth).expect("small"));
            *auth.slot(&scope(nth)).lock().await = Some((Token { value: "x".to_owned().into(), renew }, vec![]));
        }
        let known = async |nth: usize| auth.slot(&scope(nth)).lock().await.is_some();
        assert!(!known(MAX_TOKENS).await);
        assert!(auth.tokens.lock().expect("no panic").len() <= MAX_TOKENS / 2 + 2);
        assert!(known(1).await && Arc::ptr_eq(&held, &auth.slot(&scope(1))), "somebody uses it");
        assert!(!known(2).await && known(MAX_TOKENS - 1).await);
    }

    #[tokio::test]
    async fn a_denied_scope_is_not_asked_twice() {
        let auth = Auth::new(&Arc::default(), None);
        let scope = Scope::push(&"r.io/a/b".parse().expect("a repository"));
        let bearer = |error: Option<&str>| {
            Some(Challenge::Bearer { realm: "https://t".into(), service: None, error: error.map(str::to_owned) })
        };
        let used = HeaderValue::from_static("Bearer x");
        assert!(auth.on_challenge(bearer(None), &scope, None).await);
        assert!(auth.on_challenge(bearer(Some("invalid_token")), &scope, Some(&used)).await);
        assert!(!auth.on_challenge(bearer(Some("insufficient_scope")), &scope, Some(&used)).await);
        assert!(!auth.on_challenge(None, &scope, None).await);
    }

    #[tokio::test]
    async fn a_basic_challenge_to_a_token_is_answered_once() {
        let auth = Auth::new(&Arc::default(), None);
        let scope = |name: &str| Scope::push(&format!("r.io/{name}").parse().expect("a repository"));
        let bearer = || Some(Challenge::Bearer { realm: "https://t".into(), service: None, error: None });
        let (token, password) = (HeaderValue::from_static("Bearer x"), HeaderValue::from_static("Basic x"));
        assert!(auth.on_challenge(bearer(), &scope("a"), None).await);
        assert!(auth.on_challenge(Some(Challenge::Basic), &scope("a"), Some(&token)).await);
        assert!(auth.wants_basic(&scope("a")) && !auth.wants_basic(&scope("b")));
        assert!(matches!(*auth.challenge(), Some(Challenge::Bearer { .. })), "others still use tokens");
        // Neither is taken: no more attempts.
        assert!(!auth.on_challenge(Some(Challenge::Basic), &scope("a"), Some(&token)).await);
        assert!(!auth.on_challenge(Some(Challenge::Basic), &scope("a"), Some(&password)).await);
        assert!(auth.on_challenge(bearer(), &scope("a"), Some(&password)).await);
        assert!(!auth.wants_basic(&scope("a")), "the password was not what it wants");
    }

    #[tokio::test]
    async fn a_token_with_guesses_is_had_without_them_where_it_is_not_enough() {
        let auth = Auth::new(&Arc::default(), None);
        let scope = Scope::push(&"r.io/a/b".parse().expect("a repository"));
        let denied = || {
            let error = Some("insufficient_scope".to_owned());
            Some(Challenge::Bearer { realm: "https://t".into(), service: None, error })
        };
        let token = Token { value: "x".to_owned().into(), renew: Instant::now() };
        let used = HeaderValue::from_static("Bearer x");
        auth.mounted_from(&"c".into());
        *auth.slot(&scope).lock().await = Some((token.clone(), vec!["c".into()]));
        assert!(auth.on_challenge(denied(), &scope, Some(&used)).await);
        assert!(auth.slot(&scope).lock().await.is_none());
        assert_eq!(auth.mount_scopes().widen(&scope, &[]), scope, "no more guesses");
        *auth.slot(&scope).lock().await = Some((token.clone(), vec![]));
        assert!(!auth.on_challenge(denied(), &scope, Some(&used)).await);
        // A mount that is denied leaves the repository's own token.
        let mount = scope.mounting(&"r.io/c".parse().expect("a repository"));
        *auth.slot(&scope).lock().await = Some((token, vec!["c".into()]));
        assert!(!auth.on_challenge(denied(), &mount, Some(&used)).await);
        assert!(auth.slot(&scope).lock().await.is_some());
    }
}
