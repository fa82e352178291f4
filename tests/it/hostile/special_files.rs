//! Named pipes and devices in place of files: opening a pipe blocks until somebody writes to it, and `/dev/zero` has
//! no end.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::proxy_blobs::wait_until;
use crate::support::layout::{self, link, pipe};
use crate::support::process::RUN_TIMEOUT;
use crate::support::{Image, ProxyProcess, Registry, Run, ServeProcess, TempDir, Tool, http};

/// Runs transload with at most 2 GB of addresses, so that a test that fails does not take the machine's memory.
fn bounded() -> Tool {
    let script = r#"ulimit -v 2000000; exec "$0" "$@""#;
    Tool::new("sh").limit(Duration::from_secs(30)).args(&["-c", script, env!("CARGO_BIN_EXE_transload")])
}

/// The program ended by itself and said which file is at fault.
#[track_caller]
fn assert_refused(run: &Run, file: &str, why: &str) {
    assert!(matches!(run.code, 1..=3), "exit code {}: {}", run.code, run.stderr);
    assert!(run.stderr.contains(file) && run.stderr.contains(why), "{}", run.stderr);
}

type Replace = fn(&Path);

const KINDS: [(Replace, &str); 2] = [(pipe, "a named pipe"), (|path| link(path, Path::new("/dev/zero")), "a device")];

/// Each file of a layout that is copied is a pipe, or a link to `/dev/zero`.
#[test]
fn copy_neither_waits_for_a_pipe_nor_reads_a_device_in_a_layout() {
    for (replace, kind) in KINDS {
        for name in ["oci-layout", "index.json", "manifest", "layer"] {
            let dir = TempDir::new();
            let image = Image::single(3, &[2000]);
            let from = layout::write(&dir, "images", &image, "v1");
            let file = match name {
                "manifest" => layout::file(&from, image.digest()),
                "layer" => layout::file(&from, &image.blobs[1].digest),
                name => from.join(name),
            };
            replace(&file);
            let copy = ["copy", &format!("oci:{}:v1", from.display()), &format!("oci:{}:v1", dir.join("out"))];
            let run = bounded().args(&copy).args(&["--retries", "0"]).run();
            let file = file.file_name().expect("a name").to_str().expect("UTF-8");
            assert_refused(&run, file, kind);
        }
    }
}

/// The destination is a layout whose mark is a pipe: a copy would wait for its lock.
#[test]
fn copy_does_not_wait_for_a_pipe_in_its_destination() {
    let dir = TempDir::new();
    let from = layout::write(&dir, "from", &Image::single(3, &[2000]), "v1");
    let to = layout::write(&dir, "to", &Image::single(4, &[2000]), "v1");
    pipe(&to.join("oci-layout"));
    let copy = ["copy", &format!("oci:{}:v1", from.display()), &format!("oci:{}:v2", to.display())];
    assert_refused(&bounded().args(&copy).run(), "oci-layout", "a named pipe");
}

/// A blob that is served is a pipe. Each request for it took a thread for good, up to all of them.
#[test]
fn requests_for_a_pipe_are_answered_and_keep_no_thread() {
    let dir = TempDir::new();
    let image = Image::single(3, &[2000, 3000]);
    let layout = layout::write(&dir, "images", &image, "v1");
    pipe(&layout::file(&layout, &image.blobs[1].digest));
    let serving = ServeProcess::start(&layout, &[]);
    let blob = |nth: usize| format!("/v2/images/blobs/{}", image.blobs[nth].digest);
    std::thread::scope(|scope| {
        for _ in 0..40 {
            scope.spawn(|| http::get(serving.addr(), &blob(1)).expect(404));
        }
    });
    http::get(serving.addr(), &blob(2)).expect(200);
    serving.process.stderr.wait_line("a named pipe", RUN_TIMEOUT);
    pipe(&layout.join("index.json"));
    http::get(serving.addr(), "/v2/images/tags/list").expect(500);
}

