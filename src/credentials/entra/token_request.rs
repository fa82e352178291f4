//! One request, one answer in JSON.

use std::time::Duration;

use http::{HeaderMap, StatusCode, header};
use serde::Deserialize;

use crate::credentials::process;
use crate::error::{Error, Kind, Result};

/// More than any token, even one that lists hundreds of groups.
const MAX_RESPONSE: usize = 1 << 20;
/// In seconds. Nobody waits longer, and sums with it don't overflow.
const SECONDS_PER_DAY: u64 = 24 * 3600;

#[derive(Deserialize, Default)]
pub(super) struct Answer {
    pub(super) access_token: Option<String>,
    pub(super) error: Option<String>,
    pub(super) error_description: Option<String>,
    /// The answer was no such JSON document: it was damaged, or something between wrote a page in its place.
    #[serde(skip)]
    pub(super) unreadable: bool,
}

impl Answer {
    pub(super) fn complaint(&self, status: StatusCode) -> String {
        let first = |text: &String| text.lines().next().map(process::printable);
        let said = self.error_description.as_ref().and_then(first).or_else(|| self.error.as_ref().and_then(first));
        said.unwrap_or_else(|| format!("HTTP {status}"))
    }
}

/// Sends and reads the answer, whatever its status: an answer that isn't JSON has no fields.
pub(super) async fn send(request: reqwest::RequestBuilder) -> Result<(StatusCode, HeaderMap, Answer)> {
    let failed = |error: reqwest::Error| {
        let kind = if error.is_timeout() { Kind::Timeout } else { Kind::Network };
        Error::new(kind, error_chain(&error.without_url()))
    };
    let mut response = request.send().await.map_err(failed)?;
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_RESPONSE {
            return Err(Error::new(Kind::Invalid, "the answer is too long for a token"));
        }
        body.extend_from_slice(&chunk);
    }
    let unreadable = |_| Answer { unreadable: true, ..Answer::default() };
    let answer = serde_json::from_slice(&body).unwrap_or_else(unreadable);
    Ok((response.status(), response.headers().clone(), answer))
}

pub(super) fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds.min(SECONDS_PER_DAY)))
}

/// reqwest says "error sending request", and why in its sources. The message of an [`Error`] has its sources already.
pub(super) fn error_chain(error: &dyn std::error::Error) -> String {
    let mut said = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        said = format!("{said}: {source}");
        next = source.source().filter(|_| !source.is::<Error>());
    }
    said
}
