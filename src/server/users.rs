//! Users with passwords: a file in the format of `htpasswd -B`, and the check of credentials.
//!
//! ```text
//! credentials ─▶ verified recently? ─ no ─▶ queue (bounded) ─▶ permit ─▶ verified by now? ─ no ─▶ bcrypt, on the pool
//! ```
//! bcrypt is slow on purpose. At most half the cores run it at once, for all listeners together, so that guessing passwords
//! does not block clients with known credentials. If the queue is full, or a request waits too long in it, the client gets
//! an error with `Retry-After`.
//! Verified credentials are remembered as a keyed hash, whose key only this process has. The stored bcrypt hash is part of the
//! input, so a changed password or a removed user is not accepted from memory.

use std::collections::BTreeMap;
use std::str::FromStr as _;
use std::sync::Arc;
use std::time::Duration;

use quick_cache::sync::Cache;
use sha2::{Digest as _, Sha256};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tokio_rustls::rustls::crypto::aws_lc_rs;

use crate::error::{Error, Kind, Result};
use crate::pool::run_blocking;

/// User names with the bcrypt hashes of their passwords.
#[derive(Clone)]
pub(crate) struct Users(BTreeMap<String, Arc<str>>);

/// The result of checking credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Known,
    Unknown,
    /// There were too many checks: the credentials were not checked.
    Busy,
}

/// Checks credentials, and remembers the right ones.
pub(super) struct Verifier {
    /// The key of the remembered hashes, which makes them useless outside this process.
    key: [u8; 32],
    lately: Arc<Cache<[u8; 32], Instant>>,
    queue: Arc<Semaphore>,
    places: Arc<Semaphore>,
}

impl Users {
    /// Parses users, one per line: `name:hash`; `#` starts a comment.
    ///
    /// # Errors
    /// [`Kind::Usage`] with the line number for a hash that is not bcrypt or whose cost is too high, and for a name that
    /// occurs twice; also if there are no users. The error never contains the hash.
    pub(crate) fn read(text: &str) -> Result<Self> {
        let mut users = BTreeMap::new();
        for (number, line) in (1..).zip(text.lines().map(str::trim)) {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let wrong = |what: &str| {
                Err(Error::new(Kind::Usage, format!("line {number}: {what}"))
                    .hint("create a line with: htpasswd -nB NAME"))
            };
            let Some((name, hash)) = line.split_once(':').filter(|(name, _)| !name.is_empty()) else {
                return wrong("expected a name, a colon and a hash");
            };
            // $2x$ marks hashes from a buggy crypt_blowfish; they cannot be verified.
            let is_bcrypt = ["$2y$", "$2b$", "$2a$"].iter().any(|kind| hash.starts_with(kind));
            let Some(parts) = bcrypt::HashParts::from_str(hash).ok().filter(|_| is_bcrypt) else {
                return wrong("the hash is not a bcrypt hash ($2y$, $2b$ or $2a$)");
            };
            if !ALLOWED_COSTS.contains(&parts.get_cost()) {
                return wrong(&format!(
                    "the hash's cost is not between {} and {}",
                    ALLOWED_COSTS.start(),
                    ALLOWED_COSTS.end()
                ));
            }
            if users.insert(name.to_owned(), hash.into()).is_some() {
                return wrong(&format!("{name:?} occurs twice"));
            }
        }
        if users.is_empty() {
            return Err(Error::new(Kind::Usage, "the file has no users").hint("create a line with: htpasswd -nB NAME"));
        }
        Ok(Self(users))
    }
}

impl std::fmt::Debug for Users {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} users", self.0.len())
    }
}

impl Verifier {
    /// A verifier that remembers no credentials yet.
    pub(super) fn new() -> Result<Self> {
        let mut key = [0; 32];
        let random = aws_lc_rs::default_provider().secure_random;
        random.fill(&mut key).map_err(|_| Error::new(Kind::Local, "the system has no random bytes"))?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Ok(Self::with(key, cores.div_ceil(2), MAX_QUEUED))
    }

