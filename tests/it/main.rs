//! transload from outside: the program, real registries, real clients, faults between them.

mod demo;
mod fixtures;
mod support;
mod support_test;
