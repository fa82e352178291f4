//! Runs another program with a time limit and without a shell.

use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};

use crate::{printable, redact};

/// The limit for each output of a program, in bytes: larger than any token.
const MAX_OUTPUT: usize = 1 << 20;
/// How long children may keep a program's outputs open after its end.
const OUTPUT_GRACE: Duration = Duration::from_millis(500);

/// The outputs and the exit status of a program.
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Output {
    /// The first line of a failed program's output; Go's helpers use stdout for errors.
    pub(super) fn complaint(&self) -> String {
        let texts = [&self.stderr, &self.stdout].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let line = texts.iter().flat_map(|text| text.lines()).map(str::trim).find(|line| !line.is_empty());
        line.map_or_else(|| self.status.to_string(), printable)
    }
}

/// Runs `program` with `input` on stdin.
///
/// The program is the leader of its own process group. The whole group is killed after `limit`, when the future is
/// dropped, when it prints more than 1 MiB, and when a child still holds an output half a second after the program's
/// end; the output until then is the result. After a successful end, a child that holds no output stays, since it may
/// be an agent.
///
/// # Errors
/// The reason for the failure, to be put after the program's name.
pub(super) async fn run(program: &Path, args: &[&str], input: &[u8], limit: Duration) -> Result<Output, String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    #[cfg(unix)]
    command.process_group(0);
    let mut child = command.spawn().map_err(|error| format!("can't be run: {error}"))?;
    let mut group = Group::of(&child);
    let exchange = tokio::time::timeout(limit, talk(&mut child, input)).await;
    let failed = match exchange {
        Ok(Ok((output, closed))) => {
            if closed {
                group.release();
            }
            return Ok(output);
        }
        Ok(Err(error)) => format!("cannot read its input or write its output: {error}"),
        Err(_) => format!("did not answer within {:.1} s", limit.as_secs_f64()),
    };
    drop(group);
    let _ = child.kill().await;
    Err(failed)
}

/// The program's output, and whether its outputs are closed.
async fn talk(child: &mut Child, input: &[u8]) -> io::Result<(Output, bool)> {
    let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    let write = async {
        if let Some(mut stdin) = stdin {
            // The program may end without reading stdin: its output counts, not the broken pipe.
            let _ = stdin.write_all(input).await;
        }
        Ok(())
    };
    let (status, closed) = {
        let mut exchange = pin!(async { tokio::try_join!(write, read(out, &mut stdout), read(err, &mut stderr)) });
        tokio::select! {
            exchange = &mut exchange => {
                exchange?;
                (child.wait().await?, true)
            }
            status = child.wait() => match tokio::time::timeout(OUTPUT_GRACE, exchange).await {
                Ok(exchange) => {
                    exchange?;
                    (status?, true)
                }
                Err(_) => (status?, false),
            },
        }
    };
    Ok((Output { status, stdout, stderr }, closed))
}

/// The process group of a program. Killed on drop.
struct Group {
    #[cfg(unix)]
    id: Option<rustix::process::Pid>,
}

#[cfg(unix)]
impl Group {
    fn of(leader: &Child) -> Self {
        let id = leader.id().and_then(|id| i32::try_from(id).ok());
        Self { id: id.and_then(rustix::process::Pid::from_raw) }
    }

    /// Does not kill the group on drop any more.
    fn release(&mut self) {
        self.id = None;
    }
}

#[cfg(unix)]
impl Drop for Group {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            // The group may have ended.
            let _ = rustix::process::kill_process_group(id, rustix::process::Signal::KILL);
        }
    }
}

#[cfg(not(unix))]
impl Group {
    fn of(_: &Child) -> Self {
        Self {}
    }

    fn release(&mut self) {}
}

/// Finds `program` in `path`, which has the form of `PATH`.
pub(super) fn look_up(path: Option<&OsStr>, program: &str) -> Option<PathBuf> {
    path.map(std::env::split_paths)
        .into_iter()
        .flatten()
        // An empty or relative entry would depend on the working directory.
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
}

/// A line of another program's output, safe to print in a message.
pub(super) fn printable(line: &str) -> String {
    let safe: String = redact::redact_remote(line).chars().take(300).collect();
    printable::line(&safe).into_owned()
}

/// Reads to the end. After a cancellation, `bytes` holds what was read.
async fn read(from: Option<impl AsyncRead + Unpin>, bytes: &mut Vec<u8>) -> io::Result<()> {
    let Some(mut from) = from else { return Ok(()) };
    while from.read_buf(bytes).await? > 0 {
        if bytes.len() > MAX_OUTPUT {
            return Err(io::Error::other(format!("it prints more than {MAX_OUTPUT} bytes")));
        }
    }
    Ok(())
}

#[cfg(unix)]
fn is_executable(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
}

#[cfg(not(unix))]
fn is_executable(path: &Path) -> bool {
    path.is_file()
}
