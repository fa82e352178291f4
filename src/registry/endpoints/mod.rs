//! The endpoints of the distribution API, and of ACR's API for tags: one file per kind of request.

pub(super) mod blob;
pub(super) mod chunk_body;
pub(super) mod delete;
pub(super) mod link;
pub(super) mod lists;
pub(super) mod manifest;
pub(super) mod pages;
pub(super) mod upload;
