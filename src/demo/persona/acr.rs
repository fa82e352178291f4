//! A look-alike of Azure Container Registry: token exchange, strict uploads, blobs behind SAS links.

use std::sync::{Mutex, PoisonError};

use http::header::AUTHORIZATION;
use http::request::Parts;
use http::{Method, StatusCode, response};
use serde_json::json;

use super::access::Route;
use super::acr_referrers::Referrers;
use super::acr_tags::Tags;
use super::acr_uploads::{Rules, Uploads, relative};
use super::config::AcrConfig;
use super::entra::Entra;
use super::link::{self, Links, Refused};
use super::mint::Mint;
use super::wire::{self, Form};
use super::{Answer, BodyRule, Broken, Note, Verdict, acr_uploads};

/// Azure Container Registry, as described in docs/protocol.md, section 2.
#[derive(Debug)]
pub struct Acr {
    pub(super) config: AcrConfig,
    pub(super) service: String,
    pub(super) entra: Entra,
    storage: Links,
    uploads: Uploads,
    referrers: Referrers,
    tags: Tags,
    pub(super) mint: Mint,
    limits: Mutex<Limits>,
}

/// Requests in the current window, by kind.
#[derive(Debug, Default)]
struct Limits {
    reads: Window,
    writes: Window,
    deletes: Window,
    oauth: Window,
}

#[derive(Debug, Default)]
struct Window {
    start: u64,
    count: u64,
}

impl Acr {
    /// A registry with its Entra ID.
    #[must_use]
    pub fn new(config: AcrConfig) -> Self {
        let rules = Rules {
            body_limit: config.body_limit,
            chunk_min: config.chunk_min,
            after_reset: config.after_reset,
            refuse_streamed: config.refuse_streamed,
            refuse_mounts: config.refuse_mounts,
        };
        let service = config.url.split_once("://").map_or(config.url.as_str(), |(_, host)| host);
        Self {
            service: service.to_owned(),
            entra: Entra::new(config.entra.clone()),
            storage: Links::new(&config.storage, config.link_seconds, "sp=r&sr=b&sv=2018-03-28&se=", "&sig="),
            uploads: Uploads::new(rules),
            referrers: Referrers::default(),
            tags: Tags::default(),
            mint: Mint::new(),
            limits: Mutex::default(),
            config,
        }
    }

    /// Its Entra ID.
    #[must_use]
    pub fn entra(&self) -> &Entra {
        &self.entra
    }

    /// How many tokens were issued, refresh and access tokens together.
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
        self.login_server(head, form).unwrap_or_else(Verdict::Respond)
    }

    pub(super) fn adjust(&self, note: &Note, response: &mut response::Parts) {
        match note {
            Note::Upload(step) => self.uploads.settle(&self.mint, step, response),
            _ => drop(relative(response)),
        }
        match note {
            Note::Pushed { referrer: Some(referrer), .. }
                if response.status == StatusCode::CREATED && self.config.referrers =>
            {
                self.referrers.add(referrer);
                wire::set(&mut response.headers, "oci-subject", referrer.subject());
            }
            Note::Deleted { name, reference } if response.status.is_success() => {
                self.referrers.remove(name, reference);
            }
            _ => {}
        }
    }

    pub(super) fn broken(&self, step: &acr_uploads::Step) -> Broken {
        self.uploads.broken(step)
    }

    fn login_server(&self, head: &Parts, form: &[u8]) -> Result<Verdict, Answer> {
        let authorization = head.headers.get(AUTHORIZATION).map_or(0, |value| value.len());
        if authorization > self.config.authorization_limit {
            let title = "400 Request Header Or Cookie Too Large";
            return Err(wire::page(StatusCode::BAD_REQUEST, title, "Request Header Or Cookie Too Large"));
        }
        self.spend(head)?;
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
        let route = Route::of(head.uri.path())
            .ok_or_else(|| wire::text(StatusCode::NOT_FOUND, "text/plain", "404 page not found\n"))?;
        self.authorize(head, route)?;
        let stream = |note| Verdict::forward(head.clone(), BodyRule::Streamed, note);
        Ok(match route {
            Route::Ping => Verdict::Respond(wire::json(StatusCode::OK, &json!({}))),
            Route::Upload { .. } => {
                let (head, body, step) = self.uploads.take(&self.mint, head)?;
                Verdict::forward(head, body, Note::Upload(step))
            }
            Route::Blob { name, digest }
                if head.method == Method::GET || (self.config.redirect_head && head.method == Method::HEAD) =>
            {
                let to = self.storage.issue(&self.mint, name, digest);
                Verdict::forward(link::probe(head), BodyRule::Streamed, Note::Redirect(to))
            }
            Route::Tag { name, tag } => Verdict::Respond(self.tags.answer(&self.config, head, name, tag)),
            Route::Manifest { name, reference } if head.method != Method::PUT && self.tags.is_gone(name, reference) => {
                let text = format!("manifest tagged by {reference:?} is not found");
                Verdict::Respond(wire::errors(StatusCode::NOT_FOUND, "MANIFEST_UNKNOWN", &text))
            }
            // The service's limit for a manifest.
            Route::Manifest { name, reference } if head.method == Method::PUT => {
                self.tags.wrote(name, reference);
                let body = BodyRule::Whole { limit: 4 << 20 };
                let name = name.to_owned();
                let referrer = None;
                Verdict::forward(head.clone(), body, Note::Pushed { name, referrer })
            }
            Route::Manifest { name, reference } if head.method == Method::DELETE => {
                let (name, reference) = (name.to_owned(), reference.to_owned());
                stream(Note::Deleted { name, reference })
            }
            Route::Referrers { name, subject } if self.config.referrers => {
                let page = self.config.referrers_page;
                Verdict::Respond(self.referrers.list(head, name, subject, page))
            }
            _ => stream(Note::Nothing),
        })
    }

    /// Counts a request. Every PATCH is a write; `Retry-After` counts down to the end of the window
    /// (docs/protocol.md, section 2).
    fn spend(&self, head: &Parts) -> Result<(), Answer> {
        let mut limits = self.limits.lock().unwrap_or_else(PoisonError::into_inner);
        let (most, window) = match head.method {
            _ if head.uri.path().starts_with("/oauth2/") => (self.config.oauth, &mut limits.oauth),
            Method::PUT | Method::PATCH | Method::POST => (self.config.writes, &mut limits.writes),
            Method::DELETE => (self.config.deletes, &mut limits.deletes),
            _ => (self.config.reads, &mut limits.reads),
        };
        let Some(most) = most else { return Ok(()) };
        let now = self.mint.now();
        if now >= window.start + self.config.window {
            *window = Window { start: now, count: 0 };
        }
        window.count += 1;
        if window.count <= most {
            return Ok(());
        }
        let left = window.start + self.config.window - now;
        let mut answer = wire::errors(StatusCode::TOO_MANY_REQUESTS, "TOOMANYREQUESTS", "too many requests");
        wire::set(answer.headers_mut(), "retry-after", &left.to_string());
        Err(answer)
    }
}

/// Refusals of Azure's storage; the first is `InvalidAuthenticationInfo` of its FAQ.
fn storage_refusal(refused: &Refused) -> Answer {
    let (status, code) = match refused {
        Refused::Authorization => (StatusCode::BAD_REQUEST, "InvalidAuthenticationInfo"),
        Refused::Forged | Refused::Expired => (StatusCode::FORBIDDEN, "AuthenticationFailed"),
    };
    let body = format!("<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>{refused:?}</Message></Error>");
    wire::text(status, "application/xml", body)
}
