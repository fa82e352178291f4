//! ACR's own API for tags, `/acr/v1/NAME/_tags/TAG`: the properties of a tag, and its deletion without the manifest,
//! which the registry behind does not support.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use http::request::Parts;
use http::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::json;

use super::Answer;
use super::config::AcrConfig;
use super::wire;

/// Tags that were deleted here, but still exist in the registry behind.
#[derive(Debug, Default)]
pub(super) struct Tags(Mutex<BTreeSet<(String, String)>>);

impl Tags {
    /// Answers a request for a tag.
    pub(super) fn answer(&self, config: &AcrConfig, head: &Parts, name: &str, tag: &str) -> Answer {
        let unknown = || wire::errors(StatusCode::NOT_FOUND, "TAG_UNKNOWN", "the specified tag does not exist");
        let locked = config.locked_tags.iter().any(|locked| locked == tag);
        if self.is_gone(name, tag) {
            return unknown();
        }
        match head.method {
            Method::DELETE if locked => {
                wire::errors(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "The operation is disallowed.")
            }
            Method::DELETE => {
                self.gone().insert((name.to_owned(), tag.to_owned()));
                wire::json(StatusCode::ACCEPTED, &json!({}))
            }
            Method::GET => {
                let hours = i64::try_from(config.tag_hours).unwrap_or(0);
                let time = (Timestamp::now() - jiff::SignedDuration::from_hours(hours)).to_string();
                let attributes = json!({"deleteEnabled": !locked, "writeEnabled": !locked, "readEnabled": true, "listEnabled": true});
                let tag = json!({"name": tag, "createdTime": time, "lastUpdateTime": time, "signed": false, "changeableAttributes": attributes});
                wire::json(StatusCode::OK, &json!({"registry": wire::host(head), "imageName": name, "tag": tag}))
            }
            _ => wire::errors(StatusCode::METHOD_NOT_ALLOWED, "UNSUPPORTED", "The operation is unsupported."),
        }
    }

    /// Whether the tag was deleted, and not written again.
    pub(super) fn is_gone(&self, name: &str, tag: &str) -> bool {
        self.gone().contains(&(name.to_owned(), tag.to_owned()))
    }

    /// Records that the tag is written.
    pub(super) fn wrote(&self, name: &str, tag: &str) {
        self.gone().remove(&(name.to_owned(), tag.to_owned()));
    }

    fn gone(&self) -> MutexGuard<'_, BTreeSet<(String, String)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
