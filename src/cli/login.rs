//! `login` and `logout`: keep credentials where Docker keeps them, once the registry has taken them.

use std::io::{self, IsTerminal as _, Read as _, Write as _};

use clap::Args;

use crate::credentials::{self, Credential, Secret, Settings, StorageLocation};
use crate::error::{Error, Kind, Result, Side};
use crate::reference::{DOCKER_HUB, registry_name};
use crate::registry::azure::is_acr;

/// More than any password or token that comes by stdin.
const MAX_STDIN_BYTES: u64 = 64 * 1024;

/// Log in to a registry
///
/// Tries the credentials at the registry, then stores them where Docker does: in the credential helper that
/// ~/.docker/config.json names, or else in that file. A password is read from the terminal or from stdin, never from an
/// argument, because other users of the machine can see arguments.
#[derive(Args, Clone, Debug)]
pub(crate) struct Login {
    /// The registry, such as myregistry.azurecr.io, ghcr.io or docker.io
    pub(crate) registry: String,

    /// User name; asked for at a terminal
    #[arg(long, short, value_name = "USER")]
    pub(crate) username: Option<String>,

    /// Read the password or access token from stdin
    #[arg(long, requires = "username")]
    pub(crate) password_stdin: bool,

    /// Log in to Azure Container Registry with the Azure identity of this machine
    ///
    /// The identity is a service principal or workload identity from AZURE_* variables, a managed identity, or the account
    /// of `az login`. The stored token is valid for three hours, as with `az acr login`.
    #[arg(long, conflicts_with_all = ["username", "password_stdin"])]
    pub(crate) azure: bool,
}

/// Remove the stored credentials of a registry, of `login` or `docker login`
#[derive(Args, Clone, Debug)]
pub(crate) struct Logout {
    /// The registry, such as myregistry.azurecr.io, ghcr.io or docker.io
    pub(crate) registry: String,
}

/// The person at the other end.
pub(crate) trait Prompter {
    /// Whether somebody is there to be asked.
    fn is_there(&self) -> bool;

    /// Asks for a line.
    ///
    /// # Errors
    /// If the terminal can't be used.
    fn ask(&mut self, prompt: &str) -> io::Result<String>;

    /// Asks for a line that isn't shown.
    ///
    /// # Errors
    /// If the terminal can't be used.
    fn ask_secretly(&mut self, prompt: &str) -> io::Result<String>;

    /// All of stdin, up to a bound.
    ///
    /// # Errors
    /// If it can't be read.
    fn stdin(&mut self) -> io::Result<String>;

    /// Says something beside the program's output.
    fn say(&mut self, line: &str);
}

/// The terminal, stdin and stderr of this process.
pub(crate) struct Console;

/// Logs in.
///
/// `verify` tries a credential at a registry. `azure` gets what ACR gives for this machine's Azure
/// identity, its refresh token; whether the registry is one of ACR's, and so may be sent an
/// Azure token at all, is for `azure` to say.
///
/// # Errors
/// If the registry refuses the credentials, which then aren't kept, or they can't be kept.
pub(crate) async fn login(
    args: &Login,
    settings: &Settings,
    person: &mut impl Prompter,
    verify: impl AsyncFn(&str, &Credential) -> Result<()>,
    azure: impl AsyncFn(&str) -> Result<Secret>,
) -> Result<()> {
    let registry = registry_name(&args.registry)?;
    let credential = if args.azure {
        Credential::RefreshToken(azure(&registry).await?)
    } else {
        prompted_credential(args.username.as_deref(), args.password_stdin, person)?
    };
    verify(&registry, &credential).await.map_err(|error| login_refused(error, &registry, &credential))?;
    let kept = credentials::store(settings, &args.registry, &credential).await?;
    match &credential {
        Credential::Basic { username, .. } => person.say(&format!("logged in to {registry} as {username}")),
        _ => {
            person.say(&format!("logged in to {registry} with Azure, for three hours"));
            person.say("for longer runs no login is needed: transload then uses the Azure identity itself");
        }
    }
    match kept {
        StorageLocation::Helper(_) => person.say(&format!("the credentials are kept by {kept}")),
        // As Docker does: <https://docs.docker.com/reference/cli/docker/login/#default-behavior>
        StorageLocation::File(_) => person.say(&format!(
            "warning: the credentials are kept unencrypted in {kept}; \
             to change that, see https://docs.docker.com/go/credential-store/"
        )),
    }
    Ok(())
}

