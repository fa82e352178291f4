//! One run of the live check: its requests, its guard, its report, and the removal of what it wrote.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::io;

use base64::Engine as _;
use serde_json::Value;

use crate::client::{Client, split_url};
use crate::settings::{Account, Hub, Settings};
use crate::support::Tool;
use crate::support::http::{ACCEPT, Reply};

/// Docker Hub's registry.
pub const HUB: &str = "registry-1.docker.io";

pub struct Live {
    settings: Settings,
    client: Client,
    /// `PREFIX/run-…`: all repositories of this run are below it.
    run: String,
    /// Paths of what this run wrote, which alone may be deleted.
    written: RefCell<Vec<String>>,
    /// Texts that no output may have.
    secrets: RefCell<Vec<String>>,
    report: RefCell<Report>,
}

/// What was seen.
#[derive(Clone, Default)]
pub struct Report {
    pub lines: Vec<String>,
    /// By the id of the fact.
    pub facts: BTreeMap<&'static str, Seen>,
}

/// What a check saw of a fact.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// The service behaves as the page says.
    AsWritten,
    /// It behaves otherwise.
    Different,
    /// It could not be seen, as the report says why.
    Unknown,
}

impl Live {
    pub fn new(settings: Settings) -> Self {
        let run = format!("{}/run-{:016x}", settings.prefix, RandomState::new().build_hasher().finish());
        let mut secrets = Vec::new();
        for account in [Some(&settings.acr_account), settings.hub_account()].into_iter().flatten() {
            secrets.extend([account.password.clone(), account.encoded()]);
        }
        let live = Self {
            client: Client::new(&settings.network),
            run,
            written: RefCell::default(),
            secrets: RefCell::new(secrets),
            report: RefCell::default(),
            settings,
        };
        live.say(&format!("all repositories of this run are below {}/{}", live.acr(), live.run));
        live
    }

    /// The login server.
    pub fn acr(&self) -> &str {
        &self.settings.acr
    }

    pub fn uses_hub(&self) -> bool {
        !matches!(self.settings.hub, Hub::Unused)
    }

    /// A repository of this run.
    pub fn repository(&self, name: &str) -> String {
        format!("{}/{name}", self.run)
    }

    /// A line of the report, without secrets.
    pub fn say(&self, line: &str) {
        let line = self.scrub(line);
        println!("{line}");
        self.report.borrow_mut().lines.push(line);
    }

    /// Reports a fact.
    pub fn saw(&self, id: &'static str, seen: Seen, what: &str) {
        let verdict = match seen {
            Seen::AsWritten => "as written",
            Seen::Different => "DIFFERENT",
            Seen::Unknown => "not seen",
        };
        self.say(&format!("fact {id}: {verdict}: {what}"));
        self.report.borrow_mut().facts.insert(id, seen);
    }

    pub fn report(&self) -> Report {
        self.report.borrow().clone()
    }

    pub fn scrub(&self, text: &str) -> String {
        self.secrets.borrow().iter().fold(text.to_owned(), |text, secret| text.replace(secret, "***"))
    }

    /// `transload`, with the network and the credentials of this run.
    pub fn transload(&self, args: &[&str]) -> Tool {
        let network = &self.settings.network;
        let files = network.ca_files.iter().flat_map(|file| ["--ca-file".to_owned(), file.clone()]);
        let names = network.resolve.iter().flat_map(|(name, at)| ["--resolve".to_owned(), format!("{name}={at}")]);
        let flags: Vec<String> = files.chain(names).collect();
        let account = &self.settings.acr_account;
        let mut tool = Tool::transload().args(args).args(&flags).env(&variable(self.acr()), &account.pair());
        if let Some(account) = self.settings.hub_account() {
            tool = tool.env(&variable("docker.io"), &account.pair());
        }
        tool
    }

    /// A request to the registry, as its account. `scope` is that of the token.
    pub fn ask(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        let repository = path.strip_prefix("/v2/").unwrap_or_default();
        let end = ["/manifests/", "/blobs/", "/tags/", "/referrers/"].iter().find_map(|part| repository.find(part));
        let repository = &repository[..end.unwrap_or_default()];
        let actions = if method == "DELETE" { "pull,push,delete" } else { "pull,push" };
        let mut scope = format!("scope=repository:{repository}:{actions}");
        if let Some((_, from)) = path.split_once("&from=") {
            scope.push_str(&format!("&scope=repository:{from}:pull"));
        }
        let token = self.acr_token(&scope)?;
        let authorization = format!("Bearer {}", access_token(&token));
        self.send_to_acr(method, path, &[&[("authorization", &*authorization)], headers].concat(), body)
    }

