//! The program from outside.

mod serve;
