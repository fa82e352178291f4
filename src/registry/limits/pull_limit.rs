//! Takes a pull before each GET of a manifest. If only the reserve is left, a pull waits for the next window. Other
//! requests do not wait.

use std::future::Future;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::pull_ledger::{AccountPulls, PullDecision, PullLedger, PullQuota, PullRules, SIX_HOURS};
use crate::error::{Error, Kind, Result};
use crate::reference::DOCKER_HUB;
use crate::registry::Options;
use crate::waits::{self, Wait};

/// The pulls of one registry.
#[derive(Debug)]
pub(in crate::registry) struct PullLimit {
    registry: String,
    ledger: Mutex<PullLedger>,
    /// Notified with each response to a pull.
    answered: Notify,
    /// Held by the task that checks whether the next window has begun; the others wait for it.
    poll: tokio::sync::Mutex<QuotaPoll>,
    first: Duration,
    most: Duration,
    keep: Option<u64>,
    deadline: Option<Instant>,
    given: usize,
}

#[derive(Debug, Default)]
struct QuotaPoll {
    /// The wait before the next check; `None` before the first check of a pause.
    wait: Option<Duration>,
    /// The count at the end of the last pause: if it has not changed, the pause continues.
    pulls: u64,
}

/// A pull of an account. Returned on drop.
#[derive(Debug)]
pub(in crate::registry) struct PullPermit<'a> {
    pulls: &'a PullLimit,
    pub(in crate::registry) account: usize,
    flying: bool,
}

impl PullLimit {
    pub(in crate::registry) fn new(registry: &str, options: &Options) -> Self {
        let hub = registry == DOCKER_HUB;
        let given = if hub { options.hub_accounts.len() } else { 0 };
        let guarded = options.reserve_pulls.is_some() || options.deadline.is_some() || given > 0;
        let rules = PullRules {
            keep: options.reserve_pulls.unwrap_or(0),
            guarded,
            ask_first: hub && options.reserve_pulls.is_some(),
            share: u64::from(options.share.max(1)),
        };
        Self {
            registry: registry.to_owned(),
            ledger: Mutex::new(PullLedger::new(rules, given)),
            answered: Notify::new(),
            poll: tokio::sync::Mutex::default(),
            first: options.pull_poll.0,
            most: options.pull_poll.1.max(options.pull_poll.0),
            keep: options.reserve_pulls,
            deadline: options.deadline,
            given,
        }
    }

    /// Takes a pull for `repository`, or waits for one. `ask` reads an account's quota by a free HEAD and
    /// [records](Self::learn) it.
    ///
    /// `began` is the start of the caller's wait, which is limited in total.
    ///
    /// # Errors
    /// [`Kind::Limited`] if the window didn't open in time, [`Kind::Usage`] if no window has more than is to be kept.
    pub(in crate::registry) async fn reserve<F>(
        &self,
        repository: &str,
        push: bool,
        began: Instant,
        ask: impl Fn(usize) -> F,
    ) -> Result<PullPermit<'_>>
    where
        F: Future<Output = ()> + Send,
    {
        loop {
            let answered = self.answered.notified();
            tokio::pin!(answered);
            answered.as_mut().enable();
            let turn = self.lock().reserve(repository, push);
            match turn {
                PullDecision::Go(account) => return Ok(PullPermit { pulls: self, account, flying: true }),
                PullDecision::Busy => answered.await,
                PullDecision::Ask(account) => {
                    let _poll = self.poll.lock().await;
                    if !self.lock().accounts().iter().any(|(index, ..)| *index == account) {
                        ask(account).await;
                        // Whatever the result: the pull itself is the next source.
                        self.lock().asked(account);
                    }
                }
                PullDecision::Spent => self.pause(repository, push, began, &ask).await?,
            }
        }
    }

