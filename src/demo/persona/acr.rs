//! An Azure Container Registry look-alike: token exchange, strict uploads, blobs behind SAS links.

use std::sync::{Mutex, PoisonError};

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, StatusCode, response};
use serde_json::{Value, json};

use super::access::{self, Grant, Route, Scope};
use super::acr_uploads::{Rules, Uploads, relative};
use super::config::AcrConfig;
use super::entra::Entra;
use super::link::{self, Links, Refused};
use super::mint::Mint;
use super::wire::{self, Credential, Form};
use super::{Answer, BodyRule, Broken, Note, Verdict, acr_uploads};

/// The user name of whoever sends a refresh or access token as a Basic password.
const TOKEN_USER: &str = "00000000-0000-0000-0000-000000000000";

/// Azure Container Registry, as PROTOCOL.md §1 and §4 have it.
#[derive(Debug)]
pub struct Acr {
    config: AcrConfig,
    service: String,
    entra: Entra,
    storage: Links,
    uploads: Uploads,
    pub(super) mint: Mint,
    writes: Mutex<Window>,
}

#[derive(Debug, Default)]
struct Window {
    start: u64,
    count: u64,
}

/// Who sends a request, and so what it may do.
enum Holder {
    /// Named by name and password: may do what its grants say.
    Account(Vec<Grant>),
    /// Named by an access token: may do what the token says.
    Token(Vec<Scope>),
}

impl Acr {
    /// A registry and its Entra ID.
    #[must_use]
    pub fn new(config: AcrConfig) -> Self {
        let rules = Rules {
            body_limit: config.body_limit,
            chunk_min: config.chunk_min,
            after_reset: config.after_reset,
            refuse_streamed: config.refuse_streamed,
            refuse_mounts: config.refuse_mounts,
        };
        let service = config
            .url
            .split_once("://")
            .map_or(config.url.as_str(), |(_, host)| host);
        Self {
            service: service.to_owned(),
            entra: Entra::new(config.entra.clone()),
            storage: Links::new(
                &config.storage,
                config.link_seconds,
                "sp=r&sr=b&sv=2018-03-28&se=",
                "&sig=",
            ),
            uploads: Uploads::new(rules),
            mint: Mint::new(),
            writes: Mutex::default(),
            config,
        }
    }

    /// Its Entra ID.
    #[must_use]
    pub fn entra(&self) -> &Entra {
        &self.entra
    }

    /// How many tokens, refresh and access, were issued.
    #[must_use]
    pub fn tokens(&self) -> u64 {
        self.mint.issued()
    }

    pub(super) fn wants_form(&self, head: &Parts) -> bool {
        let ours = matches!(head.uri.path(), "/oauth2/exchange" | "/oauth2/token");
        self.entra.wants_form(head) || (head.method == Method::POST && ours)
    }

    pub(super) fn answer(&self, head: &Parts, form: &[u8]) -> Verdict {
        if let Some(answer) = self.entra.answer(head, form) {
            return Verdict::Respond(answer);
        }
        if let Some(path) = self.storage.serves(head) {
            return match self.storage.open(&self.mint, path, head) {
                Ok(head) => Verdict::forward(head, BodyRule::Streamed, Note::Nothing),
                Err(refused) => Verdict::Respond(storage_refusal(&refused)),
            };
        }
        self.login_server(head, form)
            .unwrap_or_else(Verdict::Respond)
    }

    pub(super) fn adjust(&self, note: &Note, response: &mut response::Parts) {
        match note {
            Note::Upload(step) => self.uploads.settle(&self.mint, step, response),
            _ => drop(relative(response)),
        }
    }

    pub(super) fn broken(&self, step: &acr_uploads::Step) -> Broken {
        self.uploads.broken(step)
    }

