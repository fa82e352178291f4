//! Passwords at rest, and the programs that hold them.
