//! Counts the pulls that Docker Hub allows, account by account, and chooses the account for the next pull.
//!
//! This module only counts; [`super::pull_limit`] waits. A pull is a GET of a manifest. HEADs, blobs and tokens cost
//! none (Docker documentation, "Pull usage and limits").

use std::collections::HashMap;

use http::HeaderMap;

/// Docker Hub's pull quota, from its headers.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct PullQuota {
    /// Pulls allowed in a window.
    pub limit: u64,
    /// Pulls left in it.
    pub remaining: u64,
    /// The window, in seconds.
    pub window: u64,
    /// The counted subject: an address or a user's id.
    pub source: Option<String>,
}

/// The pulls of one account.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct AccountPulls {
    /// The account's name; `None` for the anonymous one.
    pub account: Option<String>,
    /// The number of manifests that the account read in this run.
    pub pulls: u64,
    /// The quota in the newest response; `None` without a limit.
    pub quota: Option<PullQuota>,
}

impl PullQuota {
    /// Parses `ratelimit-limit: 100;w=21600`, `ratelimit-remaining: 20;w=21600` and `docker-ratelimit-source` (Docker
    /// documentation, "Pull usage and limits"). Without them there is no limit.
    pub(in crate::registry) fn from_headers(headers: &HeaderMap) -> Option<Self> {
        let text = |name: &str| headers.get(name)?.to_str().ok();
        let number = |text: &str| Some(text.split(';').next()?.trim().parse::<u64>().ok()?.min(MAX_PULLS));
        let limit = text("ratelimit-limit")?;
        let window = limit.split(';').find_map(|part| part.trim().strip_prefix("w=")?.parse().ok());
        Some(Self {
            limit: number(limit)?,
            remaining: text("ratelimit-remaining").and_then(number)?,
            window: window.map_or(SIX_HOURS, |window: u64| window.min(MAX_WINDOW)),
            source: text("docker-ratelimit-source").map(str::to_owned),
        })
    }

    /// The most pulls that are left to others.
    fn most_room(&self, keep: u64) -> u64 {
        (self.limit.saturating_sub(keep) / SHARED_RESERVE).max(1)
    }

    /// The sum of several accounts' quotas.
    fn plus(self, other: Self) -> Self {
        Self {
            limit: self.limit + other.limit,
            remaining: self.remaining + other.remaining,
            window: self.window.max(other.window),
            source: None,
        }
    }
}

/// The accounts of one registry, and their pulls.
///
/// Account 0 is the stored credential, or the anonymous one. If further accounts are given, they read and account 0
/// writes. A repository stays with its first account, so that it needs one token, until that account's pulls are used
/// up.
#[derive(Debug)]
pub(in crate::registry) struct PullLedger {
    rules: PullRules,
    accounts: Vec<Account>,
    chosen: HashMap<String, Choice>,
}

/// The user's options.
#[derive(Clone, Copy, Debug)]
pub(in crate::registry) struct PullRules {
    /// Pulls that stay unused.
    pub(in crate::registry) keep: u64,
    /// Whether pulls wait; otherwise they are only counted.
    pub(in crate::registry) guarded: bool,
    /// Whether an account's quota is read before its first pull.
    pub(in crate::registry) ask_first: bool,
    /// The number of processes that share the pulls.
    pub(in crate::registry) share: u64,
}

#[derive(Debug, Default)]
struct Account {
    known: Option<PullQuota>,
    /// Whether a response that would state a limit has arrived.
    reported: bool,
    /// Increases with each accepted response: a request from before it may be older.
    epoch: u64,
    /// Pulls in flight.
    flying: u64,
    /// The registry refused a pull.
    spent: bool,
    /// The registry refused its password.
    refused: bool,
    pulls: u64,
    repositories: usize,
}

#[derive(Debug, Default)]
struct Choice {
    account: usize,
    /// Accounts that may not read the repository.
    denied: Vec<usize>,
}

/// The decision about the next pull.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::registry) enum PullDecision {
    /// Send it with this account.
    Go(usize),
    /// Wait for a pull in flight.
    Busy,
    /// Wait for this account's quota.
    Ask(usize),
    /// Wait for the next window.
    Spent,
}

