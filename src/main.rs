//! The program: parse, run, exit code.

use std::process::ExitCode;

/// musl's own has each buffer that a connection receives into mapped by the kernel, page by page, and unmapped again:
/// a third of what a cold blob costs the proxy.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    transload::cli::main()
}
