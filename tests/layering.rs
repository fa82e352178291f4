//! Another's.

fn main() {}
