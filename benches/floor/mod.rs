//! The least that a verified copy can cost: one blocking thread that reads a socket, hashes, and
//! writes a socket, with nothing around it. How near a tool comes to it says more than CPU seconds,
//! which differ by a third between two hours of one shared machine.
#![expect(clippy::unwrap_used, reason = "a benchmark's own faults")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;

use sha2::{Digest as _, Sha256};

/// As large as the reads that hyper grows to.
const BUFFER: usize = 512 << 10;

/// Moves the blobs of `image` between two plain registries, one after another: no manifest, no retry.
pub(crate) fn relay(from: &str, to: &str, image: &str) {
    let manifest = {
        let mut answer = get(from, &format!("/v2/{image}/manifests/latest"));
        let mut bytes = vec![0; answer.length];
        answer.body.read_exact(&mut bytes).unwrap();
        serde_json::from_slice::<serde_json::Value>(&bytes).unwrap()
    };
    for blob in manifest["layers"].as_array().unwrap().iter().chain([&manifest["config"]]) {
        let digest = blob["digest"].as_str().unwrap();
        let mut source = get(from, &format!("/v2/{image}/blobs/{digest}"));
        let session = ask(to, "POST", &format!("/v2/{image}/blobs/uploads/"), 0);
        let place = session.location.unwrap();
        let path = &place[place.find("/v2/").unwrap()..];
        let mut sink = TcpStream::connect(to).unwrap();
        let length = source.length;
        write!(sink, "PUT {path}&digest={digest} HTTP/1.1\r\nHost: {to}\r\nContent-Length: {length}\r\n\r\n").unwrap();
        let (mut hasher, mut left, mut buffer) = (Sha256::new(), length, vec![0; BUFFER.min(length)]);
        while left > 0 {
            let most = left.min(buffer.len());
            let got = source.body.read(&mut buffer[..most]).unwrap();
            hasher.update(&buffer[..got]);
            left -= got;
            sink.write_all(&buffer[..got]).unwrap();
        }
        let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
        assert_eq!(digest, format!("sha256:{hex}"));
        assert_eq!(head(sink).status, "201");
    }
}

struct Answer {
    status: String,
    length: usize,
    location: Option<String>,
    body: BufReader<TcpStream>,
}

fn get(host: &str, path: &str) -> Answer {
    ask(host, "GET", path, 0)
}

fn ask(host: &str, method: &str, path: &str, length: usize) -> Answer {
    let mut stream = TcpStream::connect(host).unwrap();
    let accept = "application/vnd.oci.image.manifest.v1+json";
    write!(stream, "{method} {path} HTTP/1.1\r\nHost: {host}\r\nAccept: {accept}\r\nContent-Length: {length}\r\n\r\n")
        .unwrap();
    head(stream)
}

fn head(stream: TcpStream) -> Answer {
    let mut body = BufReader::new(stream);
    let mut line = String::new();
    body.read_line(&mut line).unwrap();
    let status = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut answer = Answer { status, length: 0, location: None, body };
    loop {
        line.clear();
        answer.body.read_line(&mut line).unwrap();
        match line.trim_end().split_once(": ") {
            Some(("Content-Length", value)) => answer.length = value.parse().unwrap(),
            Some(("Location", value)) => answer.location = Some(value.to_owned()),
            Some(_) => {}
            None => return answer,
        }
    }
}
