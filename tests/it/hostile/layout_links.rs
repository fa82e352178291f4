//! Links in a layout directory that lead out of it, and files that aren't what their names say.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use crate::support::http::{self, Reply};
use crate::support::layout::{self, link};
use crate::support::process::RUN_TIMEOUT;
use crate::support::{Image, ServeProcess, TempDir, Tool};

/// A layout `images` with one image, `v1`, and beside it a file that nobody may read through it.
struct World {
    dir: TempDir,
    layout: PathBuf,
    image: Image,
    secret: PathBuf,
}

const SECRET: &str = "the host's secret";

impl World {
    fn new() -> Self {
        let dir = TempDir::new();
        let image = Image::single(7, &[20_000]);
        let layout = layout::write(&dir, "images", &image, "v1");
        let secret = PathBuf::from(dir.write("host/secret", SECRET));
        Self { dir, layout, image, secret }
    }

    fn layer(&self) -> &str {
        &self.image.blobs[1].digest
    }

    fn file(&self) -> PathBuf {
        layout::file(&self.layout, self.layer())
    }

    fn path(&self) -> String {
        format!("/v2/images/blobs/{}", self.layer())
    }
}

/// No way of asking gives a byte of the blob.
#[track_caller]
fn assert_not_served(serving: &ServeProcess, path: &str) {
    for (method, headers) in
        [("GET", &[][..]), ("HEAD", &[]), ("GET", &[("range", "bytes=0-3")]), ("GET", &[("range", "bytes=-3")])]
    {
        let reply: Reply = http::send(serving.addr(), method, path, headers, &[]);
        assert!(matches!(reply.status, 404 | 500), "{method} {headers:?}: {}", reply.status);
        assert!(!reply.text().contains("host"), "{}", reply.text());
    }
}

/// A blob is a link to a file of the host.
#[test]
fn serve_gives_no_file_of_the_host_under_a_digest() {
    let world = World::new();
    for to in [world.secret.clone(), "../../../host/secret".into(), "/etc/passwd".into()] {
        link(&world.file(), &to);
        let serving = ServeProcess::start(&world.layout, &[]);
        assert_not_served(&serving, &world.path());
        serving.process.stderr.wait_line(&world.layer()[7..], RUN_TIMEOUT);
    }
}

/// The link appears after the right blob was served and verified.
#[test]
fn a_link_that_replaces_a_served_blob_is_not_followed() {
    let world = World::new();
    let serving = ServeProcess::start(&world.layout, &[]);
    for _ in 0..2 {
        world.image.assert_at(serving.addr(), "images", "v1");
    }
    link(&world.file(), &world.secret);
    assert_not_served(&serving, &world.path());
}

/// The directory `blobs`, or `blobs/sha256`, is a link to a directory of the host, which even holds the right file.
#[test]
fn linked_directories_are_not_followed_by_reads_or_by_writes() {
    for name in ["blobs", "blobs/sha256"] {
        let world = World::new();
        let (inside, outside) = (world.layout.join(name), world.dir.path().join("host/moved"));
        std::fs::rename(&inside, &outside).expect("moved");
        link(&inside, &outside);
        let before = listing(&outside);
        let serving = ServeProcess::start(&world.layout, &["--writable", "--keep-free", "0"]);
        assert_not_served(&serving, &world.path());
        let blob = &Image::single(8, &[100]).blobs[0];
        let path = format!("/v2/images/blobs/uploads/?digest={}", blob.digest);
        let pushed = http::send(serving.addr(), "POST", &path, &[], &blob.bytes);
        assert_eq!(pushed.status, 500, "{name}");
        assert_eq!(listing(&outside), before, "{name}: something was written outside");
    }
}

fn listing(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<_> =
        std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry").path()).collect();
    found.sort();
    found
}

/// `index.json` is a link to an index elsewhere.
#[test]
fn a_linked_index_is_not_read() {
    let world = World::new();
    let outside = world.dir.path().join("host/index.json");
    std::fs::rename(world.layout.join("index.json"), &outside).expect("moved");
    link(&world.layout.join("index.json"), &outside);
    let serving = ServeProcess::start(&world.layout, &[]);
    for path in ["/v2/images/tags/list", "/v2/images/manifests/v1", "/v2/_catalog"] {
        http::get(serving.addr(), path).expect(500);
    }
}

