//! What the integration tests stand on: a real registry, images, a fault-injecting front.
//!
//! Everything here is synchronous and runs its servers on threads of its own, so it works from
//! `#[test]` and `#[tokio::test]` alike, in parallel: ports are always 0, files in directories of
//! their own, and whatever was started stops on Drop.

#![expect(unreachable_pub, reason = "the tests are the only users")]
#![allow(dead_code, unused_imports, reason = "support stands ready; not every run of the tests uses all of it")]

pub mod background;
pub mod certificates;
pub mod containerd;
pub mod dir;
pub mod fake_registry;
pub mod faults;
pub mod forward_proxy;
pub mod front;
pub mod front_body;
pub mod front_log;
pub mod front_serve;
pub mod front_upstream;
pub mod http;
pub mod images;
pub mod images_odd;
pub mod layer;
pub mod layout;
pub mod link;
pub mod process;
pub mod proxied;
pub mod push;
pub mod registry;
pub mod serving;
pub mod socks_proxy;
pub mod terminal;
pub mod tls;
pub mod wire;

pub use dir::TempDir;
pub use fake_registry::{FakeRegistry, FakeRequest, FakeResponse};
pub use faults::{Fault, Rule};
pub use forward_proxy::ForwardProxy;
pub use front::Front;
pub use front_log::SeenRequest;
pub use images::Image;
pub use link::SlowLink;
pub use process::{Process, Run, Tool, skopeo, transload};
pub use proxied::ProxyProcess;
pub use registry::Registry;
pub use serving::ServeProcess;
pub use socks_proxy::SocksProxy;
pub use terminal::Terminal;
