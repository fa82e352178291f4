//! Clients of the proxies: every answer that is complete is compared to the truth.

use std::io;

use super::images::{LARGE, Tagged};
use super::random::Random;
use super::support::http::{self, Reply};
use super::support::images::Blob;
use super::support::layer::sha256;
use super::world::World;

/// Pulls until the run is over.
pub(crate) fn run(world: &World, mut random: Random) {
    while !world.is_over() {
        let small = random.percent(25);
        let tagged = random.pick(&world.truth.tags);
        let large = tagged.images[0].blobs.iter().any(|blob| blob.bytes.len() == LARGE);
        if large && !random.percent(10) {
            continue;
        }
        let service = if small { &world.small_proxy } else { &world.proxy };
        let client = Client { world, at: service.addr(), small };
        client.pull(tagged, &mut random);
    }
}

/// A client of one proxy.
pub(crate) struct Client<'a> {
    pub(crate) world: &'a World,
    pub(crate) at: std::net::SocketAddr,
    pub(crate) small: bool,
}

impl Client<'_> {
    /// As a node does, with some requests that others make.
    fn pull(&self, tagged: &Tagged, random: &mut Random) {
        if random.percent(30) {
            self.head_tag(tagged, random);
        }
        let Some(digest) = self.tag(tagged, random) else { return };
        let Some(image) = tagged.named(&digest) else { return };
        for manifest in &image.manifests {
            if random.percent(40) {
                self.manifest(tagged, &manifest.digest, random);
            }
        }
        for blob in &image.blobs {
            match random.below(10) {
                0 => self.head_blob(tagged, blob, random),
                1..=2 => self.range(tagged, blob, random),
                3..=7 => drop(self.blob(tagged, blob, random)),
                _ => {}
            }
        }
    }

    /// The digest that the tag has, if there was a complete answer.
    pub(crate) fn tag(&self, tagged: &Tagged, random: &mut Random) -> Option<String> {
        let path = path(tagged, "manifests", tagged.tag, random);
        let reply = self.complete("tag", &path, http::try_send(self.at, "GET", &path, &[], &[]))?;
        let digest = sha256(&reply.body);
        if tagged.named(&digest).is_none() {
            self.wrong(&path, &format!("the tag is {digest}, which it never was"), &reply);
        }
        if reply.header("docker-content-digest").is_some_and(|told| told != digest) {
            self.wrong(&path, "the header's digest is not the body's", &reply);
        }
        Some(digest)
    }

    fn head_tag(&self, tagged: &Tagged, random: &mut Random) {
        let path = path(tagged, "manifests", tagged.tag, random);
        let reply = http::try_send(self.at, "HEAD", &path, &[], &[]);
        let Some(reply) = self.complete("HEAD tag", &path, reply) else { return };
        let named = reply.header("docker-content-digest").and_then(|digest| tagged.named(digest));
        let length = named.map(|image| image.bytes().len().to_string());
        if length.is_none() || reply.header("content-length") != length.as_deref() {
            self.wrong(&path, "the headers are those of no image that the tag named", &reply);
        }
    }

    pub(crate) fn manifest(&self, tagged: &Tagged, digest: &str, random: &mut Random) -> bool {
        let path = path(tagged, "manifests", digest, random);
        let reply = http::try_send(self.at, "GET", &path, &[], &[]);
        let Some(reply) = self.complete("manifest", &path, reply) else { return false };
        if Some(&reply.body[..]) != self.world.truth.manifest(digest) {
            self.wrong(&path, "other bytes", &reply);
        }
        true
    }

    pub(crate) fn blob(&self, tagged: &Tagged, blob: &Blob, random: &mut Random) -> bool {
        let path = path(tagged, "blobs", &blob.digest, random);
        let reply = http::try_send(self.at, "GET", &path, &[], &[]);
        let Some(reply) = self.complete("blob", &path, reply) else { return false };
        if sha256(&reply.body) != blob.digest {
            let differ = |(at, (got, wanted)): (usize, (&u8, &u8))| (got != wanted).then_some(at);
            let differing: Vec<usize> = reply.body.iter().zip(&blob.bytes).enumerate().filter_map(differ).collect();
            let (number, first, last) = (differing.len(), differing.first(), differing.last());
            self.wrong(&path, &format!("{number} other bytes, from {first:?} to {last:?}"), &reply);
        }
        true
    }

    fn head_blob(&self, tagged: &Tagged, blob: &Blob, random: &mut Random) {
        let path = path(tagged, "blobs", &blob.digest, random);
        let reply = http::try_send(self.at, "HEAD", &path, &[], &[]);
        let Some(reply) = self.complete("HEAD blob", &path, reply) else { return };
        if reply.header("content-length") != Some(&blob.bytes.len().to_string()) {
            self.wrong(&path, "another length", &reply);
        }
    }

    fn range(&self, tagged: &Tagged, blob: &Blob, random: &mut Random) {
        let size = blob.bytes.len() as u64;
        let from = random.below(size);
        let length = if random.percent(40) { size } else { 1 + random.below(300_000) };
        let last = (from + length - 1).min(size - 1);
        let path = path(tagged, "blobs", &blob.digest, random);
        let range = format!("bytes={from}-{last}");
        let reply = http::try_send(self.at, "GET", &path, &[("range", &range)], &[]);
        let Some(reply) = self.complete("range", &path, reply) else { return };
        let (wanted, told) = match reply.status {
            206 => {
                let part = from as usize..last as usize + 1;
                (&blob.bytes[part], Some(format!("bytes {from}-{last}/{size}")))
            }
            _ => (&blob.bytes[..], None),
        };
        if reply.body != wanted && reply.status == 206 && last < size - 1 && reply.body.len() == wanted.len() {
            // Bytes from the middle of a blob are not verified while it is fetched, or if it cannot be cached
            // (SECURITY.md). The last byte is the promise.
            self.world.report.count("range from the middle with other bytes, which nobody verifies");
        } else if reply.body != wanted || reply.header("content-range") != told.as_deref() {
            self.wrong(&path, &format!("not what {range} asked for"), &reply);
        }
    }

    /// The answer if it succeeded and is complete. Anything else must look like what it is.
    fn complete(&self, what: &str, path: &str, reply: io::Result<Reply>) -> Option<Reply> {
        let report = &self.world.report;
        let reply = match reply {
            Ok(reply) => reply,
            Err(_) => {
                report.count("pull without an answer");
                return None;
            }
        };
        match reply.status {
            200 | 206 => {}
            // 401 and 403: an upstream that refuses a token or a link is believed.
            401 | 403 | 429 | 502..=504 => {
                report.count(format!("pull answered {}", reply.status));
                return None;
            }
            _ => {
                self.wrong(path, &format!("status {}", reply.status), &reply);
                return None;
            }
        }
        if !reply.whole {
            report.count("pull cut, and visibly so");
            return None;
        }
        if reply.header("content-length").is_none() {
            self.wrong(path, "an answer whose end nobody can see", &reply);
        }
        report.count(format!("answer to {what} compared"));
        report.add("bytes compared", reply.body.len() as u64);
        Some(reply)
    }

    fn wrong(&self, path: &str, what: &str, reply: &Reply) {
        let body: String = reply.text().chars().take(300).collect();
        let proxy = if self.small { "small proxy" } else { "proxy" };
        let (status, headers, length) = (reply.status, &reply.headers, reply.body.len());
        self.world
            .report
            .violation(format!("{proxy}: {path}: {what}: {status} {headers:?}, {length} bytes, such as {body:?}"));
    }
}

/// A path in one of the forms that clients have.
fn path(tagged: &Tagged, kind: &str, reference: &str, random: &mut Random) -> String {
    let repository = tagged.repository;
    match random.below(3) {
        0 => format!("/v2/{repository}/{kind}/{reference}"),
        1 => format!("/v2/docker.io/{repository}/{kind}/{reference}"),
        _ => format!("/v2/{repository}/{kind}/{reference}?ns=docker.io"),
    }
}
