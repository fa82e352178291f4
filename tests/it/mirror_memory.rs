//! What a long list costs in memory: the run, the engine and the report as they are, from a source and to a
//! destination that keep nothing.

use std::process::Command;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use transload::body::Body;
use transload::content::{Destination, Feed, PushReceipt, Source, TagPage, TagPages, UploadStart};
use transload::copy::{Engine, Mode, NoObserver};
use transload::descriptor::{Descriptor, Digest};
use transload::error::{Error, Kind, Result};
use transload::manifest::Manifest;
use transload::mirror::List;
use transload::mirror::prune::KeepSet;
use transload::mirror::report::{ImageId, RunReport};
use transload::mirror::run::{Action, Event, Options, Repositories, run};
use transload::reference::{Repository, Target};
use transload::verify::Verified;

/// Images that are repositories of their own, and those that are tags of one.
const OWN: usize = 5_000;
const TAGS: usize = 5_000;
const MOST: u64 = 150 << 20;

/// A repository whose images follow from their names; as a destination, one that has none.
#[derive(Clone)]
struct Made(Arc<Repository>);

fn blob(seed: &str) -> Bytes {
    Bytes::from(format!("{seed:.<500}"))
}

/// A descriptor that says what its blob is made of.
fn described(seed: &str) -> String {
    let (bytes, media_type) = (blob(seed), "application/vnd.oci.image.layer.v1.tar");
    let (digest, size) = (Digest::of(&bytes), bytes.len());
    format!(r#"{{"mediaType":"{media_type}","digest":"{digest}","size":{size},"annotations":{{"seed":"{seed}"}}}}"#)
}

impl Source for Made {
    async fn resolve(&self, target: &Target) -> Result<Option<Descriptor>> {
        Ok(Some(self.manifest(target).await?.descriptor().clone()))
    }

    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        let name = format!("{}:{target}", self.0);
        // As large as many are: ten layers that all have, and two of its own.
        let shared = (0..10).map(|nth| described(&format!("base{nth}")));
        let parts: Vec<String> = shared.chain(["a", "b"].map(|own| described(&(name.clone() + own)))).collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let (config, layers) = (described(&name), parts.join(","));
        let text = format!(r#"{{"schemaVersion":2,"mediaType":"{media_type}","config":{config},"layers":[{layers}]}}"#);
        Manifest::read(text.into(), Some(media_type), None)
    }

    async fn blob(&self, wanted: &Descriptor, from: u64) -> Result<Body> {
        let bytes = blob(&wanted.annotations["seed"]).slice(usize::try_from(from).expect("small")..);
        Ok(stream::iter([Ok(bytes)]).boxed())
    }

    async fn referrers(&self, _subject: &Digest) -> Result<Vec<Descriptor>> {
        Ok(Vec::new())
    }

    fn tags(&self) -> TagPages {
        let page = |from: usize| Ok(TagPage::new((from..from + 1000).map(|nth| format!("v{nth}"))));
        stream::iter((0..TAGS).step_by(1000).map(page)).boxed()
    }
}

impl Destination for Made {
    type Session = ();

    fn repository(&self) -> &Repository {
        &self.0
    }

    async fn is_new(&self) -> bool {
        true
    }

    async fn resolve_existing(&self, _target: &Target) -> Result<Option<Descriptor>> {
        Ok(None)
    }

    async fn existing_manifest(&self, _digest: &Digest) -> Result<Manifest> {
        Err(Error::new(Kind::NotFound, "it keeps nothing"))
    }

    async fn has_blob(&self, _blob: &Descriptor) -> Result<bool> {
        Ok(false)
    }

    async fn start_upload(&self, _blob: &Descriptor, from: Option<&Repository>) -> Result<UploadStart<()>> {
        tokio::task::yield_now().await;
        Ok(if from.is_some() { UploadStart::Mounted } else { UploadStart::Session(()) })
    }

    async fn upload<S: Source>(&self, (): (), _feed: &Feed<S>, body: Verified) -> Result<()> {
        body.into_stream().try_for_each(|_| std::future::ready(Ok(()))).await
    }

    async fn put_manifest(&self, _manifest: &Manifest, _at: &Target) -> Result<PushReceipt> {
        tokio::task::yield_now().await;
        Ok(PushReceipt::default())
    }

    async fn listed_referrers(&self, _subject: &Digest) -> Result<Vec<Descriptor>> {
        Ok(Vec::new())
    }
}

struct Everywhere;

impl Repositories for Everywhere {
    type Source = Made;
    type Destination = Made;

    fn source(&self, repository: &Repository) -> Result<Made> {
        Ok(Made(Arc::new(repository.clone())))
    }

    fn destination(&self, repository: &Repository) -> Result<Made> {
        self.source(repository)
    }
}

/// Copies them all, and holds what a run of the command holds of them until its end.
async fn mirrored() -> RunReport {
    let own: String = (0..OWN).map(|nth| format!("- source.example.com/team/app-number-{nth}:v1.27.3\n")).collect();
    let list = format!("images:\n{own}- {{source: source.example.com/team/tags, glob: 'v*'}}\n");
    let list = List::read(&list, "list").expect("a list");
    let to = ["target.example.com/mirror".parse().expect("a destination")];
    let (engine, claims) =
        (Engine::new(4, Arc::new(NoObserver)).with_mode(Mode::List), KeepSet::of_list(&list, &to, None));
    let done = Mutex::new((RunReport::start(None, false, &[]), claims.expect("claims")));
    let ended = |event: Event| {
        let mut done = done.lock().expect("no panic");
        let (job, report) = match event {
            Event::Copied(job, report) => (job, report),
            Event::Expected(_) => return,
            other => panic!("{other:?}"),
        };
        done.1.keep(&job.destination, &job.at);
        done.0.add(ImageId { source: job.from(), destination: job.to(), line: job.line }, Ok(*report));
    };
    let options = Options { action: Action::Copy { dry_run: false, force: false }, deadline: None };
    run(&list, &to, &Everywhere, &engine, &options, &|_, _| true, &ended).await;
    // With all that they hold, still.
    let at_most = peak();
    assert!(at_most < MOST, "{} MiB for {} images", at_most >> 20, OWN + TAGS);
    done.into_inner().expect("no panic").0
}

/// The most memory that this process had.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").expect("Linux");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") << 10
}

/// In a process of its own: other tests of this one take memory too.
#[test]
fn ten_thousand_images_stay_small() {
    const ALONE: &str = "TRANSLOAD_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let run = runtime.block_on(mirrored());
        assert_eq!(run.summary().copied, OWN + TAGS);
        return;
    }
    let name = "mirror_memory::ten_thousand_images_stay_small";
    let itself = std::env::current_exe().expect("this program");
    let run = Command::new(itself).args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().expect("it runs");
    let told = [run.stdout, run.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(run.status.success() && told.contains("1 passed"), "{told}");
}
