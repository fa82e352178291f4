//! Look-alikes of Docker Hub, Azure Container Registry and Entra ID, for the demo and the tests.
//!
//! A persona stands before a plain registry. It sees the head of each request and either answers
//! it or has it forwarded, possibly rewritten; then it may adjust the registry's answer. It owns
//! no socket: the demo's server and the tests' fault-injecting front both carry it. One turn is
//!
//! 1. [`Persona::wants_form`]: collect the (small) body first, if so;
//! 2. [`Persona::answer`]: a [`Verdict`];
//! 3. for [`Verdict::Forward`], pass [`Forward::head`] on with the body as [`Forward::body`]
//!    says, calling [`Persona::saw`] with a body that was collected, and [`Persona::broken`]
//!    where the client's connection breaks meanwhile;
//! 4. [`Persona::adjust`] the answer before it goes to the client.
//!
//! What they imitate was read in vendors' documents, issues and sources, not measured on the live
//! services; where sources disagree, the look-alike takes the stricter reading, and says so.

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

/// An answer that a persona gives by itself.
pub type Answer = Response<Full<Bytes>>;

/// Who the registry behind the front pretends to be.
#[derive(Debug, Clone, Default)]
pub enum Persona {
    /// Itself.
    #[default]
    Plain,
    /// Docker Hub.
    Hub(Arc<Hub>),
    /// Azure Container Registry, its blob storage, and Entra ID.
    Acr(Arc<Acr>),
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Verdict {
    /// The persona answers.
    Respond(Answer),
    /// The registry behind it does.
    Forward(Box<Forward>),
}

/// A request to pass on.
#[derive(Debug)]
pub struct Forward {
    /// The head to send.
    pub head: Parts,
    /// How to treat the body.
    pub body: BodyRule,
    note: Note,
}

/// How the body of a forwarded request travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BodyRule {
    /// As it comes.
    Streamed,
    /// Collected before the registry sees any of it; longer than this is
    /// [`Persona::too_large`].
    Whole {
        /// The most bytes taken.
        limit: u64,
    },
}

/// What to do with the part of a body that came before the client's connection broke.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Broken {
    /// Nothing: the registry never saw it.
    Drop,
    /// Send it as if it were all, then [`Persona::adjust`] the answer nobody gets.
    Keep,
}

/// What a persona remembers between `answer` and `adjust`.
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
    /// Whether `answer` needs the request's body: forms posted to a token endpoint.
    #[must_use]
    pub fn wants_form(&self, head: &Parts) -> bool {
        match self {
            Self::Plain => false,
            Self::Hub(hub) => hub.wants_form(head),
            Self::Acr(acr) => acr.wants_form(head),
        }
    }

    /// Decides about a request. `form` is empty unless [`Self::wants_form`].
    #[must_use]
    pub fn answer(&self, head: &Parts, form: &[u8]) -> Verdict {
        match self {
            Self::Plain => Verdict::forward(head.clone(), BodyRule::Streamed, Note::Nothing),
            Self::Hub(hub) => hub.answer(head, form),
            Self::Acr(acr) => acr.answer(head, form),
        }
    }

    /// Shows the persona a body that was collected for [`BodyRule::Whole`], before it is sent on.
    pub fn saw(&self, forward: &mut Forward, body: &[u8]) {
        if let (Self::Acr(_), Note::Pushed { name, referrer }) = (self, &mut forward.note) {
            *referrer = acr_referrers::Referrer::read(name, body);
        }
    }

    /// Makes the registry's answer look like the persona's. A body that is returned replaces the
    /// registry's.
    #[must_use]
    pub fn adjust(&self, forward: &Forward, response: &mut response::Parts) -> Option<Bytes> {
        match (self, &forward.note) {
            (_, Note::Redirect(to)) if response.status == StatusCode::OK => {
                link::redirect(response, to);
                Some(Bytes::new())
            }
            // The registry was asked by HEAD, which brought its refusal's length but no text.
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

    /// Tells the persona that the client's connection broke in the middle of this request.
    #[must_use]
    pub fn broken(&self, forward: &Forward) -> Broken {
        match (self, &forward.note) {
            (Self::Acr(acr), Note::Upload(step)) => acr.broken(step),
            _ => Broken::Drop,
        }
    }

    /// The answer to a body over its limit.
    #[must_use]
    pub fn too_large(&self) -> Answer {
        self::wire::too_large()
    }

    /// Makes every token issued so far invalid.
    pub fn revoke(&self) {
        match self {
            Self::Plain => {}
            Self::Hub(hub) => hub.mint.revoke(),
            Self::Acr(acr) => acr.mint.revoke(),
        }
    }

    /// Moves the persona's clock on, so that tokens and links expire without a wait.
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
