//! Finds the ends of a request's head and body, and checks that the head is well formed. No I/O.
//!
//! hyper's parser accepts a bare LF as the end of a line, and does not check `Host`. An HTTP proxy in front of this server may
//! parse such a request differently, and then bytes of one client become a request of another client. So everything that
//! RFC 9112 forbids and hyper accepts is refused here.

/// Parses a head line by line, as it arrives.
#[derive(Debug, Default)]
pub(super) struct HeadParser {
    /// The start of the incomplete line.
    line: usize,
    /// Bytes before this offset were searched for the end of the line.
    searched: usize,
    version: Option<Version>,
    hosts: u32,
    length: Option<u64>,
    chunked: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http10,
    Http11,
}

/// The state of parsing a head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum HeadProgress {
    /// The end of the head has not arrived.
    Incomplete,
    /// The length of the head, and the framing of the body.
    Complete(usize, Framing),
    /// The head must be refused, with the reason.
    Malformed(&'static str),
}

/// The framing of a request's body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    /// A number of bytes; 0 without a `Content-Length`.
    Length(u64),
    /// Chunks (RFC 9112 §7.1).
    Chunked,
}

impl HeadParser {
    /// Continues. `bytes` are all bytes of the head that have arrived, including those of earlier calls.
    pub(super) fn read(&mut self, bytes: &[u8]) -> HeadProgress {
        while let Some(found) = bytes[self.searched..].iter().position(|byte| *byte == b'\n') {
            let end = self.searched + found;
            let Some(line) = bytes[self.line..end].strip_suffix(b"\r") else {
                return HeadProgress::Malformed("a line ends with LF alone");
            };
            (self.line, self.searched) = (end + 1, end + 1);
            if line.is_empty() && self.version.is_some() {
                return self.end(end + 1);
            }
            if let Err(why) = self.add(line) {
                return HeadProgress::Malformed(why);
            }
        }
        self.searched = bytes.len();
        HeadProgress::Incomplete
    }

    fn add(&mut self, line: &[u8]) -> Result<(), &'static str> {
        if line.iter().any(|byte| *byte == 0x7f || *byte < b' ' && *byte != b'\t') {
            return Err("a control character");
        }
        if self.version.is_some() {
            return self.field(line);
        }
        // Empty lines before a request are ignored (RFC 9112 §2.2).
        if !line.is_empty() {
            self.version = Some(if line.ends_with(b" HTTP/1.1") { Version::Http11 } else { Version::Http10 });
        }
        Ok(())
    }

    fn field(&mut self, line: &[u8]) -> Result<(), &'static str> {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else { return Err("a line without a colon") };
        let (name, value) = (&line[..colon], line[colon + 1..].trim_ascii());
        // Also RFC 9112 §5.1 (no whitespace before the colon) and §5.2 (no folded lines).
        if name.is_empty() || !name.iter().all(|byte| is_token(*byte)) {
            return Err("an invalid header name");
        }
        // By length first: most names have none of these lengths.
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => self.host(value),
            14 if name.eq_ignore_ascii_case(b"content-length") => self.content_length(value),
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => self.transfer_encoding(value),
            _ => Ok(()),
        }
    }

    fn host(&mut self, value: &[u8]) -> Result<(), &'static str> {
        self.hosts += 1;
        let valid = |byte: &u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+;=:[]".contains(byte);
        if value.iter().all(valid) { Ok(()) } else { Err("an invalid Host") }
    }

    fn content_length(&mut self, value: &[u8]) -> Result<(), &'static str> {
        let digits = !value.is_empty() && value.iter().all(u8::is_ascii_digit);
        let number = std::str::from_utf8(value).ok().filter(|_| digits).and_then(|text| text.parse().ok());
        let Some(number) = number else { return Err("an invalid Content-Length") };
        if self.length.replace(number).is_some_and(|other| other != number) {
            return Err("Content-Lengths that differ");
        }
        Ok(())
    }

    fn transfer_encoding(&mut self, value: &[u8]) -> Result<(), &'static str> {
        if std::mem::replace(&mut self.chunked, true) || !value.eq_ignore_ascii_case(b"chunked") {
            return Err("a Transfer-Encoding other than chunked");
        }
        Ok(())
    }

    fn end(&self, end: usize) -> HeadProgress {
        let http11 = self.version == Some(Version::Http11);
        // RFC 9112 §3.2.
        if self.hosts > 1 || http11 && self.hosts == 0 {
            return HeadProgress::Malformed(if self.hosts > 1 { "more than one Host" } else { "no Host" });
        }
        // RFC 9112 §6.1 and §6.3: a sign of request smuggling.
        if self.chunked && (self.length.is_some() || !http11) {
            return HeadProgress::Malformed("a Transfer-Encoding beside a Content-Length, or in HTTP/1.0");
        }
        HeadProgress::Complete(
            end,
            if self.chunked { Framing::Chunked } else { Framing::Length(self.length.unwrap_or(0)) },
        )
    }
}

