//! Mirrors lists of images: reads a list, selects tags, and copies all images in one run. [`crate::copy`] does the
//! copying.
//!
//! ```text
//! file ── list ──> List: entries with a repository, selected images and a target
//!                    │
//!                  expand       lists tags for entries with patterns; shards
//!                    │
//!                   run         one engine copies; sources and destinations have limits of their own, and each pair
//!                    │          of them has a queue
//!                    │
//!                  report       table, JSON, JUnit
//! ```

mod compare;
pub mod job;
pub mod list;
pub mod metrics;
pub mod prune;
mod queues;
pub mod report;
pub mod run;
pub mod schedule;
pub mod shard;
mod shared_source;
mod tag_conflicts;

pub use list::List;
pub use shard::Shard;
