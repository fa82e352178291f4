//! What must hold at the destinations at any time.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use super::images::Tagged;
use super::jobs::is_large;
use super::support::http::{self, Reply};
use super::support::layer::sha256;
use super::world::World;

/// How much of a blob is looked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Depth {
    /// That it is there, with its size.
    Exists,
    /// All bytes, by their digest.
    Hash,
}

/// Walks all tags of all destinations, again and again: none may refer to what is missing.
pub(crate) fn watch(world: &World) {
    while !world.is_over() {
        for (name, _) in world.destinations() {
            if let Err(why) = walk_all(world, name, Depth::Exists) {
                world.report.violation(format!("{name}: {why}"));
            }
        }
        let next = Instant::now() + Duration::from_secs(1);
        while Instant::now() < next && !world.is_over() {
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Walks every tag that a destination has.
pub(crate) fn walk_all(world: &World, name: &str, depth: Depth) -> Result<u64, String> {
    let mut walked = 0;
    for prefix in ["copied", "mirrored", "hub"] {
        for tagged in &world.truth.tags {
            walked += u64::from(walk(world, name, prefix, tagged, depth)?);
        }
    }
    world.report.add(format!("walk of a tag at {name} ({depth:?})"), walked);
    Ok(walked)
}

/// Whether a destination holds an image that the tag may name, with all that it refers to.
pub(crate) fn holds(world: &World, name: &str, prefix: &str, tagged: &Tagged) -> Result<(), String> {
    match walk(world, name, prefix, tagged, Depth::Exists)? {
        true => Ok(()),
        false => Err(format!("{prefix}/{}:{} is not there", tagged.repository, tagged.tag)),
    }
}

pub(crate) fn mirrored(world: &World) -> Result<(), String> {
    let mut tags = world.truth.tags.iter().filter(|tagged| !is_large(tagged));
    tags.try_for_each(|tagged| holds(world, "target", "mirrored", tagged))
}

/// False if the destination does not have the tag.
fn walk(world: &World, name: &str, prefix: &str, tagged: &Tagged, depth: Depth) -> Result<bool, String> {
    let repository = format!("{prefix}/{}", tagged.repository);
    let ask = |method: &str, path: &str| ask(world, name, method, &format!("/v2/{repository}/{path}"));
    let Some(reply) = ask("GET", &format!("manifests/{}", tagged.tag))? else { return Ok(false) };
    let digest = sha256(&reply.body);
    let Some(image) = tagged.named(&digest) else {
        return Err(format!("{repository}:{} is {digest}, which it never was", tagged.tag));
    };
    let missing = |what: &str| format!("{repository}:{} refers to {what}, which is not there", tagged.tag);
    for manifest in &image.manifests {
        let reply = ask("GET", &format!("manifests/{}", manifest.digest))?;
        let reply = reply.ok_or_else(|| missing(&manifest.digest))?;
        if reply.body != manifest.bytes {
            return Err(format!("{repository}: {} has other bytes", manifest.digest));
        }
    }
    for blob in &image.blobs {
        let method = if depth == Depth::Hash { "GET" } else { "HEAD" };
        let reply = ask(method, &format!("blobs/{}", blob.digest))?;
        let reply = reply.ok_or_else(|| missing(&blob.digest))?;
        let length = blob.bytes.len().to_string();
        let wrong = reply.header("content-length") != Some(&length)
            || depth == Depth::Hash && sha256(&reply.body) != blob.digest;
        if wrong {
            return Err(format!("{repository}: {} has other bytes", blob.digest));
        }
        world.report.add("bytes hashed at destinations", reply.body.len() as u64);
    }
    Ok(true)
}

/// Asks a destination behind its front; a server that is being restarted, until it is back. None is 404.
fn ask(world: &World, name: &str, method: &str, path: &str) -> Result<Option<Reply>, String> {
    let deadline = Instant::now() + Duration::from_secs(100);
    loop {
        let at = address(world, name);
        match http::try_send(at, method, path, &[], &[]) {
            Ok(reply) if reply.status == 404 => return Ok(None),
            Ok(reply) if reply.status == 200 && reply.whole => return Ok(Some(reply)),
            // docker-registry answers so, now and then, while the same manifest is pushed again.
            Ok(reply) if reply.status == 500 && name == "target" && Instant::now() < deadline => {
                world.report.count("500 of docker-registry itself, asked again");
                std::thread::sleep(Duration::from_millis(100));
            }
            Ok(reply) if reply.status != 200 => {
                return Err(format!("{method} {path}: {} {}", reply.status, reply.text()));
            }
            // It was killed.
            _ if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Ok(_) => return Err(format!("{method} {path}: cut again and again")),
            Err(error) => return Err(format!("{method} {path}: {error}")),
        }
    }
}

fn address(world: &World, name: &str) -> SocketAddr {
    let [target, serve] = world.destinations();
    if name == target.0 { target.1 } else { serve.1 }
}
