//! What is in the queue: the images that wait, and those that were given up.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use tokio::time::Instant;

use super::Job;
use super::saved::SavedJob;

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) jobs: Vec<WaitingJob>,
    /// The same.
    pub(super) known: HashSet<Job>,
    /// The bytes of their strings.
    pub(super) bytes: usize,
    /// Images that were given up, and when, in seconds since 1970.
    pub(super) given_up: HashMap<Job, u64>,
    pub(super) unsaved: bool,
}

#[derive(Debug)]
pub(super) struct WaitingJob {
    pub(super) job: Job,
    pub(super) tries: u32,
    /// The last ones of them that began and did not end.
    pub(super) unended: u32,
    pub(super) due: Instant,
    pub(super) running: bool,
}

impl WaitingJob {
    pub(super) fn new(job: Job) -> Self {
        Self { job, tries: 0, unended: 0, due: Instant::now(), running: false }
    }

    /// Whether a process did not survive its last try, perhaps because of it.
    pub(super) fn is_suspect(&self) -> bool {
        self.unended > u32::from(self.running)
    }
}

impl State {
    pub(super) fn of(saved: Vec<SavedJob>) -> Self {
        let mut state = Self::default();
        for SavedJob { job, tries, unended, given_up } in saved {
            match given_up {
                Some(at) => drop(state.given_up.insert(job, at)),
                None => drop(state.add(WaitingJob { tries, unended, ..WaitingJob::new(job) })),
            }
        }
        state
    }

    pub(super) fn saved(&self) -> Vec<SavedJob> {
        let waiting = self.jobs.iter().map(|waiting| SavedJob {
            job: waiting.job.clone(),
            tries: waiting.tries,
            unended: waiting.unended,
            given_up: None,
        });
        let given_up = self.given_up.iter().map(|(job, at)| SavedJob {
            job: job.clone(),
            tries: 0,
            unended: 0,
            given_up: Some(*at),
        });
        waiting.chain(given_up).collect()
    }

    pub(super) fn has_room(&self, job: &Job) -> bool {
        self.jobs.len() < MAX_WAITING && self.bytes + job.size() <= MAX_NAME_BYTES
    }

    /// Adds a job, if there is room.
    pub(super) fn add(&mut self, waiting: WaitingJob) -> bool {
        let fits = self.has_room(&waiting.job) && self.known.insert(waiting.job.clone());
        if fits {
            self.bytes += waiting.job.size();
            self.jobs.push(waiting);
            self.unsaved = true;
        }
        fits
    }

    pub(super) fn remove(&mut self, job: &Job) -> Option<WaitingJob> {
        let at = self.jobs.iter().position(|waiting| waiting.job == *job)?;
        self.known.remove(job);
        self.bytes -= job.size();
        self.unsaved = true;
        Some(self.jobs.remove(at))
    }

    /// Whether the job was given up lately.
    pub(super) fn is_given_up(&mut self, job: &Job) -> bool {
        let Some(at) = self.given_up.get(job) else { return false };
        // A clock that was set back makes it old.
        let lately = now().checked_sub(*at).is_some_and(|age| age < GIVEN_UP_TTL.as_secs());
        if !lately {
            self.given_up.remove(job);
        }
        lately
    }

    /// Remembers a job that is given up, in place of the oldest where there are many.
    pub(super) fn give_up(&mut self, job: Job) {
        if self.given_up.len() >= MAX_GIVEN_UP
            && let Some(oldest) = self.given_up.iter().min_by_key(|(_, at)| **at).map(|(job, _)| job.clone())
        {
            self.given_up.remove(&oldest);
        }
        self.given_up.insert(job, now());
        self.unsaved = true;
    }
}

fn now() -> u64 {
    crate::clock::unix_seconds()
}

/// Images that wait at most, and the bytes of their names.
pub(super) const MAX_WAITING: usize = 10_000;
const MAX_NAME_BYTES: usize = 4 << 20;
/// For how long an image that was given up isn't queued again, and how many of those are remembered.
pub(super) const GIVEN_UP_TTL: Duration = Duration::from_secs(24 * 3600);
const MAX_GIVEN_UP: usize = 1000;
