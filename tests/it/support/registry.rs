//! A real registry: Debian's `docker-registry` (distribution 2.8), on a port and a directory of
//! its own.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::process::RUN_TIMEOUT;
use super::{Process, TempDir, Tool, http};

/// The password of whatever user [`Registry::with_basic`] names.
pub const PASSWORD: &str = "sesame";

/// [`PASSWORD`] by bcrypt, cost 4: `perl -e 'print crypt("sesame", "\$2y\$04\$transloadtransloadtrau")'`.
const HASH: &str = "$2y$04$transloadtransloadtrau7tYFnoJ4mP23zb7MTjWspt7ErwcL7Dm";

/// A running registry, killed on Drop. DELETE is enabled. It has no Referrers API.
#[derive(Debug)]
pub struct Registry {
    process: Process,
    storage: TempDir,
    addr: SocketAddr,
    /// Lines of the access log that no longer count.
    skip: Mutex<usize>,
}

impl Registry {
    /// A registry that anyone may read and write.
    #[track_caller]
    pub fn start() -> Self {
        Self::launch("", None)
    }

    /// A registry that wants Basic auth of this user with [`PASSWORD`].
    #[track_caller]
    pub fn with_basic(user: &str) -> Self {
        Self::with_users(&[user])
    }

    /// The same with several users, all with that password.
    #[track_caller]
    pub fn with_users(users: &[&str]) -> Self {
        let lines = users.iter().map(|user| format!("{user}:{HASH}\n")).collect();
        Self::launch("auth: {htpasswd: {realm: test, path: PASSWD}}\n", Some(lines))
    }

    /// A registry that is a pull-through cache of another one: a peer to compare with.
    #[track_caller]
    pub fn mirror_of(upstream: &str) -> Self {
        Self::launch(&format!("proxy: {{remoteurl: \"{upstream}\"}}\n"), None)
    }

    #[track_caller]
    fn launch(extra: &str, htpasswd: Option<String>) -> Self {
        let storage = TempDir::new();
        let passwords = storage.write("htpasswd", htpasswd.unwrap_or_default());
        let root = storage.join("registry");
        let config = format!(
            "version: 0.1\n\
             log: {{level: info, accesslog: {{disabled: false}}, formatter: text}}\n\
             storage: {{filesystem: {{rootdirectory: \"{root}\"}}, delete: {{enabled: true}}}}\n\
             http: {{addr: \"127.0.0.1:0\", secret: not-one}}\n\
             validation: {{manifests: {{urls: {{allow: [\".*\"]}}}}}}\n{}",
            extra.replace("PASSWD", &passwords)
        );
        let config = storage.write("config.yml", config);
        let process = Tool::new("docker-registry").args(&["serve", &config]).spawn();
        let line = process.stderr.wait_line("listening on ", RUN_TIMEOUT);
        let text = line.split("listening on ").nth(1).and_then(|rest| rest.split('"').next());
        let addr = text.and_then(|text| text.parse().ok()).expect("an address in the log");
        Self { process, storage, addr, skip: Mutex::new(0) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The process's number.
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Its storage, to spoil or to measure.
    pub fn storage(&self) -> &TempDir {
        &self.storage
    }

    /// Fails the test unless every upload that was begun since then was ended or deleted, by the log.
    ///
    /// The storage would be no judge: distribution 2.8 answers DELETE with 404 and keeps the data once
    /// a body broke off, since the size isn't that of the Location's `_state` any more.
    #[track_caller]
    pub fn assert_no_open_uploads(&self) {
        let requests = self.requests();
        let begun = requests.iter().filter(|seen| seen.0 == "POST" && seen.2 == 202).count();
        let over = |seen: &&(String, String, u16)| seen.0 == "DELETE" || (seen.0 == "PUT" && seen.2 == 201);
        let session = |seen: &(String, String, u16)| {
            let rest = seen.1.split_once("/uploads/")?.1;
            rest.split('?').next().map(str::to_owned)
        };
        let ended: BTreeSet<String> = requests.iter().filter(over).filter_map(session).collect();
        assert_eq!(begun, ended.len(), "{requests:?}");
    }

    /// Every request since the start or [`Self::reset_log`], by its own log: method, path with
    /// query, status.
    #[track_caller]
    pub fn requests(&self) -> Vec<(String, String, u16)> {
        self.lines().iter().skip(*self.skip()).filter_map(|line| parse(line)).collect()
    }

    /// How many requests since then have this method and this in their path.
    #[track_caller]
    pub fn count(&self, method: &str, path: &str) -> usize {
        self.requests().iter().filter(|request| request.0 == method && request.1.contains(path)).count()
    }

    /// Forgets the requests so far.
    #[track_caller]
    pub fn reset_log(&self) {
        *self.skip() = self.lines().len();
    }

    /// The access log so far. A line is written before its answer ends, but reaches us through a
    /// pipe: so ask for something with a mark, and wait for the mark.
    #[track_caller]
    fn lines(&self) -> Vec<String> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let mark = format!("/v2/?mark={}&", NEXT.fetch_add(1, Ordering::Relaxed));
        http::get(self.addr, &mark);
        self.process.stdout.wait_line(&mark, Duration::from_secs(10));
        self.process.stdout.text().lines().map(str::to_owned).collect()
    }

    fn skip(&self) -> std::sync::MutexGuard<'_, usize> {
        self.skip.lock().expect("no panic while held")
    }
}

/// Apache's format: `127.0.0.1 - - [time] "GET /v2/ HTTP/1.1" 200 2 "" "agent"`.
fn parse(line: &str) -> Option<(String, String, u16)> {
    let request = line.split_once("] \"")?.1;
    let (request, rest) = request.split_once(" HTTP/1.")?;
    let (method, path) = request.split_once(' ')?;
    let status = rest.split(' ').nth(1)?.parse().ok()?;
    (!path.contains("?mark=")).then(|| (method.to_owned(), path.to_owned(), status))
}
