//! The program: parse, run, exit code.

use std::process::ExitCode;

/// musl's own allocator maps and unmaps each receive buffer of a connection. That is a third of the cost of a cold blob in
/// the proxy.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    transload::cli::main()
}
