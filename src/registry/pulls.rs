//! Pulls are spent here: one is taken of what is left before each GET of a manifest, and where only the
//! reserve is left, whoever wants one waits for the window to open again. All other requests go on.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::Options;
use super::quota::{AccountPulls, Ledger, PullQuota, Rules, SIX_HOURS, Turn};
use crate::error::{Error, Kind, Result};
use crate::reference::DOCKER_HUB;

/// The pulls of one registry.
#[derive(Debug)]
pub(super) struct Pulls {
    registry: String,
    ledger: Mutex<Ledger>,
    /// A pull was answered.
    answered: Notify,
    /// Held by the one who asks whether the window has opened; the others wait for it.
    poll: tokio::sync::Mutex<Poll>,
    first: Duration,
    most: Duration,
    keep: Option<u64>,
    deadline: Option<Instant>,
    given: usize,
}

#[derive(Debug, Default)]
struct Poll {
    /// How long to wait before the next question; none before the first one of a pause.
    wait: Option<Duration>,
    /// Pulls counted when the last pause ended: without one since, it's the same pause.
    pulls: u64,
}

/// A pull that was taken: by which account. Given back on drop.
#[derive(Debug)]
pub(super) struct Pass<'a> {
    pulls: &'a Pulls,
    pub(super) account: usize,
    flying: bool,
}

impl Pulls {
    pub(super) fn new(registry: &str, options: &Options) -> Self {
        let hub = registry == DOCKER_HUB;
        let given = if hub { options.hub_accounts.len() } else { 0 };
        let guarded = options.keep_pulls.is_some() || options.deadline.is_some() || given > 0;
        let rules = Rules {
            keep: options.keep_pulls.unwrap_or(0),
            guarded,
            ask_first: hub && options.keep_pulls.is_some(),
            share: u64::from(options.share.max(1)),
        };
        Self {
            registry: registry.to_owned(),
            ledger: Mutex::new(Ledger::new(rules, given)),
            answered: Notify::new(),
            poll: tokio::sync::Mutex::default(),
            first: options.pull_poll.0,
            most: options.pull_poll.1.max(options.pull_poll.0),
            keep: options.keep_pulls,
            deadline: options.deadline,
            given,
        }
    }

