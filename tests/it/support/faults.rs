//! What can go wrong on the way, and to which requests.

use std::fmt;
use std::ops::{Bound, RangeBounds};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use super::SeenRequest;

/// One thing that goes wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Answered at once with this; nothing reaches the registry.
    Status { code: u16, retry_after: Option<u64>, content_type: String, body: String },
    /// 200 with this page of a list, and where the next one is.
    Page { body: String, next: Option<String> },
    /// This status, with a `Retry-After` that is a date so many seconds from now, or before.
    RetryAt { code: u16, seconds: i64 },
    /// 429 with a `Retry-After` that counts down from the first hit; after that, nothing.
    CountDown(Duration),
    /// 401 with this `WWW-Authenticate`.
    Demand(&'static str),
    /// 307 to this URL.
    Redirect(String),
    /// This status, and the same path and query at this origin as the `Location`: a front that sends all on.
    SendOn(u16, String),
    /// Every token so far is invalid from now on; then the persona answers as ever.
    ExpireTokens,
    /// Waits, then goes on as ever.
    Delay(Duration),
    /// No answer ever comes, the connection stays open.
    Stall,
    /// The client's connection is reset after at most this many bytes of the answer's body. (Over
    /// HTTP/2 the stream is.)
    ResetAfter(u64),
    /// The connections of client and registry are cut after this many bytes of the request's body;
    /// with 0 the registry sees nothing. An ACR persona collects bodies first: see its `AfterReset`.
    ResetRequestAfter(u64),
    /// The request reaches the registry; the client's connection ends without the answer.
    LoseResponse,
    /// The answer's body stops after exactly so many bytes; the connection stays open.
    StallAfter(u64),
    /// The answer's body ends after exactly so many bytes, short of the `Content-Length`, and the
    /// connection is closed.
    TruncateAt(u64),
    /// The answer has no `Content-Length`, and its body ends properly after so many bytes.
    EndAt(u64),
    /// All bits of this byte of the answer's body are inverted.
    FlipByteAt(u64),
    /// A correct answer, but by so many bytes longer (zeros) or shorter than the real one.
    WrongLength(i64),
    /// Both bodies move at this many bytes a second.
    Throttle(u64),
    /// The request's `Range` is not seen, and all is answered.
    IgnoreRange,
    /// A header of the answer is set, or removed.
    Header(&'static str, Option<String>),
}

impl Fault {
    /// A status with an error document of the distribution API.
    pub fn status(code: u16) -> Self {
        let body = r#"{"errors":[{"code":"UNKNOWN","message":"injected by the test"}]}"#;
        Self::Status { code, retry_after: None, content_type: "application/json".to_owned(), body: body.to_owned() }
    }

    /// 429 with `Retry-After`.
    pub fn too_many(seconds: u64) -> Self {
        let body = r#"{"errors":[{"code":"TOOMANYREQUESTS","message":"injected by the test"}]}"#;
        Self::Status {
            code: 429,
            retry_after: Some(seconds),
            content_type: "application/json".to_owned(),
            body: body.to_owned(),
        }
    }

    /// A status with a page as gateways write them.
    pub fn page(code: u16, text: &str) -> Self {
        Self::Status {
            code,
            retry_after: None,
            content_type: "text/html".to_owned(),
            body: format!("<html><body><center><h1>{text}</h1></center></body></html>"),
        }
    }

    /// The header removed, as by a careless proxy.
    pub fn without(header: &'static str) -> Self {
        Self::Header(header, None)
    }
}

type Condition = Box<dyn Fn(&SeenRequest) -> bool + Send + Sync>;

/// Which requests a fault befalls: all that match, or some of them by their number.
pub struct Rule {
    method: String,
    path: String,
    host: Option<String>,
    when: Option<Condition>,
    nth: (Bound<usize>, Bound<usize>),
    matched: AtomicUsize,
    since: Mutex<Option<Instant>>,
    fault: Fault,
}

impl Rule {
    /// Requests of this method (`*` is any) with this in their path and query.
    pub fn on(method: &str, path: &str, fault: Fault) -> Self {
        Self {
            method: method.to_owned(),
            path: path.to_owned(),
            host: None,
            when: None,
            nth: (Bound::Unbounded, Bound::Unbounded),
            matched: AtomicUsize::new(0),
            since: Mutex::default(),
            fault,
        }
    }

    /// To this host only, as in `Host`.
    pub fn host(mut self, host: &str) -> Self {
        self.host = Some(host.to_owned());
        self
    }

    /// If this holds too.
    pub fn when(mut self, condition: impl Fn(&SeenRequest) -> bool + Send + Sync + 'static) -> Self {
        self.when = Some(Box::new(condition));
        self
    }

    /// Only these of the matching requests; the first one is 1.
    pub fn nth(mut self, which: impl RangeBounds<usize>) -> Self {
        self.nth = (which.start_bound().cloned(), which.end_bound().cloned());
        self
    }

    /// Only the first matching request.
    pub fn once(self) -> Self {
        self.nth(1..=1)
    }

    /// What befalls this request, if anything. Counts it.
    pub(super) fn strike(&self, seen: &SeenRequest) -> Option<Fault> {
        let matches = (self.method == "*" || self.method == seen.method)
            && seen.target().contains(&self.path)
            && self.host.as_ref().is_none_or(|host| *host == seen.host)
            && self.when.as_ref().is_none_or(|when| when(seen));
        if !matches || !self.nth.contains(&(self.matched.fetch_add(1, Ordering::Relaxed) + 1)) {
            return None;
        }
        let Fault::CountDown(whole) = self.fault else {
            return Some(self.fault.clone());
        };
        let since = *self.since.lock().expect("no panic while held").get_or_insert_with(Instant::now);
        let left = whole.checked_sub(since.elapsed()).filter(|left| !left.is_zero())?;
        Some(Fault::too_many(left.as_secs_f64().ceil() as u64))
    }
}

impl fmt::Debug for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} …{}… {:?} → {:?}", self.method, self.path, self.nth, self.fault)
    }
}
