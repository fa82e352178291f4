//! The two registries of the demo.

use std::path::Path;
use std::sync::Arc;

use futures_util::future;
use tokio::net::TcpListener;

use super::front::Front;
use crate::cli::serve::LayoutBackend;
use crate::content::Source as _;
use crate::credentials::{Credential, Credentials};
use crate::demo::fixtures::{File, HELLO_WORLD};
use crate::demo::persona::{Account, Acr, AcrConfig, AfterReset, Grant, Hub, HubConfig, Persona};
use crate::descriptor::Digest;
use crate::error::{Error, Result};
use crate::layout::Store;
use crate::reference::Target;
use crate::server::{self, Limits};

/// The registries, and their storage.
pub(super) struct Stage {
    pub(super) hub: DemoRegistry,
    pub(super) acr: DemoRegistry,
    /// Another look-alike of ACR, for the faults: it has none of the blobs yet.
    pub(super) poor: DemoRegistry,
    /// The digest of the Hub's image.
    pub(super) digest: Digest,
}

/// One registry.
pub(super) struct DemoRegistry {
    pub(super) name: &'static str,
    /// `127.0.0.1:port`.
    pub(super) address: String,
    pub(super) front: Arc<Front>,
    pub(super) store: Store,
}

/// Servers that have not started yet.
pub(super) struct PendingServers(Vec<(TcpListener, Arc<Front>)>);

impl Stage {
    /// Opens the ports, and fills the directories below `scratch`.
    pub(super) async fn set(scratch: &Path) -> Result<(Self, PendingServers)> {
        let mut listeners = PendingServers(Vec::new());
        let directory = scratch.join("hub");
        write_fixtures(&directory, HELLO_WORLD)?;
        let store = Store::open(&directory).await?;
        let digest = store.repository(&REPOSITORY.parse()?).manifest(&Target::Tag(TAG.parse()?)).await?.digest();
        let persona = |main: &str, side: &str| Hub::new(HubConfig::loopback(main, side)).into();
        let hub = listeners.add("Hub", store, false, persona).await?;
        let acr = listeners.add("ACR", Store::create(&scratch.join("acr")).await?, true, acr_persona).await?;
        let poor = listeners.add("ACR 2", Store::create(&scratch.join("poor")).await?, true, acr_persona).await?;
        Ok((Self { hub, acr, poor, digest }, listeners))
    }

    /// The pulls that the Hub counted so far.
    pub(super) fn pulls(&self) -> usize {
        match self.hub.front.persona() {
            Persona::Hub(hub) => hub.pulls().len(),
            _ => 0,
        }
    }
}

impl DemoRegistry {
    /// The credentials that a user would have logged in with. No others are read.
    pub(super) fn credentials(&self) -> Result<Credentials> {
        Credentials::fixed(&self.address, Credential::basic(USER, PASSWORD))
    }

    /// The digest of the tag in a repository, by the files of its layout.
    pub(super) async fn digest(&self, repository: &str) -> Result<Digest> {
        Ok(self.store.repository(&repository.parse()?).manifest(&Target::Tag(TAG.parse()?)).await?.digest())
    }
}

impl PendingServers {
    /// Adds a registry with two new ports.
    async fn add(
        &mut self,
        name: &'static str,
        store: Store,
        writable: bool,
        persona: impl FnOnce(&str, &str) -> Persona,
    ) -> Result<DemoRegistry> {
        let ((main, address), (side, side_address)) = (bind_loopback().await?, bind_loopback().await?);
        let directory = LayoutBackend::new(store.clone(), writable);
        let front = Arc::new(Front::new(persona(&address, &side_address), directory));
        self.0.extend([(main, front.clone()), (side, front.clone())]);
        Ok(DemoRegistry { name, address, front, store })
    }

    /// Serves until dropped.
    pub(super) async fn serve(self) -> Result<()> {
        let all = self
            .0
            .into_iter()
            .map(|(listener, front)| server::run(listener, front, Limits::default(), std::future::pending()));
        future::try_join_all(all).await.map(drop)
    }
}

fn acr_persona(main: &str, side: &str) -> Persona {
    let account = Account::new(USER, PASSWORD, vec![Grant::new("*", "pull,push,metadata_read")]);
    let after_reset = AfterReset::Lost404;
    Acr::new(AcrConfig { accounts: vec![account], after_reset, ..AcrConfig::loopback(main, side) }).into()
}

async fn bind_loopback() -> Result<(TcpListener, String)> {
    let failed = |error: std::io::Error| Error::io("listen on 127.0.0.1", &error);
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?.to_string();
    Ok((listener, address))
}

fn write_fixtures(directory: &Path, files: &[File]) -> Result<()> {
    for file in files {
        let path = directory.join(file.path);
        let parent = path.parent().unwrap_or(directory);
        let written = std::fs::create_dir_all(parent).and_then(|()| std::fs::write(&path, file.bytes));
        written.map_err(|error| Error::io(format!("write {}", path.display()), &error))?;
    }
    Ok(())
}

/// The name of the repository at Docker Hub.
pub(super) const REPOSITORY: &str = "library/hello-world";
pub(super) const TAG: &str = "latest";
pub(super) const USER: &str = "pusher";
const PASSWORD: &str = "only-for-the-demo";
