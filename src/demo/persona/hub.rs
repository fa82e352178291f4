//! A look-alike of Docker Hub: tokens, pull limits, blobs on a CDN.

use std::sync::Mutex;

use http::request::Parts;
use http::{Method, StatusCode, response};
use serde_json::{Value, json};

use super::access::{self, Account, Route, Scope};
use super::config::HubConfig;
use super::link::{self, Links, Refused};
use super::mint::Mint;
use super::wire::{self, Base, Credential, Form};
use super::{Answer, BodyRule, Note, Verdict};

/// Docker Hub, as described in docs/protocol.md, section 1.
#[derive(Debug)]
pub struct Hub {
    config: HubConfig,
    realm: Base,
    cdn: Links,
    pub(super) mint: Mint,
    tally: Mutex<Tally>,
}

#[derive(Debug, Default)]
struct Tally {
    /// Requests in the current window of the abuse limit.
    requests: u64,
    since: u64,
    pulls: Vec<Pull>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Pull {
    who: String,
    what: String,
    at: u64,
}

/// A request for a manifest within the pull limit, for `adjust`.
#[derive(Debug)]
pub(super) struct Counted {
    limit: Option<(u64, u64)>,
    source: String,
    pull: Option<Pull>,
}

impl Hub {
    /// A Hub without any counted pulls.
    #[must_use]
    pub fn new(config: HubConfig) -> Self {
        Self {
            realm: Base::new(&config.realm),
            cdn: Links::new(&config.cdn, config.link_seconds, "expires=", "&signature="),
            mint: Mint::new(),
            tally: Mutex::default(),
            config,
        }
    }

    /// All counted pulls, as `repository:tag` or `repository@digest`.
    #[must_use]
    pub fn pulls(&self) -> Vec<String> {
        self.tally().pulls.iter().map(|pull| pull.what.clone()).collect()
    }

    /// The counted pulls of a user; an empty name stands for all users without an account.
    #[must_use]
    pub fn pulls_by(&self, user: &str) -> usize {
        self.tally().pulls.iter().filter(|pull| pull.who == user).count()
    }

    /// How many tokens were issued.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.mint.issued()
    }

    /// Starts a new window: no pull and no request counted.
    pub fn refill(&self) {
        *self.tally() = Tally::default();
    }

    pub(super) fn wants_form(&self, head: &Parts) -> bool {
        head.method == Method::POST && self.realm.serves(head).is_some()
    }

