//! What a program that stays says of itself to those who operate it, on an address of its own:
//! `/healthz`, `/readyz`, `/metrics`.
//!
//! ```text
//! mirror --interval, proxy ── Health, Metrics ──> serve ── Kubernetes' probes, Prometheus
//! ```
//! Nothing here authenticates or is encrypted: what can be read belongs on loopback or in a cluster's network. It tells
//! no credentials; the proxy's status page tells names of images.

mod admin;

use std::future::Future;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use http::header::{ALLOW, CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, X_CONTENT_TYPE_OPTIONS};
use http::{Method, Request, Response, StatusCode};
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;

use crate::body::Body;
use crate::error::Result;
use crate::server::{self, Handler, Limits, ResponseBody, buffered};

pub(crate) use self::admin::{ADMIN_HEADER, AdminHandler, AdminRequest, chunked, json};

/// Whether the program is of use now. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Health(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// Why it is of no use now.
    why_not: Option<String>,
    /// It stops, whatever else is found of it.
    ends: bool,
}

impl Health {
    /// Not ready yet, and why.
    pub(crate) fn unready_from_start(why: &str) -> Self {
        Self(Arc::new(Mutex::new(State { why_not: Some(why.to_owned()), ends: false })))
    }

    /// It is of use.
    pub(crate) fn set_ready(&self) {
        let mut state = self.lock();
        if !state.ends {
            state.why_not = None;
        }
    }

    /// It isn't any more, and why: a line for people.
    pub(crate) fn set_unready(&self, why: impl Into<String>) {
        let mut state = self.lock();
        if !state.ends {
            state.why_not = Some(why.into());
        }
    }

    /// The program stops: it is not ready from now on, whatever else is said.
    pub(crate) fn ends(&self) {
        let mut state = self.lock();
        state.why_not = Some("it stops".to_owned());
        state.ends = true;
    }

    /// Why it isn't ready; `None` if it is.
    pub(crate) fn unready_reason(&self) -> Option<String> {
        self.lock().why_not.clone()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers at `listener` until `shutdown` is ready.
///
/// # Errors
/// Those of [`server::run`].
pub(crate) async fn serve(
    listener: TcpListener,
    health: Health,
    metrics: Arc<Registry>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    serve_with(listener, health, metrics, |_: &str| None, None, shutdown).await
}

/// The same, with `pages` that the program has besides: a path's media type and content; and with what may be
/// done to it by paths below `/admin/`, on loopback only.
///
/// # Errors
/// Those of [`server::run`].
pub(crate) async fn serve_with(
    listener: TcpListener,
    health: Health,
    metrics: Arc<Registry>,
    pages: impl Fn(&str) -> Option<Page> + Send + Sync + 'static,
    admin: Option<AdminHandler>,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let alone = is_loopback_only(&listener);
    server::run(listener, OpsHandler { health, metrics, pages, admin, alone }, limits(), shutdown).await
}

/// What may be done to the program, at an address of its own; nothing else is answered there.
///
/// # Errors
/// Those of [`server::run`].
pub(crate) async fn serve_admin(
    listener: TcpListener,
    admin: AdminHandler,
    shutdown: impl Future<Output = ()>,
) -> Result<()> {
    let alone = is_loopback_only(&listener);
    server::run(listener, AdminServer { admin, alone }, limits(), shutdown).await
}

fn is_loopback_only(listener: &TcpListener) -> bool {
    listener.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback())
}

fn limits() -> Limits {
    Limits {
        connections: 64,
        // Probes and scrapers send their request at once.
        first_byte: Duration::from_secs(5),
        head: Duration::from_secs(10),
        stalled: Duration::from_secs(10),
        drain: Duration::from_secs(1),
        ..Limits::default()
    }
}

/// A page: its media type, and its content.
pub(crate) type Page = (&'static str, Bytes);

struct OpsHandler<P> {
    health: Health,
    metrics: Arc<Registry>,
    pages: P,
    admin: Option<AdminHandler>,
    /// Only this machine can connect.
    alone: bool,
}

struct AdminServer {
    admin: AdminHandler,
    alone: bool,
}

impl<P: Fn(&str) -> Option<Page> + Send + Sync + 'static> Handler for OpsHandler<P> {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        let response = match &self.admin {
            Some(admin) if request.uri().path().starts_with("/admin/") => {
                admin::answer(admin, self.alone, &request.into_parts().0).await
            }
            _ => self.answer(request.method(), request.uri().path()),
        };
        with_security_headers(response)
    }
}

