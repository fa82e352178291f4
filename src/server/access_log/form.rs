//! What a line looks like. Pure.

use std::fmt::Write as _;

use jiff::Timestamp;

use super::{End, Form, Line};

/// A line with its end.
pub(super) fn line(line: &Line, form: Form, now: Timestamp) -> String {
    let peer = line.peer.and_then(|peer| peer.0).map(|peer| peer.to_string());
    let agent = line.agent.as_ref().map(|value| String::from_utf8_lossy(value.as_bytes()));
    let ns = namespace(line.uri.query().unwrap_or_default());
    let ms = line.begun.elapsed().as_millis();
    let how = line.served.map(|served| served.how);
    let user = line.user.as_ref().map(|user| &*user.0);
    let end = match line.end {
        End::Whole => "complete",
        End::Failed => "failed",
        End::Left => "client-left",
    };
    let mut text = String::with_capacity(512);
    let mut fields = Fields { text: &mut text, form };
    fields.begin(now);
    fields.word("client", peer.as_deref(), 64);
    fields.word("user", user, 64);
    fields.word("method", Some(line.method.as_str()), 16);
    fields.word("path", Some(line.uri.path()), 1024);
    fields.word("ns", ns, 128);
    fields.number("status", line.status.map(u128::from));
    fields.number("bytes", Some(line.sent.into()));
    fields.number("duration_ms", Some(ms));
    fields.word("outcome", how, 16);
    fields.word("end", Some(end), 16);
    fields.word("user_agent", agent.as_deref(), 256);
    text.push_str(if form == Form::Json { "}\n" } else { "\n" });
    text
}

/// That so many lines are missing.
pub(super) fn lost_lines(form: Form, count: u64) -> String {
    let now = crate::clock::timestamp();
    match form {
        Form::Text => format!("{now:.3} {count} lines were lost\n"),
        Form::Json => format!("{{\"time\":\"{now:.3}\",\"lost\":{count}}}\n"),
    }
}

/// Without a time, for a log that has its own.
pub(super) fn brief_line(of: &Line) -> String {
    let text = line(of, Form::Text, Timestamp::UNIX_EPOCH);
    text.trim_end().split_once(' ').map_or_else(String::new, |(_, rest)| rest.to_owned())
}

struct Fields<'a> {
    text: &'a mut String,
    form: Form,
}

impl Fields<'_> {
    fn begin(&mut self, now: Timestamp) {
        let _ = match self.form {
            Form::Text => write!(self.text, "{now:.3}"),
            Form::Json => write!(self.text, "{{\"time\":\"{now:.3}\""),
        };
    }

    fn name(&mut self, name: &str) {
        let _ = match self.form {
            Form::Text => write!(self.text, " "),
            Form::Json => write!(self.text, ",\"{name}\":"),
        };
    }

    /// The first `most` bytes of a text; the agent's is always quoted, as it has spaces.
    fn word(&mut self, name: &str, value: Option<&str>, most: usize) {
        self.name(name);
        let text = self.form == Form::Text;
        match value {
            None => self.text.push_str(if text { "-" } else { "null" }),
            Some(word) if text && name != "user_agent" && is_plain(word) && word.len() <= most => {
                self.text.push_str(word)
            }
            Some(word) => quote(self.text, word, most),
        }
    }

    fn number(&mut self, name: &str, value: Option<u128>) {
        self.name(name);
        let _ = match (value, self.form) {
            (Some(value), _) => write!(self.text, "{value}"),
            (None, Form::Text) => write!(self.text, "-"),
            (None, Form::Json) => write!(self.text, "null"),
        };
    }
}

/// Whether it can stand between spaces as it is, and isn't taken for nothing.
fn is_plain(word: &str) -> bool {
    !word.is_empty() && word != "-" && word.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\')
}

/// As a JSON string of plain ASCII: also DEL and what is past it are escaped, which terminals obey too.
fn quote(to: &mut String, text: &str, most: usize) {
    to.push('"');
    let end =
        text.char_indices().map(|(at, char)| at + char.len_utf8()).take_while(|end| *end <= most).last().unwrap_or(0);
    for char in text[..end].chars() {
        match char {
            '"' | '\\' => to.extend(['\\', char]),
            ' '..='~' => to.push(char),
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    let _ = write!(to, "\\u{unit:04x}");
                }
            }
        }
    }
    to.push_str(if end < text.len() { "...\"" } else { "\"" });
}

