//! A look-alike before a server, in one process: the persona sees each request, and the server answers those that the
//! persona forwards. It counts requests and injects faults.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use http::request::Parts;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};

use super::tally::Fault;
use super::tally::{Kind, Tally};
use crate::body::Body;
use crate::cli::serve::LayoutBackend;
use crate::demo::persona::{Answer, BodyRule, Persona, Verdict};
use crate::error::Error;
use crate::server::{Handler, ResponseBody, Server, buffered};

/// A registry of the demo, with two ports. By the host of a request the persona finds out whether it is for the
/// registry or for the blob storage.
pub(super) struct Front {
    persona: Persona,
    server: Server<LayoutBackend>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    tally: Tally,
    trouble: Vec<PlannedFault>,
    /// Blobs that were requested or sent since the faults were planned.
    blobs: usize,
}

/// A fault at the n-th blob that is requested or sent.
#[derive(Clone, Copy, Debug)]
pub(super) struct PlannedFault {
    pub(super) at: usize,
    pub(super) what: Fault,
}

impl Front {
    pub(super) fn new(persona: Persona, directory: LayoutBackend) -> Self {
        Self { persona, server: Server::new(directory), state: Mutex::default() }
    }

    pub(super) fn persona(&self) -> &Persona {
        &self.persona
    }

    /// Plans faults, in place of those before.
    pub(super) fn plan_faults(&self, trouble: &[PlannedFault]) {
        let mut state = self.state();
        state.trouble = trouble.to_vec();
        state.blobs = 0;
    }

    /// The answers since the last call.
    pub(super) fn take_tally(&self) -> Tally {
        std::mem::take(&mut self.state().tally)
    }

    async fn handle_request(&self, head: Parts, mut body: Body) -> Response<ResponseBody> {
        self.inject_faults(&head);
        let form = if self.persona.wants_form(&head) { collect(&mut body, MAX_FORM_BYTES).await } else { Ok(None) };
        let form = form.ok().flatten().unwrap_or_default();
        let mut forward = match self.persona.answer(&head, &form) {
            Verdict::Forward(forward) => forward,
            Verdict::Respond(answer) => {
                // A client that is still sending would get a reset instead of the answer.
                let _ = collect(&mut body, u64::MAX).await;
                return buffered_response(answer);
            }
        };
        if let BodyRule::Whole { limit } = forward.body {
            match collect(&mut body, limit).await {
                Ok(Some(bytes)) => {
                    self.persona.saw(&mut forward, &bytes);
                    body = stream::once(std::future::ready(Ok(bytes))).boxed();
                }
                Ok(None) => return buffered_response(self.persona.too_large()),
                // The client is gone, and does not read this.
                Err(_) => return buffered(StatusCode::BAD_REQUEST, "text/plain", Bytes::new()),
            }
        }
        let response = self.server.handle(Request::from_parts(forward.head.clone(), body)).await;
        let (mut head, body) = response.into_parts();
        match self.persona.adjust(&forward, &mut head) {
            Some(bytes) => Response::from_parts(head, buffered_body(bytes)),
            None => Response::from_parts(head, body),
        }
    }

    fn inject_faults(&self, head: &Parts) {
        let path = head.uri.path();
        let is_blob = path.starts_with("/v2/") && path.contains("/blobs/");
        if !is_blob || ![Method::GET, Method::PUT].contains(&head.method) {
            return;
        }
        let due: Vec<Fault> = {
            let mut state = self.state();
            state.blobs += 1;
            let now = state.blobs;
            state.trouble.iter().filter(|trouble| trouble.at == now).map(|trouble| trouble.what).collect()
        };
        for what in due {
            match what {
                Fault::TokensExpire => self.persona.revoke(),
                Fault::SessionIsLost => {
                    if let Verdict::Forward(forward) = self.persona.answer(head, &[]) {
                        let _ = self.persona.broken(&forward);
                    }
                }
            }
            self.state().tally.note_fault(what);
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Handler for Front {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        let (head, body) = request.into_parts();
        let (method, path) = (head.method.clone(), head.uri.path().to_owned());
        let response = Box::pin(self.handle_request(head, body)).await;
        self.state().tally.add(Kind::of(&method, &path, response.status()), path);
        response
    }
}

/// The whole body; `None` if it is longer than `limit`. The rest is read and dropped.
async fn collect(body: &mut Body, limit: u64) -> Result<Option<Bytes>, Error> {
    let mut bytes = BytesMut::new();
    let mut length = 0;
    while let Some(frame) = body.try_next().await? {
        length += frame.len() as u64;
        if length <= limit {
            bytes.extend_from_slice(&frame);
        }
    }
    Ok((length <= limit).then(|| bytes.freeze()))
}

fn buffered_response(answer: Answer) -> Response<ResponseBody> {
    answer.map(|body| body.map_err(|never| match never {}).boxed_unsync())
}

fn buffered_body(bytes: Bytes) -> ResponseBody {
    Full::new(bytes).map_err(|never| match never {}).boxed_unsync()
}

const MAX_FORM_BYTES: u64 = 64 << 10;
