//! The commands: one file each. The only place that wires parts together.

pub mod serve;
