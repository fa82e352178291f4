//! Clients that hold connections open.