/// The state of an account for one more pull.
enum PullAllowance {
    Free,
    Busy,
    Ask,
    Spent,
}

impl PullLedger {
    pub(in crate::registry) fn new(rules: PullRules, given: usize) -> Self {
        let accounts = (0..=given).map(|_| Account::default()).collect();
        Self { rules, accounts, chosen: HashMap::new() }
    }

    /// The account for requests that cost no pull, and the first choice for a pull.
    pub(in crate::registry) fn choose(&mut self, repository: &str, push: bool) -> usize {
        if push || self.accounts.len() == 1 {
            return 0;
        }
        if let Some(choice) = self.chosen.get(repository)
            && self.is_fit(choice.account, repository)
        {
            return choice.account;
        }
        let best = self.ranked(repository).first().copied().unwrap_or(1);
        self.stick(repository, best);
        best
    }

    /// Takes a pull, if one is left.
    pub(in crate::registry) fn reserve(&mut self, repository: &str, push: bool) -> PullDecision {
        let first = self.choose(repository, push);
        if !self.rules.guarded {
            self.accounts[first].flying += 1;
            return PullDecision::Go(first);
        }
        let mut order = vec![first];
        if first != 0 {
            order.extend(self.ranked(repository).into_iter().filter(|other| *other != first));
        }
        let mut turn = PullDecision::Spent;
        for index in order {
            match self.room(index) {
                PullAllowance::Free => {
                    self.accounts[index].flying += 1;
                    if index != first {
                        self.stick(repository, index);
                    }
                    return PullDecision::Go(index);
                }
                PullAllowance::Ask => return PullDecision::Ask(index),
                PullAllowance::Busy => turn = PullDecision::Busy,
                PullAllowance::Spent => {}
            }
        }
        turn
    }

    /// The mark for [`Self::learn`] with the response to a request that is sent now.
    pub(in crate::registry) fn mark(&self, index: usize) -> u64 {
        self.accounts[index].epoch
    }

    /// Records the quota, or the missing limit, in the response to a request for a manifest that was sent at `mark`.
    pub(in crate::registry) fn learn(&mut self, index: usize, mark: u64, reported: Option<PullQuota>) {
        let keep = self.rules.keep;
        let account = &mut self.accounts[index];
        let overlapped = mark != account.epoch;
        let Some(reported) = reported else {
            account.reported = true;
            if !overlapped {
                (account.known, account.spent) = (None, false);
            }
            return;
        };
        // Responses may overtake each other: the one with the fewest pulls left is the newest.
        let older = overlapped
            && account.known.as_ref().is_some_and(|known| {
                (reported.limit, &reported.source) == (known.limit, &known.source)
                    && reported.remaining > known.remaining
            });
        if !older {
            account.spent = account.spent && reported.remaining <= keep;
            account.known = Some(reported);
            account.epoch += 1;
        }
        account.reported = true;
    }

    /// Records the response to a pull; `counted` if the registry counts it.
    pub(in crate::registry) fn answered(&mut self, index: usize, counted: bool) {
        let account = &mut self.accounts[index];
        account.flying -= 1;
        account.pulls += u64::from(counted);
    }

    /// Records a pull without a response: it may have been counted.
    pub(in crate::registry) fn lost(&mut self, index: usize) {
        let account = &mut self.accounts[index];
        account.flying -= 1;
        if let Some(known) = &mut account.known {
            known.remaining = known.remaining.saturating_sub(1);
        }
    }

    /// Records that an account's pulls are used up. Returns whether to continue, with another account or after a pause.
    pub(in crate::registry) fn spend(&mut self, index: usize) -> bool {
        let account = &mut self.accounts[index];
        account.spent = true;
        account.epoch += 1;
        if let Some(known) = &mut account.known {
            known.remaining = 0;
        }
        self.rules.guarded
    }

    /// Records that an account may not read the repository. Returns whether another account is left.
    pub(in crate::registry) fn deny(&mut self, repository: &str, index: usize) -> bool {
        if index == 0 {
            return false;
        }
        self.chosen.entry(repository.to_owned()).or_default().denied.push(index);
        !self.ranked(repository).is_empty()
    }

