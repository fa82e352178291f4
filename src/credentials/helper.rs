//! Runs Docker's credential helpers: programs that store passwords.
//!
//! `docker-credential-NAME get` reads a server from stdin and answers
//! `{"ServerURL": …, "Username": …, "Secret": …}`; `store` reads that; `erase` reads a server.
//! <https://github.com/docker/docker-credential-helpers#development>

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::Mutex;
use tokio::time::Instant;

use super::Credential;
use super::file::from_pair;
use super::go_json::{Members, fold, set_string};
use super::process::{self, Output};
use crate::error::{Error, Kind, Result, Side};

/// The time limit for a helper. It queries a keychain or a cloud; one that prompts a person would wait forever.
const HELPER_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a helper's answer is cached. Helpers return tokens that last an hour (gcloud) or longer.
const ANSWER_TTL: Duration = Duration::from_secs(300);
/// How long a helper's failure is cached, so that a list of images does not wait for each image.
const FAILURE_TTL: Duration = Duration::from_secs(30);

/// Runs helpers and caches their answers for some minutes.
pub(super) struct Helpers {
    /// Directories, as in `PATH`.
    path: Option<OsString>,
    limit: Duration,
    /// Cached answers by helper and server. Locked while a helper runs: it runs once for all images of a list.
    answers: Mutex<HashMap<(String, String), Answer>>,
}

struct Answer {
    at: Instant,
    result: Result<Option<Credential>>,
}

/// The input of `store`.
#[derive(Serialize)]
struct Message<'a> {
    #[serde(rename = "ServerURL")]
    server: &'a str,
    #[serde(rename = "Username")]
    username: &'a str,
    #[serde(rename = "Secret")]
    secret: &'a str,
}

/// The output of `get`. Docker accepts names in any letter case, so helpers in other languages than Go may print any.
#[derive(Default)]
struct Answered {
    username: Option<String>,
    secret: Option<String>,
}

impl Answered {
    fn read(bytes: &[u8]) -> Option<Self> {
        let mut answer = Self::default();
        for (name, value) in serde_json::from_slice::<Members>(bytes).ok()?.0 {
            let field = match fold(&name).as_str() {
                "username" => &mut answer.username,
                "secret" => &mut answer.secret,
                _ => continue,
            };
            set_string(field, serde_json::from_value(value).ok()?);
        }
        Some(answer)
    }
}

impl Helpers {
    pub(super) fn new(path: Option<OsString>) -> Self {
        Self { path, limit: HELPER_TIMEOUT, answers: Mutex::default() }
    }

    /// The credential of `docker-credential-{name}`, named in `file`, for `server`; from the cache if it is recent.
    pub(super) async fn find(&self, name: &str, server: &str, file: &Path) -> Result<Option<Credential>> {
        let key = (name.to_owned(), server.to_owned());
        let mut answers = self.answers.lock().await;
        if let Some(Answer { at, result }) = answers.get(&key) {
            let lasts = if result.is_ok() { ANSWER_TTL } else { FAILURE_TTL };
            if at.elapsed() < lasts {
                return copy_result(result);
            }
        }
        let result = self.get(name, server, file).await;
        let answer = Answer { at: Instant::now(), result: copy_result(&result) };
        answers.insert(key, answer);
        result
    }

    /// Clears the cached answer.
    pub(super) async fn forget(&self) {
        self.answers.lock().await.clear();
    }

    /// Stores `username` and `secret` for `server` in the helper.
    pub(super) async fn store(
        &self,
        name: &str,
        server: &str,
        username: &str,
        secret: &str,
        file: &Path,
    ) -> Result<()> {
        let message = Message { server, username, secret };
        let input =
            serde_json::to_vec(&message).map_err(|_| helper_failed(name, file, "cannot receive the credentials"))?;
        let output = self.run(name, "store", &input, file).await?;
        if output.status.success() {
            return Ok(());
        }
        // The helper may repeat its input.
        Err(helper_failed(name, file, &format!("failed to store: {}", output.complaint().replace(secret, "***"))))
    }