/// Logs out. That nothing was kept is said, but is no error.
///
/// # Errors
/// If what is kept can't be removed.
pub(crate) async fn logout(args: &Logout, settings: &Settings, person: &mut impl Prompter) -> Result<()> {
    let registry = registry_name(&args.registry)?;
    let erased = credentials::erase(settings, &registry).await?;
    if erased.is_empty() {
        person.say(&format!("not logged in to {registry}"));
    }
    for place in erased {
        person.say(&format!("removed the credentials of {registry} from {place}"));
    }
    Ok(())
}

/// What a registry's refusal means to whoever logs in: not that a login is missing.
fn login_refused(error: Error, registry: &str, credential: &Credential) -> Error {
    let error = error.replace_context(format!("log in to {registry}"));
    match credential {
        Credential::Basic { username, .. } if error.kind() == Kind::Unauthorized => {
            let more = if is_acr(registry) {
                ": a service principal's user is its client id, and the admin user has to be enabled"
            } else if registry == DOCKER_HUB {
                ": with two-factor login or SSO, Docker Hub takes access tokens only"
            } else {
                ", or use an access token in its place"
            };
            error.hint_instead(format!("check the user '{username}' and the password{more}"))
        }
        _ => error,
    }
}

/// A user and a password, from where the flags say, or else from the person.
pub(super) fn prompted_credential(
    username: Option<&str>,
    from_stdin: bool,
    person: &mut impl Prompter,
) -> Result<Credential> {
    let username = prompt_username(username, person)?;
    Ok(Credential::Basic { username, password: prompt_password(from_stdin, person)? })
}

fn prompt_username(given: Option<&str>, person: &mut impl Prompter) -> Result<String> {
    let username = match given {
        Some(username) => username.to_owned(),
        None if person.is_there() => person.ask("Username: ").map_err(|error| Error::io("ask for the user", &error))?,
        None => return Err(no_terminal()),
    };
    let username = username.trim();
    // HTTP's Basic scheme ends the user at the first colon (RFC 7617, section 2).
    if username.is_empty() || username.contains(':') {
        return Err(Error::new(Kind::Usage, "a user can't be empty, or have a colon").on(Side::Local));
    }
    Ok(username.to_owned())
}

fn prompt_password(from_stdin: bool, person: &mut impl Prompter) -> Result<Secret> {
    let read = if from_stdin {
        person.stdin()
    } else if person.is_there() {
        person.ask_secretly("Password: ")
    } else {
        return Err(no_terminal());
    };
    let read = read.map_err(|error| match error.kind() {
        // The prompt reads Ctrl-C as a character: it is no signal there.
        io::ErrorKind::Interrupted => Error::new(Kind::Interrupted, "interrupted by SIGINT"),
        _ => Error::io("read the password", &error),
    })?;
    // What `echo` adds; spaces may be meant.
    let password = read.strip_suffix('\n').unwrap_or(&read);
    let password = password.strip_suffix('\r').unwrap_or(password);
    if password.is_empty() {
        return Err(Error::new(Kind::Usage, "the password is empty").on(Side::Local));
    }
    if password.contains(['\n', '\r', '\0']) {
        return Err(Error::new(Kind::Usage, "the password has more than one line").on(Side::Local));
    }
    Ok(Secret::new(password))
}