/// `oci-layout` is a link out of the directory, so that a lock on it would be a lock on a file of the host.
#[test]
fn a_linked_mark_is_refused_at_the_start() {
    let world = World::new();
    let outside = world.dir.path().join("host/oci-layout");
    std::fs::rename(world.layout.join("oci-layout"), &outside).expect("moved");
    link(&world.layout.join("oci-layout"), &outside);
    let dir = world.layout.to_str().expect("UTF-8");
    for flags in [&[][..], &["--writable"]] {
        let run = Tool::transload().args(&["serve", dir, "--listen", "127.0.0.1:0"]).args(flags).run();
        assert_ne!(run.code, 0);
        assert!(run.stderr.contains("oci-layout"), "{}", run.stderr);
    }
}

/// A link within the directory leads nowhere else, and a directory that is itself reached by a link is served.
#[test]
fn links_within_the_directory_are_followed() {
    let world = World::new();
    std::fs::rename(world.file(), world.layout.join("blobs/elsewhere")).expect("moved");
    link(&world.file(), Path::new("../elsewhere"));
    let by_link = world.dir.path().join("link");
    link(&by_link, &world.layout);
    let serving = ServeProcess::start(&by_link, &[]);
    world.image.assert_at(serving.addr(), "images", "v1");
}

/// A file has other bytes than its name says, of the same number: by a fault of the disk, or since somebody gave
/// a file of the host that name by a hard link.
#[test]
fn serve_gives_nothing_that_has_another_digest_and_takes_the_right_blob_again() {
    let world = World::new();
    let wrong: Vec<u8> = world.image.blobs[1].bytes.iter().map(|byte| !byte).collect();
    for hard in [false, true] {
        drop(std::fs::remove_file(world.file()));
        if hard {
            std::fs::hard_link(&world.secret, world.file()).expect("a link");
        } else {
            std::fs::write(world.file(), &wrong).expect("written");
        }
        let serving = ServeProcess::start(&world.layout, &["--writable", "--keep-free", "0"]);
        assert_not_served(&serving, &world.path());
        serving.process.stderr.wait_line("does not match the digest", RUN_TIMEOUT);
        world.image.push(serving.addr(), "images", "v1");
        world.image.assert_at(serving.addr(), "images", "v1");
        assert_eq!(std::fs::read_to_string(&world.secret).expect("there"), SECRET, "the host's file is as it was");
    }
}

/// A blob was verified and is served; then its file is changed in place, and its size and time are as before.
#[test]
fn a_file_that_changes_after_it_was_verified_is_verified_again() {
    let world = World::new();
    let serving = ServeProcess::start(&world.layout, &[]);
    world.image.assert_at(serving.addr(), "images", "v1");
    let before = std::fs::metadata(world.file()).expect("there");
    let wrong: Vec<u8> = world.image.blobs[1].bytes.iter().map(|byte| !byte).collect();
    std::fs::write(world.file(), wrong).expect("written");
    let file = std::fs::File::options().write(true).open(world.file()).expect("opens");
    file.set_modified(before.modified().expect("a time")).expect("set");
    let after = std::fs::metadata(world.file()).expect("there");
    assert_eq!((before.ino(), before.len(), before.mtime_nsec()), (after.ino(), after.len(), after.mtime_nsec()));
    assert_not_served(&serving, &world.path());
}

/// Build tools write layouts whose blobs are links into their own store: a copy follows them, and its check of each
/// digest keeps it from copying anything else.
#[test]
fn copy_follows_links_and_trusts_the_digest_only() {
    let world = World::new();
    let outside = world.dir.path().join("host/layer");
    std::fs::rename(world.file(), &outside).expect("moved");
    link(&world.file(), &outside);
    let copy = |to: &str| {
        let (from, to) = (format!("oci:{}:v1", world.layout.display()), format!("oci:{}:v1", world.dir.join(to)));
        Tool::transload().args(&["copy", &from, &to, "--retries", "0"]).run()
    };
    copy("good").ok();
    std::fs::write(&outside, SECRET).expect("written");
    assert_ne!(copy("bad").code, 0);
    assert!(!layout::file(&world.dir.path().join("bad"), world.layer()).exists());
}