    fn with(key: [u8; 32], places: usize, queue: usize) -> Self {
        Self {
            key,
            lately: Arc::new(Cache::new(MAX_REMEMBERED)),
            queue: Arc::new(Semaphore::new(queue)),
            places: Arc::new(Semaphore::new(places)),
        }
    }

    /// Whether `password` is that of `name`.
    ///
    /// A password that bcrypt would not read completely is refused: see [`is_whole_to_bcrypt`].
    pub(super) async fn verify(&self, users: &Users, name: &str, password: &str) -> Verdict {
        if !is_whole_to_bcrypt(password) {
            return Verdict::Unknown;
        }
        let known = users.0.get(name);
        // For an unknown name the hash of some user is checked, always of the same one, and the result is ignored. So the
        // time does not show which names exist.
        let hash = match known {
            Some(hash) => hash.clone(),
            None => self.decoy_hash(users, name),
        };
        let pair = known.map(|hash| self.digest(&[name, password, hash]));
        if pair.is_some_and(|pair| self.is_known(&pair)) {
            return Verdict::Known;
        }
        let Some((waiting, place)) = self.place().await else { return Verdict::Busy };
        // Many nodes that connect at once with the same password cost one check.
        if pair.is_some_and(|pair| self.is_known(&pair)) {
            return Verdict::Known;
        }
        let (password, lately) = (password.to_owned(), self.lately.clone());
        // The check continues when the client leaves: it keeps its permit until it ends, and its result is remembered.
        let checked = run_blocking(move || {
            let _held = (waiting, place);
            let same = bcrypt::verify(&password, &hash).unwrap_or(false);
            match pair.filter(|_| same) {
                Some(pair) => lately.insert(pair, Instant::now()),
                None => return Ok(false),
            }
            Ok(true)
        });
        match checked.await {
            Ok(true) => Verdict::Known,
            Ok(false) => Verdict::Unknown,
            Err(_) => Verdict::Busy,
        }
    }

    /// A place in the queue and a permit for a check. `None` if the queue is full, or no permit is free in time.
    async fn place(&self) -> Option<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let waiting = self.queue.clone().try_acquire_owned().ok()?;
        let place = tokio::time::timeout(QUEUE_TIMEOUT, self.places.clone().acquire_owned()).await.ok()?.ok()?;
        Some((waiting, place))
    }

    /// Fills the queue, for tests.
    #[cfg(test)]
    pub(super) fn hold(&self) -> impl Drop + use<> {
        let all = u32::try_from(self.queue.available_permits()).expect("few");
        self.queue.clone().try_acquire_many_owned(all).expect("all of the queue")
    }

    fn is_known(&self, pair: &[u8; 32]) -> bool {
        match self.lately.get(pair) {
            Some(since) if since.elapsed() < REMEMBER_FOR => true,
            Some(_) => {
                self.lately.remove(pair);
                false
            }
            None => false,
        }
    }

    fn decoy_hash(&self, users: &Users, name: &str) -> Arc<str> {
        let [first, ..] = self.digest(&[name]);
        // There is always one: a file without users is refused.
        users.0.values().nth(usize::from(first) % users.0.len().max(1)).cloned().unwrap_or_else(|| Arc::from(""))
    }

    /// A keyed hash of parts. Their lengths are included, so different lists of parts give different input.
    fn digest(&self, parts: &[&str]) -> [u8; 32] {
        let mut digest = Sha256::new_with_prefix(self.key);
        for part in parts {
            digest.update((part.len() as u64).to_be_bytes());
            digest.update(part);
        }
        digest.finalize().into()
    }
}

/// Whether bcrypt distinguishes this password from all others.
///
/// bcrypt reads the first 72 bytes of a password and its final NUL byte, and repeats them to fill its key: a longer
/// password equals its first 72 bytes, and `a\0a` equals `a`.
/// <https://www.usenix.org/legacy/events/usenix99/provos/provos_html/node4.html>
fn is_whole_to_bcrypt(password: &str) -> bool {
    password.len() <= MAX_PASSWORD && !password.contains('\0')
}

