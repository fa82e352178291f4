//! Writes a JSON document without secrets and control characters.

use std::io::{Result, Write};

use crate::{printable, redact};

/// Writes whole lines. A string of a JSON document never spans two lines.
pub(super) struct RedactingWriter<W> {
    to: W,
    line: Vec<u8>,
}

impl<W: Write> RedactingWriter<W> {
    pub(super) fn new(to: W) -> Self {
        Self { to, line: Vec::new() }
    }
}

impl<W: Write> Write for RedactingWriter<W> {
    fn write(&mut self, bytes: &[u8]) -> Result<usize> {
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.line.extend_from_slice(part);
            if part.ends_with(b"\n") {
                let line = String::from_utf8_lossy(&self.line);
                self.to.write_all(printable::json(&redact::redact_own(&line)).as_bytes())?;
                self.line.clear();
            }
        }
        Ok(bytes.len())
    }

    /// Writes up to the last newline.
    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}
