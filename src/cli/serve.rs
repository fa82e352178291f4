//! `transload serve`: serves a directory of images as a registry.

mod layout_backend;

use std::future::Future;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures_util::TryStreamExt as _;
use tokio::net::TcpListener;

use super::global::parse_bytes;
use super::output::note;
use crate::content::Source as _;
use crate::error::{Error, Kind, Result, Side};
use crate::layout::{Quota, Store};
use crate::reference::RejectedTags;
use crate::server::{self, Limits, Server};

pub(crate) use layout_backend::LayoutBackend;

/// Serve a directory of images (an OCI image layout) as a registry
///
/// index.json names images as repository:tag. Tags without a repository, as other tools write them, are served in one
/// repository that is named after the directory. There is no authentication and no TLS. Links that lead out of the directory
/// are not followed, and each file is verified before it is served.
#[derive(clap::Args, Clone, Debug)]
pub(crate) struct Args {
    /// Directory; created with --writable if it does not exist
    pub(crate) dir: PathBuf,
    /// Accept pushes, from everyone who can connect
    #[arg(long)]
    pub(crate) writable: bool,
    /// Address and port to listen on; port 0 selects a free port
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:5000")]
    pub(crate) listen: String,
    /// Maximum size of the directory with uploads in progress; larger pushes are refused
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "writable")]
    pub(crate) max_size: Option<u64>,
    /// Space to leave free on the disk; pushes that need it are refused
    #[arg(long, value_name = "SIZE", default_value = "1GiB", value_parser = parse_bytes)]
    pub(crate) keep_free: u64,
}

/// Serves until `shutdown` is ready.
///
/// # Errors
/// If the directory is not a layout, or the address cannot be bound.
pub(crate) async fn run(args: Args, shutdown: impl Future<Output = ()>) -> Result<()> {
    let quota = args.writable.then_some(Quota { max_size: args.max_size, keep_free: args.keep_free });
    let store = Store::serve(&args.dir, quota).await?;
    let listener = bind(&args.listen).await?;
    let address = listener.local_addr().map_err(|error| Error::io("listen", &error))?;
    announce(&args, address);
    warn_about_names(&store).await;
    let server = Arc::new(Server::new(LayoutBackend::new(store, args.writable)));
    tokio::select! {
        done = server::run(listener, server.clone(), Limits::default(), shutdown) => done,
        () = sweep_periodically(&server) => Ok(()),
    }
}

/// Logs the images of the directory whose names cannot be served. An error of the directory is not logged here: requests
/// report it.
async fn warn_about_names(store: &Store) {
    let mut rejected = RejectedTags::default();
    // The first page has all malformed names.
    if let Ok(Some(page)) = store.layout().tags().try_next().await {
        rejected.add(page.malformed);
    }
    if let Some(error) = rejected.error(&store.dir().display()) {
        tracing::warn!("{error}");
    }
}

/// Binds an address from the user.
pub(super) async fn bind(listen: &str) -> Result<TcpListener> {
    let wrong = |error: &std::io::Error| {
        let error = Error::new(Kind::Usage, format!("cannot listen on {listen:?}: {error}"));
        error
            .on(Side::Local)
            .hint("use an address and a free port, such as 127.0.0.1:5000, or port 0 for any free port")
    };
    // `localhost:5000` may resolve to ::1 and 127.0.0.1.
    let addresses: Vec<SocketAddr> = listen.to_socket_addrs().map_err(|error| wrong(&error))?.collect();
    TcpListener::bind(&addresses[..]).await.map_err(|error| wrong(&error))
}

fn announce(args: &Args, address: SocketAddr) {
    note(&format!("serving {} on http://{address}", args.dir.display()));
    if !address.ip().to_canonical().is_loopback() {
        let able = if args.writable { "pull from it and push to it" } else { "pull from it" };
        note(&format!("warning: there is no authentication: whoever can connect to {address} can {able}"));
    }
}

/// Removes abandoned upload sessions. Never ready.
async fn sweep_periodically(server: &Server<LayoutBackend>) {
    loop {
        tokio::time::sleep(Duration::from_secs(60)).await;
        server.sweep();
    }
}
