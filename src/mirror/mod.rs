//! Whole lists of images: what a list means, which tags it picks, and how one run brings them all.
//! Stands on [`crate::copy`]; nothing of a copy is written here again.
//!
//! ```text
//! file ── load ──> List: entries, each a repository, what of it, and where to; checked with the run's destinations
//!                    │
//!                  expand       lists tags where an entry picks by pattern; `selection`: shards, --retry-failed
//!                    │
//!                   run         copies by one engine: sources and destinations each within their limits, and each
//!                    │          pair of them in a lane of its own
//!                    │
//!                  report       table, JSON, JUnit
//! ```

mod compare;
pub mod job;
pub mod list;
pub(crate) mod load;
pub mod metrics;
pub mod prune;
mod queues;
pub mod report;
pub mod run;
pub mod schedule;
pub(crate) mod selection;
pub mod shard;
mod shared_source;
mod tag_conflicts;

pub use list::List;
pub use shard::Shard;
