//! The access log: one line for each request, written when its response is sent or the client has left.
//!
//! ```text
//! request ─▶ Line ─ head of the response ─ its body … dropped ─▶ AccessLog ─ queue ─▶ thread ─▶ one write a line
//!                                                         └─▶ or `transload::access` of -v and RUST_LOG
//! ```
//! Lines are formatted only if a log is enabled. A separate thread writes them, so that a log reader that stalls does not
//! block pulls. If the queue is full, lines are lost, and the next line contains their number.
//!
//! Text from clients is quoted, so that clients can neither forge lines nor control terminals. The log contains no
//! `Authorization`, and only `ns` of the query.

mod form;

use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::request::Parts;
use http::{HeaderValue, Method, Response, Uri, header};
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt as _;

use super::ResponseBody;
use super::connections::Busy;
use super::run::Peer;
use super::served::Served;
use crate::error::{Error, Result};

/// The format of lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// Fields in a fixed order.
    Text,
    /// A JSON object.
    Json,
}

/// An access log. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct AccessLog(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    form: AtomicU8,
    queue: SyncSender<LogJob>,
    lost: AtomicU64,
}

enum LogJob {
    Line(Form, String),
    /// Signals that all earlier lines are written.
    Flush(SyncSender<()>),
}

impl AccessLog {
    /// A log that writes lines in this form to `out`, or no lines.
    ///
    /// # Errors
    /// If the thread cannot be started.
    pub(crate) fn new(out: impl Write + Send + 'static, form: Option<Form>) -> Result<Self> {
        let (queue, jobs) = sync_channel(MAX_QUEUED_LINES);
        let shared = Arc::new(Shared { form: AtomicU8::new(0), queue, lost: AtomicU64::new(0) });
        let log = Self(shared.clone());
        log.set(form);
        // The thread ends with the last clone: it holds none itself.
        let lost = Arc::downgrade(&shared);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .stack_size(256 << 10)
            .spawn(move || {
                write(out, &jobs, || lost.upgrade().map_or(0, |shared| shared.lost.swap(0, Ordering::Relaxed)));
            })
            .map_err(|error| Error::io("start the access log", &error))?;
        Ok(log)
    }

    /// Changes the form of new lines; `None` for no lines.
    pub(crate) fn set(&self, form: Option<Form>) {
        let form = match form {
            None => 0,
            Some(Form::Text) => 1,
            Some(Form::Json) => 2,
        };
        self.0.form.store(form, Ordering::Relaxed);
    }

    /// Waits until all lines are written, for `patience` at most. Blocks.
    pub(crate) fn flush(&self, patience: Duration) {
        let (done, wait) = sync_channel(1);
        let until = Instant::now() + patience;
        // The queue may be full.
        while self.0.queue.try_send(LogJob::Flush(done.clone())).is_err() {
            if Instant::now() > until {
                return;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = wait.recv_timeout(until.saturating_duration_since(Instant::now()));
    }

    fn form(&self) -> Option<Form> {
        match self.0.form.load(Ordering::Relaxed) {
            1 => Some(Form::Text),
            2 => Some(Form::Json),
            _ => None,
        }
    }

    fn line(&self, form: Form, line: String) {
        if self.0.queue.try_send(LogJob::Line(form, line)).is_err() {
            self.0.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes lines until all senders are dropped.
fn write(mut out: impl Write, jobs: &Receiver<LogJob>, lost: impl Fn() -> u64) {
    let mut told = false;
    for job in jobs {
        let (form, mut line) = match job {
            LogJob::Line(form, line) => (form, line),
            LogJob::Flush(done) => {
                let _ = out.flush();
                let _ = done.try_send(());
                continue;
            }
        };
        let lost = lost();
        if lost > 0 {
            line.insert_str(0, &form::lost_lines(form, lost));
        }
        // One write for each line: it is short enough that a pipe does not mix it with others.
        if let Err(error) = out.write_all(line.as_bytes())
            && !std::mem::replace(&mut told, true)
        {
            tracing::error!("cannot write the access log: {error}");
        }
    }
}

/// The data of a request's line. The line is written on drop.
pub(super) struct Line {
    /// These parts are cheap to keep, because often no line is written.
    log: Option<AccessLog>,
    peer: Option<Peer>,
    method: Method,
    uri: Uri,
    agent: Option<HeaderValue>,
    begun: Instant,
    status: Option<u16>,
    served: Option<Served>,
    user: Option<User>,
    /// The expected length of the body, if it is known, and the bytes that were passed to the connection.
    length: Option<u64>,
    sent: u64,
    end: End,
    /// Keeps the connection busy until the line is written.
    _busy: Option<Busy>,
}

/// The authenticated user, in the extensions of the response.
#[derive(Clone, Debug)]
pub(super) struct User(pub(super) Arc<str>);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    /// The client left before the end of the response.
    Left,
    Failed,
    Whole,
}

impl Line {
    pub(super) fn new(head: &Parts, log: Option<AccessLog>, busy: Option<Busy>) -> Self {
        Self {
            log,
            peer: head.extensions.get::<Peer>().copied(),
            method: head.method.clone(),
            uri: head.uri.clone(),
            agent: head.headers.get(header::USER_AGENT).cloned(),
            begun: Instant::now(),
            status: None,
            served: None,
            user: None,
            length: None,
            sent: 0,
            end: End::Left,
            _busy: busy,
        }
    }

    /// Follows the body of the response.
    pub(super) fn follow(mut self, response: Response<ResponseBody>) -> Response<ResponseBody> {
        self.status = Some(response.status().as_u16());
        self.served = response.extensions().get().copied();
        self.user = response.extensions().get().cloned();
        self.length = response.body().size_hint().exact().or_else(|| {
            response.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok())
        });
        if response.body().is_end_stream() {
            self.end = End::Whole;
        }
        response.map(|body| Logged { body, line: self }.boxed_unsync())
    }

    fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
        // The sender does not poll the body again after the last byte.
        if self.length == Some(self.sent) {
            self.end = End::Whole;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if let Some(log) = &self.log
            && let Some(form) = log.form()
        {
            log.line(form, form::line(self, form, crate::clock::timestamp()));
        } else if tracing::enabled!(target: LOG_TARGET, tracing::Level::INFO) {
            tracing::info!(target: LOG_TARGET, "{}", form::brief_line(self));
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
            Some(Ok(frame)) => self.line.sent(frame.data_ref().map_or(0, |data| data.len() as u64)),
            Some(Err(error)) => {
                tracing::error!("{} {}: {error}", self.line.method, self.line.uri.path());
                self.line.end = End::Failed;
            }
            None => self.line.end = End::Whole,
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

/// Lines that wait to be written.
const MAX_QUEUED_LINES: usize = 4096;
/// The target of these lines for `-v` and `RUST_LOG`.
const LOG_TARGET: &str = "transload::access";