/// Bytes of a password that bcrypt reads.
const MAX_PASSWORD: usize = 72;
/// From the lowest cost of bcrypt to about two seconds. A higher cost, set by mistake, would lock everyone out.
const ALLOWED_COSTS: std::ops::RangeInclusive<u32> = 4..=15;
/// Credentials that are remembered.
const MAX_REMEMBERED: usize = 1000;
/// How long credentials are remembered.
const REMEMBER_FOR: Duration = Duration::from_secs(600);
/// Requests that wait for a check or run one.
const MAX_QUEUED: usize = 256;
/// How long a request waits for a check.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    fn users(pairs: &[(&str, &str)]) -> Users {
        let line = |(name, password): &(&str, &str)| format!("{name}:{}\n", bcrypt::hash(password, 4).expect("a hash"));
        Users::read(&pairs.iter().map(line).collect::<String>()).expect("users")
    }

    fn verifier() -> Verifier {
        Verifier::with([7; 32], 1, 2)
    }

    #[test]
    fn a_file_has_bcrypt_or_is_refused_by_the_line() {
        let good = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW";
        let (b, a) = (good.replace("2y", "2b"), good.replace("2y", "2a"));
        let read = Users::read(&format!("# ours\n\nanna: \nb:{b}\n"));
        assert!(read.expect_err("no hash").to_string().contains("line 3: "));
        let read = Users::read(&format!("# ours\n\nanna:{good}\r\nb:{b}\nc:{a}\n")).expect("users");
        assert_eq!(format!("{read:?}"), "3 users");
        for (line, said) in [
            ("x:{SHA}W6ph5Mm5Pz8GgiULbPgzG37mj9g=", "line 2: the hash is not a bcrypt hash"),
            ("x:$apr1$WWIFjmva$uJtCwFR8nj9zYbqUKSg8T1", "line 2: the hash is not a bcrypt hash"),
            (&format!("x:{}", good.replace("2y", "2x")), "line 2: the hash is not a bcrypt hash"),
            (&format!("x:{good}x"), "line 2: the hash is not a bcrypt hash"),
            (&format!("x:{}", good.replace("$05", "$31")), "line 2: the hash's cost is not between 4 and 15"),
            (&format!(":{good}"), "line 2: expected a name"),
            ("x", "line 2: expected a name"),
            (&format!("anna:{good}"), "line 2: \"anna\" occurs twice"),
        ] {
            let error = Users::read(&format!("anna:{good}\n{line}\n")).expect_err(line).to_string();
            assert!(error.contains(said) && !error.contains("CCCC") && !error.contains("W6ph"), "{error}");
        }
        assert!(Users::read("# none\n").is_err());
    }

    #[tokio::test]
    async fn passwords_as_others_hash_them() {
        // A pair that the first programs for it were tested with.
        let users = Users::read("u:$2a$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW\n").expect("users");
        let verifier = verifier();
        assert_eq!(verifier.verify(&users, "u", "U*U").await, Verdict::Known);
        for (name, password) in [("u", "U*U*"), ("u", ""), ("v", "U*U"), ("", "U*U"), ("u", "u*u")] {
            assert_eq!(verifier.verify(&users, name, password).await, Verdict::Unknown, "{name}:{password}");
        }
    }

    /// A password whose first 72 bytes are right, or that repeats a right one after a NUL byte, is nobody's.
    #[tokio::test]
    async fn passwords_that_bcrypt_does_not_read_as_a_whole_match_nobody() {
        let (longest, secret) = ("s".repeat(72), "secret");
        let (users, verifier) = (users(&[("anna", &longest), ("bert", secret)]), verifier());
        assert_eq!(verifier.verify(&users, "anna", &longest).await, Verdict::Known);
        for (name, password) in [
            ("anna", format!("{longest}x")),
            ("anna", format!("{longest}\0")),
            ("anna", longest.repeat(2)),
            ("bert", format!("{secret}\0{secret}")),
            ("bert", format!("{secret}\0")),
        ] {
            let verdict = verifier.verify(&users, name, &password).await;
            assert_eq!(verdict, Verdict::Unknown, "{name}: {} bytes", password.len());
        }
        // 72 bytes, not characters.
        let (wide, wider) = ("\u{fc}".repeat(36), "\u{fc}".repeat(37));
        let users = self::users(&[("anna", &wide)]);
        assert_eq!(verifier.verify(&users, "anna", &wide).await, Verdict::Known);
        assert_eq!(verifier.verify(&users, "anna", &wider).await, Verdict::Unknown);
    }

    /// With no place to be had: what is known is let in all the same, and by nothing else.
    #[tokio::test]
    async fn pairs_are_remembered_but_not_for_other_hashes() {
        let (old, verifier) = (users(&[("anna", "secret"), ("bert", "secret")]), verifier());
        assert_eq!(verifier.verify(&old, "anna", "secret").await, Verdict::Known);
        assert_eq!(verifier.verify(&old, "anna", "wrong").await, Verdict::Unknown);
        let all = verifier.hold();
        assert_eq!(verifier.verify(&old, "anna", "secret").await, Verdict::Known);
        for (name, password) in [("anna", "wrong"), ("bert", "secret"), ("annas", "ecret"), ("nobody", "secret")] {
            assert_eq!(verifier.verify(&old, name, password).await, Verdict::Busy, "{name}");
        }
        // The same password, hashed again, is looked at again; and who is gone is gone.
        let (renewed, without) = (users(&[("anna", "secret")]), users(&[("bert", "secret")]));
        assert_eq!(verifier.verify(&renewed, "anna", "secret").await, Verdict::Busy);
        drop(all);
        assert_eq!(verifier.verify(&renewed, "anna", "secret").await, Verdict::Known);
        assert_eq!(verifier.verify(&without, "anna", "secret").await, Verdict::Unknown);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_remembered_ends_and_so_does_waiting() {
        let (users, verifier) = (users(&[("anna", "secret")]), verifier());
        assert_eq!(verifier.verify(&users, "anna", "secret").await, Verdict::Known);
        let place = verifier.places.clone().try_acquire_owned().expect("the place");
        tokio::time::advance(REMEMBER_FOR - Duration::from_secs(1)).await;
        assert_eq!(verifier.verify(&users, "anna", "secret").await, Verdict::Known);
        tokio::time::advance(Duration::from_secs(1)).await;
        let begun = Instant::now();
        assert_eq!(verifier.verify(&users, "anna", "secret").await, Verdict::Busy);
        assert!(begun.elapsed() >= QUEUE_TIMEOUT);
        assert_eq!(verifier.queue.available_permits(), 2, "a place in the queue was lost");
        drop(place);
        assert_eq!(verifier.verify(&users, "anna", "secret").await, Verdict::Known);
    }

    /// Those that wait for the same pair have it when the first one has.
    #[tokio::test]
    async fn a_herd_costs_one_check() {
        let (users, verifier) = (users(&[("anna", "secret")]), Arc::new(verifier()));
        let place = verifier.places.clone().try_acquire_owned().expect("the place");
        let (mine, theirs) = (verifier.clone(), users.clone());
        let waiting = tokio::spawn(async move { mine.verify(&theirs, "anna", "other").await });
        while verifier.queue.available_permits() == 2 {
            tokio::task::yield_now().await;
        }
        // Verified elsewhere meanwhile, which nothing but the memory tells: by the hash it would be wrong.
        let hash = &users.0["anna"];
        verifier.lately.insert(verifier.digest(&["anna", "other", hash]), Instant::now());
        drop(place);
        assert_eq!(waiting.await.expect("an end"), Verdict::Known);
        assert_eq!(verifier.queue.available_permits(), 2);
    }
}
