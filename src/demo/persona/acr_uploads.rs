//! Upload sessions as in Azure Container Registry, for a registry with laxer ones.
//!
//! Clients get a relative `Location` with `_nouploadcache` and `_state`. The query of the registry behind is kept
//! here. distribution 2.8 ignores `Content-Range`, and loses a session whose state is outdated, so the offsets are
//! kept here too.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::header::{CONTENT_RANGE, LOCATION, RANGE};
use http::request::Parts;
use http::{Method, StatusCode, Uri, response};

use super::config::AfterReset;
use super::mint::Mint;
use super::wire::too_large;
use super::wire::{self, Form, set};
use super::{Answer, BodyRule, Broken};

/// Rules for upload sessions.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) body_limit: u64,
    pub(super) chunk_min: Option<u64>,
    pub(super) after_reset: AfterReset,
    pub(super) refuse_streamed: bool,
    pub(super) refuse_mounts: bool,
}

#[derive(Debug)]
pub(super) struct Uploads {
    rules: Rules,
    sessions: Mutex<HashMap<String, Session>>,
}

#[derive(Debug, Default)]
struct Session {
    /// The query that the registry behind expects in its next request.
    query: String,
    /// Bytes received so far.
    taken: u64,
    /// Grows with each chunk, so that an outdated `_state` is detected.
    serial: u64,
    /// The last chunk was shorter than the minimum. No other may follow.
    short: bool,
    lost: bool,
}

/// A request for an upload, by the path of its session.
#[derive(Debug)]
pub(super) enum Step {
    Start,
    Chunk { path: String, length: u64 },
    Status { path: String },
    Finish { path: String },
    Cancel { path: String },
}

impl Uploads {
    pub(super) fn new(rules: Rules) -> Self {
        Self { rules, sessions: Mutex::default() }
    }

    /// Checks a request for an upload, and rewrites it for the registry behind.
    pub(super) fn take(&self, mint: &Mint, head: &Parts) -> Result<(Parts, BodyRule, Step), Answer> {
        let limit = self.rules.body_limit;
        if wire::content_length(head).is_some_and(|length| length > limit) {
            return Err(too_large());
        }
        let path = head.uri.path().to_owned();
        let whole = BodyRule::Whole { limit };
        if head.method == Method::POST {
            let mut head = head.clone();
            if self.rules.refuse_mounts {
                head.uri = uri(&path, "")?;
            }
            return Ok((head, whole, Step::Start));
        }
        let mut sessions = self.sessions();
        let session = sessions.get_mut(&path).ok_or_else(unknown)?;
        if session.lost {
            return Err(self.lost(session));
        }
        let step = match head.method {
            Method::GET => Step::Status { path: path.clone() },
            Method::DELETE => Step::Cancel { path: path.clone() },
            Method::PATCH | Method::PUT => {
                check_state(mint, head, session)?;
                self.check_body(mint, head, session)?
            }
            _ => {
                return Err(wire::errors(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "not supported"));
            }
        };
        let digest = Form::of_query(head).first("digest").map(|digest| format!("digest={digest}"));
        let query = [session.query.clone(), digest.unwrap_or_default()];
        let mut forwarded = head.clone();
        forwarded.uri = uri(&path, query.join("&").trim_matches('&'))?;
        Ok((forwarded, whole, step))
    }

    /// Reads the registry's answer, and replaces its `Location`.
    pub(super) fn settle(&self, mint: &Mint, step: &Step, response: &mut response::Parts) {
        let mut sessions = self.sessions();
        let location = relative(response);
        // The answer to a finished upload has a Location too, but its session has ended.
        let session = location.as_deref().filter(|_| response.status != StatusCode::CREATED);
        let Some((path, query)) = session.map(|at| at.split_once('?').unwrap_or((at, ""))) else {
            if let Step::Cancel { path } | Step::Finish { path } = step
                && response.status.is_success()
            {
                sessions.remove(path);
            }
            return;
        };
        let session = match step {
            Step::Start => sessions.entry(path.to_owned()).or_default(),
            Step::Chunk { path, .. } | Step::Status { path } => match sessions.get_mut(path) {
                Some(session) => session,
                None => return,
            },
            Step::Finish { .. } | Step::Cancel { .. } => return,
        };
        query.clone_into(&mut session.query);
        if let Step::Chunk { length, .. } = step {
            // `0-0` may be no byte or one (docs/protocol.md, section 2). The number of bytes that were sent decides.
            let end =
                response.headers.get(RANGE).and_then(|range| range.to_str().ok()?.split_once('-')?.1.parse().ok());
            session.taken = match end {
                Some(0) | None => session.taken + length,
                Some(end) => end + 1,
            };
            session.serial += 1;
        }
        set(&mut response.headers, "location", &session.location(mint, path));
        set(&mut response.headers, "range", &session.range());
        if let (Step::Start, Some(least)) = (step, self.rules.chunk_min) {
            set(&mut response.headers, "oci-chunk-min-length", &least.to_string());
        }
    }

