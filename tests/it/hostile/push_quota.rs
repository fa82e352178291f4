//! Pushes that fill a disk.
