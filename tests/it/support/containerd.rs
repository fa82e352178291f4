//! A containerd of the test's own, as a node has one.

use std::path::Path;
use std::time::{Duration, Instant};

use super::{Process, Run, TempDir, Tool};

/// A running containerd: root, state and socket in a directory of its own. Ended on Drop.
#[derive(Debug)]
pub struct Containerd {
    process: Process,
    dir: TempDir,
}

impl Containerd {
    /// An empty one.
    #[track_caller]
    pub fn start() -> Self {
        let dir = TempDir::new();
        let (root, state, socket) = (dir.join("root"), dir.join("state"), dir.join("sock"));
        // What needs devices, or a kubelet.
        let disabled = [
            "grpc.v1.cri",
            "snapshotter.v1.btrfs",
            "snapshotter.v1.zfs",
            "snapshotter.v1.devmapper",
            "internal.v1.opt",
        ]
        .map(|name| format!("\"io.containerd.{name}\""))
        .join(", ");
        let config = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\ndisabled_plugins = [{disabled}]\n[grpc]\n  address = \"{socket}\"\n"
        );
        let config = dir.write("config.toml", config);
        let process = Tool::new("containerd").args(&["--config", &config]).spawn();
        process.stderr.wait_line("containerd successfully booted", Duration::from_secs(30));
        Self { process, dir }
    }

    /// Pulls by the `hosts.toml` files of this directory.
    pub fn pull(&self, certs: &Path, image: &str) -> Run {
        let certs = certs.to_str().expect("a path in UTF-8");
        let flags = ["--hosts-dir", certs, "--snapshotter", "native", "--platform", "linux/amd64"];
        self.ctr(&[&["images", "pull"], &flags[..], &[image]].concat())
    }

    /// `ctr`.
    pub fn ctr(&self, args: &[&str]) -> Run {
        Tool::new("ctr").args(&["--address", &self.dir.join("sock")]).args(args).run()
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        // Gracefully, so that it takes what it mounted with it.
        if self.process.is_running() {
            self.process.terminate();
            let deadline = Instant::now() + Duration::from_secs(5);
            while self.process.is_running() && Instant::now() < deadline {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
    }
}
