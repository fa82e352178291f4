//! Images that only a later tier had are copied into the first tier, in the background.
//!
//! Who pulls never waits for this: an event puts an image into the queue, and the worker takes some at once, of each
//! repository one, and copies them by the copy engine. What failed, or got on too slowly, is tried again later, with
//! growing pauses, until it's there or its source is gone.
//!
//! Tries are bounded, and counted in the file before each begins (`saved`). An image whose copy ends the process three
//! times in a row, for example by its memory, is given up; until it has ended once, it is copied alone, so that
//! no other image is suspected with it. What is given up is not queued again for a day.

mod job;
mod queue;
mod saved;
mod state;
mod worker;

pub use self::job::{CopyOutcome, Job};
pub use self::queue::Queue;
pub use self::worker::{WriteBackOrigins, run};