    pub(super) fn answer(&self, head: &Parts, form: &[u8]) -> Verdict {
        if self.realm.serves(head).is_some() {
            return Verdict::Respond(self.token(head, form));
        }
        if let Some(path) = self.cdn.serves(head) {
            return match self.cdn.open(&self.mint, path, head) {
                Ok(head) => Verdict::forward(head, BodyRule::Streamed, Note::Nothing),
                Err(refused) => Verdict::Respond(cdn_refusal(&refused)),
            };
        }
        let Some(route) = Route::of(head.uri.path()) else {
            return Verdict::Respond(wire::text(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n"));
        };
        self.registry(head, route).unwrap_or_else(Verdict::Respond)
    }

    pub(super) fn adjust(&self, counted: &Counted, response: &mut response::Parts) {
        if let Some((limit, remaining)) = counted.limit {
            wire::set(&mut response.headers, "ratelimit-limit", &format!("{limit};w={WINDOW}"));
            wire::set(&mut response.headers, "ratelimit-remaining", &format!("{remaining};w={WINDOW}"));
            wire::set(&mut response.headers, "docker-ratelimit-source", &counted.source);
        }
        // A missing manifest is no pull.
        if let Some(pull) = &counted.pull
            && !response.status.is_success()
        {
            let mut tally = self.tally();
            if let Some(last) = tally.pulls.iter().rposition(|other| other == pull) {
                tally.pulls.remove(last);
            }
        }
    }

    fn registry(&self, head: &Parts, route: Route<'_>) -> Result<Verdict, Answer> {
        self.abuse_limit()?;
        let who = self.authorize(head, route)?;
        let reads = head.method == Method::GET || head.method == Method::HEAD;
        Ok(match route {
            Route::Ping => Verdict::Respond(wire::json(StatusCode::OK, &json!({}))),
            Route::Manifest { name, reference } if reads => {
                let counted = self.count(head, &who, name, reference)?;
                Verdict::forward(head.clone(), BodyRule::Streamed, Note::Pull(counted))
            }
            Route::Blob { name, digest }
                if head.method == Method::GET || (self.config.redirect_head && head.method == Method::HEAD) =>
            {
                let to = self.cdn.issue(&self.mint, name, digest);
                Verdict::forward(link::probe(head), BodyRule::Streamed, Note::Redirect(to))
            }
            _ => Verdict::forward(head.clone(), BodyRule::Streamed, Note::Nothing),
        })
    }

    /// Counts per address, also for HEAD and for paying users. The answer is not JSON (docs/protocol.md, section 1).
    fn abuse_limit(&self) -> Result<(), Answer> {
        let now = self.mint.now();
        let mut tally = self.tally();
        if self.config.abuse_seconds.is_some_and(|seconds| now >= tally.since + seconds) {
            (tally.requests, tally.since) = (0, now);
        }
        tally.requests += 1;
        match self.config.abuse_after {
            Some(most) if tally.requests > most => {
                let text = "Too Many Requests (HAP429)\n";
                Err(wire::text(StatusCode::TOO_MANY_REQUESTS, "text/plain", text))
            }
            _ => Ok(()),
        }
    }

    /// The owner of the token; empty for anonymous.
    fn authorize(&self, head: &Parts, route: Route<'_>) -> Result<String, Answer> {
        let needs = route.needs(head);
        let Credential::Bearer(token) = wire::credential(head) else {
            return Err(self.challenge(&needs, None));
        };
        let Some(claims) = self.mint.open(&token) else {
            return Err(self.challenge(&needs, Some("invalid_token")));
        };
        if !access::covers(&access::from_claim(&claims["access"]), &needs) {
            return Err(self.challenge(&needs, Some("insufficient_scope")));
        }
        Ok(claims["sub"].as_str().unwrap_or_default().to_owned())
    }

    fn challenge(&self, needs: &[Scope], error: Option<&str>) -> Answer {
        let mut answer = wire::errors(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", "authentication required");
        let value = access::challenge(&self.config.realm, &self.config.service, needs, error);
        wire::set(answer.headers_mut(), "www-authenticate", &value);
        wire::set(answer.headers_mut(), "docker-distribution-api-version", "registry/2.0");
        answer
    }

    fn token(&self, head: &Parts, form: &[u8]) -> Answer {
        let posted = Form::parse(&String::from_utf8_lossy(form));
        let post = head.method == Method::POST;
        let form = if post { &posted } else { &Form::of_query(head) };
        if form.first("service") != Some(&self.config.service) {
            return wire::json(StatusCode::BAD_REQUEST, &json!({"details": "service is unknown"}));
        }
        let (user, password) = match wire::credential(head) {
            Credential::Basic { user, password } => (Some(user), password),
            Credential::None => {
                let posted = |name| form.first(name).filter(|_| post).map(str::to_owned);
                (posted("username"), posted("password").unwrap_or_default())
            }
            _ => (Some(String::new()), String::new()),
        };
        let grants = match &user {
            None => self.config.anonymous.clone(),
            Some(user) => match self.account(user, &password) {
                Some(account) => account.grants.clone(),
                None => {
                    let body = json!({"details": "incorrect username or password"});
                    return wire::json(StatusCode::UNAUTHORIZED, &body);
                }
            },
        };
        let granted = access::narrow(&grants, &Scope::asked(form));
        let claims = json!({
            "iss": "auth.docker.io",
            "aud": self.config.service,
            "sub": user.unwrap_or_default(),
            "access": access::to_claim(&granted),
        });
        wire::json(StatusCode::OK, &self.token_document(claims))
    }

    fn token_document(&self, claims: Value) -> Value {
        let token = self.mint.seal(claims, self.config.token_seconds);
        let mut document = json!({"token": token, "access_token": token});
        if self.config.send_expiry {
            let issued = i64::try_from(self.mint.now()).ok().and_then(|now| jiff::Timestamp::from_second(now).ok());
            document["expires_in"] = json!(self.config.token_seconds);
            document["issued_at"] = json!(issued.unwrap_or_default().to_string());
        }
        document
    }

    fn account(&self, user: &str, password: &str) -> Option<&Account> {
        self.config.accounts.iter().find(|account| account.user == user && account.password == password)
    }

    /// GET of a manifest is a pull, HEAD is free; both answers have the number of remaining pulls.
    fn count(&self, head: &Parts, who: &str, name: &str, reference: &str) -> Result<Counted, Answer> {
        let plan = self.config.plans.iter().find(|plan| plan.0 == who).map(|plan| plan.1);
        let (most, source) = match who {
            "" => (self.config.anonymous_pulls, "192.0.2.7".to_owned()),
            _ => (plan.unwrap_or(self.config.account_pulls), self.mint.id(who)),
        };
        let now = self.mint.now();
        let mut tally = self.tally();
        let recent = tally.pulls.iter().filter(|pull| pull.who == who && now < pull.at + WINDOW);
        let used = recent.count() as u64;
        let gets = head.method == Method::GET;
        let left = most.map(|most| (most, most.saturating_sub(used)));
        if let Some((most, 0)) = left
            && gets
        {
            return Err(limit_reached(most, &source));
        }
        let pull = gets.then(|| {
            let mark = if reference.contains(':') { '@' } else { ':' };
            Pull { who: who.to_owned(), what: format!("{name}{mark}{reference}"), at: now }
        });
        tally.pulls.extend(pull.clone());
        let limit = left.map(|(most, left)| (most, if gets { left - 1 } else { left }));
        Ok(Counted { limit, source, pull })
    }

    fn tally(&self) -> std::sync::MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// Six hours, in seconds.
const WINDOW: u64 = 21_600;

fn limit_reached(most: u64, source: &str) -> Answer {
    let text = "You have reached your pull rate limit. You may increase the limit by authenticating and \
                upgrading: https://www.docker.com/increase-rate-limit";
    let mut answer = wire::errors(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", text);
    wire::set(answer.headers_mut(), "ratelimit-limit", &format!("{most};w={WINDOW}"));
    wire::set(answer.headers_mut(), "ratelimit-remaining", &format!("0;w={WINDOW}"));
    wire::set(answer.headers_mut(), "docker-ratelimit-source", source);
    answer
}

/// Refusals of S3 and R2, which reject a signed URL with `Authorization`.
fn cdn_refusal(refused: &Refused) -> Answer {
    let (status, code, message) = match refused {
        Refused::Authorization => (StatusCode::BAD_REQUEST, "InvalidArgument", "Only one auth mechanism allowed"),
        Refused::Forged => (StatusCode::FORBIDDEN, "SignatureDoesNotMatch", "The signature does not match"),
        Refused::Expired => (StatusCode::FORBIDDEN, "AccessDenied", "Request has expired"),
    };
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{message}</Message></Error>");
    wire::text(status, "application/xml", body)
}
