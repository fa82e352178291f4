//! A directory that is gone afterwards, and helpers made of a few lines of shell.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use super::Settings;

pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("transload-creds-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("a scratch directory");
        Self(path)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        std::fs::write(&path, text).expect("a file");
        path
    }

    pub(crate) fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    /// Puts a program into `bin`, run by `sh`; `$HERE` is this directory.
    ///
    /// Written by another process: a child that another test forks just now would inherit our
    /// open file, and the kernel then refuses to run it (ETXTBSY).
    pub(crate) fn program(&self, name: &str, script: &str) {
        let source = self.write("source.sh", &format!("#!/bin/sh\nHERE='{}'\n{script}\n", self.0.display()));
        let to = self.path("bin").join(name);
        std::fs::create_dir_all(self.path("bin")).expect("a directory");
        let done =
            Command::new("sh").arg("-c").arg(r#"cat "$0" > "$1" && chmod +x "$1""#).args([&source, &to]).status();
        assert!(done.expect("sh").success());
    }

    /// A helper in `bin`.
    pub(crate) fn helper(&self, name: &str, script: &str) {
        self.program(&format!("docker-credential-{name}"), script);
    }

    /// With `docker/config.json` and the helpers in `bin`.
    pub(crate) fn settings(&self) -> Settings {
        Settings {
            docker_config: Some(self.path("docker/config.json")),
            helper_path: Some(self.path("bin").into()),
            ..Settings::default()
        }
    }
}

impl AsRef<Path> for Scratch {
    fn as_ref(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