    /// Erases the helper's credentials for `server`. Returns whether there were any.
    pub(super) async fn erase(&self, name: &str, server: &str, file: &Path) -> Result<bool> {
        // If there is nothing to erase, each helper's `erase` fails in another way.
        if self.get(name, server, file).await?.is_none() {
            return Ok(false);
        }
        let output = self.run(name, "erase", server.as_bytes(), file).await?;
        if output.status.success() {
            return Ok(true);
        }
        Err(helper_failed(name, file, &format!("failed to erase: {}", output.complaint())))
    }

    async fn get(&self, name: &str, server: &str, file: &Path) -> Result<Option<Credential>> {
        let output = self.run(name, "get", server.as_bytes(), file).await?;
        if !output.status.success() {
            if is_not_found(&output.stdout) || is_not_found(&output.stderr) {
                return Ok(None);
            }
            return Err(helper_failed(name, file, &format!("failed for {server}: {}", output.complaint())));
        }
        // The output is a secret: neither it nor serde's message may be shown.
        let answer = Answered::read(&output.stdout)
            .ok_or_else(|| helper_failed(name, file, &format!("sent a malformed answer for {server}")))?;
        // Some helpers answer like this, with success, if they have no credentials (docker-credential-helpers#220).
        let secret = answer.secret.filter(|secret| !secret.is_empty());
        Ok(secret.map(|secret| from_pair(answer.username.unwrap_or_default(), secret)))
    }

    async fn run(&self, name: &str, action: &str, input: &[u8], file: &Path) -> Result<Output> {
        let program = self.look_up(name, file)?;
        process::run(&program, &[action], input, self.limit).await.map_err(|why| {
            helper_failed(name, file, &why)
                .hint("unlock the keychain that it uses, or give credentials with --auth-file")
        })
    }

    fn look_up(&self, name: &str, file: &Path) -> Result<PathBuf> {
        let plain = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b));
        if !plain {
            let what = format!("{name:?}, in {}, is not the name of a credential helper", file.display());
            return Err(Error::new(Kind::Refused, what)
                .on(Side::Local)
                .hint("the name is the part after docker-credential-, without a path"));
        }
        let program = format!("docker-credential-{name}{}", std::env::consts::EXE_SUFFIX);
        process::look_up(self.path.as_deref(), &program).ok_or_else(|| {
            helper_failed(name, file, "is not installed").hint(format!(
                "install {program} to a directory in PATH, remove it from {}, or give credentials with --auth-file",
                file.display()
            ))
        })
    }
}

fn copy_result(result: &Result<Option<Credential>>) -> Result<Option<Credential>> {
    match result {
        Ok(credential) => Ok(credential.clone()),
        Err(error) => Err(error.duplicate()),
    }
}

/// Helpers print this to stdout and exit with 1.
fn is_not_found(bytes: &[u8]) -> bool {
    String::from_utf8_lossy(bytes).contains("credentials not found in native keychain")
}

