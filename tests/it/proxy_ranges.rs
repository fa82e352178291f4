//! Ranges of blobs that the proxy cannot cache.

use super::support::{Fault, Front, Image, ProxyProcess, Registry, Rule, http};

/// A proxy whose cache is smaller than the image's layer, and the path of that layer. The upstream changes this byte of
/// each answer.
fn small(image: &Image, changed: u64) -> (Registry, Front, ProxyProcess, String) {
    let registry = Registry::start();
    image.push(registry.addr(), "library/app", "v1");
    let front = Front::before(registry.addr());
    let front = front.rule(Rule::on("GET", "/blobs/", Fault::FlipByteAt(changed))).start();
    let proxy = ProxyProcess::hub(front.addr(), &["--cache-size", "100KiB"]);
    let path = format!("/v2/library/app/blobs/{}", image.blobs[1].digest);
    (registry, front, proxy, path)
}

/// The last byte of a blob leaves only when all of it is right, also where a client asks for the end alone.
#[test]
fn a_range_with_the_last_byte_of_an_uncacheable_blob_is_verified() {
    let image = Image::single(9, &[300_000]);
    for changed in [50, 250_000] {
        let (_registry, front, proxy, path) = small(&image, changed);
        let reply = http::try_send(proxy.addr(), "GET", &path, &[("range", "bytes=100000-")], &[]);
        assert!(front.struck() > 0, "no answer was changed");
        let complete = reply.is_ok_and(|reply| matches!(reply.status, 200 | 206) && reply.whole);
        assert!(!complete, "the end of a blob whose byte {changed} was changed is complete");
    }
}

#[test]
fn the_end_of_an_uncacheable_blob_is_served() {
    let image = Image::single(9, &[300_000]);
    let (_registry, front, proxy, path) = small(&image, 0);
    front.clear_rules();
    for (range, from) in [("bytes=100000-", 100_000), ("bytes=-1", 299_999)] {
        let reply = http::send(proxy.addr(), "GET", &path, &[("range", range)], &[]).expect(206);
        assert!(reply.whole && reply.body == image.blobs[1].bytes[from..], "{range}");
    }
}
