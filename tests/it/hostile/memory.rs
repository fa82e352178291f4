//! Images that cost memory.