    /// The token document that the registry gives for `scope=…`.
    pub fn acr_token(&self, scope: &str) -> io::Result<Value> {
        let url = format!("https://{0}/oauth2/token?service={0}&{scope}", self.acr());
        self.token(&url, Some(&self.settings.acr_account))
    }

    /// A request to the registry with the account's password.
    pub fn ask_with_password(&self, path: &str) -> io::Result<Reply> {
        let basic = format!("Basic {}", self.settings.acr_account.encoded());
        self.send_to_acr("GET", path, &[("authorization", &*basic), ("accept", ACCEPT)], b"")
    }

    /// A request to Docker Hub, which writes nothing. The token is for `hello-world`.
    pub fn ask_hub(&self, method: &str, path: &str) -> io::Result<Reply> {
        let authorization = format!("Bearer {}", access_token(&self.hub_token()?));
        assert!(matches!(method, "GET" | "HEAD"), "nothing is written to Docker Hub");
        self.client.send(method, &format!("https://{HUB}{path}"), &[("authorization", &authorization)], b"")
    }

    /// The token document that Docker Hub gives for `hello-world`.
    pub fn hub_token(&self) -> io::Result<Value> {
        let scope = "repository:library/hello-world:pull";
        let url = format!("https://auth.docker.io/token?service=registry.docker.io&scope={scope}");
        self.token(&url, self.settings.hub_account())
    }

    /// A GET of a link that a registry gave out, with an `Authorization` that is none.
    pub fn follow_with_authorization(&self, link: &str) -> io::Result<Reply> {
        self.client.send("GET", link, &[("authorization", "Bearer none"), ("range", "bytes=0-0")], b"")
    }

    /// Notes that this run wrote something, which is deleted at its end.
    pub fn wrote(&self, path: &str) {
        self.written.borrow_mut().push(bare(path).to_owned());
    }

    /// Notes that something is gone already.
    pub fn forget(&self, path: &str) {
        self.written.borrow_mut().retain(|written| written != bare(path));
    }

    /// Deletes all that this run wrote, the last first. Failures are reported only.
    pub fn remove_written(&self) {
        let mut left = 0;
        loop {
            let Some(path) = self.written.borrow().last().cloned() else { break };
            match self.ask("DELETE", &path, &[], b"").map(|reply| reply.status) {
                Ok(200..=299 | 404) => {}
                Ok(status) => {
                    left += 1;
                    self.say(&format!("not removed: {path}: the registry answered {status}"));
                }
                Err(error) => {
                    left += 1;
                    self.say(&format!("not removed: {path}: {error}"));
                }
            }
            self.written.borrow_mut().pop();
        }
        if left > 0 {
            self.say(&format!("remove the repositories below {}/{} yourself", self.acr(), self.run));
        }
    }

