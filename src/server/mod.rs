//! Answers HTTP as a registry: the distribution API over a [`Backend`].
//!
//! ```text
//! run: listener ─ limits, drain ─ access log ─▶ Handler: Server<B>
//!                                                 route (pure) ─▶ pull ─┐
//!                                                              └▶ push ─┴▶ Backend
//! ```
//!
//! [`Server::handle`] takes and gives plain `http` types, so that it can be called in process, and
//! so that something may stand before it: `transload demo` puts the manners of Docker Hub and of
//! Azure there. Nothing here buffers a blob. Who may ask is for `listen` (TLS, client certificates) and
//! `guard` (tokens, `users`); without them it belongs on loopback or in a cluster's network.

mod access;
mod backend;
mod connections;
mod guard;
mod head;
mod incoming;
mod large;
mod listen;
mod pull;
mod push;
mod range;
mod refusal;
mod respond;
mod route;
mod run;
mod sendfile;
mod served;
mod stall;
mod uploads;
mod users;
mod watched;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;

use crate::content::Body;
use crate::error::Error;

pub use access::{AccessLog, Form};
pub use backend::{Backend, Blob, Referrers, Upload};
pub use guard::{Access, Guarded, Tokens};
pub use incoming::incoming;
pub use listen::{Listener, Tls};
pub use refusal::Refusal;
pub use respond::{streamed, whole};
pub use route::{Begin, Page, Place, Route, route};
pub use run::{Limits, Peer, run};
pub use sendfile::FilePipe;
pub use served::{Served, say};
pub use users::Users;

/// The body of an answer.
pub type ResponseBody = UnsyncBoxBody<Bytes, Error>;

/// Something that answers requests.
pub trait Handler: Send + Sync + 'static {
    /// The answer. If the client hangs up, this is dropped.
    fn handle(&self, request: Request<Body>) -> impl Future<Output = Response<ResponseBody>> + Send;
}

/// The distribution API over a backend.
pub struct Server<B: Backend> {
    backend: B,
    uploads: uploads::Uploads<B::Upload>,
    large: large::Large,
}

impl<B: Backend> Server<B> {
    /// A server of what `backend` holds.
    pub fn new(backend: B) -> Self {
        Self { backend, uploads: uploads::Uploads::default(), large: large::Large::default() }
    }

    /// What it serves.
    pub fn backend(&self) -> &B {
        &self.backend
    }

    /// Gives up uploads that were silent for ten minutes. Also done whenever one begins.
    pub fn sweep(&self) {
        self.uploads.sweep();
    }

    /// Answers one request.
    pub async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        let (head, mut body) = request.into_parts();
        let (mut namespace, mut served) = (None, None);
        // A push to a registry that takes none is answered before anything else is looked at: a session's
        // name, for one, is that of whatever registry the client thinks this is.
        let pushes = !matches!(head.method, Method::GET | Method::HEAD) && !self.backend.is_writable();
        let routed = if pushes { Err(read_only()) } else { route(&head.method, head.uri.path(), head.uri.query()) };
        let answered = match routed {
            Ok(route) => {
                namespace = route.namespace().filter(|_| self.backend.knows_namespaces()).map(str::to_owned);
                let (answer, said) = served::hear(self.answer(route, &head, &mut body)).await;
                served = said;
                answer
            }
            Err(refusal) => Err(refusal),
        };
        let mut response = match answered {
            Ok(response) => response,
            Err(refusal) => {
                // Who is still sending would lose the answer to a reset connection; who waits for
                // "100 Continue" sends nothing.
                if !head.headers.contains_key(header::EXPECT) {
                    incoming::discard(&mut body).await;
                }
                refusal.into_response()
            }
        };
        if head.method == Method::HEAD {
            respond::no_body(&mut response);
        }
        let good = !response.status().is_client_error() && !response.status().is_server_error();
        let headers = response.headers_mut();
        if let Some(namespace) = namespace.filter(|_| good) {
            respond::set(headers, HeaderName::from_static("oci-namespace"), &namespace);
        }
        if served.is_some_and(|served| served.stale) {
            // RFC 7234, 5.5.1. The one after it has no such header, and clients don't mind it.
            headers.insert(header::WARNING, HeaderValue::from_static("110 - \"Response is Stale\""));
        }
        headers.insert("docker-distribution-api-version", HeaderValue::from_static("registry/2.0"));
        headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        if let Some(served) = served {
            response.extensions_mut().insert(served);
        }
        response
    }

    async fn answer(&self, route: Route, head: &Parts, body: &mut Body) -> Result<Response<ResponseBody>, Refusal> {
        if route.is_write() && !self.backend.is_writable() {
            return Err(read_only());
        }
        // A future is copied into its box. Those of uploads have up to 60 KB: each route has a box of its own, so that a pull
        // does not pay for them.
        match route {
            Route::Base => Ok(respond::whole(StatusCode::OK, "application/json", Bytes::from_static(b"{}"))),
            Route::Manifest(place, target) => Box::pin(self.manifest(&place, &target, head)).await,
            Route::Blob(place, digest) => Box::pin(self.blob(&place, digest, head)).await,
            Route::Catalog(page) => Box::pin(self.catalog(&page)).await,
            Route::Tags(place, page) => Box::pin(self.tags(&place, &page)).await,
            Route::Referrers(place, subject, kind) => Box::pin(self.referrers(&place, &subject, kind.as_deref())).await,
            Route::PutManifest(place, target, tags) => {
                Box::pin(self.put_manifest(&place, target, tags, head, body)).await
            }
            Route::Begin(place, begin) => Box::pin(self.begin(place, begin, body)).await,
            Route::Status(place, id) => Box::pin(self.status(&place, &id)).await,
            Route::Append(place, id) => Box::pin(self.append(&place, &id, head, body)).await,
            Route::Finish(place, id, digest) => Box::pin(self.finish(&place, &id, digest, head, body)).await,
            Route::Cancel(place, id) => Box::pin(self.cancel(&place, &id)).await,
        }
    }
}

fn read_only() -> Refusal {
    Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "this registry is read-only")
        .with(header::ALLOW, "GET, HEAD")
}

impl<B: Backend> Handler for Server<B> {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        Self::handle(self, request).await
    }
}

impl<H: Handler> Handler for Arc<H> {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        H::handle(self, request).await
    }
}

#[cfg(test)]
mod tests;
