//! Compares a tag at source and destination, with one request to each.

use futures_util::future;

use super::job::{Drift, Job};
use crate::content::{Destination, Source};
use crate::error::{Error, Kind, Result, Side};
use crate::reference::Target;

pub(super) async fn compare<S: Source, D: Destination>(job: &Job, source: &S, destination: &D) -> Result<Drift> {
    let there = async { destination.resolve_existing(&job.at).await.map_err(|error| error.on(Side::Destination)) };
    let here = async {
        match &job.read {
            Target::Digest(digest) => Ok(Some(*digest)),
            tag => {
                let found = source.resolve(tag).await.map_err(|error| error.on(Side::Source))?;
                Ok(found.map(|found| found.digest))
            }
        }
    };
    let (here, there) = future::try_join(here, there).await?;
    let here = here.ok_or_else(|| {
        Error::new(Kind::NotFound, format!("there is no {}", job.from()))
            .on(Side::Source)
            .hint("it does not exist: correct the list")
    })?;
    Ok(match there {
        None => Drift::Missing(here),
        Some(there) if there.digest == here => Drift::None,
        Some(there) => Drift::Differs { here, there: there.digest },
    })
}
