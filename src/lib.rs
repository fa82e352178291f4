//! transload: images from registry to registry, streamed, verified, in one step.
//!
//! # The idea
//! An image is a DAG of descriptors. A copy is a walk over it from a [`content::Source`] to a
//! [`content::Destination`]; the walk yields a plan; the plan moves blobs, then manifests children first,
//! the tag last. Bytes become trustworthy in exactly one place, [`verify::Verified`], and only trusted
//! bytes can be finished. Everything that talks HTTP to a registry is in [`registry`], everything that
//! answers HTTP as a registry is in [`server`]; the engine ([`copy`]) knows neither.
//!
//! ```text
//!  cli ── parses, wires, prints
//!   │
//!   ├── mirror ── list ── expand ── run ── report, prune: whole lists, by the engine
//!   ├── copy ──── walk ── plan ── transfer ── manifests ── referrers
//!   │              │                 │
//!   │           Source            Feed ── Verified ── Destination
//!   │              │                                      │
//!   ├── registry ──┴── HTTP to Docker Hub, ACR, … ────────┤
//!   ├── layout ────┴── a directory of images ─────────────┘
//!   ├── server ─────── answers HTTP over a layout, or over
//!   ├── proxy ──────── a cache that reads from Sources, and copies into the first tier by the engine
//!   ├── ops ────────── health and metrics of what stays, and orders to it, by the server
//!   ├── node ───────── a node's hosts.toml, and its place in the file system
//!   └── demo ───────── look-alikes of Docker Hub and ACR
//! ```
//!
//! # The order of knowledge
//! - Tools, which know each other only: `printable`, `redact` < [`error`] < `atomic_file`, [`body`], `change_detector`, `clock`, [`file_access`],
//!   `go_names`, `memory`, `panics`, `pool`, `regular_file`, `waits`.
//! - tools < [`descriptor`] < [`mod@reference`], [`manifest`]; [`retry`]; these < [`verify`], [`content`]
//!   < {[`registry`], [`layout`], [`copy`], [`server`]} < [`cli`].
//! - [`credentials`] < [`registry`]; [`copy`] < {[`mirror`], [`proxy`]}; [`server`] < {[`proxy`], [`ops`]}; [`mod@reference`] < {[`node`],
//!   [`demo`]}.
//!
//! [`registry`], [`layout`], [`copy`] and [`server`] never name each other: `tests/layering.rs` holds that.
//!
//! # Input that is not trusted
//! - **Names are checked types** ([`reference::Tag`], [`reference::RepositoryName`], [`descriptor::Digest`]): text from
//!   outside becomes a part of a URL, a path or a reference only by parsing. URLs are built from them, segment by segment,
//!   and `registry::urls` checks each write before it is sent.
//! - **Memory has accounts**: one for each image (`copy::memory`), and a fixed room for large answers of the whole process
//!   (`memory`). Every list is bounded in the registry client (`registry::endpoints::lists`).
//! - **Content belongs to repositories**, and a digest is no key: `proxy::membership`, `layout::membership`.
//! - **Files** that others may have put in place are opened by `regular_file`. The proxy's cache calls the disk through
//!   [`file_access::FileAccess`], so that tests can make each call fail.
//! - **Output** passes through `redact` (secrets) and `printable` (control characters).
//!
//! `SECURITY.md` states the promises, and `tests/it/hostile` attacks them.
//!
//! # Where we left the first design, and why
//! - **A budget, not layers of retries** ([`retry::Budget`]): one for each blob, which bytes that
//!   arrive for good refill, so that a number of faults that suits a small blob doesn't doom a large one.
//!   `Retry-After` costs patience, no fault.
//! - **[`content::Feed`]** carries a blob: it opens the source where the destination wants to go on, from
//!   the last known state of the hash ([`verify::HashCheckpoints`]), so the whole is verified whatever was resumed.
//! - **The directory of who holds which blob is in [`copy`]**, not in a mirror above it: one image with
//!   several destinations or tags needs it already. So are its turns: of an image under several tags the first one
//!   brings all, and the others wait, and write their tags. Who reads has no turn to write: a source that is held back
//!   keeps no image from another one.
//! - **What the destination holds is read there**: an index, to see whether the wanted platforms are there, or what may
//!   be signed. At the source it would be a pull.
//! - **A walk skips the destination's HEADs where the repository doesn't exist** (`NAME_UNKNOWN` from one
//!   small request): on an empty repository that saves a request for each blob and manifest.
//! - **Two modes of the engine** ([`copy::Mode`]): for one image it asks both ends at once, since round trips count; for
//!   a list it asks the source only for tags that the destination has, sends configs unasked, and learns from unchanged
//!   images which layers can be mounted.
//! - **Places at both ends** of a transfer instead of one number of jobs: so a slow source keeps no other
//!   one waiting, and huge blobs never take the last place. Images of a list wait in a lane for each source and
//!   destination, for the same reason.
//! - **The proxy's disk index is our own S3-FIFO**, not quick_cache's: it reserves room before bytes are written, and
//!   never drops what is being read. quick_cache holds what is in memory.
//! - **The proxy's blobs go to clients by sendfile(2)** (`server::sendfile`), under hyper: half of what a
//!   blob from the disk cost, and no buffer for a client.
//! - **Entra without azure_identity**: its evidence is in [`credentials::entra`].
//! - **Connections are our own, under hyper's pool** (`registry::network`): reqwest says neither with which status a
//!   proxy refused a tunnel, nor which certificate of which host is wrong; it has one client certificate for all hosts, and
//!   one address rule for registries and proxies. CONNECT and SOCKS 5 are 100 lines each.
//! - **Sources are `Clone + 'static`**: a request's body must be, and it holds the source to go on.
//!
//! # Dependencies
//! | for | crate |
//! | --- | --- |
//! | runtime, streams, HTTP's types | tokio, futures-util, bytes, http, http-body, http-body-util |
//! | client | hyper-util: the pool and HTTP/1.1; tower-service, the trait of its connections, which are ours (`registry::network` says why); tokio-rustls; webpki-root-certs where the image has no CA store; rustls-native-certs where certificates are not in files (not on Linux) |
//! | client of identity services | reqwest, by the same proxies and certificates; its `Url` and `Body` everywhere; form_urlencoded, which its `Url` is made of |
//! | token realms | psl: the public suffix list, compiled in (1 crate of data and 1 of types, MIT or Apache-2.0): which hosts have one owner is nothing to guess, and nothing to ask the network for |
//! | cache | quick_cache for what is in memory; rustix (in the tree for the terminal's width already) for `statvfs`, reads at an offset, `fallocate`, `sendfile`, corks and the limit of open files |
//! | memory | mimalloc, in static binaries only: musl's own allocator maps each large buffer anew |
//! | server | hyper, hyper-util: repository names contain slashes, which routers can't match in the middle |
//! | forms of token requests | form_urlencoded, in the tree by reqwest's `Url` |
//! | digests | sha2, behind [`descriptor::Hasher`] |
//! | files | serde, serde_json, base64; serde-saphyr for YAML, which knows the line of each value, and quotes what YAML 1.1 takes for no string |
//! | tags | regex, globset, semver |
//! | users of the proxy's listeners | bcrypt (in Rust, 5 small crates, constant-time comparison): the hash that htpasswd and other registries have, which is nothing to write ourselves |
//! | TLS of the proxy's listeners | tokio-rustls, in the tree for the client already |
//! | command line | clap, clap_complete, clap_mangen, indicatif, rpassword |
//! | times | jiff |
//! | metrics | prometheus-client |
//! | logs | tracing, tracing-subscriber |

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start tasks and read the environment"))]

mod atomic_file;
pub mod body;
mod change_detector;
pub mod cli;
mod clock;
pub mod content;
pub mod copy;
pub mod credentials;
pub mod demo;
pub mod descriptor;
pub mod error;
pub mod file_access;
mod go_names;
pub mod layout;
pub mod manifest;
mod memory;
pub mod mirror;
pub mod node;
pub mod ops;
mod panics;
mod pool;
mod printable;
pub mod proxy;
mod redact;
pub mod reference;
pub mod registry;
mod regular_file;
pub mod retry;
pub mod server;
pub mod verify;
mod waits;
