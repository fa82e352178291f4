//! `transload demo`: the whole way, on one machine, with nothing to set up.
//!
//! ```text
//! transload copy ─▶ front: Docker Hub's look-alike ─▶ server ─▶ directory of the fixtures
//!                └▶ front: ACR's look-alike        ─▶ server ─▶ directory, empty at first
//! ```
//!
//! Each command that is shown is parsed and run as if it had been typed, by the same code. What is
//! counted was counted by the registries. Nothing of the user is read or written but a temporary
//! directory, which is removed at the end.

mod front;
mod scratch;
mod stage;
mod tale;
mod tally;

use std::path::Path;
use std::time::Instant;

use clap::Parser as _;

use super::global::Global;
use super::{Cli, Command, copy, output};
use crate::content::Source as _;
use crate::demo::fixtures::HELLO_WORLD;
use crate::error::{Error, Kind, Result};
use crate::registry::{Options, Registries};
use front::{Trouble, What};
use scratch::Scratch;
use stage::{REPOSITORY, Site, Stage, TAG, USER};
use tale::Tale;
use tally::{Kind as Seen, Tally};

/// Demonstrate transload with two registries on this machine, without network or account
///
/// Starts a look-alike of Docker Hub with hello-world, and an empty look-alike of Azure Container Registry. Copies from
/// one to the other, copies again, copies during faults, pulls back and compares. Takes about a second, and leaves
/// nothing behind.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {}

/// Runs the command; returns the exit code: 0 only if every comparison held.
pub(super) async fn run(_: &Args, global: &Global) -> Result<u8> {
    let begun = Instant::now();
    // Dropped last: what writes into it is gone by then.
    let scratch = Scratch::new()?;
    let (stage, listeners) = Stage::set(scratch.path()).await?;
    let mut tale = Tale::new(global);
    let played = tokio::select! {
        played = Box::pin(play(&stage, &mut tale, scratch.path())) => played,
        served = listeners.serve() => served,
    };
    if let Err(error) = played {
        // Whatever it is, the user didn't ask for it: never the exit code of a usage error.
        tale.check(false, "the command failed");
        tale.end(global);
        output::error(&error);
        return Ok(1);
    }
    let time = output::time(begun.elapsed());
    if tale.held() {
        tale.say(&format!("\n{} All comparisons held; {time}. Now for real:{FOR_REAL}", tale.bold("Done.")));
    } else {
        tale.say(&format!("\n{} Not every comparison held; {time}.", tale.bold("Failed.")));
    }
    tale.end(global);
    Ok(u8::from(!tale.held()))
}

async fn play(stage: &Stage, tale: &mut Tale, scratch: &Path) -> Result<()> {
    let Stage { hub, acr, poor, .. } = stage;
    tale.say(&format!(
        "Registries in this process, on loopback. No network, no account, and nothing stays behind.\n\n  \
         {:5}  {}  like Docker Hub: anonymous tokens, blobs by redirect to a CDN, 100 pulls in 6 h\n  \
         {:5}  {}  like Azure Container Registry: user '{USER}', strict uploads, empty\n  \
         {:5}  {}  the same, with trouble to come",
        hub.name, hub.address, acr.name, acr.address, poor.name, poor.address
    ));
    let image = format!("{}/{REPOSITORY}", hub.address);
    copies(stage, tale, &image).await?;
    copies_again(stage, tale, &image).await?;
    brings_referrers(stage, tale, &image).await?;
    survives(stage, tale, &image).await?;
    pulls_back(stage, tale, &scratch.join("back")).await
}

async fn copies(stage: &Stage, tale: &mut Tale, image: &str) -> Result<()> {
    let words = ["copy", image, &stage.acr.address];
    let (hub, acr) = typed(stage, &stage.acr, tale, "Copy hello-world, every platform of it", &words).await?;
    same_digest(stage, &stage.acr, tale).await?;
    let blobs = hub.distinct(Seen::BlobRead);
    let once = blobs == hub.count(Seen::BlobRead) && blobs == acr.count(Seen::BlobWritten);
    tale.check(once && blobs > 0, format!("each of the {blobs} blobs was read once and stored once"));
    Ok(())
}

async fn copies_again(stage: &Stage, tale: &mut Tale, image: &str) -> Result<()> {
    let before = stage.pulls();
    let words = ["copy", image, &stage.acr.address];
    let (hub, acr) = typed(stage, &stage.acr, tale, "Copy it again: nothing to do", &words).await?;
    let asked = hub.asked() + acr.asked();
    let heads = hub.count(Seen::Head) + acr.count(Seen::Head);
    tale.check(
        asked == 2 && heads == 2 && stage.pulls() == before,
        format!("{asked} requests beside those for tokens, both HEAD, and no pull counted"),
    );
    Ok(())
}

