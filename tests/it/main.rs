//! transload from outside: the program, real registries, real clients, faults between them.

mod copy_acr;
mod copy_dedup;
mod copy_faults;
mod copy_forms;
mod copy_hub;
mod copy_plain;
mod copy_security;
mod demo;
mod entra;
mod fixtures;
mod inspect;
mod interrupt;
mod limits_acr;
mod limits_hub;
mod login;
mod readme;
mod serve;
mod support;
mod support_test;