/// Where a chunked body ends (RFC 9112 §7.1).
#[derive(Debug)]
pub(super) struct ChunkScanner {
    at: ChunkState,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ChunkState {
    /// In the line with the size of a chunk.
    Size { size: u64, digits: u32, extension: bool },
    /// Its CR has arrived.
    SizeEnd { size: u64 },
    /// In the data of a chunk, with the number of bytes that are left.
    Data { left: u64 },
    /// In the CRLF after the data.
    DataEnd { cr: bool },
    /// In a trailer, or in the final empty line.
    Trailer { empty: bool, cr: bool },
}

impl ChunkScanner {
    /// A scanner before the first chunk.
    pub(super) fn new() -> Self {
        Self { at: ChunkState::SIZE }
    }

    /// Continues. Returns the number of bytes that belong to the body, and whether it has ended.
    ///
    /// # Errors
    /// If the bytes are not valid chunks.
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<(usize, bool), &'static str> {
        let mut used = 0;
        while let Some(byte) = bytes.get(used) {
            if let ChunkState::Data { left } = self.at {
                let some = left.min((bytes.len() - used) as u64);
                used += usize::try_from(some).unwrap_or(bytes.len() - used);
                self.at = if left == some {
                    ChunkState::DataEnd { cr: false }
                } else {
                    ChunkState::Data { left: left - some }
                };
                continue;
            }
            used += 1;
            match self.at.next(*byte).ok_or("an invalid chunk")? {
                Some(next) => self.at = next,
                None => return Ok((used, true)),
            }
        }
        Ok((used, false))
    }
}

impl ChunkState {
    const SIZE: Self = Self::Size { size: 0, digits: 0, extension: false };

    /// The next state; `Some(None)` after the last byte of the body.
    fn next(self, byte: u8) -> Option<Option<Self>> {
        let next = match (self, byte) {
            (Self::Size { size, digits: 1.., .. }, b'\r') => Self::SizeEnd { size },
            (Self::Size { size, digits, extension: true }, b'\t' | b' '..) => {
                Self::Size { size, digits, extension: true }
            }
            (Self::Size { size, digits: digits @ 1.., .. }, b';' | b' ' | b'\t') => {
                Self::Size { size, digits, extension: true }
            }
            (Self::Size { size, digits: digits @ 0..16, extension: false }, _) => {
                let digit = char::from(byte).to_digit(16)?;
                Self::Size { size: size << 4 | u64::from(digit), digits: digits + 1, extension: false }
            }
            (Self::SizeEnd { size: 0 }, b'\n') => Self::Trailer { empty: true, cr: false },
            (Self::SizeEnd { size }, b'\n') => Self::Data { left: size },
            (Self::DataEnd { cr: false }, b'\r') => Self::DataEnd { cr: true },
            (Self::DataEnd { cr: true }, b'\n') => Self::SIZE,
            (Self::Trailer { empty, cr: false }, b'\r') => Self::Trailer { empty, cr: true },
            (Self::Trailer { empty: true, cr: true }, b'\n') => return Some(None),
            (Self::Trailer { empty: false, cr: true }, b'\n') => Self::Trailer { empty: true, cr: false },
            (Self::Trailer { cr: false, .. }, b'\t' | b' '..) => Self::Trailer { empty: false, cr: false },
            _ => return None,
        };
        Some(Some(next))
    }
}

