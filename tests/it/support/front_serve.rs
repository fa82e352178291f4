//! The front's way with a request: fault, persona, registry, fault.

use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Incoming};
use hyper::header::{CONTENT_LENGTH, HOST, HeaderMap, HeaderName, HeaderValue};
use hyper::http::{request, response};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use transload::demo::persona::{BodyRule, Broken, Forward, Persona, Verdict};

use super::Fault;
use super::front_body::{Cut, FrontBody, Plan, pass};
use super::front_log::{Entry, SeenRequest, Shared};
use super::front_upstream::{Failed, collect, empty, full, full_of, length, send};
use super::wire::{Control, Wire};

/// One port of a front.
pub struct Listen {
    pub listener: TcpListener,
    pub acceptor: Option<Arc<ServerConfig>>,
    pub side: bool,
}

/// Accepts connections for ever.
pub async fn serve(listen: Listen, shared: Arc<Shared>) {
    let mut listener = tokio::net::TcpListener::from_std(listen.listener).expect("a listener");
    let addr = listener.local_addr().expect("an address");
    let mut refusing = shared.refusing.subscribe();
    let acceptor = listen.acceptor.map(TlsAcceptor::from);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => Some(accepted),
            _ = refusing.wait_for(|refusing| *refusing) => None,
        };
        let tcp = match accepted {
            Some(Ok((tcp, _))) => tcp,
            Some(Err(_)) => continue,
            None => {
                drop(listener);
                drop(refusing.wait_for(|refusing| !refusing).await);
                listener = listen_again(addr).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (wire, control) = Wire::new(tcp);
        let connection = Connection {
            number: shared.connections.fetch_add(1, Ordering::Relaxed),
            side: listen.side,
            secure: acceptor.is_some(),
            shared: Arc::clone(&shared),
            control,
        };
        let acceptor = acceptor.clone();
        let open = shared.open();
        connections.spawn(async move {
            let _open = open;
            match acceptor {
                None => connection.run(wire).await,
                Some(acceptor) => {
                    if let Ok(stream) = acceptor.accept(wire).await {
                        connection.run(stream).await;
                    }
                }
            }
        });
    }
}

/// Takes the port again. Connections of others may hold it for a moment.
async fn listen_again(addr: std::net::SocketAddr) -> tokio::net::TcpListener {
    loop {
        match tokio::net::TcpListener::bind(addr).await {
            Ok(listener) => return listener,
            Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
        }
    }
}

struct Connection {
    number: u64,
    side: bool,
    secure: bool,
    shared: Arc<Shared>,
    control: Arc<Control>,
}

impl Connection {
    async fn run(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let this = Arc::new(self);
        let service = service_fn(move |request| {
            let this = Arc::clone(&this);
            // A task of its own: hyper drops a request's future when the client goes away, but a
            // registry ends what it began.
            let task = tokio::runtime::Handle::current().spawn(async move { this.turn(request).await });
            async move { task.await.unwrap_or(Err(Cut)) }
        });
        let builder = auto::Builder::new(TokioExecutor::new());
        // Fails whenever a fault cuts the connection.
        drop(builder.serve_connection(TokioIo::new(stream), service).await);
    }

