//! Runs another program, for a bounded time, without a shell.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use crate::{printable, redact};

/// More than any token.
const LONGEST: u64 = 1 << 20;

/// What a program printed, and how it ended.
pub(super) struct Output {
    pub(super) status: ExitStatus,
    pub(super) stdout: Vec<u8>,
    pub(super) stderr: Vec<u8>,
}

impl Output {
    /// The first line that a failed program printed; Go's helpers use stdout for it.
    pub(super) fn complaint(&self) -> String {
        let said = [&self.stderr, &self.stdout].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
        let line = said.iter().flat_map(|text| text.lines()).map(str::trim).find(|line| !line.is_empty());
        line.map_or_else(|| self.status.to_string(), printable)
    }
}

/// Runs `program` and tells it `input`. It is killed after `limit`, and when the future is dropped.
///
/// # Errors
/// What kept it from answering, to be put after its name.
pub(super) async fn run(program: &Path, args: &[&str], input: &[u8], limit: Duration) -> Result<Output, String> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| format!("can't be run: {error}"))?;
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let talk = async {
        let tell = async {
            if let Some(mut stdin) = stdin {
                // It may end without reading: what it says counts, not the broken pipe.
                let _ = stdin.write_all(input).await;
            }
        };
        let ((), stdout, stderr) = tokio::join!(tell, read(stdout), read(stderr));
        Ok::<_, std::io::Error>(Output { stdout: stdout?, stderr: stderr?, status: child.wait().await? })
    };
    let talked = tokio::time::timeout(limit, talk).await;
    match talked {
        Ok(Ok(output)) => Ok(output),
        Ok(Err(error)) => Err(format!("can't be talked to: {error}")),
        Err(_) => {
            let _ = child.kill().await;
            Err(format!("gave no answer in {:.1} s", limit.as_secs_f64()))
        }
    }
}

/// Where `program` is in `path`, which has the form of `PATH`.
pub(super) fn look_up(path: Option<&OsStr>, program: &str) -> Option<PathBuf> {
    path.map(std::env::split_paths)
        .into_iter()
        .flatten()
        // An empty or relative directory would mean wherever transload happens to be run.
        .filter(|directory| directory.is_absolute())
        .map(|directory| directory.join(program))
        .find(|candidate| is_executable(candidate))
}

/// A line of someone else's, fit to stand in a message.
pub(super) fn printable(line: &str) -> String {
    let safe: String = redact::remote(line).chars().take(300).collect();
    printable::line(&safe).into_owned()
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(LONGEST).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
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
