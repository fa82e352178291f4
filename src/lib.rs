//! transload: images from registry to registry, streamed, verified, in one step.
//!
//! # The idea
//! An image is a DAG of descriptors. A copy walks the DAG from a [`content::Source`] to a [`content::Destination`]. The walk
//! gives a plan. The plan transfers blobs, then manifests (children first), then the tag. Bytes are verified in exactly one
//! place, [`verify::Verified`], and an upload can only be finished with verified bytes. The HTTP client of registries is in
//! [`registry`], and the HTTP server that acts as a registry is in `server`. The engine ([`copy`]) knows neither.
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
//!   ├── ops ────────── health, metrics and admin API of long-running commands, by the server
//!   ├── node ───────── the hosts.toml of a Kubernetes node
//!   └── demo ───────── look-alikes of Docker Hub and ACR
//! ```
//!
//! # Layers
//! Each module names only modules before it:
//! - Helpers: `printable`, `redact` < [`error`] < `atomic_file`, [`body`], `change_detector`, `clock`, `file_access`,
//!   `go_names`, `memory`, `panics`, `pool`, `regular_file`, `waits`.
//! - Helpers < [`descriptor`] < [`mod@reference`], [`manifest`]; `retry`; these < [`verify`], [`content`]
//!   < {[`registry`], [`layout`], [`copy`], `server`} < [`cli`].
//! - [`credentials`] < [`registry`]; [`copy`] < {[`mirror`], [`proxy`]}; `server` < {[`proxy`], `ops`}; [`mod@reference`] < {`node`,
//!   [`demo`]}.
//!
//! [`registry`], [`layout`], [`copy`] and `server` never name each other. `tests/layering.rs` checks this order.
//!
//! # Untrusted input
//! - **Names are checked types** ([`reference::Tag`], [`reference::RepositoryName`], [`descriptor::Digest`]). Text from
//!   outside becomes a part of a URL, a path or a reference only by parsing. URLs are built from these types, segment by
//!   segment, and `registry::urls` checks each write before it is sent.
//! - **Memory is bounded**: for each image (`copy::memory`), and for the large responses of the whole process (`memory`).
//!   Every list is bounded in the registry client (`registry::endpoints::lists`).
//! - **Content belongs to repositories.** Knowing a digest gives no access: `proxy::membership`, `layout::membership`.
//! - **Files** that other users may have created are opened by `regular_file`. The proxy's cache uses the disk through
//!   `file_access::FileAccess`, so that tests can make each call fail.
//! - **Output** passes through `redact` (secrets) and `printable` (control characters).
//!
//! `SECURITY.md` states the guarantees, and `tests/it/hostile` attacks them.
//!
//! # Design decisions
//! - **One retry budget for each blob** (`retry::Budget`), not retries in each layer. Bytes that arrive refill it, so a large
//!   blob may have more faults than a small one. `Retry-After` costs waiting time but no fault.
//! - **A [`content::Feed`] carries a blob.** It opens the source at the offset where the destination continues, from the
//!   last checkpoint of the hash ([`verify::HashCheckpoints`]). So the whole blob is verified after each resume.
//! - **The map of blob locations is in [`copy`]**, not in the mirror: one image with several destinations or tags needs it
//!   too. The same holds for its locks: if an image has several tags, the first task copies it, and the others write their
//!   tags. Read locks and write locks are separate, so a source that is held back does not block other sources.
//! - **Existing content is read from the destination**, to find missing platforms or signed children. A read from the source
//!   could count as a pull.
//! - **The destination is not asked for parts of an image in a new repository.** One small request (`NAME_UNKNOWN`) shows
//!   that it is new. That saves a request for each blob and manifest.
//! - **The engine has two modes** ([`copy::Mode`]). For one image it asks both ends at once, to save round trips. For a list
//!   it saves requests: it resolves source tags only if the destination has the tag, sends configs without asking, and
//!   learns from unchanged images which layers can be mounted.
//! - **Artifacts are found in the list of tags** (`copy::artifact_tags`), within limits, instead of several requests for
//!   each manifest.
//! - **A transfer takes a slot at both ends**, instead of one number of jobs. So a slow source does not block other sources,
//!   and huge blobs never take the last slot. For the same reason the images of a list have a queue for each source and
//!   destination.
//! - **The proxy's disk index is our own S3-FIFO**, not that of quick_cache: it reserves space before bytes are written, and
//!   never evicts content that is being read. quick_cache holds content in memory.
//! - **The proxy sends blobs to clients by sendfile(2)** (`server::sendfile`), below hyper. That halves the CPU time for a
//!   blob from disk, and needs no buffer for each client.
//! - **Entra without azure_identity**: `credentials::entra` has the reasons.
//! - **Connections are our own, below hyper's pool** (`registry::network`). reqwest does not report the status with which a
//!   proxy refused a tunnel, or the host of a wrong certificate. It has one client certificate for all hosts, and one address
//!   rule for registries and proxies. CONNECT and SOCKS 5 take 100 lines each.
//! - **Sources are `Clone + 'static`**, since the body of a request must be `'static` and holds its source.
//!
//! # Why `oci-client` is not the transport
//! `oci-client` (formerly `oci-distribution`) is the OCI registry client of the Rust ecosystem. It suits programs that pull
//! or push artifacts. A copier needs more. Version 0.18 was read and measured:
//! - A streamed upload sends one PATCH for each item of the stream. A blob of 64 MiB took 345 requests. transload sends one
//!   request, or chunks of 16 MiB for ACR.
//! - A mount that the registry refuses is an error. The upload session that the same answer opens is lost.
//! - There are no retries, no resumed uploads, and no new token after a 401 in the middle of a copy.
//! - Errors have a status and a text, but no headers. So `Retry-After` is lost, and the limits of Docker Hub are not seen.
//! - If the answer to a push by digest has no `Location`, the client panics.
//! - Its types (`oci-spec` 0.10) change the bytes of a manifest when they write it, which changes the digest. They refuse
//!   registries at IPv6 addresses, and the error code `UNKNOWN`.
//!
//! So registry requests are our own code (`registry`), and manifests stay bytes ([`manifest`]). The tests use `oci-client` as
//! an outside judge: it pulls what was copied, pulls through the proxy, and pushes to the server (`tests/it/oci_client.rs`).
//!
//! # Dependencies
//! | for | crate |
//! | --- | --- |
//! | runtime, streams, HTTP's types | tokio, futures-util, bytes, http, http-body, http-body-util |
//! | client | hyper-util: the pool and HTTP/1.1; tower-service, the trait of its connections, which are ours (`registry::network` has the reasons); tokio-rustls; webpki-root-certs where the image has no CA store; rustls-native-certs where certificates are not in files (not on Linux) |
//! | client of identity services | reqwest, by the same proxies and certificates; its `Url` and `Body` everywhere |
//! | token realms | psl: the public suffix list, compiled in (1 crate of data and 1 of types, MIT or Apache-2.0): which hosts have one owner cannot be guessed |
//! | cache | quick_cache for content in memory; rustix (in the tree for the terminal's width already) for `statvfs`, reads at an offset, `fallocate`, `sendfile`, corks and the limit of open files |
//! | memory | mimalloc, in static binaries only: musl's own allocator maps each large buffer again |
//! | server | hyper, hyper-util: repository names contain slashes, which routers cannot match in the middle |
//! | forms of token requests | form_urlencoded, in the tree by reqwest's `Url` |
//! | digests | sha2, behind [`descriptor::Hasher`] |
//! | files | serde, serde_json, base64; serde-saphyr for YAML, which knows the line of each value, and quotes texts that YAML 1.1 does not read as strings |
//! | tags | regex, globset, semver |
//! | users of the proxy's listeners | bcrypt (in Rust, 5 small crates, constant-time comparison): the hash that htpasswd and other registries have, which should not be written again |
//! | TLS of the proxy's listeners | tokio-rustls, in the tree for the client already |
//! | command line | clap, clap_complete, clap_mangen, indicatif, rpassword |
//! | times | jiff |
//! | metrics | prometheus-client |
//! | logs | tracing, tracing-subscriber |
//! | tests | oci-client, an outside judge; proptest; rcgen for certificates |

#![cfg_attr(test, allow(clippy::disallowed_methods, reason = "tests start tasks and read the environment"))]

// Public is what the program (`src/main.rs`), the tests and the benchmarks name: `cli` for the program; the engine, its
// traits and types, `registry`, `layout` and `mirror` for tests that copy without a command; `demo` for its look-alikes;
// `proxy` for the benchmark of its disk index. All else is for the crate.
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
mod file_access;
mod go_names;
pub mod layout;
pub mod manifest;
mod memory;
pub mod mirror;
mod node;
mod ops;
mod panics;
mod pool;
mod printable;
pub mod proxy;
mod redact;
pub mod reference;
pub mod registry;
mod regular_file;
mod retry;
mod server;
pub mod verify;
mod waits;
