//! A pusher and a judge of what was pushed, which share no code with transload.

use std::net::SocketAddr;

use super::images::Blob;
use super::{Image, http};

impl Image {
    /// Pushes everything, the image itself at `tag` too.
    #[track_caller]
    pub fn push(&self, to: SocketAddr, repository: &str, tag: &str) {
        self.push_as(to, repository, tag, &[]);
    }

    /// The same with further headers, such as Authorization.
    #[track_caller]
    pub fn push_as(&self, to: SocketAddr, repository: &str, tag: &str, headers: &[(&str, &str)]) {
        for blob in &self.blobs {
            push_blob(to, repository, blob, headers);
        }
        for manifest in &self.manifests {
            let mut headers = headers.to_vec();
            headers.push(("content-type", &manifest.media_type));
            let at = |reference: &str| format!("/v2/{repository}/manifests/{reference}");
            http::send(to, "PUT", &at(&manifest.digest), &headers, &manifest.bytes).expect(201);
            if manifest.digest == self.digest() {
                http::send(to, "PUT", &at(tag), &headers, &manifest.bytes).expect(201);
            }
        }
    }

    /// The same, with the blobs that the registry's repository `from` has mounted.
    #[track_caller]
    pub fn push_mounting(&self, to: SocketAddr, repository: &str, tag: &str, from: Option<&str>) {
        let lacking = |blob: &&Blob| {
            from.is_none_or(|from| {
                let mount = format!("/v2/{repository}/blobs/uploads/?mount={}&from={from}", blob.digest);
                http::send(to, "POST", &mount, &[], &[]).status != 201
            })
        };
        let manifests = Self { blobs: Vec::new(), manifests: self.manifests.clone() };
        self.blobs.iter().filter(lacking).for_each(|blob| push_blob(to, repository, blob, &[]));
        manifests.push(to, repository, tag);
    }

    /// Fails the test unless a registry holds the tag, every manifest and every blob, byte by byte.
    #[track_caller]
    pub fn assert_at(&self, at: SocketAddr, repository: &str, tag: &str) {
        let fetch = |kind: &str, reference: &str| {
            let path = format!("/v2/{repository}/{kind}/{reference}");
            http::get(at, &path).expect(200).body
        };
        assert!(fetch("manifests", tag) == self.bytes(), "the tag {tag} is another image");
        for manifest in &self.manifests {
            assert!(fetch("manifests", &manifest.digest) == manifest.bytes, "{} differs", manifest.digest);
        }
        for blob in &self.blobs {
            assert!(fetch("blobs", &blob.digest) == blob.bytes, "{} differs", blob.digest);
        }
    }
}

/// Pushes one blob by POST and PUT.
#[track_caller]
pub fn push_blob(to: SocketAddr, repository: &str, blob: &Blob, headers: &[(&str, &str)]) {
    let start = format!("/v2/{repository}/blobs/uploads/");
    let session = http::send(to, "POST", &start, headers, &[]).expect(202);
    let location = session.header("location").expect("an upload has a Location");
    let path = location.find("/v2/").map_or(location, |at| &location[at..]);
    let mark = if path.contains('?') { '&' } else { '?' };
    let mut headers = headers.to_vec();
    headers.push(("content-type", "application/octet-stream"));
    let path = format!("{path}{mark}digest={}", blob.digest);
    http::send(to, "PUT", &path, &headers, &blob.bytes).expect(201);
}
