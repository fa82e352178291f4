//! Networks as companies and clouds have them: proxies, certificates, tunnels on loopback, login pages.

mod certificates;
mod client_certificates;
mod loopback;
mod no_proxy;
mod proxies;
mod replicas;
mod storage;
mod web_pages;

use super::support::certificates::{Authority, Special, TlsFront};
use super::support::{Image, Registry, Run, TempDir, Tool};

/// The registry of these tests, which no resolver knows.
const NAME: &str = "registry.example.test";

/// A registry with TLS, its authority's certificate in a file, and an image in it: `app:v1`.
struct Secure {
    behind: Registry,
    front: TlsFront,
    files: TempDir,
}

impl Secure {
    fn start() -> Self {
        let behind = Registry::start();
        Image::single(1, &[3000]).push(behind.addr(), "app", "v1");
        let authority = Authority::new("Example Authority");
        let front = TlsFront::start(authority.issue(&[NAME], Special::default()).server(), behind.addr());
        let files = TempDir::new();
        files.write("ca.pem", &authority.certificate);
        Self { behind, front, files }
    }

    fn ca_file(&self) -> String {
        self.files.join("ca.pem")
    }

    /// `inspect` of the image, with these flags and variables.
    fn inspect(&self, variables: &[(&str, &str)]) -> Run {
        self.inspect_with(&[], variables)
    }

    fn inspect_with(&self, flags: &[&str], variables: &[(&str, &str)]) -> Run {
        let tool = Tool::transload().args(&["inspect", &format!("{NAME}/app:v1"), "--ca-file", &self.ca_file()]);
        variables.iter().fold(tool.args(flags), |tool, (name, value)| tool.env(name, value)).run()
    }
}

/// The program failed at once: one attempt, one error, one hint.
#[track_caller]
fn failed_at_once(run: Run, parts: &[&str]) -> Run {
    let run = run.exits(1);
    assert!(!run.stderr.contains("trying again"), "{}", run.stderr);
    assert_eq!(run.stderr.lines().filter(|line| line.starts_with("error: ")).count(), 1, "{}", run.stderr);
    for part in parts {
        assert!(run.stderr.contains(part), "{part:?} is not in {}", run.stderr);
    }
    run
}