    /// Records that an account's password is refused. Returns whether another account is left; the last one stays, for
    /// its error.
    pub(in crate::registry) fn refuse(&mut self, index: usize) -> bool {
        let others = self.accounts.iter().enumerate().skip(1).any(|(at, other)| at != index && !other.refused);
        let again = index > 0 && others;
        self.accounts[index].refused |= again;
        again
    }

    /// The sum of the reading accounts' quotas; `None` if one has no limit.
    pub(in crate::registry) fn quota(&self) -> Option<PullQuota> {
        let used = self.readers().map(|index| &self.accounts[index]).filter(|account| account.reported);
        let mut sum = None;
        for account in used {
            let known = account.known.clone()?;
            sum = Some(match sum {
                None => known,
                Some(sum) => PullQuota::plus(sum, known),
            });
        }
        sum
    }

    /// Pulls counted so far.
    pub(in crate::registry) fn pulls(&self) -> u64 {
        self.accounts.iter().map(|account| account.pulls).sum()
    }

    /// Each account's pulls and quota, with its index, without unused accounts.
    pub(in crate::registry) fn accounts(&self) -> Vec<(usize, u64, Option<PullQuota>)> {
        let used = self.accounts.iter().enumerate().filter(|(_, account)| account.reported || account.pulls > 0);
        used.map(|(index, account)| (index, account.pulls, account.known.clone())).collect()
    }

    /// Records that this account's quota could not be read: the next pull is sent all the same.
    pub(in crate::registry) fn asked(&mut self, index: usize) {
        self.accounts[index].reported = true;
    }

    /// Whether no account has a pull to spare, now or after the responses in flight.
    pub(in crate::registry) fn is_spent(&self, repository: &str, push: bool) -> bool {
        self.waiting(repository, push).into_iter().all(|index| matches!(self.room(index), PullAllowance::Spent))
    }

    /// The largest limit of the accounts that may read the repository, if none has a pull to spare in any window.
    pub(in crate::registry) fn never(&self, repository: &str, push: bool) -> Option<u64> {
        let waiting = self.waiting(repository, push).into_iter();
        let limits: Option<Vec<u64>> =
            waiting.map(|index| self.accounts[index].known.as_ref().map(|known| known.limit)).collect();
        limits?.into_iter().max().filter(|most| *most <= self.rules.keep)
    }

    /// The accounts whose quota is read while all are used up.
    pub(in crate::registry) fn waiting(&self, repository: &str, push: bool) -> Vec<usize> {
        if push || self.accounts.len() == 1 { vec![0] } else { self.ranked(repository) }
    }

    fn readers(&self) -> std::ops::Range<usize> {
        if self.accounts.len() == 1 { 0..1 } else { 1..self.accounts.len() }
    }

    /// The accounts that may read the repository, the one with the most pulls left first.
    fn ranked(&self, repository: &str) -> Vec<usize> {
        let mut fit: Vec<usize> = self.readers().filter(|index| self.is_fit(*index, repository)).collect();
        fit.sort_by_key(|index| {
            let account = &self.accounts[*index];
            let left = match &account.known {
                _ if account.spent => 0,
                Some(known) => known.remaining.saturating_sub(account.flying),
                None => u64::MAX,
            };
            (std::cmp::Reverse(left), account.repositories)
        });
        fit
    }

    fn is_fit(&self, index: usize, repository: &str) -> bool {
        let denied = self.chosen.get(repository).is_some_and(|choice| choice.denied.contains(&index));
        !denied && !self.accounts[index].refused
    }

    fn stick(&mut self, repository: &str, index: usize) {
        self.chosen.entry(repository.to_owned()).or_default().account = index;
        self.accounts[index].repositories += 1;
    }