    async fn turn(&self, request: Request<Incoming>) -> Result<Response<FrontBody>, Cut> {
        let (mut head, body) = request.into_parts();
        let seen = SeenRequest::new(self.number, self.side, &head);
        let target = seen.target();
        let entry = self.shared.enter(seen);
        if let Some(answer) = self.fault_before(&entry, &target).await? {
            self.linger(&entry, body);
            entry.answered(answer.status().as_u16());
            return Ok(answer);
        }
        if entry.fault == Some(Fault::IgnoreRange) {
            head.headers.remove("range");
        }
        let method = head.method.clone();
        let answer = self.answer(&entry, head, body).await?;
        if entry.fault == Some(Fault::LoseResponse) {
            return Err(Cut);
        }
        let (mut head, body) = answer.into_parts();
        self.spoil_head(&entry, &mut head);
        entry.answered(head.status.as_u16());
        let bodiless = method == Method::HEAD || head.status == 204 || head.status == 304;
        let body = if bodiless {
            empty()
        } else {
            let length = body.size_hint().exact().or_else(|| length(&head.headers));
            let plan = Plan::of_answer(entry.fault.as_ref(), length);
            if matches!(entry.fault, Some(Fault::EndAt(_))) {
                head.headers.remove(CONTENT_LENGTH);
            } else if let Some(length) = length {
                let length = plan.end.unwrap_or(length) + plan.append;
                head.headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
            }
            pass(body, plan, Arc::clone(&self.control), Arc::clone(&entry.sent))
        };
        Ok(Response::from_parts(head, body))
    }

    /// Faults that come before anything else.
    async fn fault_before(&self, entry: &Entry<'_>, target: &str) -> Result<Option<Response<FrontBody>>, Cut> {
        let Some(fault) = &entry.fault else {
            return Ok(None);
        };
        match fault {
            Fault::Page { body, next } => {
                let mut answer = Response::new(full(Bytes::from(body.clone())));
                if let Some(next) = next {
                    let link = format!("<{next}>; rel=\"next\"");
                    answer.headers_mut().insert(hyper::header::LINK, link.parse().expect("a link"));
                }
                return Ok(Some(answer));
            }
            Fault::Status { code, retry_after, content_type, body } => {
                let mut answer = Response::new(full(Bytes::from(body.clone())));
                *answer.status_mut() = StatusCode::from_u16(*code).expect("a status code");
                let headers = answer.headers_mut();
                headers.insert("content-type", content_type.parse().expect("a header's value"));
                if let Some(seconds) = retry_after {
                    headers.insert("retry-after", HeaderValue::from(*seconds));
                }
                return Ok(Some(answer));
            }
            Fault::RetryAt { code, seconds } => {
                let mut answer = Response::new(empty());
                *answer.status_mut() = StatusCode::from_u16(*code).expect("a status code");
                let then = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(*seconds);
                // IMF-fixdate (RFC 9110 §5.6.7).
                let date = then.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
                answer.headers_mut().insert("retry-after", date.parse().expect("a header's value"));
                return Ok(Some(answer));
            }
            Fault::Demand(challenge) => {
                let mut answer = Response::new(empty());
                *answer.status_mut() = StatusCode::UNAUTHORIZED;
                answer.headers_mut().insert("www-authenticate", HeaderValue::from_static(challenge));
                return Ok(Some(answer));
            }
            Fault::Redirect(to) => {
                let mut answer = Response::new(empty());
                *answer.status_mut() = StatusCode::TEMPORARY_REDIRECT;
                answer.headers_mut().insert("location", to.parse().expect("a header's value"));
                return Ok(Some(answer));
            }
            Fault::SendOn(status, to) => {
                let mut answer = Response::new(empty());
                *answer.status_mut() = StatusCode::from_u16(*status).expect("a status");
                let location = format!("{to}{target}");
                answer.headers_mut().insert("location", location.parse().expect("a header's value"));
                return Ok(Some(answer));
            }
            Fault::ExpireTokens => self.shared.persona.revoke(),
            Fault::Delay(time) => tokio::time::sleep(*time).await,
            Fault::Stall => std::future::pending().await,
            Fault::ResetRequestAfter(0) => {
                self.control.reset_on_close();
                return Err(Cut);
            }
            _ => {}
        }
        Ok(None)
    }

