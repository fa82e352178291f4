//! transload from outside: the program, real registries, real clients, faults between them.

mod copy_faults;
mod copy_hub;
mod support;
mod support_test;
