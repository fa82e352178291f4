use std::sync::{Arc, Mutex};

use super::*;

/// A repository in memory, and what was done to it.
#[derive(Clone, Default)]
struct Memory(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    /// A tag's digests, and when it was written.
    tags: BTreeMap<String, (Vec<Digest>, Option<Timestamp>)>,
    /// Whether tags can be deleted.
    by_tag: bool,
    broken: Option<&'static str>,
    /// Whether lists are empty from the second one on.
    forgets: bool,
    aged: usize,
    looked: usize,
    removed: Vec<String>,
}

impl Memory {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().expect("no panic while held")
    }

    /// Nine days old unless something else is said.
    fn with(tags: &[&str]) -> Self {
        let made = Self::default();
        made.state().by_tag = true;
        tags.iter().for_each(|tag| made.put(tag, &[tag], Some(9)));
        made
    }

    fn put(&self, tag: &str, holds: &[&str], days: Option<i64>) {
        let digests = holds.iter().map(|name| digest(name)).collect();
        let written = days.map(|days| NOW - jiff::SignedDuration::from_hours(days * 24));
        self.state().tags.insert(tag.into(), (digests, written));
    }

    fn left(&self) -> Vec<String> {
        self.state().tags.keys().cloned().collect()
    }
}

impl PruneTarget for Memory {
    async fn tags(&self) -> Result<Vec<Tag>> {
        let mut state = self.state();
        state.looked += 1;
        match state.broken {
            Some(why) => Err(Error::new(Kind::Denied, why)),
            None if state.forgets && state.looked > 1 => Ok(Vec::new()),
            None => Ok(state.tags.keys().map(|tag| tag.as_str().into()).collect()),
        }
    }

    async fn digests_of(&self, target: &Target) -> Result<Vec<Digest>> {
        let state = self.state();
        let found = match target {
            Target::Tag(tag) => state.tags.get(tag.as_str()),
            Target::Name(_) => None,
            Target::Digest(digest) => state.tags.values().find(|(digests, _)| digests.first() == Some(digest)),
        };
        Ok(found.map(|(digests, _)| digests.clone()).unwrap_or_default())
    }

    async fn written_at(&self, tag: &Tag) -> Result<Option<Timestamp>> {
        let mut state = self.state();
        state.aged += 1;
        Ok(state.tags.get(tag.as_str()).and_then(|(_, written)| *written))
    }

    async fn delete_tag(&self, tag: &Tag) -> Result<bool> {
        let mut state = self.state();
        if state.by_tag {
            state.tags.remove(tag.as_str());
            state.removed.push(tag.to_string());
        }
        Ok(state.by_tag)
    }

    async fn delete_manifest(&self, digest: &Digest) -> Result<()> {
        let mut state = self.state();
        state.tags.retain(|_, (digests, _)| digests.first() != Some(digest));
        state.removed.push(digest.to_string());
        Ok(())
    }
}

const NOW: Timestamp = Timestamp::constant(1_800_000_000, 0);

fn digest(name: &str) -> Digest {
    Digest::of(name.as_bytes())
}

fn at(tag: &str) -> Target {
    Target::Tag(tag.into())
}

fn repository(name: &str) -> Repository {
    format!("r.example.com/{name}").parse().expect("a repository")
}

fn claims(tags: &[&str]) -> KeepSet {
    let mut keep_set = KeepSet::default();
    tags.iter().for_each(|tag| keep_set.keep(&repository("a"), &at(tag)));
    keep_set
}

async fn planned(memory: &Memory, keep_set: &KeepSet, options: &Options) -> Plan {
    plan(keep_set, |_| Ok(memory.clone()), options, NOW).await
}

async fn carried_out(memory: &Memory, keep_set: &KeepSet, options: &Options) -> Plan {
    let mut plan = planned(memory, keep_set, options).await;
    execute(&mut plan, |_| Ok(memory.clone()), options).await;
    plan
}

fn tags(plan: &Plan) -> Vec<&str> {
    plan.repositories.iter().flat_map(|part| &part.deletions).map(|going| going.tag.as_str()).collect()
}