    /// The connection broke, before the registry saw the request or before the client saw the answer. The service is
    /// reported to lose its session in both cases.
    pub(super) fn broken(&self, step: &Step) -> Broken {
        let (Step::Chunk { path, .. } | Step::Finish { path }) = step else {
            return Broken::Drop;
        };
        match self.rules.after_reset {
            AfterReset::Kept => Broken::Drop,
            AfterReset::Partial if matches!(step, Step::Chunk { .. }) => Broken::Keep,
            AfterReset::Partial => Broken::Drop,
            AfterReset::Lost404 | AfterReset::Lost416 => {
                if let Some(session) = self.sessions().get_mut(path) {
                    session.lost = true;
                }
                Broken::Drop
            }
        }
    }

    fn check_body(&self, mint: &Mint, head: &Parts, session: &mut Session) -> Result<Step, Answer> {
        let path = head.uri.path().to_owned();
        let length = wire::content_length(head);
        let range = wire::header(head, CONTENT_RANGE.as_str());
        let patch = head.method == Method::PATCH;
        if patch && length.is_none() && (range.is_some() || self.rules.refuse_streamed) {
            let text = "the Content-Length header is missing or invalid";
            return Err(wire::errors(StatusCode::BAD_REQUEST, "CONTENT_LENGTH_INVALID", text));
        }
        if let Some(range) = range {
            let (start, end) = parse_range(range).ok_or_else(|| {
                let text = "the Content-Range header format is invalid";
                wire::errors(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", text)
            })?;
            if start != session.taken {
                return Err(out_of_order(mint, session, &path));
            }
            if length.is_some_and(|length| end.checked_sub(start).map(|last| last + 1) != Some(length)) {
                let text = "Content-Range and Content-Length disagree";
                return Err(wire::errors(StatusCode::BAD_REQUEST, "SIZE_INVALID", text));
            }
        }
        if !patch {
            return Ok(Step::Finish { path });
        }
        if session.short {
            let text = "only the last chunk may be shorter than OCI-Chunk-Min-Length";
            return Err(wire::errors(StatusCode::BAD_REQUEST, "BLOB_UPLOAD_INVALID", text));
        }
        let length = length.unwrap_or_default();
        session.short = self.rules.chunk_min.is_some_and(|least| length < least);
        Ok(Step::Chunk { path, length })
    }

    fn lost(&self, session: &Session) -> Answer {
        if self.rules.after_reset == AfterReset::Lost404 {
            return wire::errors(StatusCode::NOT_FOUND, "BLOB_UPLOAD_INVALID", "blob upload invalid");
        }
        let text = "range not satisfiable";
        let mut answer = wire::errors(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", text);
        set(answer.headers_mut(), "range", &session.range());
        answer
    }

    fn sessions(&self) -> MutexGuard<'_, HashMap<String, Session>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    fn location(&self, mint: &Mint, path: &str) -> String {
        format!("{path}?_nouploadcache=false&_state={}", self.state(mint, path))
    }

    fn state(&self, mint: &Mint, path: &str) -> String {
        mint.sign(&format!("{path} {}", self.serial))
    }

    fn range(&self) -> String {
        format!("0-{}", self.taken.saturating_sub(1))
    }
}

/// Removes scheme and host from the registry's `Location`, in place: ACR's are always relative.
pub(super) fn relative(response: &mut response::Parts) -> Option<String> {
    let location: Uri = response.headers.get(LOCATION)?.to_str().ok()?.parse().ok()?;
    let relative = location.path_and_query()?.to_string();
    set(&mut response.headers, "location", &relative);
    Some(relative)
}

/// Checks the state of a chunk: it must have the newest `Location` with its whole query. GET and DELETE may have an
/// old one.
fn check_state(mint: &Mint, head: &Parts, session: &Session) -> Result<(), Answer> {
    let query = Form::of_query(head);
    let kept = query.first("_nouploadcache") == Some("false");
    if kept && query.first("_state") == Some(&session.state(mint, head.uri.path())) {
        return Ok(());
    }
    Err(wire::errors(StatusCode::NOT_FOUND, "BLOB_UPLOAD_INVALID", "blob upload invalid"))
}

/// `^[0-9]+-[0-9]+$`: no unit before it, and no total after it.
fn parse_range(range: &str) -> Option<(u64, u64)> {
    let (start, end) = range.split_once('-')?;
    let number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok())?;
    Some((number(start)?, number(end)?))
}

fn out_of_order(mint: &Mint, session: &Session, path: &str) -> Answer {
    let text = "the chunk does not start where the last one ended";
    let mut answer = wire::errors(StatusCode::RANGE_NOT_SATISFIABLE, "RANGE_INVALID", text);
    set(answer.headers_mut(), "range", &session.range());
    set(answer.headers_mut(), "location", &session.location(mint, path));
    answer
}

fn unknown() -> Answer {
    wire::errors(StatusCode::NOT_FOUND, "BLOB_UPLOAD_UNKNOWN", "blob upload unknown to registry")
}

fn uri(path: &str, query: &str) -> Result<Uri, Answer> {
    let text = if query.is_empty() { path.to_owned() } else { format!("{path}?{query}") };
    text.parse().map_err(|_| unknown())
}
