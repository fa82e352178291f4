//! Limits on requests to one registry: requests in flight, requests per minute, and pulls.

pub(super) mod parallelism;
pub(super) mod pull_ledger;
pub(super) mod pull_limit;
pub(super) mod rate_limit;
