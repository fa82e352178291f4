//! `transload serve`, with skopeo as the judge.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

/// A directory that is removed at the end.
struct Dir(PathBuf);

impl Dir {
    fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("transload-serve-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = std::env::temp_dir().join(name);
        std::fs::create_dir_all(&path).expect("made");
        Self(path)
    }

    fn at(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn oci(&self, name: &str) -> String {
        format!("oci:{}", self.at(name).display())
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A running `transload serve`, ended on drop.
struct Serve {
    child: Child,
    address: String,
}

impl Serve {
    fn start(dir: &Path, flags: &[&str]) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_transload"))
            .arg("serve")
            .arg(dir)
            .args(["--listen", "127.0.0.1:0"])
            .args(flags)
            .stderr(Stdio::piped())
            .spawn()
            .expect("starts");
        let mut errors = BufReader::new(child.stderr.take().expect("a pipe"));
        let mut line = String::new();
        let address = loop {
            line.clear();
            assert_ne!(errors.read_line(&mut line).expect("text"), 0, "it ended");
            if let Some((_, address)) = line.trim().split_once(" on http://") {
                break address.to_owned();
            }
        };
        // Read on, so that its log never blocks it.
        std::thread::spawn(move || std::io::copy(&mut errors, &mut std::io::sink()));
        Self { child, address }
    }

    fn image(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.address)
    }

    /// Status line, headers and body of a request that needs no client.
    fn ask(&self, line: &str) -> String {
        let mut stream = TcpStream::connect(&self.address).expect("connects");
        write!(stream, "{line} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").expect("sends");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("answers");
        answer
    }
}

impl Drop for Serve {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn skopeo(arguments: &[&str]) -> Output {
    Command::new("skopeo").args(arguments).output().expect("skopeo is installed")
}

fn copy(flags: &[&str], from: &str, to: &str) -> Output {
    let mut arguments = vec!["copy", "--insecure-policy"];
    arguments.extend(flags);
    if from.starts_with("docker:") {
        arguments.push("--src-tls-verify=false");
    }
    if to.starts_with("docker:") {
        arguments.push("--dest-tls-verify=false");
    }
    arguments.extend([from, to]);
    skopeo(&arguments)
}

#[track_caller]
fn good(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Two images for two platforms and an index of them, `v1`, in a layout of skopeo's own making:
/// so what stands in there is not of our writing.
fn multi(dir: &Dir) {
    let plain = dir.at("plain");
    std::fs::create_dir_all(&plain).expect("made");
    let blob = |text: &str| {
        let hex = sha256(text.as_bytes());
        std::fs::write(plain.join(&hex), text).expect("written");
        (format!("sha256:{hex}"), text.len())
    };
    let entry = |kind: &str, (digest, size): &(String, usize), more: &str| {
        format!(r#"{{"mediaType":"{kind}","digest":"{digest}","size":{size}{more}}}"#)
    };
    let image = |architecture: &str| {
        let layer = format!("the layer of {architecture}");
        let diff = format!("sha256:{}", sha256(layer.as_bytes()));
        let layer = blob(&layer);
        let config = blob(&format!(
            r#"{{"architecture":"{architecture}","os":"linux","config":{{}},"rootfs":{{"type":"layers","diff_ids":["{diff}"]}}}}"#
        ));
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{},"layers":[{}]}}"#,
            entry("application/vnd.oci.image.config.v1+json", &config, ""),
            entry("application/vnd.oci.image.layer.v1.tar", &layer, "")
        );
        let manifest = (format!("sha256:{}", sha256(text.as_bytes())), text.len());
        std::fs::write(plain.join(format!("{}.manifest.json", &manifest.0[7..])), &text).expect("written");
        let platform = format!(r#","platform":{{"os":"linux","architecture":"{architecture}"}}"#);
        entry("application/vnd.oci.image.manifest.v1+json", &manifest, &platform)
    };
    let index = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[{},{}]}}"#,
        image("amd64"),
        image("arm64")
    );
    std::fs::write(plain.join("manifest.json"), index).expect("written");
    std::fs::write(plain.join("version"), "Directory Transport Version: 1.1\n").expect("written");
    good(&copy(&["--all"], &format!("dir:{}", plain.display()), &format!("{}:v1", dir.oci("source"))));
}

fn sha256(bytes: &[u8]) -> String {
    transload::descriptor::Digest::of(bytes).hex()
}

