//! A terminal of a given size with a program in it: a pane of tmux.

use std::process::Command;
use std::time::{Duration, Instant};

use super::TempDir;
use super::process::RUN_TIMEOUT;

/// A running program and its screen. Both end on Drop.
#[derive(Debug)]
pub struct Terminal {
    home: TempDir,
    width: usize,
}

impl Terminal {
    /// Runs transload in a terminal of so many columns and 24 lines. Its end is shown as "exit CODE".
    #[track_caller]
    pub fn transload(width: usize, args: &[&str]) -> Self {
        let terminal = Self { home: TempDir::new(), width };
        let home = terminal.home.path().display().to_string();
        let quoted = |text: &str| format!("'{}'", text.replace('\'', "'\\''"));
        let words: Vec<String> = args.iter().map(|word| quoted(word)).collect();
        let path = std::env::var("PATH").unwrap_or_default();
        let script = format!(
            "cd {home}; env -i PATH={} HOME={home} DOCKER_CONFIG={home}/.docker TERM=screen LANG=C.UTF-8 {} {}; \
             echo \"exit $?\"",
            quoted(&path),
            quoted(env!("CARGO_BIN_EXE_transload")),
            words.join(" ")
        );
        let script = terminal.home.write("run.sh", script);
        let columns = width.to_string();
        terminal.tmux(&["new-session", "-d", "-x", &columns, "-y", "24", &format!("sh {script}; exec sleep 600")]);
        terminal
    }

    #[track_caller]
    fn tmux(&self, args: &[&str]) -> String {
        let socket = self.home.join("tmux");
        let run = Command::new("tmux").args(["-S", &socket, "-f", "/dev/null"]).args(args).output();
        let run = run.expect("tmux is installed");
        assert!(run.status.success(), "tmux {args:?}: {}", String::from_utf8_lossy(&run.stderr));
        String::from_utf8_lossy(&run.stdout).into_owned()
    }

    /// The lines on the screen. A line that wraps is several.
    #[track_caller]
    pub fn screen(&self) -> String {
        self.tmux(&["capture-pane", "-p"]).trim_end().to_owned()
    }

    /// Waits for a screen such as this.
    #[track_caller]
    pub fn wait_for(&self, what: &str, such: impl Fn(&str) -> bool) -> String {
        let deadline = Instant::now() + RUN_TIMEOUT;
        loop {
            let screen = self.screen();
            if such(&screen) {
                return screen;
            }
            assert!(Instant::now() < deadline, "no {what} at {} columns on:\n{screen}", self.width);
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a screen that has this text.
    #[track_caller]
    pub fn wait_text(&self, text: &str) -> String {
        self.wait_for(text, |screen| screen.contains(text))
    }

    /// Presses a key, as tmux names it: "C-c", "Enter".
    #[track_caller]
    pub fn press(&self, key: &str) {
        self.tmux(&["send-keys", key]);
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let socket = self.home.join("tmux");
        drop(Command::new("tmux").args(["-S", &socket, "kill-server"]).output());
    }
}
