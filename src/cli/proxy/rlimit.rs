//! How many files the process may have open.
//!
//! A client that pulls has two, its connection and what it reads; what is fetched has some, too. Systems give
//! a process 1024 unless it asks for more, for the sake of programs that are older than `poll`.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Takes as many as may be taken.
pub(super) fn raise() {
    let limit = getrlimit(Resource::Nofile);
    let all = Rlimit { current: limit.maximum, ..limit };
    if limit.current != limit.maximum
        && let Err(error) = setrlimit(Resource::Nofile, all)
    {
        tracing::warn!("not more than {} open files can be had: {error}", limit.current.unwrap_or_default());
    }
}
