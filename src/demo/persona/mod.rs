//! Look-alikes of Docker Hub, Azure Container Registry and Entra ID, for the demo and the tests.
//!
//! A persona is placed before a plain registry. It sees the head of each request, and answers it or lets it be
//! forwarded, possibly rewritten. Then it may change the registry's answer. It has no socket: the demo's server and
//! the tests' fault-injecting front use it alike. For each request:
//!
//! 1. [`Persona::wants_form`]: if true, read the (small) body first;
//! 2. [`Persona::answer`] returns a [`Verdict`];
//! 3. for [`Verdict::Forward`], send [`Forward::head`] with the body as [`Forward::body`] says; call [`Persona::saw`]
//!    with a body that was read, and [`Persona::broken`] if the client's connection breaks meanwhile;
//! 4. [`Persona::adjust`] changes the answer before it is sent to the client.
//!
//! The look-alikes follow vendors' documents, issues and sources. They were not compared with the live services.
//! Where sources disagree, they follow the stricter one, with a comment.

#![expect(
    clippy::result_large_err,
    reason = "an early answer is the common way out of a request, made once and passed on"
)]

mod access;
mod acr;
mod acr_referrers;
mod acr_tags;
mod acr_tokens;
mod acr_uploads;
mod config;
mod entra;
mod hub;
mod link;
mod mint;
mod wire;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::request::Parts;
use http::{Response, StatusCode, response};
use http_body_util::Full;

pub use self::config::AfterReset;
pub use access::{Account, Grant};
pub use acr::Acr;
pub use config::{AcrConfig, EntraConfig, HubConfig};
pub use entra::Entra;
pub use hub::Hub;
pub use mint::Mint;

/// An answer of a persona itself.
pub type Answer = Response<Full<Bytes>>;

/// The service that the registry behind the front imitates.
#[derive(Debug, Clone, Default)]
pub enum Persona {
    /// None: a plain registry.
    #[default]
    Plain,
    /// Docker Hub.
    Hub(Arc<Hub>),
    /// Azure Container Registry, its blob storage, and Entra ID.
    Acr(Arc<Acr>),
}

/// What happens to a request.
#[derive(Debug)]
pub enum Verdict {
    /// The persona answers.
    Respond(Answer),
    /// The registry behind answers.
    Forward(Box<Forward>),
}

/// A request to forward.
#[derive(Debug)]
pub struct Forward {
    /// The head to send.
    pub head: Parts,
    /// How to send the body.
    pub body: BodyRule,
    note: Note,
}

/// How the body of a forwarded request is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyRule {
    /// As it arrives.
    Streamed,
    /// Read as a whole before the registry gets any of it. A longer one is answered with [`Persona::too_large`].
    Whole {
        /// The most bytes.
        limit: u64,
    },
}

/// What happens to a part of a body when the client's connection breaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// It is dropped: the registry never sees it.
    Drop,
    /// It is sent as if it were complete. [`Persona::adjust`] gets the answer, which no client sees.
    Keep,
}

/// State of a persona between `answer` and `adjust`.
#[derive(Debug)]
enum Note {
    Nothing,
    Redirect(String),
    Pull(hub::Counted),
    Upload(acr_uploads::Step),
    Pushed { name: String, referrer: Option<acr_referrers::Referrer> },
    Deleted { name: String, reference: String },
}

impl Persona {
    /// Whether `answer` needs the request's body: a form for a token endpoint.
    #[must_use]
    pub fn wants_form(&self, head: &Parts) -> bool {
        match self {
            Self::Plain => false,
            Self::Hub(hub) => hub.wants_form(head),
            Self::Acr(acr) => acr.wants_form(head),
        }
    }

    /// Decides what happens to a request. `form` is empty unless [`Self::wants_form`].
    #[must_use]
    pub fn answer(&self, head: &Parts, form: &[u8]) -> Verdict {
        match self {
            Self::Plain => Verdict::forward(head.clone(), BodyRule::Streamed, Note::Nothing),
            Self::Hub(hub) => hub.answer(head, form),
            Self::Acr(acr) => acr.answer(head, form),
        }
    }

    /// Shows the persona a body that was read for [`BodyRule::Whole`], before it is sent.
    pub fn saw(&self, forward: &mut Forward, body: &[u8]) {
        if let (Self::Acr(_), Note::Pushed { name, referrer }) = (self, &mut forward.note) {
            *referrer = acr_referrers::Referrer::read(name, body);
        }
    }

    /// Changes the registry's answer into the persona's. A returned body replaces the registry's.
    #[must_use]
    pub fn adjust(&self, forward: &Forward, response: &mut response::Parts) -> Option<Bytes> {
        match (self, &forward.note) {
            (_, Note::Redirect(to)) if response.status == StatusCode::OK => {
                link::redirect(response, to);
                Some(Bytes::new())
            }
            // The registry was asked with HEAD: its refusal has a length but no text.
            (_, Note::Redirect(_)) => {
                let document = wire::error_document("BLOB_UNKNOWN", "blob unknown to registry");
                response.headers.remove("content-length");
                Some(Bytes::from(document.to_string()))
            }
            (Self::Hub(hub), Note::Pull(counted)) => {
                hub.adjust(counted, response);
                None
            }
            (Self::Acr(acr), note) => {
                acr.adjust(note, response);
                None
            }
            _ => None,
        }
    }

    /// The client's connection broke in the middle of this request.
    #[must_use]
    pub fn broken(&self, forward: &Forward) -> Broken {
        match (self, &forward.note) {
            (Self::Acr(acr), Note::Upload(step)) => acr.broken(step),
            _ => Broken::Drop,
        }
    }

    /// The answer to a body that is too long.
    #[must_use]
    pub fn too_large(&self) -> Answer {
        self::wire::too_large()
    }

    /// Makes all tokens so far invalid.
    pub fn revoke(&self) {
        match self {
            Self::Plain => {}
            Self::Hub(hub) => hub.mint.revoke(),
            Self::Acr(acr) => acr.mint.revoke(),
        }
    }

    /// Advances the persona's clock, so that tokens and links expire without a wait.
    pub fn advance(&self, by: Duration) {
        match self {
            Self::Plain => {}
            Self::Hub(hub) => hub.mint.advance(by),
            Self::Acr(acr) => acr.mint.advance(by),
        }
    }
}

impl From<Hub> for Persona {
    fn from(hub: Hub) -> Self {
        Self::Hub(Arc::new(hub))
    }
}

impl From<Acr> for Persona {
    fn from(acr: Acr) -> Self {
        Self::Acr(Arc::new(acr))
    }
}

impl Verdict {
    fn forward(head: Parts, body: BodyRule, note: Note) -> Self {
        Self::Forward(Box::new(Forward { head, body, note }))
    }
}