    async fn answer(
        &self,
        entry: &Entry<'_>,
        head: request::Parts,
        body: Incoming,
    ) -> Result<Response<FrontBody>, Cut> {
        let persona = &self.shared.persona;
        let plan = Plan::of_request(entry.fault.as_ref());
        let count = |control| move |body| pass(body, plan, control, Arc::clone(&entry.received));
        // Requests of one session wait for each other, so that none sees a state in between.
        let session = self.shared.upload(head.uri.path());
        let ordered = matches!(persona, Persona::Acr(_)) && head.uri.path().contains("/uploads/");
        let _turn = if ordered { Some(session.lock().await) } else { None };
        if persona.wants_form(&head) {
            let mut body = count(Control::idle())(body);
            let form = collect(&mut body, u64::MAX).await.map_err(|_| self.cut(entry))?;
            return match persona.answer(&head, &form) {
                Verdict::Respond(answer) => Ok(answer.map(full_of)),
                Verdict::Forward(forward) => self.forward(forward.head, |_| full(form)).await,
            };
        }
        let mut forward = match persona.answer(&head, &[]) {
            Verdict::Respond(answer) => {
                self.linger(entry, body);
                return Ok(answer.map(full_of));
            }
            Verdict::Forward(forward) => forward,
        };
        let answer = match forward.body {
            BodyRule::Streamed => {
                let body = |control| count(control)(body);
                self.forward(forward.head.clone(), body).await
            }
            BodyRule::Whole { limit } => {
                let mut body = count(Control::idle())(body);
                let whole = match collect(&mut body, limit).await {
                    Ok(whole) => whole,
                    Err(Failed::TooLarge) => {
                        self.linger(entry, body);
                        return Ok(persona.too_large().map(full_of));
                    }
                    Err(Failed::Broken(part)) => {
                        if persona.broken(&forward) == Broken::Keep {
                            let answer = self.forward_whole(&forward, part).await?;
                            drop(persona.adjust(&forward, &mut answer.into_parts().0));
                        }
                        return Err(self.cut(entry));
                    }
                };
                persona.saw(&mut forward, &whole);
                self.forward_whole(&forward, whole).await
            }
        };
        let (mut head, body) = answer.map_err(|_| self.cut(entry))?.into_parts();
        let replaced = persona.adjust(&forward, &mut head);
        if entry.fault == Some(Fault::LoseResponse) {
            // The service is said to lose the session then too.
            let _: Broken = persona.broken(&forward);
        }
        Ok(Response::from_parts(head, replaced.map_or(body, full)))
    }

    async fn forward(
        &self,
        head: request::Parts,
        body: impl FnOnce(Arc<Control>) -> FrontBody,
    ) -> Result<Response<FrontBody>, Cut> {
        send(self.shared.upstream(), self.secure, head, body).await
    }

    async fn forward_whole(&self, forward: &Forward, body: Bytes) -> Result<Response<FrontBody>, Cut> {
        let mut head = forward.head.clone();
        if head.method != Method::GET && head.method != Method::HEAD {
            head.headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
        }
        self.forward(head, |_| full(body)).await
    }

    /// An answer goes out before the request's body has come: reads on, as nginx's lingering close
    /// does, so that the client gets to see it. Otherwise hyper hangs up, and the reset may
    /// overtake the answer.
    fn linger<B>(&self, entry: &Entry<'_>, body: B)
    where
        B: Body<Data = Bytes, Error: Send> + Send + Unpin + 'static,
    {
        if !self.shared.linger {
            return;
        }
        let mut body = pass(body, Plan::default(), Control::idle(), Arc::clone(&entry.received));
        tokio::runtime::Handle::current().spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
    }

    fn spoil_head(&self, entry: &Entry<'_>, head: &mut response::Parts) {
        if let Some(Fault::Header(name, value)) = &entry.fault {
            let name = HeaderName::from_static(name);
            match value {
                Some(value) => {
                    head.headers.insert(name, value.parse().expect("a header's value"));
                }
                None => {
                    head.headers.remove(name);
                }
            }
        }
    }

    /// The end of a connection whose request broke off.
    fn cut(&self, entry: &Entry<'_>) -> Cut {
        if matches!(entry.fault, Some(Fault::ResetRequestAfter(_))) {
            self.control.reset_on_close();
        }
        Cut
    }
}
