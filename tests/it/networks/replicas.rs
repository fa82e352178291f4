//! A registry with several replicas behind one name, as Azure Container Registry with geo-replication: what one replica
//! took, the others have only some time later.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use tokio::net::TcpStream;
use tokio::task::JoinSet;
use transload::copy::{Engine, NoObserver, Options as CopyOptions};
use transload::reference::{Repository, Target};
use transload::registry::{Options, Proxies, Registries, Resolver};

use crate::support::background::Background;
use crate::support::process::RUN_TIMEOUT;
use crate::support::{ForwardProxy, Image, Registry};

const NAME: &str = "replicas.example.test";

/// One replica: a registry of its own, behind an address of its own. Replication never happens while a test runs.
struct Replica {
    registry: Registry,
    at: SocketAddr,
    relay: Option<Background>,
}

impl Replica {
    fn start(at: SocketAddr) -> Option<Self> {
        let listener = std::net::TcpListener::bind(at).ok()?;
        let at = listener.local_addr().expect("an address");
        let registry = Registry::start();
        let to = registry.addr();
        Some(Self { registry, at, relay: Some(relay(listener, to)) })
    }

    /// Ends its connections, and refuses new ones.
    fn go_down(&mut self) {
        self.relay = None;
    }

    /// Ends its connections, and resets each new one.
    fn reset(&mut self) {
        self.relay = None;
        // The sockets of the relay are closed by its own threads.
        let begun = Instant::now();
        let listener = loop {
            match std::net::TcpListener::bind(self.at) {
                Ok(listener) => break listener,
                Err(error) => assert!(begun.elapsed() < RUN_TIMEOUT, "its own port: {error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        listener.set_nonblocking(true).expect("a non-blocking listener");
        self.relay = Some(Background::spawn(move || async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            while let Ok((client, _)) = listener.accept().await {
                client.set_zero_linger().expect("an option");
            }
        }));
    }

    fn requests(&self) -> usize {
        self.registry.requests().len()
    }
}

fn relay(listener: std::net::TcpListener, to: SocketAddr) -> Background {
    listener.set_nonblocking(true).expect("a non-blocking listener");
    Background::spawn(move || async move {
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
        let mut connections = JoinSet::new();
        while let Ok((mut client, _)) = listener.accept().await {
            connections.spawn(async move {
                let mut server = TcpStream::connect(to).await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    })
}

/// Two replicas at one port of two addresses.
fn replicas() -> [Replica; 2] {
    loop {
        let first = Replica::start(SocketAddr::from(([127, 0, 0, 1], 0))).expect("a free port");
        if let Some(second) = Replica::start(SocketAddr::from(([127, 0, 0, 2], first.at.port()))) {
            return [first, second];
        }
    }
}

/// A client of the name, whose addresses come in another order with each lookup; and the number of lookups.
fn client(replicas: &[Replica; 2], pin_pushes: bool, proxies: Proxies) -> (Registries, Arc<AtomicUsize>) {
    let lookups = Arc::<AtomicUsize>::default();
    let (count, addresses) = (lookups.clone(), [replicas[0].at.ip(), replicas[1].at.ip()]);
    let resolver = Resolver::new(move |host| {
        assert_eq!(host, NAME);
        let mut addresses: Vec<IpAddr> = addresses.to_vec();
        addresses.rotate_left(count.fetch_add(1, Ordering::Relaxed) % 2);
        addresses
    });
    let insecure = vec![NAME.to_owned()];
    (Registries::new(Options { resolver, insecure, pin_pushes, proxies, ..Options::default() }), lookups)
}

/// Copies an image of many blobs to `repository` at the name.
async fn push(registries: &Registries, port: u16, image: &Image, repository: &str) {
    let source = Registry::start();
    image.push(source.addr(), "app", "v1");
    let source: Repository = format!("{}/app", source.addr()).parse().expect("a repository");
    let destination: Repository = format!("{NAME}:{port}/{repository}").parse().expect("a repository");
    let [source, destination] = [source, destination].map(|name| registries_of(registries, &name));
    let (tag, options) = (Target::Tag("v1".parse().expect("a tag")), CopyOptions::default());
    let engine = Engine::new(4, Arc::new(NoObserver));
    engine.copy(&source, &tag, &destination, &tag, &options).await.expect("a copy");
}

fn registries_of(registries: &Registries, name: &Repository) -> transload::registry::Repo {
    registries.repository(name).expect("a registry")
}

fn image(seed: u64) -> Image {
    Image::single(seed, &[90_000, 80_000, 70_000, 60_000, 50_000, 40_000])
}

/// Each lookup leads to another replica. All requests of a push reach the same one.
#[tokio::test]
async fn all_requests_of_an_images_push_reach_one_replica() {
    let replicas = replicas();
    let (registries, _) = client(&replicas, true, Proxies::default());
    for nth in 1..=3 {
        push(&registries, replicas[0].at.port(), &image(530 + nth), "app").await;
    }
    let [first, second] = [replicas[0].requests(), replicas[1].requests()];
    assert!(first.min(second) == 0 && first.max(second) > 20, "{first} and {second} requests");
    let reached = if first > 0 { &replicas[0] } else { &replicas[1] };
    image(533).assert_at(reached.registry.addr(), "app", "v1");
}

/// The replica that took the first image refuses or resets connections: the next image goes to the other one, whole, and
/// so does the third one when the first replica is back.
#[tokio::test]
async fn after_a_fault_a_push_goes_to_the_other_replica() {
    for fault in [Replica::go_down, Replica::reset] {
        let mut replicas = replicas();
        let port = replicas[0].at.port();
        let (registries, _) = client(&replicas, true, Proxies::default());
        push(&registries, port, &image(541), "one").await;
        let failing = usize::from(replicas[0].requests() == 0);
        fault(&mut replicas[failing]);
        let (before, other) = (replicas[failing].requests(), 1 - failing);
        push(&registries, port, &image(542), "two").await;
        push(&registries, port, &image(543), "three").await;
        assert_eq!(replicas[failing].requests(), before);
        image(542).assert_at(replicas[other].registry.addr(), "two", "v1");
        image(543).assert_at(replicas[other].registry.addr(), "three", "v1");
    }
}

/// The pull-through proxy, as every client that does not ask for it, keeps no address: its connections go where the
/// resolver says.
#[tokio::test]
async fn without_the_option_no_address_is_kept() {
    assert!(!Options::default().pin_pushes);
    let replicas = replicas();
    let (registries, lookups) = client(&replicas, false, Proxies::default());
    let name: Repository = format!("{NAME}:{}/none", replicas[0].at.port()).parse().expect("a repository");
    let repository = registries_of(&registries, &name);
    for _ in 0..4 {
        // One connection cannot serve them all at once.
        let pings = (0..4).map(|_| repository.ping());
        futures_util::future::try_join_all(pings).await.expect("pings");
    }
    let [first, second] = [replicas[0].requests(), replicas[1].requests()];
    assert!(first > 0 && second > 0, "{first} and {second} requests, {lookups:?} lookups");
}

/// Through an HTTP proxy the name is resolved by the proxy: there is no address to keep.
#[tokio::test]
async fn through_a_proxy_no_address_is_kept() {
    let replicas = replicas();
    let proxy = ForwardProxy::always_to(replicas[1].at).start();
    let proxies = Proxies::from_environment([
        ("HTTP_PROXY".into(), proxy.url().into()),
        ("HTTPS_PROXY".into(), proxy.url().into()),
    ]);
    let (registries, lookups) = client(&replicas, true, proxies);
    push(&registries, replicas[0].at.port(), &image(551), "app").await;
    assert_eq!((lookups.load(Ordering::Relaxed), replicas[0].requests()), (0, 0));
    assert!(proxy.log().len() > 10, "{:?}", proxy.log());
}
