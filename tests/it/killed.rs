//! Runs that are killed in the middle of writing a file, and what the next run does about it.
//!
//! The process really dies: it may write files of so many bytes only (RLIMIT_FSIZE), and the kernel ends it with a signal
//! that it does not handle at the byte after them. So it dies at the same point each time, and with the same rights to
//! clean up as by `kill -9`: none.

use std::os::unix::fs::MetadataExt as _;

use super::support::registry::PASSWORD;
use super::support::{Image, Registry, Run, TempDir, Tool};

/// Bytes of a file after which the process dies: one or two KiB, as the shell counts blocks.
const SOME: u64 = 2048;

/// Runs transload, which may write files of [`SOME`] bytes at most.
fn dying(args: &[&str], env: &[(&str, &str)], stdin: &str) -> Run {
    let script = r#"ulimit -c 0; ulimit -f 2; exec "$0" "$@""#;
    let tool = Tool::new("sh").args(&["-c", script, env!("CARGO_BIN_EXE_transload")]).args(args).stdin(stdin);
    env.iter().fold(tool, |tool, (name, value)| tool.env(name, value)).run()
}

/// The names in a directory that are not `kept`.
fn others(dir: &TempDir, below: &str, kept: &str) -> Vec<std::fs::DirEntry> {
    let entries = std::fs::read_dir(dir.join(below)).expect("a directory").flatten();
    entries.filter(|entry| entry.file_name() != kept).collect()
}

/// The one temporary file that a killed run left, half written.
#[track_caller]
fn left(dir: &TempDir, below: &str, kept: &str) -> std::path::PathBuf {
    let all = others(dir, below, kept);
    let [file] = &all[..] else { panic!("{all:?}") };
    let size = file.metadata().expect("a file").size();
    assert!(size > 0 && size <= SOME, "{size} bytes");
    file.path()
}

/// `login` dies while it writes config.json, which has other credentials too. The old file stays whole; the half-written
/// one, with secrets in it, is gone after the next run, whether that writes or reads.
#[test]
fn a_login_that_dies_in_the_middle_of_writing_leaves_no_secret_for_long() {
    let registry = Registry::with_basic("carol");
    let at = registry.addr().to_string();
    let login = ["login", &at, "-u", "carol", "--password-stdin"];
    let secrets: String = (0..100).map(|nth| format!(r#""r{nth}.example": {{"auth": "dTpzZWNyZXQ="}},"#)).collect();
    let old = format!(r#"{{"auths": {{{} "z.io": {{"auth": "dTpzZWNyZXQ="}}}}}}"#, secrets);
    let reference = format!("{at}/app:v1");
    for next in [&login[..], &["inspect", &reference], &["logout", "z.io"]] {
        let dir = TempDir::new();
        dir.write("config.json", &old);
        let home = dir.join("");
        let run = dying(&login, &[("DOCKER_CONFIG", &home)], PASSWORD);
        assert_eq!(run.code, -1, "ended by a signal: {run:?}");
        assert_eq!(dir.read("config.json"), old);
        let left = left(&dir, "", "config.json");
        assert!(std::fs::read_to_string(&left).expect("a file").contains("dTpzZWNyZXQ="), "secrets are in it");
        assert_eq!(left.metadata().expect("a file").mode() & 0o777, 0o600);
        Tool::transload().args(next).env("DOCKER_CONFIG", &home).stdin(PASSWORD).run();
        assert!(others(&dir, "", "config.json").is_empty(), "{next:?}");
    }
}

/// A mirror run dies while it writes its report: the report of the run before stays whole, and the next run removes the
/// half-written one.
#[test]
fn a_run_that_dies_in_the_middle_of_its_report_leaves_the_one_before() {
    let (source, to, dir) = (Registry::start(), Registry::start(), TempDir::new());
    let image = Image::single(1, &[100]);
    let names: Vec<_> = (0..10).map(|nth| format!("app{nth}")).collect();
    names.iter().for_each(|name| image.push(source.addr(), name, "v1"));
    let list: String = names.iter().map(|name| format!("{}/{name}:v1\n", source.addr())).collect();
    let list = dir.write("images.txt", list);
    let (report, to) = (dir.join("reports/report.json"), to.addr().to_string());
    let args = ["mirror", &list, "--to", &to, "--report", &report];
    dir.write("reports/report.json", "{}");
    let run = dying(&args, &[], "");
    assert_eq!(run.code, -1, "ended by a signal: {run:?}");
    assert_eq!(dir.read("reports/report.json"), "{}");
    left(&dir, "reports", "report.json");
    Tool::transload().args(&args).run().ok();
    assert!(others(&dir, "reports", "report.json").is_empty());
    let whole: serde_json::Value = serde_json::from_str(&dir.read("reports/report.json")).expect("a whole report");
    assert_eq!(whole["images"].as_array().map(Vec::len), Some(10));
}