    /// Takes a pull of `repository`, and waits where none is left to take. `ask` asks the registry by a
    /// free HEAD what an account has left, and has it [learnt](Self::learn).
    ///
    /// `began` is when the caller first wanted it: its wait ends some time after that, whatever comes.
    ///
    /// # Errors
    /// [`Kind::Limited`] if the window didn't open in time.
    pub(super) async fn reserve<F>(
        &self,
        repository: &str,
        push: bool,
        began: Instant,
        ask: impl Fn(usize) -> F,
    ) -> Result<Pass<'_>>
    where
        F: Future<Output = ()> + Send,
    {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            let turn = self.lock().reserve(repository, push);
            match turn {
                Turn::Go(account) => return Ok(Pass { pulls: self, account, flying: true }),
                Turn::Busy => answered.await,
                Turn::Ask(account) => {
                    let _poll = self.poll.lock().await;
                    if !self.lock().accounts().iter().any(|(index, ..)| *index == account) {
                        ask(account).await;
                        // Whatever it said: the pull itself is the next to tell.
                        self.lock().asked(account);
                    }
                }
                Turn::Spent => self.pause(repository, push, began, &ask).await?,
            }
        }
    }

    /// Waits until a pull may be had.
    async fn pause<F>(&self, repository: &str, push: bool, began: Instant, ask: &impl Fn(usize) -> F) -> Result<()>
    where
        F: Future<Output = ()> + Send,
    {
        let Some(until) = self.until(began) else { return Err(self.gone()) };
        let Ok(mut poll) = tokio::time::timeout_at(until, self.poll.lock()).await else { return Err(self.gone()) };
        if !self.lock().is_spent(repository, push) {
            return Ok(());
        }
        let pulls = self.lock().pulls();
        if pulls != poll.pulls {
            *poll = Poll { wait: None, pulls };
        }
        loop {
            // The first question is asked at once: what is known may be old.
            if let Some(wait) = poll.wait {
                let next = Instant::now() + wait;
                tokio::time::sleep_until(next.min(until)).await;
                if next > until {
                    return Err(self.gone());
                }
            }
            let waiting = self.lock().waiting(repository, push);
            for account in waiting {
                ask(account).await;
            }
            let open = !self.lock().is_spent(repository, push);
            match (poll.wait, open) {
                (None, true) => return Ok(()),
                (Some(_), true) => {
                    tracing::warn!("{}: {}: going on", self.registry, self.state());
                    return Ok(());
                }
                (None, false) => {
                    tracing::warn!("{}: {}: waiting", self.registry, self.state());
                    poll.wait = Some(self.first);
                }
                (Some(wait), false) => poll.wait = Some((wait * 2).min(self.most)),
            }
        }
    }

    /// When a wait that began then ends. None if nobody wants to wait.
    fn until(&self, began: Instant) -> Option<Instant> {
        // Nobody has a reason to wait longer than a window, after which all pulls are back.
        let window = Duration::from_secs(self.window()) + self.most;
        (self.keep.is_some() || self.deadline.is_some())
            .then(|| self.deadline.map_or(began + window, |deadline| deadline.min(began + window)))
    }

    fn window(&self) -> u64 {
        self.quota().map_or(SIX_HOURS, |quota| quota.window)
    }

    fn gone(&self) -> Error {
        let window = Duration::from_secs(self.window());
        let again = jiff::Timestamp::now()
            .checked_add(window)
            .map_or_else(|_| String::new(), |at| format!(", at {} at the latest", at.strftime("%F %H:%M UTC")));
        let hint = match (self.given, self.registry == DOCKER_HUB) {
            (0, true) => format!(
                "log in (transload login docker.io) for more pulls, give several accounts, or try again when they are back{again}"
            ),
            (_, true) => format!("give more accounts, or try again when the pulls are back{again}"),
            _ => format!("try again when the pulls are back{again}"),
        };
        Error::new(Kind::Limited, format!("{}: {}", self.registry, self.state())).hint(hint)
    }

    /// As in "3 pulls left, 10 are kept".
    fn state(&self) -> String {
        let left = self.quota().map(|quota| quota.remaining);
        let whose = if self.given > 1 { format!(" by {} accounts", self.given) } else { String::new() };
        let kept = match self.keep.unwrap_or(0) {
            0 => String::new(),
            keep if self.given > 1 => format!(", {keep} of each are kept"),
            1 => ", 1 is kept".to_owned(),
            keep => format!(", {keep} are kept"),
        };
        match left {
            Some(0) => format!("no pulls left{whose}{kept}"),
            Some(1) => format!("1 pull left{whose}{kept}"),
            Some(left) => format!("{left} pulls left{whose}{kept}"),
            None => format!("the pull limit is reached{whose}{kept}"),
        }
    }

    /// Who asks for what is free.
    pub(super) fn choose(&self, repository: &str, push: bool) -> usize {
        self.lock().choose(repository, push)
    }

    /// See [`Ledger::mark`].
    pub(super) fn mark(&self, account: usize) -> u64 {
        self.lock().mark(account)
    }

    /// See [`Ledger::learn`].
    pub(super) fn learn(&self, account: usize, mark: u64, told: Option<PullQuota>) {
        self.lock().learn(account, mark, told);
    }

    /// See [`Ledger::spend`].
    pub(super) fn spend(&self, account: usize) -> bool {
        self.lock().spend(account)
    }

    /// See [`Ledger::deny`].
    pub(super) fn deny(&self, repository: &str, account: usize) -> bool {
        self.lock().deny(repository, account)
    }

    /// See [`Ledger::refuse`].
    pub(super) fn refuse(&self, account: usize) -> bool {
        self.lock().refuse(account)
    }

    /// See [`Ledger::quota`].
    pub(super) fn quota(&self) -> Option<PullQuota> {
        self.lock().quota()
    }

    /// Manifests read so far.
    pub(super) fn count(&self) -> u64 {
        self.lock().pulls()
    }

    /// Each account that was used; `name` knows their names.
    pub(super) fn accounts(&self, name: impl Fn(usize) -> Option<String>) -> Vec<AccountPulls> {
        let used = self.lock().accounts();
        used.into_iter().map(|(index, pulls, quota)| AccountPulls { account: name(index), pulls, quota }).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pass<'_> {
    /// The registry answered; `counted` if that was a pull.
    pub(super) fn answered(&mut self, counted: bool) {
        if std::mem::take(&mut self.flying) {
            self.pulls.lock().answered(self.account, counted);
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if std::mem::take(&mut self.flying) {
            self.pulls.lock().lost(self.account);
        }
        self.pulls.answered.notify_waiters();
    }
}