fn no_terminal() -> Error {
    Error::new(Kind::Usage, "stdin is not a terminal, so nobody can be asked for a user and a password")
        .on(Side::Local)
        .hint("pass --username USER --password-stdin, or --azure")
}

impl Prompter for Console {
    fn is_there(&self) -> bool {
        io::stdin().is_terminal()
    }

    fn ask(&mut self, prompt: &str) -> io::Result<String> {
        let mut stderr = io::stderr();
        write!(stderr, "{prompt}")?;
        stderr.flush()?;
        let mut line = String::new();
        io::stdin().read_line(&mut line)?;
        Ok(line)
    }

    fn ask_secretly(&mut self, prompt: &str) -> io::Result<String> {
        rpassword::prompt_password(prompt)
    }

    fn stdin(&mut self) -> io::Result<String> {
        let mut text = String::new();
        io::stdin().lock().take(MAX_STDIN_BYTES).read_to_string(&mut text)?;
        Ok(text)
    }

    fn say(&mut self, line: &str) {
        super::output::note(line);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use clap::Parser;

    use super::*;
    use crate::credentials::{Credentials, testing::Scratch};

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        login: Login,
    }

    #[derive(Default)]
    struct Script {
        there: bool,
        username: &'static str,
        password: &'static str,
        stdin: &'static str,
        asked: Vec<String>,
        said: Vec<String>,
    }

    impl Prompter for Script {
        fn is_there(&self) -> bool {
            self.there
        }

        fn ask(&mut self, prompt: &str) -> io::Result<String> {
            self.asked.push(prompt.into());
            Ok(self.username.into())
        }

        fn ask_secretly(&mut self, prompt: &str) -> io::Result<String> {
            self.asked.push(format!("{prompt}(hidden)"));
            Ok(self.password.into())
        }

        fn stdin(&mut self) -> io::Result<String> {
            Ok(self.stdin.into())
        }

        fn say(&mut self, line: &str) {
            self.said.push(line.into());
        }
    }

    fn args(line: &[&str]) -> Login {
        Line::try_parse_from([&["login"], line].concat()).map(|line| line.login).expect("arguments")
    }

    /// Logs in at a registry that takes the password "sesame", and ACR's token "acr".
    async fn run(line: &[&str], scratch: &Scratch, person: &mut Script) -> Result<Vec<(String, Credential)>> {
        let tried = RefCell::new(Vec::new());
        let verify = async |registry: &str, credential: &Credential| {
            tried.borrow_mut().push((registry.to_owned(), credential.clone()));
            match credential {
                Credential::Basic { password, .. } if password.reveal() != "sesame" => {
                    Err(Error::new(Kind::Unauthorized, "wrong password"))
                }
                _ => Ok(()),
            }
        };
        let azure = async |_: &str| Ok(Secret::new("acr"));
        login(&args(line), &scratch.settings(), person, verify, azure).await.map(|()| tried.take())
    }

    async fn kept(scratch: &Scratch, repository: &str) -> Option<Credential> {
        let credentials = Credentials::load(&scratch.settings()).expect("well-formed");
        credentials.find(&repository.parse().expect("a repository")).await.expect("nothing wrong")
    }

    #[tokio::test]
    async fn at_a_terminal() {
        let scratch = Scratch::new();
        let mut person = Script { there: true, username: "u\n", password: "sesame", ..Script::default() };
        let tried = run(&["Docker.io"], &scratch, &mut person).await.expect("logged in");
        assert_eq!(tried, [("docker.io".to_owned(), Credential::basic("u", "sesame"))]);
        assert_eq!(person.asked, ["Username: ", "Password: (hidden)"]);
        assert_eq!(kept(&scratch, "nginx").await, Some(Credential::basic("u", "sesame")));
        assert_eq!(person.said[0], "logged in to docker.io as u");
        let file = scratch.path("docker/config.json").display().to_string();
        assert!(person.said[1].contains("unencrypted") && person.said[1].contains(&file), "{:?}", person.said);
        assert!(!person.said.concat().contains("sesame"));

        // The user is known already.
        let mut person = Script { there: true, password: "sesame", ..Script::default() };
        run(&["a.io", "-u", "v"], &scratch, &mut person).await.expect("logged in");
        assert_eq!(person.asked, ["Password: (hidden)"]);
    }

