//! What happens in the proxy, for whoever counts it, shows it, or acts on it.
//!
//! Metrics, the status page and the copying of images into the first tier stand behind
//! [`Observer`]: the proxy itself knows none of them.

use std::time::Duration;

use crate::descriptor::Digest;
use crate::error::{Error, Kind};
use crate::reference::Target;

/// Hears of what happens. Called in the middle of requests: it must not wait.
pub trait Observer: Send + Sync + 'static {
    /// Something happened.
    fn event(&self, event: &Event<'_>);
}

/// Nobody listens.
impl Observer for () {
    fn event(&self, _: &Event<'_>) {}
}

/// All of them listen.
impl Observer for Vec<std::sync::Arc<dyn Observer>> {
    fn event(&self, event: &Event<'_>) {
        self.iter().for_each(|observer| observer.event(event));
    }
}

/// What was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestKind {
    /// A manifest or what a tag is.
    Manifest,
    /// A blob.
    Blob,
    /// How large a blob is, and whether it's there: by `HEAD`.
    Head,
    /// A list of tags.
    Tags,
    /// What is about a manifest.
    Referrers,
}

/// Instead of names of upstreams that clients make up.
pub const UNKNOWN_UPSTREAM: &str = "unknown";

/// How a request was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CacheOutcome {
    /// From the cache.
    Hit,
    /// From the upstream; it's cached now.
    Miss,
    /// By what was on its way already for another client.
    Coalesced,
    /// From the cache, though it may be old: the upstream can't be asked.
    Stale,
    /// From the upstream, not cached: there is no room, or the disk can't be written.
    Passed,
    /// It isn't there.
    Absent,
    /// Not at all.
    Failed,
}

/// What a client's bytes of a blob came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BytesOrigin {
    /// From a file of the cache.
    Disk,
    /// Along with a fetch into the cache.
    Fill,
    /// From the upstream, past the cache.
    Passed,
}

/// One thing that happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A request was answered, whatever it was for, and whether or not it came as far as to an upstream.
    Answered {
        /// The HTTP status.
        status: u16,
    },
    /// A request was served, or not.
    Served {
        /// The upstream's name; [`UNKNOWN_UPSTREAM`] where there is none for what was asked for.
        upstream: &'a str,
        /// The repository there.
        repository: &'a str,
        /// What was asked for.
        what: RequestKind,
        /// And how it was served.
        how: CacheOutcome,
    },
    /// A registry was asked, up to the head of its answer.
    Asked {
        /// The registry.
        registry: &'a str,
        /// How long that took.
        took: Duration,
        /// What went wrong, if it did.
        failed: Option<Kind>,
    },
    /// A registry refused the proxy what it asked for, or can't be asked until somebody mends something.
    Refused {
        /// The registry.
        registry: &'a str,
        /// Why, in one word, such as `unauthorized` (401) or `denied` (403).
        reason: &'static str,
    },
    /// Bytes of a blob came from a registry.
    Moved {
        /// The registry.
        registry: &'a str,
        /// How many.
        bytes: u64,
    },
    /// Bytes of a blob went to a client.
    Sent {
        /// From there.
        from: BytesOrigin,
        /// How many.
        bytes: u64,
    },
    /// A blob begins to be fetched.
    FillBegan {
        /// Which one.
        digest: &'a Digest,
        /// Its size.
        size: u64,
    },
    /// A fetch is over.
    FillEnded {
        /// Which one.
        digest: &'a Digest,
        /// Why it failed, if it did.
        failed: Option<&'a Error>,
    },
    /// Content had to go from the disk.
    Evicted {
        /// Which one.
        digest: &'a Digest,
        /// Its size.
        bytes: u64,
    },
    /// The scrubber read so much of the cache.
    Scrubbed {
        /// Bytes.
        bytes: u64,
    },
    /// Content had other bytes on the disk than its digest says. It's gone.
    Corrupt {
        /// Which one.
        digest: &'a Digest,
    },
    /// A cached blob could not be read, or had become short. It is dropped, and fetched again.
    CacheReadFailed {
        /// Which one.
        digest: &'a Digest,
    },
    /// Only a later tier had this manifest: the image is to be copied into the first tier.
    OnlyOriginal {
        /// The upstream's name.
        upstream: &'a str,
        /// The repository there.
        repository: &'a str,
        /// The manifest.
        target: &'a Target,
    },
}