impl Handler for AdminServer {
    async fn handle(&self, request: Request<Body>) -> Response<ResponseBody> {
        with_security_headers(match request.uri().path() {
            path if path.starts_with("/admin/") => {
                admin::answer(&self.admin, self.alone, &request.into_parts().0).await
            }
            _ => text(StatusCode::NOT_FOUND, "there is /admin/ here, and nothing else\n"),
        })
    }
}

/// Says to browsers what isn't theirs.
fn with_security_headers(mut response: Response<ResponseBody>) -> Response<ResponseBody> {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(CONTENT_SECURITY_POLICY, HeaderValue::from_static(PAGE_POLICY));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

impl<P: Fn(&str) -> Option<Page>> OpsHandler<P> {
    fn answer(&self, method: &Method, path: &str) -> Response<ResponseBody> {
        let page = (self.pages)(path);
        if page.is_none() && !matches!(path, "/healthz" | "/readyz" | "/metrics") {
            return text(StatusCode::NOT_FOUND, "there are /healthz, /readyz and /metrics here\n");
        }
        if method != Method::GET && method != Method::HEAD {
            let mut refused = text(StatusCode::METHOD_NOT_ALLOWED, "only to be read\n");
            refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
            return refused;
        }
        if let Some((kind, content)) = page {
            return buffered(StatusCode::OK, kind, content);
        }
        match path {
            // That this is answered at all says it: the runtime turns.
            "/healthz" => text(StatusCode::OK, "ok\n"),
            "/readyz" => match self.health.unready_reason() {
                None => text(StatusCode::OK, "ok\n"),
                Some(why) => text(StatusCode::SERVICE_UNAVAILABLE, &format!("{why}\n")),
            },
            _ => {
                let mut page = String::new();
                match prometheus_client::encoding::text::encode(&mut page, &self.metrics) {
                    Ok(()) => buffered(StatusCode::OK, OPEN_METRICS, Bytes::from(page)),
                    Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, &format!("{error}\n")),
                }
            }
        }
    }
}

fn text(status: StatusCode, said: &str) -> Response<ResponseBody> {
    buffered(status, "text/plain; charset=utf-8", Bytes::copy_from_slice(said.as_bytes()))
}

/// A page needs nothing from elsewhere, and nobody may put it into another one.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
    connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

#[cfg(test)]
mod tests {
    use prometheus_client::metrics::counter::Counter;

    use super::*;

    #[tokio::test]
    async fn probes_and_metrics_are_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("an address");
        let (health, counter) = (Health::unready_from_start("the first run is not done"), Counter::<u64>::default());
        let mut metrics = Registry::default();
        metrics.register("things", "Things that were seen", counter.clone());
        counter.inc_by(3);
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let served = serve(listener, health.clone(), Arc::new(metrics), async {
            let _ = stopped.await;
        });
        let asked = async {
            let client = reqwest::Client::builder().no_proxy().build().expect("a client");
            let get = async |method: Method, path: &str| {
                let answer = client.request(method, format!("http://{address}{path}")).send().await.expect("an answer");
                let kind = answer.headers()["content-type"].to_str().expect("text").to_owned();
                (answer.status().as_u16(), kind, answer.text().await.expect("text"))
            };
            let plain = || "text/plain; charset=utf-8".to_owned();
            assert_eq!(get(Method::GET, "/healthz").await, (200, plain(), "ok\n".into()));
            assert_eq!(get(Method::GET, "/readyz").await, (503, plain(), "the first run is not done\n".into()));
            health.set_ready();
            assert_eq!(get(Method::GET, "/readyz?x=y").await, (200, plain(), "ok\n".into()));
            health.set_unready("the list is broken");
            assert_eq!(get(Method::GET, "/readyz").await.2, "the list is broken\n");
            assert_eq!(get(Method::HEAD, "/healthz").await.0, 200);
            assert_eq!(get(Method::POST, "/healthz").await.0, 405);
            assert_eq!(get(Method::GET, "/").await.0, 404);
            let (status, kind, page) = get(Method::GET, "/metrics").await;
            assert_eq!((status, kind.as_str()), (200, OPEN_METRICS));
            assert!(page.contains("\nthings_total 3\n") && page.ends_with("# EOF\n"), "{page}");
            drop(stop);
        };
        tokio::join!(async { served.await.expect("an orderly end") }, asked);
    }
}
