//! The limit of open files of the process.
//!
//! Each client uses two files, its connection and the cached file; fills use some too. The default limit is often 1024, for
//! programs that use `select`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the limit to the maximum.
pub(super) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, ..limit };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, all)
    {
        tracing::warn!("cannot raise the limit of {} open files: {error}", limit.current.unwrap_or_default());
    }
}
