//! `transload node install-mirror` on a root of its own.

use std::collections::BTreeMap;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::support::process::RUN_TIMEOUT;
use super::support::{Run, TempDir, Tool};

const HOSTS: &str = "etc/containerd/certs.d/docker.io/hosts.toml";

fn install(root: &TempDir, more: &[&str]) -> Tool {
    let root = root.join("");
    let fixed = ["node", "install-mirror", "--root", &root, "--acr", "myregistry.azurecr.io/docker.io"];
    Tool::transload().args(&[&fixed, more].concat())
}

fn run(root: &TempDir, more: &[&str]) -> Run {
    install(root, more).run()
}

/// Everything below, with what makes a file the same file: content, mode, time, inode.
fn state(root: &TempDir) -> BTreeMap<PathBuf, (String, u32, i64, i64, u64)> {
    let (mut all, mut folders) = (BTreeMap::new(), vec![root.path().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a directory") {
            let path = entry.expect("an entry").path();
            let metadata = std::fs::symlink_metadata(&path).expect("metadata");
            let content = if metadata.is_symlink() {
                std::fs::read_link(&path).expect("a link").display().to_string()
            } else if metadata.is_dir() {
                folders.push(path.clone());
                // Entries that come and go change a directory's time.
                all.insert(path, (String::from("/"), metadata.mode(), 0, 0, 0));
                continue;
            } else {
                std::fs::read_to_string(&path).expect("text")
            };
            all.insert(path, (content, metadata.mode(), metadata.mtime(), metadata.mtime_nsec(), metadata.ino()));
        }
    }
    all
}

#[test]
fn a_second_run_changes_nothing_and_uninstall_leaves_nothing() {
    let root = TempDir::new();
    root.write("etc/containerd/config.toml", "[plugins.cri.registry]\n  config_path = \"/etc/containerd/certs.d\"\n");
    let before = state(&root);
    let first = run(&root, &[]).ok();
    assert!(first.stderr.contains("written") && !first.stderr.contains("warning"), "{first:?}");
    let text = root.read(HOSTS);
    let order = ["[host.\"http://127.0.0.1:30500\"]", "[host.\"https://myregistry.azurecr.io/v2/docker.io\"]"];
    assert!(text.find(order[0]).expect("the proxy") < text.find(order[1]).expect("ACR"), "{text}");
    assert!(text.contains("server = \"https://registry-1.docker.io\"") && text.contains("dial_timeout = \"200ms\""));
    let metadata = std::fs::metadata(root.path().join(HOSTS)).expect("a file");
    assert_eq!(metadata.permissions().mode() & 0o777, 0o644);

    let installed = state(&root);
    let second = run(&root, &[]).ok();
    assert!(second.stderr.contains("up to date"), "{second:?}");
    assert_eq!(state(&root), installed);

    // Another address: an update, of which nothing is left either.
    assert!(run(&root, &["--proxy", "http://127.0.0.1:31000"]).ok().stderr.contains("updated"));
    assert!(root.read(HOSTS).contains("http://127.0.0.1:31000"));
    run(&root, &["--uninstall"]).ok();
    let mut after = state(&root);
    // containerd's own directory may stay; the registry's, which was made for the file, may not.
    after.remove(&root.path().join("etc/containerd/certs.d")).expect("certs.d");
    assert_eq!(after, before);
    assert!(run(&root, &["--uninstall"]).ok().stderr.contains("nothing to remove"));
}

