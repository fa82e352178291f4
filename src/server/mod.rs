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
//! `auth` (tokens, `users`); without them it belongs on loopback or in a cluster's network.

mod access_log;
mod auth;
mod backend;
mod connections;
mod head_filter;
mod head_parser;
mod large_responses;
mod listen;
mod pull;
mod push;
mod range;
mod refusal;
mod request_body;
mod respond;
mod route;
mod run;
mod sendfile;
mod served;
mod uploads;
mod users;
mod write_timeout;

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;

use self::pull::ServedAnswer;
use crate::body::Body;
use crate::error::Error;

pub use access_log::{AccessLog, Form};
pub use auth::{AccessControl, Guarded, Tokens};
pub use backend::{Backend, Blob, Referrers, Upload};
pub use listen::{Listener, TlsConfig};
pub use refusal::Refusal;
pub use request_body::request_body;
pub use respond::{buffered, streamed};
pub use route::{BeginUpload, PageQuery, RepositoryPath, Route, route};
pub use run::{Limits, Peer, run};
pub use sendfile::FilePipe;
pub use served::{Reply, Served};
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
    large: large_responses::LargeResponses,
}

impl<B: Backend> Server<B> {
    /// A server of what `backend` holds.
    pub fn new(backend: B) -> Self {
        Self { backend, uploads: uploads::Uploads::default(), large: large_responses::LargeResponses::default() }
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
        let routed = if pushes { Err(not_writable()) } else { route(&head.method, head.uri.path(), head.uri.query()) };
        let answered = match routed {
            Ok(route) => {
                namespace = route.namespace().filter(|_| self.backend.knows_namespaces()).map(str::to_owned);
                let reply = self.answer(route, &head, &mut body).await;
                served = reply.served;
                reply.found
            }
            Err(refusal) => Err(refusal),
        };
        let mut response = match answered {
            Ok(response) => response,
            Err(refusal) => {
                // Who is still sending would lose the answer to a reset connection; who waits for
                // "100 Continue" sends nothing.
                if !head.headers.contains_key(header::EXPECT) {
                    request_body::discard(&mut body).await;
                }
                refusal.into_response()
            }
        };
        if head.method == Method::HEAD {
            respond::remove_body(&mut response);
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

    async fn answer(&self, route: Route, head: &Parts, body: &mut Body) -> ServedAnswer {
        if route.is_write() && !self.backend.is_writable() {
            return Err(not_writable()).into();
        }
        // A future is copied into its box. Those of uploads have up to 60 KB: each route has a box of its own, so that a pull
        // does not pay for them.
        match route {
            Route::Base => Ok(respond::buffered(StatusCode::OK, "application/json", Bytes::from_static(b"{}"))).into(),
            Route::Manifest(repository, target) => Box::pin(self.manifest(&repository, &target, head)).await,
            Route::Blob(repository, digest) => Box::pin(self.blob(&repository, digest, head)).await,
            Route::Catalog(page) => Box::pin(self.catalog(&page)).await.into(),
            Route::Tags(repository, page) => Box::pin(self.tags(&repository, &page)).await,
            Route::Referrers(repository, subject, kind) => {
                Box::pin(self.referrers(&repository, &subject, kind.as_deref())).await
            }
            Route::PutManifest(repository, target, tags) => {
                Box::pin(self.put_manifest(&repository, target, tags, head, body)).await.into()
            }
            Route::Begin(repository, begin) => Box::pin(self.begin(repository, begin, body)).await.into(),
            Route::Status(repository, id) => Box::pin(self.status(&repository, &id)).await.into(),
            Route::Append(repository, id) => Box::pin(self.append(&repository, &id, head, body)).await.into(),
            Route::Finish(repository, id, digest) => {
                Box::pin(self.finish(&repository, &id, digest, head, body)).await.into()
            }
            Route::Cancel(repository, id) => Box::pin(self.cancel(&repository, &id)).await.into(),
        }
    }
}

fn not_writable() -> Refusal {
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
