//! Content that makes a layout unreadable.