/// On a node containerd's `config.toml` is a pipe or a device. The installation only looks there to warn.
#[test]
fn the_installation_on_a_node_goes_on_without_a_config_that_is_no_file() {
    for (replace, kind) in KINDS {
        let root = TempDir::new();
        root.write("etc/containerd/config.toml", "");
        replace(&root.path().join("etc/containerd/config.toml"));
        let args = ["node", "install-mirror", "--root", &root.join(""), "--acr", "myregistry.azurecr.io/docker.io"];
        let run = bounded().args(&args).run().ok();
        assert!(run.stderr.contains("config.toml") && run.stderr.contains(kind), "{}", run.stderr);
        assert!(root.path().join("etc/containerd/certs.d/docker.io/hosts.toml").exists());
    }
}

/// Docker's `config.json`, at its usual place, is a pipe or a device.
#[test]
fn credentials_that_are_no_file_are_not_waited_for() {
    let registry = Registry::start();
    Image::single(3, &[2000]).push(registry.addr(), "app", "v1");
    for (replace, kind) in KINDS {
        let tool = bounded().file(".docker/config.json", "{}");
        replace(&tool.home().path().join(".docker/config.json"));
        let run = tool.args(&["inspect", &format!("{}/app:v1", registry.addr())]).run().ok();
        assert!(run.stderr.contains("config.json") && run.stderr.contains(kind), "{}", run.stderr);
        let tool = bounded().file(".docker/config.json", "{}").stdin("secret");
        replace(&tool.home().path().join(".docker/config.json"));
        let login = ["login", &registry.addr().to_string(), "--username", "u", "--password-stdin"];
        assert_refused(&tool.args(&login).run(), "config.json", kind);
    }
}

/// Files that a command names: certificates, accounts, a report.
#[test]
fn files_that_the_command_line_names_are_read_up_to_a_limit() {
    for args in [
        &["inspect", "127.0.0.1:1/app:v1", "--ca-file", "/dev/zero"][..],
        &["inspect", "127.0.0.1:1/app:v1", "--auth-file", "/dev/zero"],
        &["mirror", "list.txt", "--to", "127.0.0.1:1/x", "--hub-accounts", "/dev/zero"],
        &["mirror", "list.txt", "--to", "127.0.0.1:1/x", "--retry-failed", "/dev/zero"],
        &["mirror", "check", "/dev/zero", "--to", "127.0.0.1:1/x"],
    ] {
        let run = bounded().file("list.txt", "docker.io/library/app:v1\n").args(args).run();
        assert!(matches!(run.code, 1..=3), "{args:?}: exit code {}: {}", run.code, run.stderr);
        assert!(["more than", "too large"].iter().any(|why| run.stderr.contains(why)), "{args:?}: {}", run.stderr);
    }
}

