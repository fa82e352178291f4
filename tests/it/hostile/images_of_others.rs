//! Cached content that is asked for under another repository.