    #[tokio::test]
    async fn from_stdin() {
        let scratch = Scratch::new();
        for stdin in ["sesame", "sesame\n", "sesame\r\n"] {
            let mut person = Script { stdin, ..Script::default() };
            let tried = run(&["a.io", "--username", "u", "--password-stdin"], &scratch, &mut person).await;
            assert_eq!(tried.expect("logged in")[0].1, Credential::basic("u", "sesame"), "{stdin:?}");
            assert!(person.asked.is_empty());
        }
        for (stdin, why) in [("", "empty"), ("\n", "empty"), ("sesame\n\n", "more than one line")] {
            let mut person = Script { stdin, ..Script::default() };
            let error = run(&["a.io", "-u", "u", "--password-stdin"], &scratch, &mut person).await.expect_err(why);
            assert!(error.to_string().contains(why) && error.exit_code() == 2, "{error}");
        }
    }

    #[tokio::test]
    async fn what_is_refused_is_not_kept() {
        let scratch = Scratch::new();
        let mut person = Script { stdin: "hunter2", ..Script::default() };
        let error = run(&["a.io", "-u", "u", "--password-stdin"], &scratch, &mut person).await.expect_err("wrong");
        assert_eq!(error.to_string(), "cannot log in to a.io: wrong password");
        assert!(error.hint_text().is_some_and(|hint| hint.contains("'u'")), "{:?}", error.hint_text());
        assert!(!scratch.path("docker/config.json").exists() && person.said.is_empty());
    }

    #[tokio::test]
    async fn nobody_to_ask() {
        let scratch = Scratch::new();
        for line in [&["a.io"][..], &["a.io", "-u", "u"]] {
            let error = run(line, &scratch, &mut Script::default()).await.expect_err("nobody");
            assert!(error.hint_text().is_some_and(|hint| hint.contains("--password-stdin")), "{error}");
        }
        let mut person = Script { there: true, username: "a:b", password: "sesame", ..Script::default() };
        assert!(run(&["a.io"], &scratch, &mut person).await.expect_err("a colon").to_string().contains("colon"));
    }

    #[test]
    fn arguments_that_contradict() {
        for line in
            [&["a.io", "--password-stdin"][..], &["a.io", "--azure", "-u", "u"], &["a.io", "--password", "p"], &[]]
        {
            assert!(Line::try_parse_from([&["login"], line].concat()).is_err(), "{line:?}");
        }
    }

    #[tokio::test]
    async fn with_azure_and_out_again() {
        let scratch = Scratch::new();
        let mut person = Script::default();
        let token = Credential::RefreshToken(Secret::new("acr"));
        let tried = run(&["my.azurecr.io", "--azure"], &scratch, &mut person).await.expect("logged in");
        assert_eq!(tried, [("my.azurecr.io".to_owned(), token.clone())]);
        assert_eq!(kept(&scratch, "my.azurecr.io/x").await, Some(token));
        assert!(person.said[0].contains("three hours"), "{:?}", person.said);

        let out = Logout { registry: "my.azurecr.io".into() };
        let mut person = Script::default();
        logout(&out, &scratch.settings(), &mut person).await.expect("logged out");
        assert!(person.said[0].starts_with("removed the credentials of my.azurecr.io from"), "{:?}", person.said);
        assert_eq!(kept(&scratch, "my.azurecr.io/x").await, None);
        logout(&out, &scratch.settings(), &mut person).await.expect("nothing to do");
        assert_eq!(person.said[1], "not logged in to my.azurecr.io");
    }
}
