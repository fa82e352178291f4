//! A JSON document on its way to a file, without secrets and without characters that a terminal obeys.

use std::io::{Result, Write};

use crate::{printable, redact};

/// Passes on whole lines. A string of a JSON document is never on two.
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

    /// What is before the last newline.
    fn flush(&mut self) -> Result<()> {
        self.to.flush()
    }
}