#[tokio::test]
async fn what_the_list_no_longer_holds_goes() {
    let memory = Memory::with(&["1", "2", "3"]);
    let plan = planned(&memory, &claims(&["2", "9"]), &Options::default()).await;
    assert_eq!(tags(&plan), ["1", "3"]);
    assert_eq!(plan.repositories[0].deletions[0].digest, Some(digest("1")));
    assert_eq!(memory.left(), ["1", "2", "3"], "a plan changes nothing");
    let plan = carried_out(&memory, &claims(&["2", "9"]), &Options::default()).await;
    assert_eq!(memory.left(), ["2"]);
    assert_eq!((plan.planned_deletions(), plan.deletions(), plan.failed(), plan.done), (2, 2, false, true));
}

#[tokio::test]
async fn young_tags_and_those_of_unknown_age_stay() {
    let memory = Memory::with(&["keep", "old"]);
    memory.put("young", &["young"], Some(6));
    memory.put("unknown", &["unknown"], None);
    // Reproducible builds: 1970 and 1980.
    memory.put("epoch", &["epoch"], Some(1_800_000_000 / 86_400));
    memory.put("future", &["future"], Some(-30));
    let plan = planned(&memory, &claims(&["keep"]), &Options::default()).await;
    assert_eq!(tags(&plan), ["old"]);
    assert_eq!(plan.repositories[0].too_young, 4);
    assert_eq!(memory.state().aged, 5, "what the list holds isn't asked for its age");
    let options = Options { older_than: Duration::ZERO, ..Options::default() };
    let plan = planned(&memory, &claims(&["keep"]), &options).await;
    assert_eq!(tags(&plan), ["epoch", "future", "old", "unknown", "young"]);
    assert_eq!(memory.state().aged, 5, "and nothing where age doesn't count");
}

#[tokio::test]
async fn doubt_spares_a_repository() {
    let memory = Memory::with(&["1", "2"]);
    let mut keep_set = claims(&["2"]);
    keep_set.keep_all(&repository("a"), "docker.io/a could not be listed");
    keep_set.keep_all(&repository("a"), "another reason");
    let plan = carried_out(&memory, &keep_set, &Options::default()).await;
    assert_eq!(plan.repositories[0].kept_reason.as_deref(), Some("docker.io/a could not be listed"));
    assert_eq!(memory.left(), ["1", "2"]);
    assert_eq!(memory.state().looked, 0);
    assert!(!plan.failed(), "the failure itself was told before");
}

#[tokio::test]
async fn a_list_that_picks_nothing_removes_nothing() {
    let memory = Memory::with(&["1", "2"]);
    let mut keep_set = KeepSet::default();
    keep_set.of(&repository("a"));
    let plan = carried_out(&memory, &keep_set, &Options::default()).await;
    assert!(plan.repositories[0].kept_reason.as_deref().is_some_and(|why| why.contains("picks no tag")), "{plan:?}");
    assert_eq!(memory.left(), ["1", "2"]);
}

#[tokio::test]
async fn repositories_that_the_list_does_not_name_are_not_opened() {
    let memory = Memory::with(&["1"]);
    let opened = Mutex::new(Vec::new());
    let open = |repository: &Repository| {
        opened.lock().expect("no panic while held").push(repository.to_string());
        Ok(memory.clone())
    };
    plan(&claims(&["x"]), open, &Options::default(), NOW).await;
    assert_eq!(*opened.lock().expect("no panic while held"), ["r.example.com/a"]);
}

#[tokio::test]
async fn too_many_is_none_at_all() {
    let many: Vec<String> = (0..40).map(|n| format!("t{n:02}")).collect();
    let memory = Memory::with(&many.iter().map(String::as_str).collect::<Vec<_>>());
    let all_but = |gone: usize| claims(&many[gone..].iter().map(String::as_str).collect::<Vec<_>>());
    let with = |most| Options { most, ..Options::default() };
    // 40 tags: a fifth is 8, so that ten count.
    assert!(!planned(&memory, &all_but(10), &with(None)).await.failed());
    let plan = carried_out(&memory, &all_but(11), &with(None)).await;
    let refused = plan.refused.as_ref().expect("refused");
    assert!(refused.message.contains("11 of 40 tags of r.example.com/a"), "{refused:?}");
    assert_eq!((memory.left().len(), plan.deletions(), plan.failed()), (40, 0, true));
    assert_eq!(tags(&plan).len(), 11, "what would go is told all the same");
    let plan = carried_out(&memory, &all_but(5), &with(Some(4))).await;
    assert!(plan.refused.is_some_and(|refused| refused.message.contains("--prune-max allows 4")));
    assert_eq!(memory.left().len(), 40);
    assert_eq!(carried_out(&memory, &all_but(30), &with(Some(30))).await.deletions(), 30);
    assert_eq!(memory.left().len(), 10);
}

