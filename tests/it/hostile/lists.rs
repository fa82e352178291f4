//! Lists from a registry: cut short, or without an end.