    /// Waits until a pull is available.
    async fn pause<F>(&self, repository: &str, push: bool, began: Instant, ask: &impl Fn(usize) -> F) -> Result<()>
    where
        F: Future<Output = ()> + Send,
    {
        let Some(until) = self.until(began) else { return Err(self.exhausted()) };
        let Ok(mut poll) = tokio::time::timeout_at(until, self.poll.lock()).await else { return Err(self.exhausted()) };
        if !self.lock().is_spent(repository, push) {
            return Ok(());
        }
        self.check_attainable(repository, push)?;
        let pulls = self.lock().pulls();
        if pulls != poll.pulls {
            *poll = QuotaPoll { wait: None, pulls };
        }
        loop {
            // The first check is immediate: the known quota may be old.
            if let Some(wait) = poll.wait {
                let next = Instant::now() + wait;
                let state = self.state();
                let _waiting = waits::begin(|| Wait::pause(&self.registry, &state, next.min(until)));
                tokio::time::sleep_until(next.min(until)).await;
                if next > until {
                    return Err(self.exhausted());
                }
            }
            let waiting = self.lock().waiting(repository, push);
            for account in waiting {
                ask(account).await;
            }
            self.check_attainable(repository, push)?;
            let open = !self.lock().is_spent(repository, push);
            match (poll.wait, open) {
                (None, true) => return Ok(()),
                (Some(_), true) => {
                    tracing::warn!("{}: {}: continuing", self.registry, self.state());
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

    /// # Errors
    /// If a wait cannot help.
    fn check_attainable(&self, repository: &str, push: bool) -> Result<()> {
        let Some(limit) = self.lock().never(repository, push) else { return Ok(()) };
        let (keep, hours) = (self.keep.unwrap_or(0), self.window() / 3600);
        let what = format!(
            "{} allows {limit} pulls in {hours} h, which is not more than the reserve of {keep}",
            self.registry
        );
        Err(Error::new(Kind::Usage, what)
            .hint(format!("keep fewer than {limit} by --reserve-pulls, or log in for more")))
    }

    /// The end of a wait that began then. `None` if the options do not allow to wait.
    fn until(&self, began: Instant) -> Option<Instant> {
        // After one window all pulls are available again, so no wait is longer.
        let window = Duration::from_secs(self.window()) + self.most;
        (self.keep.is_some() || self.deadline.is_some())
            .then(|| self.deadline.map_or(began + window, |deadline| deadline.min(began + window)))
    }

    fn window(&self) -> u64 {
        self.quota().map_or(SIX_HOURS, |quota| quota.window)
    }

    fn exhausted(&self) -> Error {
        let time = crate::clock::local_time_in(Duration::from_secs(self.window()));
        let again = format!(", at {time} at the latest");
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

    /// The account for requests that cost no pull.
    pub(in crate::registry) fn choose(&self, repository: &str, push: bool) -> usize {
        self.lock().choose(repository, push)
    }

    /// See [`PullLedger::mark`].
    pub(in crate::registry) fn mark(&self, account: usize) -> u64 {
        self.lock().mark(account)
    }

    /// See [`PullLedger::learn`].
    pub(in crate::registry) fn learn(&self, account: usize, mark: u64, reported: Option<PullQuota>) {
        self.lock().learn(account, mark, reported);
    }

    /// See [`PullLedger::spend`].
    pub(in crate::registry) fn spend(&self, account: usize) -> bool {
        self.lock().spend(account)
    }

    /// See [`PullLedger::deny`].
    pub(in crate::registry) fn deny(&self, repository: &str, account: usize) -> bool {
        self.lock().deny(repository, account)
    }

    /// See [`PullLedger::refuse`].
    pub(in crate::registry) fn refuse(&self, account: usize) -> bool {
        self.lock().refuse(account)
    }

    /// See [`PullLedger::quota`].
    pub(in crate::registry) fn quota(&self) -> Option<PullQuota> {
        self.lock().quota()
    }

    /// Manifests read so far.
    pub(in crate::registry) fn count(&self) -> u64 {
        self.lock().pulls()
    }

    /// The accounts that were used; `name` returns their names.
    pub(in crate::registry) fn accounts(&self, name: impl Fn(usize) -> Option<String>) -> Vec<AccountPulls> {
        let used = self.lock().accounts();
        used.into_iter().map(|(index, pulls, quota)| AccountPulls { account: name(index), pulls, quota }).collect()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, PullLedger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PullPermit<'_> {
    /// Records the response; `counted` if it was a pull.
    pub(in crate::registry) fn answered(&mut self, counted: bool) {
        if std::mem::take(&mut self.flying) {
            self.pulls.lock().answered(self.account, counted);
        }
    }
}

impl Drop for PullPermit<'_> {
    fn drop(&mut self) {
        if std::mem::take(&mut self.flying) {
            self.pulls.lock().lost(self.account);
        }
        self.pulls.answered.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::Credential;
    use std::sync::Arc;

    /// Docker Hub as it counts.
    #[derive(Default)]
    struct Hub {
        /// Pulls left, by account.
        left: Mutex<Vec<u64>>,
        asked: Mutex<Vec<Duration>>,
        least: Mutex<u64>,
    }

    impl Hub {
        fn new(left: &[u64]) -> Self {
            let least = Mutex::new(u64::MAX);
            Self { left: Mutex::new(left.to_vec()), asked: Mutex::default(), least }
        }

        fn quota(&self, account: usize) -> Option<PullQuota> {
            let left = self.left.lock().expect("unpoisoned");
            let remaining = left[account.saturating_sub(1)];
            Some(PullQuota { limit: 100, remaining, window: SIX_HOURS, source: None })
        }

        /// HEAD.
        async fn head(&self, pulls: &PullLimit, account: usize, begun: Instant) {
            self.asked.lock().expect("unpoisoned").push(begun.elapsed());
            let mark = pulls.mark(account);
            let reported = self.quota(account);
            tokio::time::sleep(Duration::from_millis(20)).await;
            pulls.learn(account, mark, reported);
        }

        /// GET, after the reserve let it.
        async fn get(&self, pulls: &PullLimit, repository: &str, begun: Instant) -> Result<usize> {
            let ask = |account| self.head(pulls, account, begun);
            let mut pull_permit = pulls.reserve(repository, false, Instant::now(), ask).await?;
            let mark = pulls.mark(pull_permit.account);
            tokio::time::sleep(Duration::from_millis(30)).await;
            {
                let mut left = self.left.lock().expect("unpoisoned");
                let own = &mut left[pull_permit.account.saturating_sub(1)];
                *own = own.checked_sub(1).expect("the Hub never has to refuse");
                let mut least = self.least.lock().expect("unpoisoned");
                *least = (*least).min(*own);
            }
            let reported = self.quota(pull_permit.account);
            tokio::time::sleep(Duration::from_millis(10 + 7 * (begun.elapsed().as_micros() % 9) as u64)).await;
            pulls.learn(pull_permit.account, mark, reported);
            pull_permit.answered(true);
            Ok(pull_permit.account)
        }
    }

    fn pulls(adapt: impl FnOnce(&mut Options)) -> PullLimit {
        let mut options = Options { reserve_pulls: Some(10), ..Options::default() };
        adapt(&mut options);
        PullLimit::new(DOCKER_HUB, &options)
    }

    async fn all(hub: &Hub, pulls: &PullLimit, number: usize, begun: Instant) -> Vec<Result<usize>> {
        let gets = (0..number).map(|nth| {
            let repository = format!("library/{}", nth % 7);
            async move { hub.get(pulls, &repository, begun).await }
        });
        futures_util::future::join_all(gets).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_reserve_is_never_touched_and_the_rest_waits_for_the_window() {
        let (hub, pulls, begun) = (Hub::new(&[40]), pulls(|_| {}), Instant::now());
        let opens = async {
            tokio::time::sleep(Duration::from_secs(3 * 3600)).await;
            assert_eq!(pulls.count(), 30);
            *hub.left.lock().expect("unpoisoned") = vec![100];
        };
        let (done, ()) = tokio::join!(all(&hub, &pulls, 50, begun), opens);
        assert!(done.iter().all(Result::is_ok));
        assert_eq!((pulls.count(), *hub.least.lock().expect("unpoisoned")), (50, 10));
        let asked = hub.asked.lock().expect("unpoisoned").clone();
        // Before the first pull, as the pause begins, then at growing intervals: by one for all who wait.
        let minutes: Vec<u64> = asked.windows(2).map(|pair| (pair[1] - pair[0]).as_secs() / 60).collect();
        assert_eq!(minutes[..7], [0, 1, 2, 4, 8, 10, 10], "{asked:?}");
        assert!(asked.len() < 26, "{}", asked.len());
        assert!(begun.elapsed() < Duration::from_secs(3 * 3600 + 11 * 60), "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_ends_the_pause_with_what_to_do() {
        let hub = Hub::new(&[12]);
        let begun = Instant::now();
        let pulls = pulls(|options| options.deadline = Some(begun + Duration::from_secs(900)));
        let done = all(&hub, &pulls, 5, begun).await;
        assert_eq!(begun.elapsed().as_secs(), 900);
        assert_eq!(done.iter().filter(|result| result.is_ok()).count(), 2);
        let error = done.into_iter().find_map(Result::err).expect("three were too many");
        assert!(error.is_quota(), "{error:?}");
        assert_eq!(error.to_string(), "docker.io: 10 pulls left, 10 are kept");
        let hint = error.hint_text().unwrap_or_default();
        assert!(hint.starts_with("log in (transload login docker.io)") && hint.ends_with(" at the latest"), "{hint}");
        let zone = crate::clock::local_time_in(Duration::ZERO);
        let zone = zone.rsplit(' ').next().expect("a zone");
        assert!(hint.ends_with(&format!("{zone} at the latest")), "{hint}");
        assert!(hub.get(&pulls, "library/x", begun).await.is_err(), "at once");
        assert_eq!(begun.elapsed().as_secs(), 900);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_deadline_a_window_is_waited_for() {
        let (hub, pulls, begun) = (Hub::new(&[10]), pulls(|_| {}), Instant::now());
        assert!(hub.get(&pulls, "library/x", begun).await.is_err_and(|error| error.is_quota()));
        assert_eq!(begun.elapsed().as_secs() / 60, 6 * 60 + 10);
    }

    #[tokio::test(start_paused = true)]
    async fn a_reserve_that_no_window_exceeds_is_an_error_at_once() {
        for left in [100, 40] {
            let (hub, begun) = (Hub::new(&[left]), Instant::now());
            let pulls = pulls(|options| options.reserve_pulls = Some(100));
            let done = all(&hub, &pulls, 60, begun).await;
            assert!(done.iter().all(|result| result.as_ref().is_err_and(|error| error.kind() == Kind::Usage)));
            assert_eq!((begun.elapsed().as_secs(), hub.asked.lock().expect("unpoisoned").len()), (0, 1));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn accounts_take_turns_and_all_must_be_spent() {
        let hub = Hub::new(&[13, 30, 11]);
        let begun = Instant::now();
        let pulls = pulls(|options| {
            options.hub_accounts = ["a", "b", "c"].map(|name| Credential::basic(name, "p")).into();
            options.deadline = Some(begun + Duration::from_secs(60));
        });
        let done = all(&hub, &pulls, 40, begun).await;
        let by = |account| done.iter().filter(|result| result.as_ref().is_ok_and(|by| *by == account)).count();
        assert_eq!([by(0), by(1), by(2), by(3)], [0, 3, 20, 1]);
        assert_eq!(*hub.left.lock().expect("unpoisoned"), [10, 10, 10]);
        let error = done.into_iter().find_map(Result::err).expect("16 were too many");
        assert_eq!(error.to_string(), "docker.io: 30 pulls left by 3 accounts, 10 of each are kept");
        let reported = pulls.accounts(|index| Some(index.to_string()));
        assert_eq!(reported.iter().map(|reported| reported.pulls).collect::<Vec<_>>(), [3, 20, 1]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_pull_waits_only_for_who_has_time() {
        let begun = Instant::now();
        let asked = Arc::new(Mutex::new(0));
        let ask = |_| {
            *asked.lock().expect("unpoisoned") += 1;
            std::future::ready(())
        };
        let today = PullLimit::new(DOCKER_HUB, &Options::default());
        drop(today.reserve("x", false, begun, ask).await.expect("nothing is held back"));
        assert!(!today.spend(0), "the registry's own error is told");
        let patient = pulls(|options| {
            options.reserve_pulls = None;
            options.deadline = Some(begun + Duration::from_secs(200));
        });
        drop(patient.reserve("x", false, begun, ask).await.expect("nothing is known"));
        assert!(patient.spend(0));
        let error = patient.reserve("x", false, begun, ask).await.expect_err("the limit is reached");
        assert_eq!(error.to_string(), "docker.io: the pull limit is reached");
        assert_eq!((begun.elapsed().as_secs(), *asked.lock().expect("unpoisoned")), (200, 3));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_hands_the_question_on() {
        let (hub, pulls, begun) = (Hub::new(&[10]), pulls(|_| {}), Instant::now());
        let first = tokio::time::timeout(Duration::from_secs(90), hub.get(&pulls, "library/x", begun));
        let second = hub.get(&pulls, "library/y", begun);
        let opens = async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            *hub.left.lock().expect("unpoisoned") = vec![100];
        };
        let (first, second, ()) = tokio::join!(first, second, opens);
        assert!(first.is_err(), "gone while it asked for all");
        assert!(second.is_ok());
        assert!(begun.elapsed() < Duration::from_secs(5 * 60), "{:?}", begun.elapsed());
    }
}