#[test]
fn what_was_there_comes_back_as_it_was() {
    let root = TempDir::new();
    let theirs = root.write(HOSTS, "server = \"https://mine.example\"\n");
    std::fs::set_permissions(&theirs, std::fs::Permissions::from_mode(0o600)).expect("a mode");
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    std::fs::File::options().append(true).open(&theirs).expect("opens").set_modified(long_ago).expect("a time");
    root.write("etc/containerd/certs.d/docker.io/ca.crt", "theirs");
    let before = state(&root);
    assert!(run(&root, &[]).ok().stderr.contains("the file before it is kept as a backup"));
    assert!(root.read(HOSTS).contains("30500"));
    // Several updates keep the one backup.
    run(&root, &["--proxy", "http://127.0.0.1:31000"]).ok();
    run(&root, &[]).ok();
    assert!(run(&root, &["--uninstall"]).ok().stderr.contains("restored"));
    assert_eq!(state(&root), before);

    // A symlink is restored as the symlink that it was.
    root.write("etc/containerd/shared.toml", "server = \"https://x.example\"\n");
    std::fs::remove_file(&theirs).expect("removed");
    symlink("../../shared.toml", &theirs).expect("a link");
    let before = state(&root);
    run(&root, &[]).ok();
    assert_eq!(root.read("etc/containerd/shared.toml"), "server = \"https://x.example\"\n");
    run(&root, &["--uninstall"]).ok();
    assert_eq!(state(&root), before);
}

/// Whoever writes over ours wants theirs: it is left by --uninstall, and backed up by another install.
#[test]
fn a_file_that_is_not_ours_any_more_is_theirs() {
    let root = TempDir::new();
    root.write(HOSTS, "# the first\n");
    run(&root, &[]).ok();
    root.write(HOSTS, "# the second\n");
    assert!(run(&root, &["--uninstall"]).ok().stderr.contains("not ours any more"));
    assert_eq!(root.read(HOSTS), "# the second\n");
    run(&root, &[]).ok();
    run(&root, &["--uninstall"]).ok();
    assert_eq!(root.read(HOSTS), "# the second\n");
    assert_eq!(std::fs::read_dir(root.path().join(HOSTS).parent().expect("one")).expect("a directory").count(), 1);
}

#[test]
fn nothing_leads_out_of_the_root() {
    let outside = TempDir::new();
    for link in ["etc", "etc/containerd", "etc/containerd/certs.d", "etc/containerd/certs.d/docker.io"] {
        let root = TempDir::new();
        let link = root.path().join(link);
        std::fs::create_dir_all(link.parent().expect("a parent")).expect("made");
        symlink(outside.path(), &link).expect("a link");
        for flags in [&[][..], &["--uninstall"]] {
            let run = run(&root, flags).exits(1);
            assert!(run.stderr.contains("symbolic link") && run.stderr.contains("--certs-dir"), "{run:?}");
        }
        assert_eq!(std::fs::read_dir(outside.path()).expect("a directory").count(), 0);
    }
    // Within the root it is just a link.
    let root = TempDir::new();
    std::fs::create_dir_all(root.path().join("opt/containerd")).expect("made");
    std::fs::create_dir(root.path().join("etc")).expect("made");
    symlink("../opt/containerd", root.path().join("etc/containerd")).expect("a link");
    run(&root, &[]).ok();
    assert!(root.path().join("opt/containerd/certs.d/docker.io/hosts.toml").is_file());
    run(&root, &["--certs-dir", "/etc/../../x"]).exits(2);
    run(&root, &["--registry", "../../x"]).exits(2);
}

#[test]
fn several_registries_and_a_port() {
    let root = TempDir::new();
    let flags = ["--registry", "docker.io", "--registry", "ghcr.io", "--registry", "reg.example:5000"];
    run(&root, &[&flags[..], &["--acr", "r.azurecr.io/{registry}"]].concat()).exits(2);
    let root_path = root.join("");
    let args =
        [&["node", "install-mirror", "--root", &root_path, "--acr", "r.azurecr.io/{registry}"], &flags[..]].concat();
    Tool::transload().args(&args).run().ok();
    assert!(root.read("etc/containerd/certs.d/ghcr.io/hosts.toml").contains("https://r.azurecr.io/v2/ghcr.io"));
    let port = root.read("etc/containerd/certs.d/reg.example_5000_/hosts.toml");
    assert!(port.contains("server = \"https://reg.example:5000\"") && port.contains("/v2/reg.example\""), "{port}");
    Tool::transload().args(&[&args[..], &["--uninstall"]].concat()).run().ok();
    assert_eq!(std::fs::read_dir(root.path().join("etc/containerd/certs.d")).expect("a directory").count(), 0);
}

