//! Events of the proxy. Metrics, the status page and write-back receive them as [`Observer`]s, and the proxy itself does
//! not depend on them.

use std::time::Duration;

use crate::descriptor::Digest;
use crate::error::{Error, Kind};
use crate::reference::Target;

/// Receives events. It is called while requests are handled, so it must not block.
pub(crate) trait Observer: Send + Sync + 'static {
    /// Handles an event.
    fn event(&self, event: &Event<'_>);
}

/// Ignores all events.
impl Observer for () {
    fn event(&self, _: &Event<'_>) {}
}

/// Passes each event to all observers.
impl Observer for Vec<std::sync::Arc<dyn Observer>> {
    fn event(&self, event: &Event<'_>) {
        self.iter().for_each(|observer| observer.event(event));
    }
}

/// What a client has requested.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum RequestKind {
    /// A manifest, by GET or HEAD.
    Manifest,
    /// A blob, by GET.
    Blob,
    /// A blob, by HEAD.
    Head,
    /// A list of tags.
    Tags,
    /// The referrers of a manifest.
    Referrers,
}

/// The upstream name in events for requests without a configured upstream, because clients can invent names.
pub(crate) const UNKNOWN_UPSTREAM: &str = "unknown";

/// How a request was served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum CacheOutcome {
    /// From the cache.
    Hit,
    /// From the upstream, and cached.
    Miss,
    /// By a fetch that another request has started.
    Coalesced,
    /// From the cache, possibly outdated, because the upstream cannot be asked.
    Stale,
    /// From the upstream, not cached: no space, or the disk cannot be written.
    Passed,
    /// Not found.
    Absent,
    /// With an error.
    Failed,
}

/// Where the bytes of a blob came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum BytesOrigin {
    /// From a file of the cache.
    Disk,
    /// From a running fill.
    Fill,
    /// From the upstream, uncached.
    Passed,
}

/// An event.
#[derive(Debug)]
#[expect(dead_code, reason = "an event says what it is about, whoever reads it")]
pub(crate) enum Event<'a> {
    /// A response was sent to a client, for a request of any kind.
    Answered {
        /// The HTTP status.
        status: u16,
    },
    /// A request for content was handled.
    Served {
        /// The upstream's name, or [`UNKNOWN_UPSTREAM`].
        upstream: &'a str,
        repository: &'a str,
        /// The kind of request.
        what: RequestKind,
        /// The outcome.
        how: CacheOutcome,
    },
    /// A registry was asked.
    Asked {
        registry: &'a str,
        /// The time until the head of its response.
        took: Duration,
        /// The kind of error, if it failed.
        failed: Option<Kind>,
    },
    /// A registry refused a request of the proxy, or cannot be asked until an operator changes something.
    Refused {
        registry: &'a str,
        /// The reason in one word, such as `unauthorized` (401) or `denied` (403).
        reason: &'static str,
    },
    /// Bytes of a blob were received from a registry.
    Moved { registry: &'a str, bytes: u64 },
    /// Bytes of a blob were sent to a client.
    Sent { from: BytesOrigin, bytes: u64 },
    /// A fill was started.
    FillBegan { digest: &'a Digest, size: u64 },
    /// A fill has ended.
    FillEnded {
        digest: &'a Digest,
        /// The error, if it failed.
        failed: Option<&'a Error>,
    },
    /// Content was evicted from the cache.
    Evicted {
        digest: &'a Digest,
        /// Its size.
        bytes: u64,
    },
    /// The scrubber has read a part of the cache.
    Scrubbed { bytes: u64 },
    /// Content in the cache did not match its digest, and was removed.
    Corrupt { digest: &'a Digest },
    /// A cached blob could not be read, or had become short. It is removed, and fetched again.
    CacheReadFailed { digest: &'a Digest },
    /// Only a later tier had this manifest: the image is to be copied into the first tier.
    OnlyOriginal {
        /// The upstream's name.
        upstream: &'a str,
        repository: &'a str,
        /// The manifest.
        target: &'a Target,
    },
}
