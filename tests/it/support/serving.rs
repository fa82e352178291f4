//! A running `transload serve`.

use std::net::SocketAddr;
use std::path::Path;

use super::process::RUN_TIMEOUT;
use super::{Process, Tool};

/// A server of a directory on a free port, killed on Drop.
#[derive(Debug)]
pub struct ServeProcess {
    pub process: Process,
    addr: SocketAddr,
}

impl ServeProcess {
    #[track_caller]
    pub fn start(dir: &Path, flags: &[&str]) -> Self {
        let dir = dir.to_str().expect("a path in UTF-8");
        let process = Tool::transload().args(&["serve", dir, "--listen", "127.0.0.1:0"]).args(flags).spawn();
        let line = process.stderr.wait_line(" on http://", RUN_TIMEOUT);
        let addr = line.split(" on http://").nth(1).and_then(|addr| addr.parse().ok()).expect("an address");
        Self { process, addr }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The most memory that it has used, in MiB (proc_pid_status(5), `VmHWM`).
    pub fn peak(&self) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id())).expect("a status");
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") >> 10
    }
}
