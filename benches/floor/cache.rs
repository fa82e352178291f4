//! The least that it can cost to pass a blob on, verified, and to keep it: one blocking thread that reads a
//! socket, hashes, writes a file, and has the kernel send it from there, with nothing around it.
#![expect(clippy::unwrap_used, reason = "a benchmark's own faults")]

use std::fs::File;
use std::io::{BufRead, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::FileExt as _;
use std::thread::JoinHandle;

use sha2::{Digest as _, Sha256};

/// Read, written and sent in one go. It fits a core's cache.
const BUFFER: usize = 256 << 10;

/// Answers one request with what `upstream` has there. The thread ends with the CPU seconds that it took.
pub(crate) fn serve(upstream: SocketAddr, file: File, digest: String) -> (SocketAddr, JoinHandle<f64>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    (addr, std::thread::spawn(move || answer(&listener.accept().unwrap().0, upstream, &file, &digest)))
}

fn answer(mut client: &TcpStream, upstream: SocketAddr, file: &File, digest: &str) -> f64 {
    let before = cpu();
    let mut source = TcpStream::connect(upstream).unwrap();
    source.write_all(head(&mut BufReader::new(client)).as_bytes()).unwrap();
    // With a buffer that only the head goes through.
    let mut source = BufReader::with_capacity(4 << 10, source);
    let head = head(&mut source);
    client.write_all(head.as_bytes()).unwrap();
    let length = head.lines().find_map(|line| line.strip_prefix("Content-Length: "));
    let (size, mut at): (u64, u64) = (length.unwrap().parse().unwrap(), 0);
    let (mut hasher, mut buffer) = (Sha256::new(), vec![0; BUFFER]);
    while at < size {
        let got = source.read(&mut buffer).unwrap();
        assert!(got > 0, "the upstream's body ended early");
        hasher.update(&buffer[..got]);
        file.write_all_at(&buffer[..got], at).unwrap();
        let end = at + got as u64;
        while at < end {
            let left = usize::try_from(end - at).unwrap();
            rustix::fs::sendfile(client, file, Some(&mut at), left).unwrap();
        }
    }
    let hex: String = hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(digest, format!("sha256:{hex}"));
    file.sync_all().unwrap();
    cpu() - before
}

fn head(from: &mut impl BufRead) -> String {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(from.read_line(&mut head).unwrap() > 0, "no head");
    }
    head
}

/// CPU seconds of this thread so far.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/thread-self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    (fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()) / 100.0
}
