//! One line of log for each request, written when its answer has gone out.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, Uri, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::ResponseBody;
use super::run::Peer;
use crate::error::Error;

/// What is known of a request. Written when it's dropped: at the end of the answer's body, or when
/// the client hung up.
pub(super) struct Line {
    /// Parts that are cheap to keep: most lines are never written.
    peer: Option<Peer>,
    method: Method,
    uri: Uri,
    agent: Option<HeaderValue>,
    begun: Instant,
    status: Option<u16>,
    sent: u64,
    end: &'static str,
}

impl Line {
    pub(super) fn new(head: &Parts) -> Self {
        let peer = head.extensions.get::<Peer>().copied();
        let agent = head.headers.get(header::USER_AGENT).cloned();
        let (method, uri) = (head.method.clone(), head.uri.clone());
        Self { peer, method, uri, agent, begun: Instant::now(), status: None, sent: 0, end: "" }
    }

    /// Goes on with the answer's body.
    pub(super) fn follow(mut self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        self.status = Some(response.status().as_u16());
        response.map(|body| Logged { body, line: self }.boxed_unsync())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if !tracing::enabled!(target: TARGET, tracing::Level::INFO) {
            return;
        }
        let Self { peer, method, uri, agent, begun, status, sent, end } = self;
        let ms = begun.elapsed().as_millis();
        let peer = peer.and_then(|peer| peer.0).map_or_else(|| "-".to_owned(), |peer| peer.to_string());
        let agent = agent.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("-");
        // The path only: a query says nothing that the log needs, and may hold what it shouldn't.
        let path = uri.path();
        match status {
            Some(status) => {
                tracing::info!(target: TARGET, "{peer} {method} {path} {status} {sent} {ms}ms {agent:?}{end}");
            }
            None => tracing::info!(target: TARGET, "{peer} {method} {path} - {sent} {ms}ms {agent:?} hung up"),
        }
    }
}

struct Logged {
    body: ResponseBody,
    line: Line,
}

impl http_body::Body for Logged {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let frame = ready!(Pin::new(&mut self.body).poll_frame(cx));
        match &frame {
            Some(Ok(frame)) => self.line.sent += frame.data_ref().map_or(0, |data| data.len() as u64),
            Some(Err(error)) => {
                tracing::error!("{} {}: {error}", self.line.method, self.line.uri.path());
                self.line.end = " failed";
            }
            None => {}
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// What `--log` or `RUST_LOG` call these lines.
const TARGET: &str = "transload::access";