/// RFC 9110 §5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(head: &[u8]) -> HeadProgress {
        HeadParser::default().read(head)
    }

    #[test]
    fn good_heads_end_where_they_end() {
        for (head, framing) in [
            ("GET / HTTP/1.1\r\nHost: a\r\n\r\n", Framing::Length(0)),
            ("\r\n\r\nGET / HTTP/1.1\r\nhost:\r\n\r\n", Framing::Length(0)),
            ("GET / HTTP/1.0\r\n\r\n", Framing::Length(0)),
            ("GET http://[::1]:5/ HTTP/1.1\r\nHOST: [::1]:5\r\nX: \u{e9}\t\"\r\n\r\n", Framing::Length(0)),
            ("PUT / HTTP/1.1\r\nhost: a\r\nContent-Length: 12 \r\ncontent-length:12\r\n\r\n", Framing::Length(12)),
            ("PUT / HTTP/1.1\r\nhost: a\r\nTransfer-Encoding: Chunked\r\n\r\n", Framing::Chunked),
        ] {
            let bytes = [head.as_bytes(), b"GET"].concat();
            assert_eq!(read(&bytes), HeadProgress::Complete(head.len(), framing), "{head:?}");
            // Byte by byte, too.
            let mut slow = HeadParser::default();
            for end in 0..head.len() {
                assert_eq!(slow.read(&bytes[..end]), HeadProgress::Incomplete, "{head:?} {end}");
            }
            assert_eq!(slow.read(head.as_bytes()), HeadProgress::Complete(head.len(), framing), "{head:?}");
        }
    }

    #[test]
    fn what_could_be_read_in_two_ways_is_malformed() {
        for rest in [
            "\nhost: a\r\n\r\n",
            "\r\nhost: a\n\r\n",
            "\r\nhost: a\r\n\n",
            "\r\nhost: a\r\nx: y\rz: 1\r\n\r\n",
            "\r\nhost: a\r\nx: a\0b\r\n\r\n",
            "\r\nhost: a\r\nx: a\u{7f}b\r\n\r\n",
            "\r\n\r\n",
            "\r\nx: y\r\n\r\n",
            "\r\nhost: a\r\nhost: a\r\n\r\n",
            "\r\nhost: a\r\nHOST: b\r\n\r\n",
            "\r\nhost: a b\r\n\r\n",
            "\r\nhost: a,b\r\n\r\n",
            "\r\nhost: user@a\r\n\r\n",
            "\r\nhost: a/b\r\n\r\n",
            "\r\n host: a\r\n\r\n",
            "\r\nhost : a\r\n\r\n",
            "\r\nhost: a\r\nx: 1\r\n 2\r\n\r\n",
            "\r\nhost: a\r\nx: 1\r\n\t2: 3\r\n\r\n",
            "\r\nhost: a\r\n: 1\r\n\r\n",
            "\r\nhost: a\r\nx\r\n\r\n",
            "\r\nhost: a\r\nx(y): z\r\n\r\n",
            "\r\nhost: a\r\ncontent-length: 1\r\ncontent-length: 2\r\n\r\n",
            "\r\nhost: a\r\ncontent-length: +1\r\n\r\n",
            "\r\nhost: a\r\ncontent-length: 1, 1\r\n\r\n",
            "\r\nhost: a\r\ncontent-length: 0x1\r\n\r\n",
            "\r\nhost: a\r\ncontent-length:\r\n\r\n",
            "\r\nhost: a\r\ncontent-length: 99999999999999999999\r\n\r\n",
            "\r\nhost: a\r\ncontent-length: 1\r\ntransfer-encoding: chunked\r\n\r\n",
            "\r\nhost: a\r\ntransfer-encoding: chunked\r\ncontent-length: 1\r\n\r\n",
            "\r\nhost: a\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            "\r\nhost: a\r\ntransfer-encoding: identity\r\n\r\n",
            "\r\nhost: a\r\ntransfer-encoding: chunked\r\ntransfer-encoding: chunked\r\n\r\n",
        ] {
            let head = format!("PUT / HTTP/1.1{rest}");
            assert!(matches!(read(head.as_bytes()), HeadProgress::Malformed(_)), "{head:?}");
        }
        assert!(matches!(read(b"PUT / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n"), HeadProgress::Malformed(_)));
    }

    #[test]
    fn chunks_end_where_they_end() {
        for body in
            ["0\r\n\r\n", "5\r\nhello\r\n0;x=\"y\"\r\nt: 1\r\nu: 2\r\n\r\n", "000A \r\n0\r\n\r\n34567\r\n00\r\n\r\n"]
        {
            let bytes = [body.as_bytes(), b"GET"].concat();
            assert_eq!(ChunkScanner::new().read(&bytes), Ok((body.len(), true)), "{body:?}");
            let mut slow = ChunkScanner::new();
            for (nth, byte) in body.bytes().enumerate() {
                assert_eq!(slow.read(&[byte]), Ok((1, nth + 1 == body.len())), "{body:?} {nth}");
            }
        }
        for body in [
            "\r\n",
            "x\r\n",
            "1\nx",
            "5\r\nhello0",
            "5\r\nhello\n",
            "0\r\n\n",
            "10000000000000000\r\n",
            "-1\r\n",
            "0\r\na\0",
        ] {
            assert!(ChunkScanner::new().read(body.as_bytes()).is_err(), "{body:?}");
        }
    }
}
