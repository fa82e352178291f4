//! Which request meets which fault: a function of the seed, the request, and how often it was made before.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::random::Random;
use super::support::{Fault, Front, SeenRequest};

/// The faults of all fronts. Clones share them.
#[derive(Clone)]
pub(crate) struct Faults {
    seed: u64,
    /// Of 1,000 requests.
    rate: Arc<AtomicU64>,
    struck: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

impl Faults {
    pub(crate) fn new(seed: u64) -> Self {
        Self { seed, rate: Arc::default(), struck: Arc::default() }
    }

    pub(crate) fn set_rate(&self, rate: u64) {
        self.rate.store(rate, Ordering::Relaxed);
    }

    /// How often each kind of fault befell a request.
    pub(crate) fn struck(&self) -> BTreeMap<&'static str, u64> {
        self.struck.lock().expect("no panic while held").clone()
    }

    /// Lets the requests to a front meet faults.
    pub(crate) fn install(&self, front: &Front, name: &'static str) {
        let (this, times) = (self.clone(), Mutex::new(HashMap::<String, u64>::new()));
        front.choose(move |seen| {
            let request = format!("{name} {} {}", seen.method, stable(&seen.path));
            let time = {
                let mut times = times.lock().expect("no panic while held");
                let time = times.entry(request.clone()).or_default();
                *time += 1;
                *time
            };
            // The link of a redirect below. No registry has it: its own answer would be 404, as if there were no such blob.
            if seen.path == EXPIRED_LINK {
                return Some(expired());
            }
            let mut random = Random::of(this.seed, &format!("{request} {time}"));
            if random.below(1000) >= this.rate.load(Ordering::Relaxed) {
                return None;
            }
            let (kind, fault) = choose(seen, &mut random);
            *this.struck.lock().expect("no panic while held").entry(kind).or_default() += 1;
            Some(fault)
        });
    }
}

const EXPIRED_LINK: &str = "/expired-link";

/// The path without the number of an upload session, which no seed determines.
fn stable(path: &str) -> &str {
    path.split_inclusive("/uploads/").next().unwrap_or(path)
}

type Chosen = (&'static str, Fault);

fn choose(seen: &SeenRequest, random: &mut Random) -> Chosen {
    let path = seen.path.as_str();
    if path.ends_with("/token") || path == "/token" {
        return token(random);
    }
    if path.contains("/uploads/") {
        return upload(&seen.method, random);
    }
    let body = seen.method == "GET" && path != "/v2/";
    match random.below(if body { 10 } else { 4 }) {
        0..=3 => answered(&seen.method, random),
        4 if !path.starts_with("/v2/") => ("expired redirect", expired()),
        4 => ("expired redirect", Fault::Redirect(format!("http://{}{EXPIRED_LINK}", seen.host))),
        _ => spoiled(random),
    }
}

/// Statuses, delays and lost answers, which any request can meet.
fn answered(method: &str, random: &mut Random) -> Chosen {
    let seconds = random.below(3);
    match random.below(12) {
        0 => ("500", Fault::status(500)),
        1 => ("502", Fault::page(502, "Bad Gateway")),
        2 => ("503", Fault::status(503)),
        3 => ("504", Fault::page(504, "Gateway Timeout")),
        4 => ("429 with seconds", Fault::too_many(seconds)),
        5 => ("429 with a date", Fault::RetryAt { code: 429, seconds: seconds as i64 - 1 }),
        6 => ("503 with a date", Fault::RetryAt { code: 503, seconds: seconds as i64 }),
        7 => ("401 in the middle", Fault::ExpireTokens),
        8 => ("connection reset", Fault::ResetRequestAfter(0)),
        9 => ("answer lost", Fault::LoseResponse),
        10 if method != "PUT" && random.percent(30) => ("stall", Fault::Stall),
        10 => ("delay", Fault::Delay(Duration::from_millis(random.below(1500)))),
        _ => ("header removed", Fault::without("docker-content-digest")),
    }
}

/// Bodies of answers that go wrong.
fn spoiled(random: &mut Random) -> Chosen {
    let early = *random.pick(&[0, 1, 100, 333, 1000, 4096]);
    let anywhere = if random.percent(50) { early } else { random.below(1 << 20) };
    match random.below(11) {
        0 | 1 => ("reset after n bytes", Fault::ResetAfter(anywhere)),
        2 => ("stall after n bytes", Fault::StallAfter(anywhere)),
        3 => ("slow drip", Fault::Throttle(20_000 + random.below(200_000))),
        4 => ("truncation", Fault::TruncateAt(anywhere)),
        5 | 6 => ("truncation with a clean end", Fault::EndAt(anywhere)),
        7 | 8 => ("flipped byte", Fault::FlipByteAt(*random.pick(&[0, 1, 7, 60, 150, 1200, 4000, 80_000]))),
        9 => ("wrong length", Fault::WrongLength(*random.pick(&[-100, -1, 1, 1000]))),
        _ => ("range ignored", Fault::IgnoreRange),
    }
}

fn upload(method: &str, random: &mut Random) -> Chosen {
    match random.below(8) {
        0 if method != "POST" => ("upload session lost (404)", Fault::status(404)),
        1 if method != "POST" => ("upload session lost (416)", Fault::status(416)),
        2 | 3 => ("upload reset after n bytes", Fault::ResetRequestAfter(random.below(300_000))),
        4 => ("answer lost", Fault::LoseResponse),
        5 => ("slow drip", Fault::Throttle(50_000 + random.below(500_000))),
        _ => answered(method, random),
    }
}

/// The token endpoint is down, or answers rubbish.
fn token(random: &mut Random) -> Chosen {
    let rubbish = |body: &str| Fault::Status {
        code: 200,
        retry_after: None,
        content_type: "application/json".to_owned(),
        body: body.to_owned(),
    };
    let bodies = [
        "",
        "{",
        "{}",
        "null",
        "<html>sign in</html>",
        r#"{"token": ""}"#,
        r#"{"token": 17}"#,
        r#"{"token": "a\nb"}"#,
        r#"{"token": "rubbish", "expires_in": 99999999999}"#,
        r#"{"token": "rubbish", "expires_in": -5}"#,
    ];
    match random.below(10) {
        0..=4 => ("token rubbish", rubbish(random.pick::<&str>(&bodies))),
        5 => ("token endpoint down", Fault::status(503)),
        6 => ("token endpoint down", Fault::page(502, "Bad Gateway")),
        7 => ("token endpoint down", Fault::ResetRequestAfter(0)),
        8 => ("token endpoint down", Fault::too_many(1)),
        _ => ("truncation", Fault::TruncateAt(20)),
    }
}

/// What storage answers when the signature of a link is too old.
fn expired() -> Fault {
    Fault::Status {
        code: 403,
        retry_after: None,
        content_type: "application/xml".to_owned(),
        body: "<Error><Code>AccessDenied</Code><Message>Request has expired</Message></Error>".to_owned(),
    }
}