/// The count of the user's is over all repositories.
#[tokio::test]
async fn most_counts_all_repositories() {
    let memory = Memory::with(&["1", "2", "keep"]);
    let mut both = claims(&["keep"]);
    both.keep(&repository("b"), &at("keep"));
    let options = Options { most: Some(3), ..Options::default() };
    assert!(planned(&memory, &both, &options).await.refused.is_some());
    let options = Options { most: Some(4), ..Options::default() };
    assert!(planned(&memory, &both, &options).await.refused.is_none());
    for (repositories, refused) in [(5, false), (6, true)] {
        let mut keep_set = KeepSet::default();
        (0..repositories).for_each(|n| keep_set.keep(&repository(&format!("r{n}")), &at("keep")));
        let plan = planned(&memory, &keep_set, &Options::default()).await;
        assert_eq!(plan.refused.is_some(), refused, "{repositories} times 2 of 3: {:?}", plan.refused);
    }
}

#[tokio::test]
async fn signatures_go_with_what_they_are_about() {
    let about = |name: &str, suffix: &str| format!("sha256-{}{suffix}", digest(name).hex());
    let memory = Memory::with(&["keep"]);
    memory.put("index", &["index", "child", "shared"], Some(9));
    memory.put("other", &["other", "shared"], Some(9));
    memory.put("young", &["young"], Some(1));
    for (name, suffix) in [
        ("keep", ".sig"),
        ("index", ""),
        ("index", ".sig"),
        ("child", ".att"),
        ("shared", ".sbom"),
        ("orphan", ".sig"),
        ("young", ".sig"),
    ] {
        memory.put(&about(name, suffix), &[&about(name, suffix)], Some(1));
    }
    memory.put("sha256-abc.sig", &["not a hash"], Some(1));
    let plan = carried_out(&memory, &claims(&["keep", "other", "sha256-abc.sig"]), &Options::default()).await;
    let mut expected = vec!["index".to_owned(), about("index", ""), about("index", ".sig"), about("child", ".att")];
    assert_eq!(tags(&plan).first(), Some(&"index"), "images before what is about them: a rest is found again");
    expected.sort();
    let mut went = memory.state().removed.clone();
    went.sort();
    assert_eq!(went, expected);
    assert_eq!(plan.repositories[0].deletions.iter().filter(|going| going.companion).count(), 3);
    assert_eq!(plan.repositories[0].tags, 5, "companions aren't counted");
}

#[tokio::test]
async fn a_registry_that_cannot_delete_tags_needs_consent() {
    let memory = Memory::with(&["1", "2", "keep"]);
    memory.state().by_tag = false;
    let plan = carried_out(&memory, &claims(&["keep"]), &Options::default()).await;
    let error = plan.repositories[0].error.as_ref().expect("an error");
    assert!(error.hint.as_deref().is_some_and(|hint| hint.contains("--prune-manifests")), "{error:?}");
    assert_eq!((memory.left().len(), plan.deletions(), plan.failed()), (3, 0, true));
    let options = Options { manifests: true, ..Options::default() };
    assert_eq!(carried_out(&memory, &claims(&["keep"]), &options).await.deletions(), 2);
    assert_eq!(memory.left(), ["keep"]);
}

#[tokio::test]
async fn a_manifest_that_another_tag_needs_stays() {
    let memory = Memory::with(&[]);
    memory.state().by_tag = false;
    memory.put("keep", &["index", "child"], Some(9));
    memory.put("same", &["index", "child"], Some(9));
    memory.put("part", &["child"], Some(9));
    memory.put("else", &["else"], Some(9));
    let options = Options { manifests: true, ..Options::default() };
    let plan = carried_out(&memory, &claims(&["keep"]), &options).await;
    assert_eq!(memory.left(), ["keep", "part", "same"]);
    let stayed: Vec<_> =
        plan.repositories[0].deletions.iter().map(|going| (going.tag.as_str(), going.kept_reason.is_some())).collect();
    assert_eq!(stayed, [("else", false), ("part", true), ("same", true)]);
}

