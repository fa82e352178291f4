//! Uncertain facts about Docker Hub. Reading `hello-world` for them costs some six pulls.

use crate::facts::{link_seconds, verdict};
use crate::live::{Live, Seen};
use crate::support::http::Reply;

pub fn token_lifetime(live: &Live) -> (Seen, String) {
    let document = live.hub_token().expect("a token");
    let lifetime = &document["expires_in"];
    (verdict(*lifetime == 300), format!("expires_in is {lifetime}"))
}

pub fn head_is_free(live: &Live) -> (Seen, String) {
    let (first, second) = (remaining(live), remaining(live));
    (compare(first, second, 0), format!("pulls that remain before and after a HEAD: {first:?}, {second:?}"))
}

pub fn index_is_a_pull(live: &Live) -> (Seen, String) {
    let before = remaining(live);
    live.ask_hub("GET", LATEST).expect("an answer").expect(200);
    let after = remaining(live);
    (compare(before, after, 1), format!("pulls that remain before and after a GET of the index: {before:?}, {after:?}"))
}

pub fn link_lifetime(live: &Live) -> (Seen, String) {
    let (status, link) = blob_link(live);
    let seconds = link_seconds(&link);
    let short = status == 307 && seconds.is_some_and(|seconds| (1..=3600).contains(&seconds));
    (verdict(short), format!("status {status}, a link to {} for {seconds:?} s", host(&link)))
}

pub fn storage_authorization(live: &Live) -> (Seen, String) {
    let (_, link) = blob_link(live);
    let reply = live.follow_with_authorization(&link).expect("an answer");
    (verdict(reply.status >= 400), format!("{} answers {}", host(&link), reply.status))
}

pub fn referrers(live: &Live) -> (Seen, String) {
    let head = live.ask_hub("HEAD", LATEST).expect("an answer").expect(200);
    let digest = head.header("docker-content-digest").expect("a digest");
    let reply = live.ask_hub("GET", &format!("/v2/library/hello-world/referrers/{digest}")).expect("an answer");
    (verdict(reply.status == 404), format!("the referrers API answers {}", reply.status))
}

/// How many pulls remain; `None` without a limit.
fn remaining(live: &Live) -> Option<u64> {
    let reply = live.ask_hub("HEAD", LATEST).expect("an answer").expect(200);
    reply.header("ratelimit-remaining")?.split(';').next()?.parse().ok()
}

fn compare(before: Option<u64>, after: Option<u64>, fewer: u64) -> Seen {
    match (before, after) {
        (Some(before), Some(after)) => verdict(before.checked_sub(after) == Some(fewer)),
        // The account has no limit.
        _ => Seen::Unknown,
    }
}

/// The answer to a GET of a blob: its status, and where it leads.
fn blob_link(live: &Live) -> (u16, String) {
    let get = |path: &str| -> Reply { live.ask_hub("GET", path).expect("an answer") };
    let mut manifest = get(LATEST).expect(200).json();
    if let Some(child) = manifest["manifests"][0]["digest"].as_str() {
        manifest = get(&format!("/v2/library/hello-world/manifests/{child}")).expect(200).json();
    }
    let config = manifest["config"]["digest"].as_str().expect("a config");
    let reply = get(&format!("/v2/library/hello-world/blobs/{config}"));
    (reply.status, reply.header("location").unwrap_or_default().to_owned())
}

/// The host of a link. The rest is a credential.
pub fn host(link: &str) -> &str {
    crate::client::split_url(link).map_or("no https host", |(host, _)| host)
}

const LATEST: &str = "/v2/library/hello-world/manifests/latest";
