//! Programs under test and beside it, with a clean environment and a time limit.

use std::io::{Read, Write};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use super::TempDir;

/// Longer than anything takes on a busy machine, shorter than a CI job's patience.
pub const RUN_TIMEOUT: Duration = Duration::from_secs(120);

/// Runs `transload` to its end.
pub fn transload(args: &[&str]) -> Run {
    Tool::transload().args(args).run()
}

/// Runs `skopeo` to its end.
pub fn skopeo(args: &[&str]) -> Run {
    Tool::new("skopeo").args(args).run()
}

/// How a program ended.
#[derive(Debug, Clone)]
pub struct Run {
    /// The exit code; -1 if a signal ended it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    pub took: Duration,
}

impl Run {
    /// Fails the test, showing the output, unless the program succeeded.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Fails the test, showing the output, unless the program ended with this code.
    #[track_caller]
    pub fn exits(self, code: i32) -> Self {
        assert!(
            self.code == code,
            "exit code {} instead of {code}\n--- stdout\n{}\n--- stderr\n{}",
            self.code,
            self.stdout,
            self.stderr
        );
        self
    }

    pub fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error} in {}", self.stdout))
    }
}

/// A program to start. Its environment is empty but for PATH, a HOME and a DOCKER_CONFIG that
/// hold nothing; no proxy, no credentials of whoever runs the tests.
#[derive(Debug)]
pub struct Tool {
    command: Command,
    home: TempDir,
    stdin: Vec<u8>,
    limit: Duration,
}

impl Tool {
    pub fn transload() -> Self {
        Self::new(env!("CARGO_BIN_EXE_transload"))
    }

    pub fn new(program: &str) -> Self {
        let home = TempDir::new();
        let mut command = Command::new(program);
        command.env_clear();
        command.env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("HOME", home.path());
        command.env("DOCKER_CONFIG", home.path().join(".docker"));
        command.env("XDG_RUNTIME_DIR", home.path());
        command.env("TMPDIR", std::env::temp_dir());
        command.current_dir(home.path());
        Self { command, home, stdin: Vec::new(), limit: RUN_TIMEOUT }
    }

    /// The program's HOME (and working directory), to put files in before it starts.
    pub fn home(&self) -> &TempDir {
        &self.home
    }

    pub fn args<S: AsRef<std::ffi::OsStr>>(mut self, args: &[S]) -> Self {
        self.command.args(args);
        self
    }

    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Takes a variable away.
    pub fn without(mut self, name: &str) -> Self {
        self.command.env_remove(name);
        self
    }

    pub fn stdin(mut self, text: &str) -> Self {
        self.stdin = text.as_bytes().to_vec();
        self
    }

    /// Writes a file into HOME.
    pub fn file(self, name: &str, content: &str) -> Self {
        self.home.write(name, content);
        self
    }

    /// Killed after this long, and the test fails.
    pub fn limit(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    /// Runs the program to its end.
    #[track_caller]
    pub fn run(self) -> Run {
        let limit = self.limit;
        self.spawn().finish(limit)
    }

    /// Starts the program and leaves it running.
    #[track_caller]
    pub fn spawn(mut self) -> Process {
        self.command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = match self.command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("{:?} does not start: {error}", self.command.get_program()),
        };
        let mut stdin = child.stdin.take().expect("stdin is piped");
        let text = self.stdin;
        // A program that does not read its input breaks the pipe; that is its own business.
        std::thread::spawn(move || drop(stdin.write_all(&text)));
        let stdout = Output::follow(child.stdout.take().expect("stdout is piped"));
        let stderr = Output::follow(child.stderr.take().expect("stderr is piped"));
        Process { child, stdout, stderr, started: Instant::now(), home: self.home }
    }
}

/// A running program, killed on Drop.
#[derive(Debug)]
pub struct Process {
    child: Child,
    pub stdout: Arc<Output>,
    pub stderr: Arc<Output>,
    started: Instant,
    home: TempDir,
}

impl Process {
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn home(&self) -> &TempDir {
        &self.home
    }

    /// Asks it to stop, as Kubernetes does.
    pub fn terminate(&self) {
        self.signal("-TERM");
    }

    /// Asks it to stop, as Ctrl-C does.
    pub fn interrupt(&self) {
        self.signal("-INT");
    }

    /// Asks it to read its files again.
    pub fn hang_up(&self) {
        self.signal("-HUP");
    }

    fn signal(&self, signal: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([signal, &id]).status();
        assert!(sent.expect("kill runs").success(), "process {id} is gone already");
    }

    /// Kills it at once, as the kernel does when memory runs out.
    pub fn kill(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }

    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("a child to wait for").is_none()
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(mut self, limit: Duration) -> Run {
        let deadline = Instant::now() + limit;
        let status = loop {
            if let Some(status) = self.child.try_wait().expect("a child to wait for") {
                break status;
            }
            if Instant::now() > deadline {
                self.kill();
                panic!(
                    "still running after {limit:?}\n--- stdout\n{}\n--- stderr\n{}",
                    self.stdout.text(),
                    self.stderr.text()
                );
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        let took = self.started.elapsed();
        // A grandchild may hold the pipe open for longer; what came so far is enough then.
        self.stdout.wait_end(Duration::from_secs(5));
        self.stderr.wait_end(Duration::from_secs(5));
        Run { code: status.code().unwrap_or(-1), stdout: self.stdout.text(), stderr: self.stderr.text(), took }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

/// What a program wrote to one of its outputs so far.
#[derive(Debug, Default)]
pub struct Output {
    state: Mutex<(Vec<u8>, bool)>,
    grown: Condvar,
}

impl Output {
    fn follow(mut from: impl Read + Send + 'static) -> Arc<Self> {
        let output = Arc::new(Self::default());
        let writer = Arc::clone(&output);
        std::thread::spawn(move || {
            let mut chunk = [0; 8192];
            loop {
                let read = from.read(&mut chunk).unwrap_or(0);
                let mut state = writer.state.lock().expect("no panic while held");
                state.0.extend_from_slice(&chunk[..read]);
                state.1 = read == 0;
                writer.grown.notify_all();
                if read == 0 {
                    return;
                }
            }
        });
        output
    }

    pub fn text(&self) -> String {
        let state = self.state.lock().expect("no panic while held");
        String::from_utf8_lossy(&state.0).into_owned()
    }

    /// The first line that holds `needle`, waiting for it.
    #[track_caller]
    pub fn wait_line(&self, needle: &str, limit: Duration) -> String {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock().expect("no panic while held");
        loop {
            let text = String::from_utf8_lossy(&state.0);
            // The last line may still be incomplete.
            let whole = text.rfind('\n').map_or("", |end| &text[..end]);
            if let Some(line) = whole.lines().find(|line| line.contains(needle)) {
                return line.to_owned();
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero() && !state.1, "no line with {needle:?} within {limit:?} in:\n{text}");
            drop(text);
            state = self.grown.wait_timeout(state, left).expect("no panic while held").0;
        }
    }

    fn wait_end(&self, limit: Duration) {
        let deadline = Instant::now() + limit;
        let mut state = self.state.lock().expect("no panic while held");
        while !state.1 && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.grown.wait_timeout(state, left).expect("no panic while held").0;
        }
    }
}
