//! Uncertain facts about Azure Container Registry, seen in the repositories of this run.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};

use base64::Engine as _;
use serde_json::{Value, json};

use crate::facts::{link_seconds, verdict};
use crate::flow::{NAME, read};
use crate::hub::host;
use crate::live::{Live, Seen, access_token};
use crate::support::http::Reply;
use crate::support::images::OCI_MANIFEST;
use crate::support::layer::sha256;

pub fn token_lifetime(live: &Live) -> (Seen, String) {
    let scope = format!("scope=repository:{}:pull", live.repository(NAME));
    let document = live.acr_token(&scope).expect("a token");
    let lifetime = claims(access_token(&document)).and_then(|claims| {
        let issued = claims["iat"].as_i64().unwrap_or_else(|| jiff::Timestamp::now().as_second());
        Some(claims["exp"].as_i64()? - issued)
    });
    let named = &document["expires_in"];
    let as_written = named.is_null() && lifetime.is_some_and(|seconds| (4_200..=4_800).contains(&seconds));
    (verdict(as_written), format!("expires_in is {named}; the token itself ends after {lifetime:?} s"))
}

pub fn basic(live: &Live) -> (Seen, String) {
    let path = format!("/v2/{}/manifests/latest", live.repository(NAME));
    let status = live.ask_with_password(&path).expect("an answer").status;
    (verdict(status == 200), format!("a manifest with Basic credentials, without a token: {status}"))
}

pub fn name_unknown(live: &Live) -> (Seen, String) {
    let path = format!("/v2/{}/tags/list?n=1", live.repository("none"));
    let reply = live.ask("GET", &path, &[], b"").expect("an answer");
    let code = error_code(&reply);
    let as_written = reply.status == 404 && code == "NAME_UNKNOWN";
    (verdict(as_written), format!("tags of a repository that does not exist: {} {code}", reply.status))
}

pub fn upload_location(live: &Live) -> (Seen, String) {
    let reply = begin(live, FACTS, "").expect(202);
    let location = reply.header("location").unwrap_or_default();
    let (path, query) = location.split_once('?').unwrap_or((location, ""));
    let as_written = path.starts_with('/') && !query.is_empty();
    let names: Vec<&str> = query.split('&').filter_map(|parameter| parameter.split('=').next()).collect();
    let range = reply.header("range").unwrap_or("none");
    cancel(live, location);
    let kind = if path.starts_with('/') { "a path" } else { "a URL" };
    (verdict(as_written), format!("the location is {kind} with the parameters {names:?}; its range is {range}"))
}

pub fn streamed_chunk(live: &Live) -> (Seen, String) {
    let session = session(live);
    let reply = live.ask("PATCH", &session, &[("transfer-encoding", "chunked")], b"hello").expect("an answer");
    let code = error_code(&reply);
    cancel(live, &session);
    let as_written = reply.status == 400 && code == "CONTENT_LENGTH_INVALID";
    (verdict(as_written), format!("a chunk without its length: {} {code}", reply.status))
}

pub fn content_range(live: &Live) -> (Seen, String) {
    let statuses = ["0-4", "bytes 0-4/5"].map(|range| {
        let session = session(live);
        let reply = chunk(live, &session, range, b"hello");
        cancel(live, &session);
        reply.status
    });
    let as_written = statuses[0] == 202 && statuses[1] >= 400;
    (verdict(as_written), format!("0-4: {}; bytes 0-4/5: {}", statuses[0], statuses[1]))
}

pub fn repeated_chunk(live: &Live) -> (Seen, String) {
    let session = session(live);
    let first = chunk(live, &session, "0-4", b"hello").expect(202);
    let next = path_of(live, first.header("location").expect("a location"));
    let status = chunk(live, &next, "0-4", b"hello").status;
    cancel(live, &session);
    (verdict(matches!(status, 404 | 416)), format!("the same chunk again: {status}"))
}

pub fn body_limit(live: &Live) -> (Seen, String) {
    let session = session(live);
    let mut body = vec![0; 21_000_000];
    // A blob that the registry has never seen.
    body[..8].copy_from_slice(&RandomState::new().build_hasher().finish().to_be_bytes());
    let digest = sha256(&body);
    let answer = live.ask("PUT", &with_digest(&session, &digest), &[("content-type", OCTETS)], &body);
    match answer {
        Ok(reply) => {
            if reply.status == 201 {
                live.wrote(&format!("/v2/{}/blobs/{digest}", live.repository(FACTS)));
            } else {
                cancel(live, &session);
            }
            (verdict(reply.status == 413), format!("21,000,000 bytes in one PUT: {}", reply.status))
        }
        // The service may hang up before it has read all.
        Err(error) => (Seen::Unknown, format!("21,000,000 bytes in one PUT: the connection broke: {error}")),
    }
}

pub fn mount(live: &Live) -> (Seen, String) {
    let from = live.repository(NAME);
    let digest = config_digest(live);
    let reply = begin(live, "mounted", &format!("?mount={digest}&from={from}"));
    match reply.status {
        201 => live.wrote(&format!("/v2/{}/blobs/{digest}", live.repository("mounted"))),
        _ => cancel(live, reply.header("location").unwrap_or_default()),
    }
    (verdict(reply.status == 201), format!("a mount from a repository of the same registry: {}", reply.status))
}

