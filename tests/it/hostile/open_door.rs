//! A proxy that anyone can reach.