#[test]
fn a_config_that_reads_no_hosts_is_told() {
    let root = TempDir::new();
    for text in ["version = 2\n", "  config_path = \"\"\n", "# config_path = \"/etc/containerd/certs.d\"\n"] {
        root.write("etc/containerd/config.toml", text);
        assert!(run(&root, &[]).ok().stderr.contains("has no config_path"), "{text}");
    }
    // containerd 2: another table, and by default of 2.2 a list that it doesn't read.
    let table = "[plugins.'io.containerd.cri.v1.images'.registry]";
    let told = |line: &str| {
        root.write("etc/containerd/config.toml", format!("version = 3\n[plugins]\n{table}\n{line}\n"));
        let warnings = run(&root, &[]).ok().stderr;
        warnings.lines().find(|line| line.contains("warning")).map(str::to_owned)
    };
    assert_eq!(told("config_path = '/etc/containerd/certs.d'"), None);
    let write = "write config_path = \"/etc/containerd/certs.d\" in [plugins.\"io.containerd.cri.v1.images\".registry]";
    let several = told("config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'").expect("a warning");
    assert!(several.contains("2.1 and 2.2 read none") && several.contains(write), "{several}");
    assert!(told("").expect("a warning").contains(write));
    assert!(told("config_path = '/opt/certs.d'").expect("a warning").ends_with("use --certs-dir /opt/certs.d"));
}

/// As a DaemonSet: puts it back, and cleans up when it's told to stop.
#[test]
fn watching_mends_and_uninstalls_at_the_end() {
    let root = TempDir::new();
    root.write(HOSTS, "# theirs\n");
    let watch = install(&root, &["--watch", "--every", "1", "--uninstall-on-exit"]).spawn();
    watch.stderr.wait_line("written; the file before it", RUN_TIMEOUT);
    std::fs::remove_file(root.path().join(HOSTS)).expect("removed");
    let mended = watch.stderr.wait_line("hosts.toml: written", RUN_TIMEOUT);
    assert!(mended.contains("hosts.toml"), "{mended}");
    // The line may be the first one: what counts is the file.
    wait_for(&root.path().join(HOSTS));
    watch.terminate();
    let run = watch.finish(RUN_TIMEOUT).ok();
    assert!(run.stderr.contains("SIGTERM: uninstalling"), "{run:?}");
    assert_eq!(root.read(HOSTS), "# theirs\n");

    let watch = install(&root, &["--watch"]).spawn();
    watch.stderr.wait_line("written", RUN_TIMEOUT);
    watch.terminate();
    assert!(watch.finish(RUN_TIMEOUT).ok().stderr.contains("the files stay"));
    assert!(root.read(HOSTS).contains("30500"));
}

#[test]
fn a_root_that_is_none_says_what_it_should_be() {
    let root = TempDir::new();
    let file = root.write("file", "");
    for wrong in [root.join("absent"), file] {
        let run = Tool::transload().args(&["node", "install-mirror", "--root", &wrong]).run().exits(1);
        assert!(run.stderr.contains(&format!("cannot use the root {wrong}: ")), "{}", run.stderr);
        assert!(run.stderr.contains("hint: --root is the node's root directory"), "{}", run.stderr);
    }
}

fn wait_for(path: &Path) {
    let deadline = std::time::Instant::now() + RUN_TIMEOUT;
    while !path.exists() {
        assert!(std::time::Instant::now() < deadline, "{} does not come", path.display());
        std::thread::sleep(Duration::from_millis(5));
    }
}