pub fn blob_link(live: &Live) -> (Seen, String) {
    let reply = get_blob(live);
    let link = reply.header("location").unwrap_or_default();
    let seconds = link_seconds(link);
    // A second may pass meanwhile.
    let minutes = seconds.is_some_and(|seconds| (20 * 60 - 5..=30 * 60).contains(&seconds));
    let as_written = reply.status == 307 && host(link) != live.acr() && minutes;
    (verdict(as_written), format!("status {}, a link to {} for {seconds:?} s", reply.status, host(link)))
}

pub fn storage_authorization(live: &Live) -> (Seen, String) {
    let reply = get_blob(live).expect(307);
    let link = reply.header("location").unwrap_or_default();
    let status = live.follow_with_authorization(link).expect("an answer").status;
    (verdict(status >= 400), format!("{} answers {status}", host(link)))
}

pub fn referrers(live: &Live) -> (Seen, String) {
    let repository = live.repository(NAME);
    let subject = read(live, &repository, "latest");
    let digest = sha256(&subject.body);
    let empty = json!({"mediaType": "application/vnd.oci.empty.v1+json", "digest": sha256(b"{}"), "size": 2});
    put_blob(live, NAME, b"{}").expect(201);
    let media_type = subject.header("content-type").expect("a media type");
    let artifact = json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "artifactType": "application/vnd.transload.live",
        "config": &empty,
        "layers": [&empty],
        "subject": {"mediaType": media_type, "digest": &digest, "size": subject.body.len()},
    })
    .to_string();
    let artifact_digest = sha256(artifact.as_bytes());
    let path = format!("/v2/{repository}/manifests/{artifact_digest}");
    let put = live.ask("PUT", &path, &[("content-type", OCI_MANIFEST)], artifact.as_bytes()).expect("an answer");
    live.wrote(&path);
    let put = put.expect(201);
    let named = put.header("oci-subject") == Some(&digest);
    let reply = live.ask("GET", &format!("/v2/{repository}/referrers/{digest}"), &[], b"").expect("an answer");
    let document: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    let mut entries = document["manifests"].as_array().into_iter().flatten();
    let listed = entries.any(|entry| entry["digest"] == *artifact_digest);
    let what = format!("OCI-Subject: {named}; the referrers API answers {}; listed: {listed}", reply.status);
    (verdict(named && reply.status == 200 && listed), what)
}

fn begin(live: &Live, name: &str, query: &str) -> Reply {
    let path = format!("/v2/{}/blobs/uploads/{query}", live.repository(name));
    let reply = live.ask("POST", &path, &[], b"").expect("an answer");
    if let (202, Some(location)) = (reply.status, reply.header("location")) {
        live.wrote(&path_of(live, location));
    }
    reply
}

/// Begins an upload, and returns where it goes on.
fn session(live: &Live) -> String {
    let reply = begin(live, FACTS, "").expect(202);
    path_of(live, reply.header("location").expect("a location"))
}

/// A session that is over already answers 404, and one that is left expires.
fn cancel(live: &Live, location: &str) {
    let path = path_of(live, location);
    if !path.is_empty() {
        drop(live.ask("DELETE", &path, &[], b""));
        live.forget(&path);
    }
}

fn chunk(live: &Live, session: &str, range: &str, bytes: &[u8]) -> Reply {
    let headers = [("content-range", range), ("content-type", OCTETS)];
    live.ask("PATCH", session, &headers, bytes).expect("an answer")
}

fn put_blob(live: &Live, name: &str, bytes: &[u8]) -> Reply {
    let begun = begin(live, name, "").expect(202);
    let session = path_of(live, begun.header("location").expect("a location"));
    let digest = sha256(bytes);
    let path = with_digest(&session, &digest);
    let reply = live.ask("PUT", &path, &[("content-type", OCTETS)], bytes).expect("an answer");
    live.forget(&session);
    live.wrote(&format!("/v2/{}/blobs/{digest}", live.repository(name)));
    reply
}

fn get_blob(live: &Live) -> Reply {
    let path = format!("/v2/{}/blobs/{}", live.repository(NAME), config_digest(live));
    live.ask("GET", &path, &[], b"").expect("an answer")
}

/// The config of the first platform of `hello-world`.
fn config_digest(live: &Live) -> String {
    let repository = live.repository(NAME);
    let mut manifest = read(live, &repository, "latest").json();
    if let Some(child) = manifest["manifests"][0]["digest"].as_str() {
        manifest = read(live, &repository, child).json();
    }
    manifest["config"]["digest"].as_str().expect("a config").to_owned()
}

/// A `Location` of the registry as a path with its query.
fn path_of(live: &Live, location: &str) -> String {
    location.strip_prefix(&format!("https://{}", live.acr())).unwrap_or(location).to_owned()
}

fn with_digest(session: &str, digest: &str) -> String {
    let mark = if session.contains('?') { '&' } else { '?' };
    format!("{session}{mark}digest={digest}")
}

/// The code of the first error of an answer.
fn error_code(reply: &Reply) -> String {
    let document: Value = serde_json::from_slice(&reply.body).unwrap_or_default();
    document["errors"][0]["code"].as_str().unwrap_or("without a code").to_owned()
}

/// The claims of a token (RFC 7519).
fn claims(token: &str) -> Option<Value> {
    let payload = token.split('.').nth(1)?;
    let bytes = base64::engine::general_purpose::URL_SAFE_NO_PAD.decode(payload).ok()?;
    serde_json::from_slice(&bytes).ok()
}

/// The repository for uploads that become no image.
const FACTS: &str = "facts";

const OCTETS: &str = "application/octet-stream";
