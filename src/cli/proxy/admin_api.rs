//! What a running proxy's cache is told to do: the paths below `/admin/` of its operators' address, or of one of
//! their own.
//!
//! ```text
//! GET    /admin/cache                                 tags in parts, one a line; then the sums
//! DELETE /admin/cache?what=docker.io/library/nginx:1  or a digest; 404, 409 where it's being read
//! POST   /admin/gc?older-than=SECONDS&dry-run         what was freed
//! POST   /admin/verify                                what was read and dropped, in parts, one a line
//! ```
//! The parts are small however large the cache is. The last line has `"done": true`: without it the
//! answer broke off.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, TryStreamExt as _, stream};
use http::{Method, Response, StatusCode};
use serde_json::{Value, json};

use crate::body::Body;
use crate::error::{Error, Kind, Result};
use crate::ops::{self, AdminRequest};
use crate::proxy::cache::offline::Item;
use crate::proxy::cache::{GcOptions, Removal};
use crate::proxy::cache_admin::{CacheAdmin, PARTS};
use crate::server::ResponseBody;

/// What does to the cache what it's asked.
pub(super) fn admin_handler(admin: CacheAdmin) -> ops::AdminHandler {
    Arc::new(move |asked| {
        let admin = admin.clone();
        async move { handle_request(admin, &asked).await.unwrap_or_else(|error| refusal(&error)) }.boxed()
    })
}

/// What stands in its place where orders have an address of their own.
pub(super) fn moved_handler() -> ops::AdminHandler {
    Arc::new(|_| {
        let said = json!({ "error": "it takes orders at another address: that of its --listen-admin" });
        async move { ops::json(StatusCode::FORBIDDEN, &said) }.boxed()
    })
}

async fn handle_request(admin: CacheAdmin, asked: &AdminRequest) -> Result<Response<ResponseBody>> {
    match (&asked.method, asked.path.as_str()) {
        (&Method::GET, "/admin/cache") => Ok(ops::chunked(tags_body(admin))),
        (&Method::DELETE, "/admin/cache") => {
            remove(&admin, query_value(&asked.query, "what").unwrap_or_default()).await
        }
        (&Method::POST, "/admin/gc") => {
            let _turn = admin.acquire_permit()?;
            Ok(ops::json(StatusCode::OK, &admin.gc(gc_options(&asked.query)?).await?))
        }
        (&Method::POST, "/admin/verify") => {
            let turn = admin.acquire_permit()?;
            Ok(ops::chunked(verify_body(admin, turn)))
        }
        (_, "/admin/cache" | "/admin/gc" | "/admin/verify") => {
            Err(Error::new(Kind::Unsupported, format!("{} is not for {}", asked.method, asked.path)))
        }
        _ => Err(Error::new(Kind::NotFound, "there are /admin/cache, /admin/gc and /admin/verify")),
    }
}

async fn remove(admin: &CacheAdmin, what: &str) -> Result<Response<ResponseBody>> {
    let (status, said) = match admin.remove(what.parse::<Item>()?).await? {
        Removal::Gone => (StatusCode::OK, json!({ "removed": what })),
        Removal::Busy => (StatusCode::CONFLICT, json!({ "error": format!("{what} is being read") })),
        Removal::Absent => (StatusCode::NOT_FOUND, json!({ "error": format!("{what} is not in the cache") })),
    };
    Ok(ops::json(status, &said))
}

fn tags_body(admin: CacheAdmin) -> Body {
    let parts = stream::iter(0..PARTS).map({
        let admin = admin.clone();
        move |part| (admin.clone(), part)
    });
    let lines = parts.then(|(admin, part)| async move { Ok(json_line(&admin.tags(part).await?)) });
    let sums = stream::once(async move {
        let [manifests, blobs] = admin.counts();
        Ok(json_line(&json!({ "done": true, "manifests": manifests, "blobs": blobs })))
    });
    lines.try_filter(|line| std::future::ready(line.len() > EMPTY_TAGS_LENGTH)).chain(sums).boxed()
}

/// Whoever asked hangs up: then it ends after the part that is being read.
fn verify_body(admin: CacheAdmin, turn: impl Send + Sync + 'static) -> Body {
    let turn = Arc::new(turn);
    let lines = stream::iter(0..PARTS).then(move |part| {
        let (admin, turn) = (admin.clone(), turn.clone());
        async move {
            let _turn = turn;
            Ok(json_line(&admin.verify(part).await))
        }
    });
    lines.chain(stream::once(async { Ok(json_line(&json!({ "done": true }))) })).boxed()
}

fn json_line(document: &impl serde::Serialize) -> Bytes {
    let mut line = serde_json::to_vec(document).unwrap_or_default();
    line.push(b'\n');
    line.into()
}

fn gc_options(query: &str) -> Result<GcOptions> {
    let wrong = |text: &str| Error::new(Kind::Usage, format!("older-than={text} is no number of seconds"));
    let seconds = query_value(query, "older-than").map(|text| text.parse().map_err(|_| wrong(text))).transpose()?;
    Ok(GcOptions {
        older_than: seconds.map(Duration::from_secs),
        dry_run: query_value(query, "dry-run").is_some(),
        ..GcOptions::default()
    })
}

/// A key's value. What stands in them needs no escapes.
fn query_value<'a>(query: &'a str, key: &str) -> Option<&'a str> {
    query.split('&').find_map(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        (name == key).then_some(value)
    })
}

fn refusal(error: &Error) -> Response<ResponseBody> {
    let status = match error.kind() {
        Kind::Usage => StatusCode::BAD_REQUEST,
        Kind::NotFound => StatusCode::NOT_FOUND,
        Kind::Unsupported => StatusCode::METHOD_NOT_ALLOWED,
        Kind::Limited => StatusCode::CONFLICT,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    let said: Value = json!({ "error": error.to_string() });
    ops::json(status, &said)
}

/// A part without tags: `{"tags":[]}` and a line feed.
const EMPTY_TAGS_LENGTH: usize = 12;