/// An image that the list holds by digest has no tag of its own; it isn't lost with one that it once had.
#[tokio::test]
async fn what_is_held_by_digest_stays() {
    let signature = format!("sha256-{}.sig", digest("index").hex());
    let memory = Memory::with(&["keep", &signature]);
    memory.put("once", &["index", "child"], Some(9));
    memory.put("part", &["child"], Some(9));
    let mut keep_set = claims(&["keep"]);
    keep_set.keep(&repository("a"), &Target::Digest(digest("index")));
    assert_eq!(tags(&planned(&memory, &keep_set, &Options::default()).await), ["once", "part"], "no signature");
    memory.state().by_tag = false;
    let plan = carried_out(&memory, &keep_set, &Options { manifests: true, ..Options::default() }).await;
    assert_eq!(memory.left().len(), 4);
    let stayed: Vec<_> =
        plan.repositories[0].deletions.iter().filter_map(|going| going.kept_reason.as_deref()).collect();
    assert!(stayed.len() == 2 && stayed.iter().all(|why| why.ends_with("which the list holds")), "{stayed:?}");
}

#[tokio::test]
async fn one_repository_that_fails_leaves_the_others() {
    let (good, bad) = (Memory::with(&["1", "keep"]), Memory::with(&["1", "keep"]));
    bad.state().broken = Some("not for you");
    let mut keep_set = claims(&["keep"]);
    keep_set.keep(&repository("b"), &at("keep"));
    let open = |repository: &Repository| Ok(if repository.name == "a" { bad.clone() } else { good.clone() });
    let mut plan = plan(&keep_set, open, &Options::default(), NOW).await;
    execute(&mut plan, open, &Options::default()).await;
    let error = plan.repositories[0].error.as_ref().expect("an error");
    assert!(
        error.message.contains("destination: cannot see what may be pruned of r.example.com/a: not for you"),
        "{error:?}"
    );
    assert_eq!((good.left(), plan.failed()), (vec!["keep".to_owned()], true));
}

#[tokio::test]
async fn what_other_shards_write_is_not_pruned() {
    let text =
        "docker.io/a/x:1\ndocker.io/a/y:1\ndocker.io/b/x:1 r.example.com/both\ndocker.io/c/x:2 r.example.com/both\n";
    let list = List::read(text, "list").expect("a list");
    let to: [DestinationBase; 1] = ["r.example.com/hub".parse().expect("a destination")];
    let all = KeepSet::of_list(&list, &to, None).expect("claims");
    let names: Vec<String> = all.0.keys().map(ToString::to_string).collect();
    assert_eq!(names, ["r.example.com/both", "r.example.com/hub/a/x", "r.example.com/hub/a/y"]);
    assert!(all.0.values().all(|kept_here| kept_here.doubt.is_none()));
    let (mut named, mut doubted) = (0, BTreeSet::new());
    for number in 1..=16 {
        let shard =
            format!("{number}/16").parse::<crate::mirror::shard::ShardSpec>().and_then(|asked| asked.settle(None));
        let part = KeepSet::of_list(&list, &to, Some(&shard.expect("a shard"))).expect("claims");
        named += part.0.len();
        let doubts = part.0.iter().filter(|(_, kept_here)| kept_here.doubt.is_some());
        doubted.extend(doubts.map(|(repository, _)| repository.to_string()));
    }
    assert_eq!((named, doubted), (4, BTreeSet::from(["r.example.com/both".to_owned()])), "b/x and c/x are apart");
    let mut all = all;
    all.keep_all_of_entry(&list.entries[2], &to, "not listed");
    assert_eq!(all.0.values().filter(|kept_here| kept_here.doubt.is_some()).count(), 1);
}

/// A registry that answers 404 to the second list: what the first one had still counts.
#[tokio::test]
async fn a_manifest_that_a_tag_of_the_first_list_needs_is_not_deleted() {
    let memory = Memory::with(&["keep"]);
    memory.put("old", &["keep"], Some(9));
    (memory.state().by_tag, memory.state().forgets) = (false, true);
    let options = Options { manifests: true, ..Options::default() };
    let mut plan = planned(&memory, &claims(&["keep"]), &options).await;
    execute(&mut plan, |_| Ok(memory.clone()), &options).await;
    assert_eq!(memory.left(), ["keep", "old"]);
    assert_eq!(
        plan.repositories[0].deletions[0].kept_reason.as_deref(),
        Some("its manifest is needed by tag \"keep\"")
    );
}