/// The digest of the one image that a layout's index names.
fn root(dir: &Path) -> String {
    let index = std::fs::read(dir.join("index.json")).expect("a layout");
    let index: serde_json::Value = serde_json::from_slice(&index).expect("JSON");
    index["manifests"][0]["digest"].as_str().expect("a digest").to_owned()
}

fn blobs(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir.join("blobs/sha256")).expect("a layout");
    let mut names: Vec<_> =
        entries.map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn skopeo_pushes_lists_and_pulls() {
    let dir = Dir::new();
    multi(&dir);
    let source = format!("{}:v1", dir.oci("source"));
    let serve = Serve::start(&dir.at("images"), &["--writable"]);
    good(&copy(&["--all"], &source, &serve.image("team/app:v1")));
    good(&copy(&["--all"], &source, &serve.image("team/app:v2")));
    good(&copy(&["--format", "v2s2"], &source, &serve.image("other:docker")));

    let tags = good(&skopeo(&["list-tags", "--tls-verify=false", &serve.image("team/app")]));
    let tags: serde_json::Value = serde_json::from_str(&tags).expect("JSON");
    assert_eq!(tags["Tags"], serde_json::json!(["v1", "v2"]));
    let raw = |name: &str| good(&skopeo(&["inspect", "--raw", "--tls-verify=false", &serve.image(name)]));
    assert_eq!(format!("sha256:{}", sha256(raw("team/app:v1").as_bytes())), root(&dir.at("source")));
    assert!(raw("other:docker").contains("vnd.docker.distribution.manifest.v2+json"));
    // Asked as a mirror of one of two registries that have the same name.
    good(&copy(&["--all"], &source, &serve.image("docker.io/team/twin:v1")));
    good(&copy(&["--format", "v2s2"], &source, &serve.image("ghcr.io/team/twin:v1")));
    for (ns, kind) in [("docker.io", "oci.image.index"), ("ghcr.io", "docker.distribution.manifest.v2")] {
        let answer = serve.ask(&format!("GET /v2/team/twin/manifests/v1?ns={ns}"));
        assert!(answer.contains(kind), "{ns}: {answer}");
    }
    assert!(serve.ask("GET /v2/_catalog?last=l").ends_with(r#"{"repositories":["other","team/app"]}"#));

    good(&copy(&["--all"], &serve.image("team/app:v2"), &format!("{}:back", dir.oci("back"))));
    assert_eq!(blobs(&dir.at("back")), blobs(&dir.at("source")));
    assert_eq!(root(&dir.at("back")), root(&dir.at("source")));
    // The directory itself is one that skopeo reads, while it's served and by the full name.
    good(&copy(
        &["--all"],
        &format!("{}:team/app:v1", dir.oci("images")),
        &format!("dir:{}", dir.at("again").display()),
    ));
}

#[test]
fn a_directory_of_skopeos_is_served_read_only() {
    let dir = Dir::new();
    multi(&dir);
    let serve = Serve::start(&dir.at("source"), &[]);
    good(&copy(&["--all"], &serve.image("source:v1"), &format!("{}:v1", dir.oci("back"))));
    assert_eq!(blobs(&dir.at("back")), blobs(&dir.at("source")));
    let refused = copy(&["--all"], &format!("{}:v1", dir.oci("source")), &serve.image("source:v2"));
    assert!(!refused.status.success());
    assert!(serve.ask("POST /v2/source/blobs/uploads/").starts_with("HTTP/1.1 405 "));
    assert!(serve.ask("GET /v2/nothing/tags/list").contains("NAME_UNKNOWN"));
}

#[test]
fn what_cannot_be_served_is_said() {
    let dir = Dir::new();
    let run = |directory: &Path, flags: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_transload"));
        command.arg("serve").arg(directory).args(flags).output().expect("runs")
    };
    let missing = run(&dir.at("missing"), &["--listen", "127.0.0.1:0"]);
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("not an OCI image layout"));
    let address = run(&dir.at("new"), &["--writable", "--listen", "nonsense"]);
    assert_eq!(address.status.code(), Some(2));
    let taken = Serve::start(&dir.at("new"), &["--writable"]);
    let second = run(&dir.at("new"), &["--listen", &taken.address]);
    assert_eq!(second.status.code(), Some(2));
}