/// A list by process substitution or `/dev/stdin` is a pipe, and is read.
#[test]
fn lists_that_the_command_line_names_may_be_pipes() {
    let tool = |script: &str| {
        let args = ["-c", script, env!("CARGO_BIN_EXE_transload"), "--to", "127.0.0.1:1/x"];
        Tool::new("bash").args(&args).stdin("docker.io/library/app:v1\n").run()
    };
    tool(r#""$0" mirror check <(echo docker.io/library/app:v1) "$@""#).ok();
    tool(r#"cat | "$0" mirror check /dev/stdin "$@""#).ok();
    tool(r#""$0" mirror check - "$@""#).ok();
}

/// The command waits for somebody to write to a pipe that it was given. A signal ends it all the same.
#[test]
fn a_command_that_waits_for_a_pipe_ends_by_a_signal() {
    let cases = [
        &["mirror", "list.txt", "--to", "127.0.0.1:1/x", "--retry-failed", "pipe"][..],
        &["mirror", "pipe", "--to", "127.0.0.1:1/x"],
        &["mirror", "list.txt", "--to", "127.0.0.1:1/x", "--interval", "1h", "--retry-failed", "pipe"],
        &["diff", "pipe", "--to", "127.0.0.1:1/x"],
        &["inspect", "127.0.0.1:1/app:v1", "--ca-file", "pipe"],
        &["inspect", "127.0.0.1:1/app:v1", "--auth-file", "pipe"],
    ];
    std::thread::scope(|scope| cases.map(|args| scope.spawn(move || ends_by_a_signal(args))).map(|case| case.join()))
        .into_iter()
        .for_each(|case| case.expect("it ends"));
}

fn ends_by_a_signal(args: &[&str]) {
    let tool = Tool::transload().file("list.txt", "127.0.0.1:1/app:v1\n").args(args);
    pipe(&tool.home().path().join("pipe"));
    let process = tool.spawn();
    wait_until("it waits for the pipe", || waits_in_open(process.id()));
    process.terminate();
    let begun = Instant::now();
    let run = process.finish(Duration::from_secs(30));
    // Killed by the signal, or ended by itself because of it.
    assert!(matches!(run.code, 130 | -1), "{args:?}: {run:?}");
    assert!(begun.elapsed() < Duration::from_secs(10), "{args:?}: {:?}", begun.elapsed());
}

/// Whether the first thread of a process waits for the other end of a pipe. Needs the kernel's word for where it waits.
fn waits_in_open(process: u32) -> bool {
    std::fs::read_to_string(format!("/proc/{process}/task/{process}/wchan")).is_ok_and(|at| at.contains("fifo"))
        || std::fs::read_to_string(format!("/proc/{process}/task/{process}/syscall"))
            // openat(2), on x86-64 and on ARM64.
            .is_ok_and(|call| ["257 ", "56 "].iter().any(|number| call.starts_with(number)))
}

/// A proxy's configuration, and a file that it names, are pipes.
#[test]
fn a_proxys_configuration_is_not_waited_for() {
    let dir = TempDir::new();
    let config = |listen: &str| {
        format!(
            "listen: [{{ http: 127.0.0.1:0{listen} }}]\ncache: {{ dir: cache, keep-free: 0 }}\nupstreams: [{{ name: docker.io }}]\n"
        )
    };
    let file = dir.write("proxy.yaml", "");
    for (replace, kind) in KINDS {
        replace(Path::new(&file));
        assert_refused(&bounded().args(&["proxy", "check", &file]).run(), "proxy.yaml", kind);
        drop(std::fs::remove_file(&file));
        dir.write("proxy.yaml", config(", users-file: users"));
        replace(&dir.path().join("users"));
        assert_refused(&bounded().args(&["proxy", "--config", &file]).run(), "users", kind);
    }
}

/// Files of a proxy's cache are replaced by pipes while it runs.
#[test]
fn a_proxy_does_not_wait_for_pipes_in_its_cache() {
    let registry = Registry::start();
    let image = Image::single(3, &[70_000]);
    image.push(registry.addr(), "library/app", "v1");
    let first = ProxyProcess::hub(registry.addr(), &[]);
    image.assert_at(first.addr(), "library/app", "v1");
    let cache = first.kill();
    let files = |below: &str| crate::support::proxied::files(&cache, below);
    let tags = files("tags");
    assert_eq!(tags.len(), 1);
    tags.iter().for_each(|file| pipe(&cache.path().join("cache").join(file)));
    let records = files("repositories");
    assert!(!records.is_empty());
    for file in &records {
        let path = cache.path().join("cache").join(file);
        pipe(&path);
        pipe(&path.with_extension("new"));
    }
    let all = [files("blobs"), files("manifests")].concat();
    let paths: Vec<_> = all.iter().map(|file| cache.path().join("cache").join(file)).collect();
    let second = ProxyProcess::start_in(cache, &format!("docker.io={}", registry.addr()), &[]);
    paths.iter().for_each(|path| pipe(path));
    image.assert_at(second.addr(), "library/app", "v1");
}