    fn login_server(&self, head: &Parts, form: &[u8]) -> Result<Verdict, Answer> {
        let authorization = head
            .headers
            .get(AUTHORIZATION)
            .map_or(0, |value| value.len());
        if authorization > self.config.authorization_limit {
            let title = "400 Request Header Or Cookie Too Large";
            return Err(wire::page(
                StatusCode::BAD_REQUEST,
                title,
                "Request Header Or Cookie Too Large",
            ));
        }
        let form = Form::parse(&String::from_utf8_lossy(form));
        match (head.uri.path(), &head.method) {
            ("/oauth2/exchange", &Method::POST) => {
                return self.exchange(&form).map(Verdict::Respond);
            }
            ("/oauth2/token", &Method::POST) => {
                return self.post_token(&form).map(Verdict::Respond);
            }
            ("/oauth2/token", &Method::GET) => return self.basic_token(head).map(Verdict::Respond),
            _ => {}
        }
        let route = Route::of(head.uri.path()).ok_or_else(|| {
            wire::text(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n")
        })?;
        self.authorize(head, route)?;
        self.spend_write(head)?;
        let stream = |note| Verdict::forward(head.clone(), BodyRule::Streamed, note);
        Ok(match route {
            Route::Ping => Verdict::Respond(wire::json(StatusCode::OK, &json!({}))),
            Route::Upload { .. } => {
                let (head, body, step) = self.uploads.take(&self.mint, head)?;
                Verdict::forward(head, body, Note::Upload(step))
            }
            Route::Blob { name, digest }
                if head.method == Method::GET
                    || (self.config.redirect_head && head.method == Method::HEAD) =>
            {
                let to = self.storage.issue(&self.mint, name, digest);
                Verdict::forward(link::probe(head), BodyRule::Streamed, Note::Redirect(to))
            }
            // The service's own limit for a manifest.
            Route::Manifest { .. } if head.method == Method::PUT => {
                let body = BodyRule::Whole { limit: 4 << 20 };
                Verdict::forward(head.clone(), body, Note::Nothing)
            }
            _ => stream(Note::Nothing),
        })
    }

    /// An Entra ID token, in the body because it may be long, becomes a refresh token.
    fn exchange(&self, form: &Form) -> Result<Answer, Answer> {
        if form.first("grant_type") != Some("access_token")
            || form.first("service") != Some(&self.service)
        {
            return Err(wire::errors(
                StatusCode::BAD_REQUEST,
                "BAD_REQUEST",
                "grant_type or service is wrong",
            ));
        }
        let token = form.first("access_token").unwrap_or_default();
        let owner = self
            .entra
            .owner(token)
            .ok_or_else(|| self.unauthorized(&[], None))?;
        let claims = json!({"sub": owner, "aud": self.service, "grant_type": "refresh_token"});
        let refresh = self.mint.seal(claims, self.config.refresh_seconds);
        Ok(wire::json(
            StatusCode::OK,
            &json!({"refresh_token": refresh}),
        ))
    }

    fn post_token(&self, form: &Form) -> Result<Answer, Answer> {
        let field = |name| form.first(name).unwrap_or_default();
        let holder = match form.first("grant_type") {
            Some("refresh_token") => self.token_holder(field("refresh_token")),
            Some("password") => self.account(field("username"), field("password")),
            _ => {
                return Err(wire::errors(
                    StatusCode::BAD_REQUEST,
                    "BAD_REQUEST",
                    "grant_type is wrong",
                ));
            }
        };
        self.access_token(form, holder)
    }

    fn basic_token(&self, head: &Parts) -> Result<Answer, Answer> {
        let holder = match wire::credential(head) {
            Credential::Basic { user, password } => self.account(&user, &password),
            Credential::None if self.config.anonymous_pull => {
                Some(Holder::Account(vec![Grant::new("*", "pull")]))
            }
            _ => None,
        };
        self.access_token(&Form::of_query(head), holder)
    }

    /// No `expires_in`: a client must read the token's `exp`.
    fn access_token(&self, form: &Form, holder: Option<Holder>) -> Result<Answer, Answer> {
        let Some(Holder::Account(grants)) = holder else {
            return Err(self.unauthorized(&[], None));
        };
        if form.first("service") != Some(&self.service) {
            return Err(wire::errors(
                StatusCode::BAD_REQUEST,
                "BAD_REQUEST",
                "service is wrong",
            ));
        }
        let asked = Scope::asked(form);
        if self.config.abac && asked.iter().any(|scope| scope.name.contains('*')) {
            return Err(self.unauthorized(&[], None));
        }
        let access = access::to_claim(&access::narrow(&grants, &asked));
        let claims = json!({"aud": self.service, "grant_type": "access_token", "access": access});
        let token = self.mint.seal(claims, self.config.access_seconds);
        Ok(wire::json(StatusCode::OK, &json!({"access_token": token})))
    }

    fn authorize(&self, head: &Parts, route: Route<'_>) -> Result<(), Answer> {
        let needs = route.needs(head);
        let holder = match wire::credential(head) {
            Credential::Bearer(token) => self
                .token_holder(&token)
                .filter(|held| matches!(held, Holder::Token(_))),
            Credential::Basic { user, password } => self.account(&user, &password),
            _ => return Err(self.unauthorized(&needs, None)),
        };
        match holder {
            None => Err(self.unauthorized(&needs, Some("invalid_token"))),
            Some(Holder::Token(scopes)) if !access::covers(&scopes, &needs) => {
                Err(self.unauthorized(&needs, Some("insufficient_scope")))
            }
            Some(Holder::Account(grants))
                if !access::covers(&access::narrow(&grants, &needs), &needs) =>
            {
                let text = "requested access to the resource is denied";
                Err(wire::errors(StatusCode::FORBIDDEN, "DENIED", text))
            }
            Some(_) => Ok(()),
        }
    }

    fn account(&self, user: &str, password: &str) -> Option<Holder> {
        if user == TOKEN_USER {
            return self.token_holder(password);
        }
        let mut accounts = self.config.accounts.iter();
        let account = accounts.find(|account| account.user == user && account.password == password);
        account.map(|account| Holder::Account(account.grants.clone()))
    }

    fn token_holder(&self, token: &str) -> Option<Holder> {
        let claims: Value = self.mint.open(token)?;
        Some(match claims["grant_type"].as_str()? {
            "refresh_token" => Holder::Account(self.config.identity.clone()),
            _ => Holder::Token(access::from_claim(&claims["access"])),
        })
    }

    fn unauthorized(&self, needs: &[Scope], error: Option<&str>) -> Answer {
        let text =
            "authentication required, visit https://aka.ms/acr/authorization for more information.";
        let mut answer = wire::errors(StatusCode::UNAUTHORIZED, "UNAUTHORIZED", text);
        let realm = format!("{}/oauth2/token", self.config.url);
        let value = access::challenge(&realm, &self.service, needs, error);
        wire::set(answer.headers_mut(), "www-authenticate", &value);
        answer
    }

    /// Every PATCH is a write; `Retry-After` counts down to the window's end (PROTOCOL.md §1.3).
    fn spend_write(&self, head: &Parts) -> Result<(), Answer> {
        let write = [Method::PUT, Method::PATCH, Method::POST].contains(&head.method);
        let (Some(most), true) = (self.config.writes, write) else {
            return Ok(());
        };
        let now = self.mint.now();
        let mut window = self.writes.lock().unwrap_or_else(PoisonError::into_inner);
        if now >= window.start + self.config.window {
            *window = Window {
                start: now,
                count: 0,
            };
        }
        window.count += 1;
        if window.count <= most {
            return Ok(());
        }
        let left = window.start + self.config.window - now;
        let mut answer = wire::errors(
            StatusCode::TOO_MANY_REQUESTS,
            "TOOMANYREQUESTS",
            "too many requests",
        );
        wire::set(answer.headers_mut(), "retry-after", &left.to_string());
        Err(answer)
    }
}

/// openresty's page before the registry (harbor#23015).
pub(super) fn too_large() -> Answer {
    let title = "413 Request Entity Too Large";
    wire::page(
        StatusCode::PAYLOAD_TOO_LARGE,
        title,
        "AzureContainerRegistry",
    )
}

/// Azure storage's refusals; the first is the FAQ's `InvalidAuthenticationInfo`.
fn storage_refusal(refused: &Refused) -> Answer {
    let (status, code) = match refused {
        Refused::Authorization => (StatusCode::BAD_REQUEST, "InvalidAuthenticationInfo"),
        Refused::Forged | Refused::Expired => (StatusCode::FORBIDDEN, "AuthenticationFailed"),
    };
    let body = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{refused:?}</Message></Error>"
    );
    wire::text(status, "application/xml", body)
}
