//! Faults of transload itself that some input finds: a panic ends the image that it happened in, and nothing else.

use std::sync::{Arc, Mutex};

use futures_util::{StreamExt as _, stream};
use transload::body::Body;
use transload::content::{Source, TagPage, TagPages};
use transload::copy::{Engine, Mode, NoObserver};
use transload::descriptor::{Descriptor, Digest};
use transload::error::{Error, Kind, Result};
use transload::layout::Layout;
use transload::manifest::Manifest;
use transload::mirror::List;
use transload::mirror::report::{ImageId, RunReport};
use transload::mirror::run::{Action, Event, Options, Repositories, run};
use transload::reference::{Repository, Target};

use crate::support::TempDir;

/// A repository of images without layers. Some tags, and the list of some repositories' tags, are more than the program
/// can bear.
#[derive(Clone)]
struct Fragile(Arc<Repository>);

impl Source for Fragile {
    async fn resolve(&self, target: &Target) -> Result<Option<Descriptor>> {
        Ok(Some(self.manifest(target).await?.descriptor().clone()))
    }

    async fn manifest(&self, target: &Target) -> Result<Manifest> {
        tokio::task::yield_now().await;
        let name = target.to_string();
        assert!(!name.starts_with("bad"), "the manifest of {name}");
        let text = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.index.v1+json","manifests":[],"annotations":{{"name":"{name}"}}}}"#
        );
        Manifest::read(text.into(), None, None)
    }

    async fn blob(&self, _blob: &Descriptor, _from: u64) -> Result<Body> {
        Err(Error::new(Kind::NotFound, "there are none"))
    }

    async fn referrers(&self, _subject: &Digest) -> Result<Vec<Descriptor>> {
        Ok(Vec::new())
    }

    fn tags(&self) -> TagPages {
        let repository = self.0.clone();
        let page = async move {
            assert!(!repository.name.contains("list"), "the tags of {}", repository.name);
            Ok(TagPage::new(["good3", "bad3", "good4"]))
        };
        stream::once(page).boxed()
    }
}

struct Everywhere(Layout);

impl Repositories for Everywhere {
    type Source = Fragile;
    type Destination = Layout;

    fn source(&self, repository: &Repository) -> Result<Fragile> {
        Ok(Fragile(Arc::new(repository.clone())))
    }

    fn destination(&self, _: &Repository) -> Result<Layout> {
        Ok(self.0.clone())
    }
}

/// The attack: any input that makes the program panic: a token that lives for 2^64 seconds, say. The run goes on, the
/// image is in its report as failed by an internal error, and the exit code is that of a run with failures.
#[tokio::test]
async fn a_panic_fails_one_image_of_a_run_and_is_in_its_report() {
    let dir = TempDir::new();
    let layout = Layout::create(dir.join("layout").as_ref()).await.expect("a layout");
    let list = "images:\n- s.io/app:good1\n- s.io/app:bad1\n- s.io/app:good2\n- s.io/app:bad2\n\
        - {source: s.io/tags, glob: '*'}\n- {source: s.io/list, glob: '*'}\n- t.io/app:good5\n";
    let list = List::read(list, "list").expect("a list");
    let to = ["r.io/x".parse().expect("a destination")];
    let done = Mutex::new(RunReport::start(None, false, &[]));
    let ended = |event: Event| {
        let mut done = done.lock().expect("no panic is carried out of an image");
        match event {
            Event::Copied(job, report) => {
                let which = ImageId { source: job.from(), destination: job.to(), line: job.line };
                done.add(which, Ok(*report));
            }
            Event::Failed(job, error) => {
                let which = ImageId { source: job.from(), destination: job.to(), line: job.line };
                done.add(which, Err(&error));
            }
            Event::Unknown { line, source, error, .. } => {
                let which = ImageId { source: source.to_string(), destination: String::new(), line };
                done.add(which, Err(&error));
            }
            Event::Expected(_) => {}
            other => panic!("{other:?}"),
        }
    };
    let engine = Engine::new(4, Arc::new(NoObserver)).with_mode(Mode::List);
    let options = Options { action: Action::Copy { dry_run: false, force: false }, deadline: None };
    run(&list, &to, &Everywhere(layout), &engine, &options, &|_, _| true, &ended).await;
    let done = done.into_inner().expect("no panic");
    assert_eq!((done.summary().copied, done.summary().failed), (5, 4));
    assert_eq!(done.exit_code(), 3);
    let mut json = Vec::new();
    done.json(&mut json).expect("memory");
    let json: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
    let images = json["images"].as_array().expect("images").iter();
    let mut failed: Vec<_> = images.filter(|image| image["status"] == "failed").collect();
    failed.sort_by_key(|image| image["source"].to_string());
    let of = |image: &serde_json::Value| {
        let (source, error) = (image["source"].as_str().expect("a source"), &image["error"]);
        (source.to_owned(), error["kind"].as_str().expect("a kind").to_owned(), error["message"].to_string())
    };
    for (image, (source, why)) in failed.into_iter().zip([
        ("s.io/app:bad1", "internal error: the manifest of bad1; please report it"),
        ("s.io/app:bad2", "internal error: the manifest of bad2; please report it"),
        ("s.io/list", "internal error: the tags of list; please report it"),
        ("s.io/tags:bad3", "internal error: the manifest of bad3; please report it"),
    ]) {
        let (found, kind, message) = of(image);
        assert_eq!((found.as_str(), kind.as_str()), (source, "internal"));
        assert!(message.contains(why), "{message}");
    }
}