async fn brings_referrers(stage: &Stage, tale: &mut Tale, image: &str) -> Result<()> {
    let words = ["copy", image, &stage.acr.address, "--referrers"];
    typed(stage, &stage.acr, tale, "Bring what refers to it: an SBOM", &words).await?;
    let name = REPOSITORY.parse()?;
    let about = |site: &Site| {
        let repository = site.store.repository(&name);
        async move { repository.referrers(&stage.digest).await }
    };
    let (here, there) = (about(&stage.hub).await?, about(&stage.acr).await?);
    let digests = |list: &[crate::descriptor::Descriptor]| list.iter().map(|entry| entry.digest).collect::<Vec<_>>();
    tale.check(!here.is_empty() && digests(&here) == digests(&there), "ACR lists the same referrer of the image");
    Ok(())
}

async fn survives(stage: &Stage, tale: &mut Tale, image: &str) -> Result<()> {
    let expire = |at| Trouble { at, what: What::TokensExpire };
    stage.hub.front.order(&[expire(4)]);
    stage.poor.front.order(&[Trouble { at: 2, what: What::SessionIsLost }, expire(7)]);
    let words = ["copy", image, &stage.poor.address];
    let title = "Copy it to the other, while tokens expire at both ends and an upload is lost";
    let (hub, poor) = typed(stage, &stage.poor, tale, title, &words).await?;
    let struck = hub.has_struck(What::TokensExpire)
        && poor.has_struck(What::TokensExpire)
        && poor.has_struck(What::SessionIsLost);
    tale.check(struck, "all three happened in the middle of the copy");
    same_digest(stage, &stage.poor, tale).await
}

async fn pulls_back(stage: &Stage, tale: &mut Tale, back: &Path) -> Result<()> {
    let from = format!("{}/{REPOSITORY}", stage.acr.address);
    let to = format!("oci:{}", back.display());
    typed(stage, &stage.acr, tale, "Pull it back, and compare", &["copy", &from, &to, "--referrers"]).await?;
    let blobs = HELLO_WORLD.iter().filter(|file| file.path.starts_with("blobs/"));
    let all = blobs.clone().count();
    let same = blobs.filter(|file| std::fs::read(back.join(file.path)).is_ok_and(|read| read == file.bytes)).count();
    tale.check(same == all, format!("{same} of {all} manifests and blobs came back byte for byte"));
    Ok(())
}

async fn same_digest(stage: &Stage, site: &Site, tale: &mut Tale) -> Result<()> {
    let there = site.digest(REPOSITORY).await?;
    let what = format!("{REPOSITORY}:{TAG} is {}:{}… at {} as at the Hub", there.algorithm(), there.short(), site.name);
    tale.check(there == stage.digest, what);
    Ok(())
}

/// Runs a command as if it had been typed, and returns what the Hub and `site` saw of it. As a
/// program would, it begins without any token.
async fn typed(
    stage: &Stage,
    site: &Site,
    tale: &mut Tale,
    title: &'static str,
    words: &[&str],
) -> Result<(Tally, Tally)> {
    tale.step(title, &format!("transload {}", words.join(" ")));
    let mut line = vec!["transload"];
    line.extend(words);
    if !tale.is_aloud() {
        line.push("--quiet");
    }
    let wrong = |error: clap::Error| Error::new(Kind::Usage, error.to_string());
    let cli = Cli::try_parse_from(line).map_err(wrong)?;
    let Command::Copy(args) = &cli.command else {
        return Err(Error::new(Kind::Usage, "only copies are shown"));
    };
    let registries = Registries::new(Options { credentials: site.credentials()?, ..Options::default() });
    let before = stage.pulls();
    let code = Box::pin(copy::run(args, &cli.global, &registries)).await?;
    let (hub, other) = (stage.hub.front.take_tally(), site.front.take_tally());
    tale.counted_by_hub(stage.hub.name, &hub, stage.pulls() - before);
    tale.counted_by(site.name, &other);
    if code != 0 {
        tale.check(false, format!("exit code {code}"));
    }
    Ok((hub, other))
}

const FOR_REAL: &str = "

  transload login myregistry.azurecr.io --username NAME --password-stdin < password.txt
  transload copy hello-world myregistry.azurecr.io";
