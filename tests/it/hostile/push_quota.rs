//! Pushes that would fill the disk of a server.

use crate::support::http::{self, Reply};
use crate::support::layer::random_bytes;
use crate::support::{Image, ServeProcess, TempDir, Tool};

const MIB: usize = 1 << 20;

fn begin(serving: &ServeProcess) -> String {
    let begun = http::send(serving.addr(), "POST", "/v2/hostile/blobs/uploads/", &[], &[]).expect(202);
    begun.header("location").expect("a location").to_owned()
}

fn append(serving: &ServeProcess, location: &str, size: usize) -> Reply {
    let headers = [("content-type", "application/octet-stream")];
    http::send(serving.addr(), "PATCH", location, &headers, &random_bytes(9, size))
}

/// An error as the distribution spec writes it, that tells the client of no path.
#[track_caller]
fn assert_full(reply: &Reply, dir: &TempDir) {
    assert_eq!(reply.status, 403, "{}", reply.text());
    assert_eq!(reply.json()["errors"][0]["code"], "DENIED");
    assert!(reply.text().contains("no space left") && !reply.text().contains(&dir.join("")), "{}", reply.text());
}

/// How many bytes of files there are.
fn size(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).expect("a directory").map(|entry| entry.expect("an entry"));
    entries
        .map(
            |entry| {
                if entry.path().is_dir() { size(&entry.path()) } else { entry.metadata().map_or(0, |data| data.len()) }
            },
        )
        .sum()
}

/// Pushes go on until the disk would be full. They end at `--max-size`, and what is there can still be pulled.
#[test]
fn pushes_end_at_the_largest_size_and_images_stay() {
    let dir = TempDir::new();
    let serving =
        ServeProcess::start(&dir.path().join("images"), &["--writable", "--max-size", "4MiB", "--keep-free", "0"]);
    let image = Image::single(1, &[MIB]);
    image.push(serving.addr(), "app", "v1");
    let location = begin(&serving);
    append(&serving, &location, 2 * MIB).expect(202);
    assert_full(&append(&serving, &location, 2 * MIB), &dir);
    assert!(size(&dir.path().join("images")) < 4 << 20);
    image.assert_at(serving.addr(), "app", "v1");
    // Manifests count too.
    let many = Image::artifact(5, &"x".repeat(255), None);
    many.push(serving.addr(), "app", "v2");
}

/// Uploads that never end count as long as their bytes are there: begun, left, and begun again.
#[test]
fn unfinished_uploads_count_and_give_their_bytes_back() {
    let dir = TempDir::new();
    let serving =
        ServeProcess::start(&dir.path().join("images"), &["--writable", "--max-size", "4MiB", "--keep-free", "0"]);
    let uploads: Vec<String> = (0..3).map(|_| begin(&serving)).collect();
    uploads.iter().for_each(|location| drop(append(&serving, location, MIB).expect(202)));
    let last = begin(&serving);
    assert_full(&append(&serving, &last, 2 * MIB), &dir);
    let image = Image::single(1, &[MIB / 2]);
    http::send(serving.addr(), "DELETE", &uploads[0], &[], &[]).expect(204);
    image.push(serving.addr(), "app", "v1");
    // What is there already takes no more room.
    for _ in 0..4 {
        image.push(serving.addr(), "app", "v1");
    }
    image.assert_at(serving.addr(), "app", "v1");
}

/// A directory that another run filled counts from the start.
#[test]
fn what_is_there_before_the_start_counts() {
    let dir = TempDir::new();
    let images = dir.path().join("images");
    let flags = ["--writable", "--max-size", "4MiB", "--keep-free", "0"];
    let image = Image::single(1, &[3 * MIB]);
    let serving = ServeProcess::start(&images, &flags);
    image.push(serving.addr(), "app", "v1");
    drop(serving);
    let serving = ServeProcess::start(&images, &flags);
    let location = begin(&serving);
    assert_full(&append(&serving, &location, 2 * MIB), &dir);
    image.assert_at(serving.addr(), "app", "v1");
}

/// The disk has less free than what is kept free: nothing is taken, whatever it is, and nothing is left behind.
#[test]
fn a_reserve_of_the_disk_is_never_used() {
    let dir = TempDir::new();
    let images = dir.path().join("images");
    let serving = ServeProcess::start(&images, &["--writable", "--keep-free", "1000000GiB"]);
    let before = size(&images);
    let location = begin(&serving);
    assert_full(&append(&serving, &location, 1000), &dir);
    let image = Image::single(1, &[1000]);
    let whole = format!("/v2/app/blobs/uploads/?digest={}", image.blobs[0].digest);
    assert_full(&http::send(serving.addr(), "POST", &whole, &[], &image.blobs[0].bytes), &dir);
    assert_eq!(size(&images), before);
    http::get(serving.addr(), "/v2/").expect(200);
}

/// A copy to such a server ends at once, by an error that says why, and doesn't try again.
#[test]
fn a_copy_to_a_full_server_says_so() {
    let dir = TempDir::new();
    let serving =
        ServeProcess::start(&dir.path().join("images"), &["--writable", "--max-size", "1MiB", "--keep-free", "0"]);
    let from = crate::support::layout::write(&dir, "from", &Image::single(1, &[2 * MIB]), "v1");
    let (from, to) = (format!("oci:{}:v1", from.display()), format!("{}/app:v1", serving.addr()));
    let run = Tool::transload().args(&["copy", &from, &to]).run();
    assert_ne!(run.code, 0);
    assert!(run.stderr.contains("no space left"), "{}", run.stderr);
}