    fn send_to_acr(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> io::Result<Reply> {
        self.guard(method, path);
        self.client.send(method, &format!("https://{}{path}", self.acr()), headers, body)
    }

    /// Fails for a request that writes outside this run's repositories, or deletes what it did not write.
    fn guard(&self, method: &str, path: &str) {
        if matches!(method, "GET" | "HEAD") {
            return;
        }
        let bare = bare(path);
        let own = bare.starts_with(&format!("/v2/{}/", self.run));
        let plain = !bare.contains("..") && !bare.contains('%');
        assert!(own && plain, "{method} {path} is outside of {}", self.run);
        let known = self.written.borrow().iter().any(|written| written == bare);
        assert!(method != "DELETE" || known, "DELETE {path}: this run did not write it");
    }

    /// Passwords go to the token endpoints of the two services alone.
    fn token(&self, url: &str, account: Option<&Account>) -> io::Result<Value> {
        let basic = account.map(|account| format!("Basic {}", account.encoded()));
        let headers: Vec<(&str, &str)> = basic.iter().map(|basic| ("authorization", &**basic)).collect();
        let reply = self.client.send("GET", url, &headers, b"")?;
        if reply.status != 200 {
            let (host, _) = split_url(url).unwrap_or_default();
            return Err(io::Error::other(format!("{host} gives no token: status {}", reply.status)));
        }
        let document: Value = serde_json::from_slice(&reply.body).map_err(io::Error::other)?;
        let fields = ["access_token", "token", "refresh_token"].map(|name| document[name].as_str().map(str::to_owned));
        self.secrets.borrow_mut().extend(fields.into_iter().flatten().filter(|token| !token.is_empty()));
        Ok(document)
    }
}

impl Drop for Live {
    /// Also after a failure.
    fn drop(&mut self) {
        self.remove_written();
    }
}

impl Settings {
    fn hub_account(&self) -> Option<&Account> {
        match &self.hub {
            Hub::Account(account) => Some(account),
            Hub::Anonymous | Hub::Unused => None,
        }
    }
}

impl Account {
    fn pair(&self) -> String {
        format!("{}:{}", self.user, self.password)
    }

    fn encoded(&self) -> String {
        base64::engine::general_purpose::STANDARD.encode(self.pair())
    }
}

/// A path without its query.
fn bare(path: &str) -> &str {
    path.split('?').next().unwrap_or_default()
}

/// `token` and `access_token` are equivalent.
pub fn access_token(document: &Value) -> &str {
    document["access_token"].as_str().or(document["token"].as_str()).unwrap_or_default()
}

/// The variable with the credentials of a registry.
fn variable(registry: &str) -> String {
    let name = registry.to_uppercase().replace('_', "___").replace('-', "__").replace(['.', ':'], "_");
    format!("TRANSLOAD_AUTH_{name}")
}

#[cfg(test)]
mod tests {
    use std::panic::{AssertUnwindSafe, catch_unwind};

    use super::*;
    use crate::settings::Network;

    fn live() -> Live {
        Live::new(Settings {
            acr: "myregistry.azurecr.io".to_owned(),
            acr_account: Account { user: "user".to_owned(), password: "hunter2".to_owned() },
            prefix: "live".to_owned(),
            hub: Hub::Account(Account { user: "alice".to_owned(), password: "wonderland".to_owned() }),
            network: Network::default(),
        })
    }

    #[test]
    fn nothing_is_written_outside_of_the_run_and_nothing_else_is_deleted() {
        let live = live();
        let refused = |method: &str, path: &str| {
            let message = catch_unwind(AssertUnwindSafe(|| live.guard(method, path)));
            assert!(message.is_err(), "{method} {path} passes");
        };
        let own = live.repository("x");
        for method in ["POST", "PUT", "PATCH", "DELETE"] {
            for path in [
                "/v2/app/manifests/latest".to_owned(),
                "/v2/live/x/manifests/latest".to_owned(),
                format!("/v2/{}", live.run),
                format!("/v2/{}-other/x/manifests/latest", live.run),
                format!("/v2/{}/../app/manifests/latest", live.run),
                format!("/v2/{}/%2e%2e/app/manifests/latest", live.run),
                format!("/v2/app/manifests/latest?/v2/{own}/"),
                format!("/acr/v1/{own}/_tags/latest"),
            ] {
                refused(method, &path);
            }
        }
        let manifest = format!("/v2/{own}/manifests/latest");
        live.guard("PUT", &manifest);
        live.guard("GET", "/v2/app/manifests/latest");
        refused("DELETE", &manifest);
        live.wrote(&manifest);
        live.guard("DELETE", &manifest);
        refused("DELETE", &format!("/v2/{own}/manifests/other"));
        // Drop must not ask the network.
        live.written.borrow_mut().clear();
    }

    #[test]
    fn each_run_has_a_name_of_its_own() {
        assert_ne!(live().run, live().run);
    }

    #[test]
    fn no_line_has_a_secret() {
        let live = live();
        live.secrets.borrow_mut().push("token-1".to_owned());
        live.say("hunter2 dXNlcjpodW50ZXIy wonderland token-1 alice");
        assert_eq!(live.report().lines.last().map(String::as_str), Some("*** *** *** *** alice"));
    }
}
