//! transload from outside: the program, real registries, real clients, faults between them.

mod fixtures;
mod support;
mod support_test;
