//! Mirrors lists of images: reads a list, selects tags, and copies all images in one run. [`crate::copy`] does the
//! copying.
//!
//! ```text
//! file ── load ──> List: entries with a repository, selected images and a target; checked with the run's destinations
//!                    │
//!                  expand       lists tags for entries with patterns; `selection`: shards, --retry-failed
//!                    │
//!                   run         one engine copies; sources and destinations have limits of their own, and each pair
//!                    │          of them has a queue
//!                    │
//!                  report       table, JSON, JUnit
//! ```

mod compare;
pub mod job;
pub mod list;
pub(crate) mod load;
pub(crate) mod metrics;
pub mod prune;
mod queues;
pub mod report;
pub mod run;
pub(crate) mod schedule;
pub(crate) mod selection;
pub mod shard;
mod shared_source;
mod tag_conflicts;

pub use list::List;
pub use shard::Shard;