    fn room(&self, index: usize) -> PullAllowance {
        let PullRules { keep, share, ask_first, .. } = self.rules;
        let account = &self.accounts[index];
        match &account.known {
            _ if account.spent => PullAllowance::Spent,
            None if ask_first && !account.reported => PullAllowance::Ask,
            None => PullAllowance::Free,
            // The other processes send their pulls at the same time. If there are many, not all do, and reserving room
            // for all would leave most pulls unused.
            Some(known)
                if known.remaining >= keep.saturating_add(account_share(account, share.min(known.most_room(keep)))) =>
            {
                PullAllowance::Free
            }
            Some(known) if known.remaining > keep && account.flying > 0 => PullAllowance::Busy,
            Some(_) => PullAllowance::Spent,
        }
    }
}

/// The pulls that must be left for the account's next pull, in addition to those in flight: one for each process that
/// shares them.
fn account_share(account: &Account, share: u64) -> u64 {
    account.flying.saturating_add(1).saturating_mul(share)
}

/// A larger limit means no limit, and sums of several do not overflow.
const MAX_PULLS: u64 = 1 << 40;
/// In seconds: a week. The longest known window is a day.
const MAX_WINDOW: u64 = 7 * 24 * 3600;
/// Docker Hub's window, if the response does not state it.
pub(in crate::registry) const SIX_HOURS: u64 = 6 * 3600;
/// The fraction of an account's pulls that is left to other processes.
const SHARED_RESERVE: u64 = 10;

#[cfg(test)]
mod tests {
    use super::*;

    fn left(remaining: u64) -> Option<PullQuota> {
        Some(PullQuota { limit: 100, remaining, window: SIX_HOURS, source: None })
    }

    fn ledger(keep: u64, given: usize) -> PullLedger {
        PullLedger::new(PullRules { keep, guarded: true, ask_first: false, share: 1 }, given)
    }

    #[test]
    fn numbers_of_headers_are_limited() {
        let max = "18446744073709551615";
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", format!("{max};w={max}").parse().expect("a header"));
        headers.insert("ratelimit-remaining", max.parse().expect("a header"));
        let quota = PullQuota::from_headers(&headers).expect("a quota");
        assert_eq!((quota.limit, quota.remaining, quota.window), (MAX_PULLS, MAX_PULLS, MAX_WINDOW));
        assert_eq!(quota.clone().plus(quota).limit, 2 * MAX_PULLS);
        let mut ledger = ledger(u64::MAX, 0);
        ledger.learn(0, 0, PullQuota::from_headers(&headers));
        assert_eq!(ledger.reserve("a", false), PullDecision::Spent);
        headers.insert("ratelimit-limit", "-1;w=-1".parse().expect("a header"));
        assert_eq!(PullQuota::from_headers(&headers), None);
    }

    #[test]
    fn what_is_under_way_counts_as_spent() {
        let mut ledger = ledger(10, 0);
        ledger.learn(0, 0, left(12));
        assert_eq!(ledger.reserve("a", false), PullDecision::Go(0));
        assert_eq!(ledger.reserve("a", false), PullDecision::Go(0));
        assert_eq!(ledger.reserve("a", false), PullDecision::Busy, "12 left, two of them under way");
        ledger.learn(0, 0, left(11));
        ledger.answered(0, true);
        assert_eq!(ledger.reserve("a", false), PullDecision::Busy, "the other may be counted or not");
        let mark = ledger.mark(0);
        ledger.learn(0, mark, left(10));
        ledger.answered(0, true);
        assert_eq!(ledger.reserve("a", false), PullDecision::Spent);
        assert_eq!(ledger.pulls(), 2);
    }

    #[test]
    fn answers_that_overtake_each_other_count_down() {
        let mut ledger = ledger(0, 0);
        let early = ledger.mark(0);
        ledger.learn(0, early, left(90));
        ledger.learn(0, early, left(93));
        assert_eq!(ledger.quota(), left(90), "sent before 90 was known");
        ledger.learn(0, ledger.mark(0), left(93));
        assert_eq!(ledger.quota(), left(93), "sent since: pulls came back");
        ledger.learn(0, early, None);
        assert_eq!(ledger.quota(), left(93));
        ledger.learn(0, ledger.mark(0), None);
        assert_eq!(ledger.quota(), None, "a plan without a limit");
    }

