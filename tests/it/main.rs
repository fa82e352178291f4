//! transload from outside: the program, real registries, real clients, faults between them.

mod serve;
mod support;
mod support_test;
