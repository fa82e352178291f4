//! `serve`: one push of a manifest by digest names its tags, too (distribution spec 1.1.1+dev, end-7b).

use crate::support::http::{self, Reply};
use crate::support::{Image, ServeProcess, TempDir};

struct World {
    served: ServeProcess,
    image: Image,
    directory: TempDir,
}

impl World {
    fn new(flags: &[&str]) -> Self {
        let directory = TempDir::new();
        let served = ServeProcess::start(directory.path(), flags);
        Self { served, image: Image::single(571, &[900]), directory }
    }

    /// With the image's blobs.
    fn writable() -> Self {
        let world = Self::new(&["--writable"]);
        for blob in &world.image.blobs {
            crate::support::push::push_blob(world.served.addr(), "app", blob, &[]);
        }
        world
    }

    fn put(&self, reference: &str) -> Reply {
        let root = self.image.root();
        let headers = [("content-type", root.media_type.as_str())];
        http::send(self.served.addr(), "PUT", &format!("/v2/app/manifests/{reference}"), &headers, &root.bytes)
    }

    fn by_digest(&self, query: &str) -> Reply {
        self.put(&format!("{}?{query}", self.image.digest()))
    }

    fn get(&self, reference: &str) -> Reply {
        http::get(self.served.addr(), &format!("/v2/app/manifests/{reference}"))
    }
}

fn confirmed(reply: &Reply) -> Vec<&str> {
    reply.headers.iter().filter(|(name, _)| name == "oci-tag").map(|(_, value)| value.as_str()).collect()
}

#[test]
fn a_push_by_digest_with_tags_confirms_each_of_them() {
    let world = World::writable();
    let reply = world.by_digest("tag=v1&tag=v1.0&tag=latest&tag=v1").expect(201);
    assert_eq!(confirmed(&reply), ["v1", "v1.0", "latest"]);
    assert_eq!(reply.header("docker-content-digest"), Some(world.image.digest()));
    assert_eq!(reply.header("location"), Some(format!("/v2/app/manifests/{}", world.image.digest()).as_str()));
    for reference in ["v1", "v1.0", "latest", world.image.digest()] {
        assert_eq!(world.get(reference).expect(200).body, world.image.bytes(), "{reference}");
    }
    let tags = http::get(world.served.addr(), "/v2/app/tags/list").expect(200).json();
    assert_eq!(tags["tags"], serde_json::json!(["latest", "v1", "v1.0"]));
}

/// Without the query nothing is confirmed, and a push by tag takes none from it.
#[test]
fn other_pushes_confirm_no_tags() {
    let world = World::writable();
    assert!(confirmed(&world.by_digest("").expect(201)).is_empty());
    assert!(confirmed(&world.put("v1?tag=v2").expect(201)).is_empty());
    world.get("v2").expect(404);
}

/// A push with a tag that is none, or with too many of them, stores nothing at all.
#[test]
fn wrong_tags_store_nothing() {
    let world = World::writable();
    let many: Vec<String> = (0..101).map(|nth| format!("tag=v{nth}")).collect();
    let long = format!("tag={}", "x".repeat(129));
    for (query, status) in [
        ("tag=ok&tag=.x", 400),
        ("tag=ok&tag=", 400),
        ("tag=ok&tag=a%2Fb", 400),
        ("tag=ok&tag=..%2F..%2Fother%2Fmanifests%2Fx", 400),
        ("tag=ok&tag=%ff", 400),
        (&long, 400),
        (&many.join("&"), 414),
    ] {
        let reply = world.by_digest(query).expect(status);
        assert!(reply.json()["errors"][0]["message"].is_string(), "{query}");
        world.get("ok").expect(404);
        world.get(world.image.digest()).expect(404);
    }
    world.by_digest(&many[..100].join("&")).expect(201);
}

/// The digest, the blobs, and the right to push are checked as in any push.
#[test]
fn tags_are_set_by_no_push_that_is_refused() {
    let world = World::new(&["--writable"]);
    let reply = world.by_digest("tag=v1").expect(404);
    assert!(reply.text().contains("MANIFEST_BLOB_UNKNOWN"), "{}", reply.text());
    world.put(&format!("sha256:{}?tag=v1", "0".repeat(64))).expect(400);
    world.get("v1").expect(404);
    let World { served, image, directory } = World::writable();
    drop(served);
    let read_only = World { served: ServeProcess::start(directory.path(), &[]), image, directory };
    read_only.by_digest("tag=v1").expect(405);
    read_only.get("v1").expect(404);
}
