//! Write-back: copies images that only a later tier has into the first tier, in the background.
//!
//! Clients never wait for it: an event puts an image into the queue, and the worker copies several images at once, but one
//! of each repository, by the copy engine. A copy that fails or is too slow is tried again with growing pauses, until it
//! succeeds or its source no longer exists.
//!
//! The number of tries is limited, and each try is counted in the file before it starts (`saved`). An image whose copy ends
//! the process three times in a row, for example by its use of memory, is given up. After the first time it is copied alone,
//! so that no other image is suspected. An image that was given up is not queued again for a day.

mod job;
mod queue;
mod saved;
mod state;
mod worker;

pub(crate) use self::job::{CopyOutcome, Job};
pub(crate) use self::queue::Queue;
pub(crate) use self::worker::{WriteBackOrigins, run};