    #[test]
    fn a_pull_without_an_answer_may_have_been_counted() {
        let mut ledger = ledger(5, 0);
        ledger.learn(0, 0, left(6));
        assert_eq!(ledger.reserve("a", false), PullDecision::Go(0));
        ledger.lost(0);
        assert_eq!(ledger.reserve("a", false), PullDecision::Spent);
    }

    #[test]
    fn a_share_leaves_room_for_the_others() {
        let mut ledger = PullLedger::new(PullRules { keep: 10, guarded: true, ask_first: false, share: 4 }, 0);
        ledger.learn(0, 0, left(17));
        assert_eq!(ledger.reserve("a", false), PullDecision::Go(0));
        assert_eq!(ledger.reserve("a", false), PullDecision::Busy);
        ledger.answered(0, true);
        ledger.learn(0, ledger.mark(0), left(13));
        assert_eq!(ledger.reserve("a", false), PullDecision::Spent, "three others may each take one");
    }

    #[test]
    fn many_shares_spend_most_of_what_there_is() {
        let mut ledger = PullLedger::new(PullRules { keep: 0, guarded: true, ask_first: false, share: 128 }, 0);
        for remaining in (10..=100).rev() {
            ledger.learn(0, ledger.mark(0), left(remaining));
            assert_eq!(ledger.reserve("a", false), PullDecision::Go(0), "{remaining}");
            ledger.answered(0, true);
        }
        ledger.learn(0, ledger.mark(0), left(9));
        assert_eq!(ledger.reserve("a", false), PullDecision::Spent);
    }

    #[test]
    fn unguarded_is_merely_counted() {
        let mut ledger = PullLedger::new(PullRules { keep: 0, guarded: false, ask_first: false, share: 1 }, 0);
        ledger.learn(0, 0, left(0));
        assert_eq!(ledger.reserve("a", false), PullDecision::Go(0));
        assert!(!ledger.spend(0), "its error is the caller's");
    }

    #[test]
    fn a_repository_keeps_its_account_until_that_is_spent() {
        let mut ledger = ledger(0, 2);
        assert_eq!(ledger.choose("a", true), 0, "written as who is stored");
        assert_eq!((ledger.choose("a", false), ledger.choose("b", false)), (1, 2), "spread");
        ledger.learn(1, 0, left(1));
        ledger.learn(2, 0, left(50));
        assert_eq!(ledger.choose("a", false), 1);
        assert_eq!(ledger.choose("c", false), 2, "the most pulls left");
        assert_eq!(ledger.reserve("a", false), PullDecision::Go(1));
        ledger.learn(1, ledger.mark(1), left(0));
        ledger.answered(1, true);
        assert_eq!(ledger.reserve("a", false), PullDecision::Go(2));
        assert_eq!(ledger.choose("a", false), 2);
        assert_eq!(ledger.quota().map(|quota| (quota.limit, quota.remaining)), Some((200, 50)));
        assert!(ledger.spend(2));
        assert_eq!(ledger.reserve("b", false), PullDecision::Spent);
    }

    #[test]
    fn an_account_that_may_not_is_passed_over() {
        let mut ledger = ledger(0, 3);
        assert_eq!(ledger.choose("a", false), 1);
        assert!(ledger.deny("a", 1));
        assert_eq!(ledger.choose("a", false), 2);
        assert!(ledger.refuse(2));
        assert_eq!((ledger.choose("a", false), ledger.choose("b", false)), (3, 1));
        assert!(!ledger.deny("a", 3), "nobody may");
        assert!(ledger.refuse(1));
        assert!(!ledger.refuse(3), "the last one's error is told");
    }

    #[test]
    fn quotas_are_read() {
        let mut headers = HeaderMap::new();
        headers.insert("ratelimit-limit", http::HeaderValue::from_static("100;w=21600"));
        assert_eq!(PullQuota::from_headers(&headers), None);
        headers.insert("ratelimit-remaining", http::HeaderValue::from_static("20;w=21600"));
        assert_eq!(PullQuota::from_headers(&headers).map(|q| (q.limit, q.remaining, q.window)), Some((100, 20, 21600)));
    }
}
