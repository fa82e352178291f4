//! Opens the repositories of a run.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::error::Result;
use crate::mirror::run::Repositories;
use crate::reference::Repository;
use crate::registry::{Registries, Repo};

/// Opens repositories at their registries. All images of a destination share one object, and what it has learned.
pub(super) struct RegistryRepositories<'a> {
    registries: &'a Registries,
    destinations: Mutex<HashMap<Repository, Repo>>,
}

impl<'a> RegistryRepositories<'a> {
    /// Without any repositories: a new run does not reuse what an earlier one learned.
    pub(super) fn new(registries: &'a Registries) -> Self {
        Self { registries, destinations: Mutex::default() }
    }
}

impl Repositories for RegistryRepositories<'_> {
    type Source = Repo;
    type Destination = Repo;

    fn source(&self, repository: &Repository) -> Result<Repo> {
        self.registries.repository(repository)
    }

    fn destination(&self, repository: &Repository) -> Result<Repo> {
        let mut known = self.destinations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(repo) = known.get(repository) {
            return Ok(repo.clone());
        }
        let repo = self.registries.repository(repository)?;
        known.insert(repository.clone(), repo.clone());
        Ok(repo)
    }
}