/// The value of `ns`, as it was sent.
fn namespace(query: &str) -> Option<&str> {
    query.split('&').find_map(|pair| pair.strip_prefix("ns=")).filter(|ns| !ns.is_empty())
}

#[cfg(test)]
mod tests {
    use super::super::{AccessLog, User};
    use super::*;
    use http::Request;
    use std::io::Write;
    use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
    use std::time::Duration;

    fn of(uri: &str, agent: &[u8]) -> Line {
        let agent = http::HeaderValue::from_bytes(agent).expect("a value");
        let request = Request::get(uri).header("user-agent", agent).header("authorization", "Basic c2VjcmV0");
        let mut line = Line::new(&request.body(()).expect("a request").into_parts().0, None, None);
        (line.status, line.sent) = (Some(200), 7);
        line
    }

    #[test]
    fn fields_in_their_order() {
        let mut line = of("/v2/library/app/manifests/v1?ns=docker.io&sig=secret", b"containerd/2.1");
        line.served = Some(crate::server::Served { how: "hit", stale: false });
        (line.user, line.end) = (Some(User("ann".into())), End::Whole);
        line.begun = std::time::Instant::now();
        let text = super::line(&line, Form::Text, Timestamp::UNIX_EPOCH);
        let (before, after) = text.split_once(" 7 ").expect("bytes");
        assert_eq!(before, "1970-01-01T00:00:00.000Z - ann GET /v2/library/app/manifests/v1 docker.io 200");
        assert_eq!(after.split_once(' ').expect("ms").1, "hit complete \"containerd/2.1\"\n");
        let json = super::line(&line, Form::Json, Timestamp::UNIX_EPOCH);
        let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
        assert_eq!((&json["user"], &json["status"], &json["client"]), (&"ann".into(), &200.into(), &().into()));
        assert!(!text.contains("secret") && !text.contains("c2Vj"), "{text}");
    }

    #[test]
    fn nobody_forges_a_line_or_speaks_to_a_terminal() {
        let agent = b"x\" 200\t\xc2\x9b31m\xff";
        let mut line = of("/v2/%0a%1b/manifests/v1?ns=%0d%0aevil", agent);
        line.user = Some(User("a b\nc\u{1b}]0;\u{2028}".into()));
        for form in [Form::Text, Form::Json] {
            let text = super::line(&line, form, Timestamp::UNIX_EPOCH);
            assert_eq!(text.matches('\n').count(), 1, "{text}");
            assert!(text.trim_end().bytes().all(|b| (b' '..=b'~').contains(&b)), "{text}");
            assert!(
                text.contains(r#""a b\u000ac\u001b]0;\u2028""#) && text.contains(r#"x\" 200\u0009\u009b31m"#),
                "{text}"
            );
        }
        let long = of(&format!("/v2/{}", "a".repeat(9000)), &[b'u'; 5000]);
        assert!(super::line(&long, Form::Json, Timestamp::UNIX_EPOCH).len() < 4096);
    }

    /// Tells each write, once it may.
    struct Slow(Receiver<()>, SyncSender<String>);

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let _ = self.0.recv();
            let _ = self.1.send(String::from_utf8_lossy(bytes).into_owned());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stalled_reader_stops_nobody_and_learns_what_it_lost() {
        let ((go, gate), (tell, told)) = (sync_channel(9000), sync_channel(9000));
        let log = AccessLog::new(Slow(gate, tell), Some(Form::Text)).expect("a log");
        let count = super::super::MAX_QUEUED_LINES as u64 + 100;
        for n in 0..count {
            log.line(Form::Text, format!("{n}\n"));
        }
        for _ in 0..count {
            let _ = go.send(());
        }
        log.flush(Duration::from_secs(20));
        let writes: Vec<String> = told.try_iter().collect();
        assert!(writes.iter().any(|write| write.contains(" lines were lost\n")), "{writes:?}");
        let lines = writes.iter().flat_map(|write| write.lines()).filter(|line| line.parse::<u64>().is_ok()).count();
        assert_eq!(lines, writes.len(), "each by one write");
        assert!((4096..4198).contains(&lines), "{lines}");
        // Off: nothing is even formatted.
        log.set(None);
        assert_eq!(log.form(), None);
    }
}