fn helper_failed(name: &str, file: &Path, what: &str) -> Error {
    Error::new(Kind::Local, format!("docker-credential-{name}, named in {}, {what}", file.display())).on(Side::Local)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;
    use crate::credentials::Secret;
    use crate::credentials::testing::Scratch;

    const FILE: &str = "/x/config.json";

    fn helpers(scratch: &Scratch) -> Helpers {
        Helpers::new(Some(scratch.path("bin").into()))
    }

    async fn find(helpers: &Helpers, name: &str, server: &str) -> Result<Option<Credential>> {
        helpers.find(name, server, Path::new(FILE)).await
    }

    #[tokio::test]
    async fn answers() {
        let scratch = Scratch::new();
        scratch.helper(
            "x",
            r#"[ "$1" = get ] || exit 9
read -r server
case $server in
user.io) printf '{"ServerURL":"%s","Username":"u","Secret":"p\\"q"}' "$server" ;;
token.io) printf '{"username":"<token>","SECRET":"t"}' ;;
empty.io) printf '{"ServerURL":"empty.io","Username":"","Secret":""}' ;;
none.io) echo 'credentials not found in native keychain'; exit 1 ;;
locked.io) echo 'the keychain is locked' >&2; exit 2 ;;
silent.io) exit 3 ;;
garbage.io) echo 'hunter2 is no json' ;;
esac"#,
        );
        let helpers = helpers(&scratch);
        let known = |server: &'static str| find(&helpers, "x", server);
        assert_eq!(known("user.io").await.expect("an answer"), Some(Credential::basic("u", "p\"q")));
        let token = Credential::RefreshToken(Secret::new("t"));
        assert_eq!(known("token.io").await.expect("an answer"), Some(token));
        assert_eq!(known("empty.io").await.expect("an answer"), None);
        assert_eq!(known("none.io").await.expect("an answer"), None);
        for (server, why) in [
            ("locked.io", "the keychain is locked"),
            ("silent.io", "exit status: 3"),
            ("garbage.io", "sent a malformed answer"),
        ] {
            let said = known(server).await.expect_err(server).to_string();
            assert!(said.contains(why) && said.contains(FILE) && said.contains("docker-credential-x"), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
    }

    #[tokio::test]
    async fn missing_or_no_name() {
        let scratch = Scratch::new();
        scratch.write("bin/docker-credential-plain", "not executable");
        let helpers = helpers(&scratch);
        for name in ["absent", "plain"] {
            let error = find(&helpers, name, "a.io").await.expect_err("not there");
            let said = format!("{error} {}", error.hint_text().unwrap_or_default());
            assert!(said.contains(&format!("docker-credential-{name}")) && said.contains(FILE), "{said}");
            assert!(said.contains("not installed") && said.contains("--auth-file"), "{said}");
        }
        scratch.helper("x", "echo '{}'");
        for name in ["../bin/docker-credential-x", "/bin/sh", "", "a b", "x/../x"] {
            let error = find(&helpers, name, "a.io").await.expect_err("not a name");
            assert_eq!(error.kind(), Kind::Refused, "{name:?}: {error}");
        }
        // From wherever this test is run up to the root, and down again.
        let up: PathBuf = std::env::current_dir().expect("a directory").components().skip(1).map(|_| "..").collect();
        let bin = up.join(scratch.path("bin").strip_prefix("/").expect("an absolute path"));
        assert!(bin.join("docker-credential-x").exists());
        assert!(find(&Helpers::new(Some(bin.into())), "x", "a.io").await.is_err(), "a relative directory");
    }

    /// Waits until the process whose id is in `file` has ended.
    ///
    /// One that is dead stays, without a command line, until its parent takes notice of it.
    async fn assert_ends(scratch: &Scratch, file: &str) {
        let id = scratch.read(file);
        assert!(!id.is_empty(), "{file} is empty");
        let line = Path::new("/proc").join(id.trim()).join("cmdline");
        for _ in 0..100 {
            if std::fs::read(&line).unwrap_or_default().is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("{file}: process {id} still runs");
    }

    /// A helper with a child, each of which sleeps.
    const SLEEPERS: &str = r#"sh -c 'echo $$ > "$0/child"; exec sleep 600' "$HERE" &
while [ ! -s "$HERE/child" ]; do :; done
echo $$ > "$HERE/helper"; exec sleep 600"#;

    #[tokio::test]
    async fn one_that_hangs_is_killed_with_its_children() {
        let scratch = Scratch::new();
        scratch.helper("x", SLEEPERS);
        let mut helpers = helpers(&scratch);
        helpers.limit = Duration::from_millis(1500);
        let error = find(&helpers, "x", "a.io").await.expect_err("too slow");
        assert!(error.to_string().contains("did not answer") && !error.is_transient(), "{error}");
        assert_ends(&scratch, "helper").await;
        assert_ends(&scratch, "child").await;
    }

    #[tokio::test]
    async fn one_that_is_not_waited_for_is_killed_with_its_children() {
        let scratch = Scratch::new();
        scratch.helper("x", SLEEPERS);
        let helpers = helpers(&scratch);
        let begun = async {
            while scratch.read("helper").is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::select! {
            answer = find(&helpers, "x", "a.io") => panic!("it sleeps: {answer:?}"),
            () = begun => {}
        }
        assert_ends(&scratch, "helper").await;
        assert_ends(&scratch, "child").await;
    }

    #[tokio::test]
    async fn a_child_that_holds_the_output_delays_no_answer() {
        let scratch = Scratch::new();
        scratch.helper(
            "x",
            r#"sh -c 'echo $$ > "$0/child"; exec sleep 600' "$HERE" &
while [ ! -s "$HERE/child" ]; do :; done
printf '{"Username":"u","Secret":"p"}'"#,
        );
        let found = find(&helpers(&scratch), "x", "a.io").await.expect("an answer");
        assert_eq!(found, Some(Credential::basic("u", "p")));
        assert_ends(&scratch, "child").await;
    }

    #[tokio::test]
    async fn output_is_bounded() {
        for to in ["", ">&2"] {
            let scratch = Scratch::new();
            scratch.helper("x", &format!(r#"echo $$ > "$HERE/helper"; exec cat /dev/zero {to}"#));
            let error = find(&helpers(&scratch), "x", "a.io").await.expect_err("too much").to_string();
            assert!(error.contains("prints more than 1048576 bytes"), "{error}");
            assert_ends(&scratch, "helper").await;
        }
    }

    #[tokio::test]
    async fn asked_once_for_a_while() {
        let scratch = Scratch::new();
        scratch.helper("x", r#"echo . >> "$HERE/asked"; printf '{"Username":"u","Secret":"p"}'"#);
        scratch.helper("broken", r#"echo . >> "$HERE/failed"; exit 1"#);
        let helpers = helpers(&scratch);
        let asked = |file: &str| scratch.read(file).lines().count();
        let (a, b) = tokio::join!(find(&helpers, "x", "a.io"), find(&helpers, "x", "a.io"));
        assert_eq!(a.expect("an answer"), b.expect("an answer"));
        assert_eq!(asked("asked"), 1);
        find(&helpers, "x", "b.io").await.expect("an answer");
        assert_eq!(asked("asked"), 2, "another server");
        helpers.forget().await;
        find(&helpers, "x", "a.io").await.expect("an answer");
        assert_eq!(asked("asked"), 3);
        for _ in 0..3 {
            find(&helpers, "broken", "a.io").await.expect_err("broken");
        }
        assert_eq!(asked("failed"), 1);
        for answer in helpers.answers.lock().await.values_mut() {
            answer.at -= FAILURE_TTL;
        }
        find(&helpers, "broken", "a.io").await.expect_err("broken");
        find(&helpers, "x", "a.io").await.expect("an answer");
        assert_eq!((asked("failed"), asked("asked")), (2, 3), "failures are tried again sooner");
        for answer in helpers.answers.lock().await.values_mut() {
            answer.at -= ANSWER_TTL;
        }
        find(&helpers, "x", "a.io").await.expect("an answer");
        assert_eq!(asked("asked"), 4);
    }

    #[tokio::test]
    async fn a_complaint_does_not_repeat_the_secret() {
        let scratch = Scratch::new();
        scratch.helper("x", r#"echo "cannot keep $(cat)" >&2; exit 1"#);
        let error = helpers(&scratch).store("x", "a.io", "u", "hunter2", Path::new(FILE)).await.expect_err("refused");
        assert!(error.to_string().contains("cannot keep") && !error.to_string().contains("hunter2"), "{error}");
    }
}
