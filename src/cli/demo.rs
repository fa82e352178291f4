//! `transload demo`: a complete copy on one machine, without any setup.
//!
//! ```text
//! transload copy ─▶ front: look-alike of Docker Hub ─▶ server ─▶ directory with the fixtures
//!                └▶ front: look-alike of ACR        ─▶ server ─▶ directory, empty at first
//! ```
//!
//! Each command that is shown is parsed and run by the same code as on the command line. The numbers are counted by
//! the registries. The demo reads and writes nothing of the user's but a temporary directory, which is removed at the
//! end.

mod front;
mod render;
mod scratch;
mod stage;
mod tally;

use std::path::Path;
use std::time::Instant;

use clap::Parser as _;

use self::tally::Fault;
use super::global::Global;
use super::{Cli, Command, copy, output};
use crate::content::Source as _;
use crate::demo::fixtures::HELLO_WORLD;
use crate::error::{Error, Kind, Result};
use crate::registry::{Options, Registries};
use front::PlannedFault;
use render::DemoOutput;
use scratch::Scratch;
use stage::{DemoRegistry, REPOSITORY, Stage, TAG, USER};
use tally::{Kind as Seen, Tally};

/// Demonstrate transload with two registries on this machine, without network or account
///
/// Starts a look-alike of Docker Hub with hello-world, and an empty look-alike of Azure Container Registry. Copies from
/// one to the other, copies again, copies during faults, pulls back and compares. Takes about a second, and leaves
/// nothing behind.
#[derive(Clone, Debug, clap::Args)]
pub(super) struct Args {}

/// Runs the command. Returns the exit code: 0 only if every comparison succeeded.
pub(super) async fn run(_: &Args, global: &Global) -> Result<u8> {
    let begun = Instant::now();
    // Dropped last, after everything that writes into it.
    let scratch = Scratch::new()?;
    let (stage, listeners) = Stage::set(scratch.path()).await?;
    let mut demo_output = DemoOutput::new(global);
    let played = tokio::select! {
        played = Box::pin(run_steps(&stage, &mut demo_output, scratch.path())) => played,
        served = listeners.serve() => served,
    };
    if let Err(error) = played {
        // Never the exit code of a usage error, since the user did not write the command.
        demo_output.check(false, "the command failed");
        demo_output.finish(global);
        output::print_error(&error);
        return Ok(1);
    }
    let time = output::format_duration(begun.elapsed());
    if demo_output.all_passed() {
        demo_output
            .print(&format!("\n{} All comparisons held; {time}. Now for real:{NEXT_STEPS}", demo_output.bold("Done.")));
    } else {
        demo_output.print(&format!("\n{} Not every comparison held; {time}.", demo_output.bold("Failed.")));
    }
    demo_output.finish(global);
    Ok(u8::from(!demo_output.all_passed()))
}

async fn run_steps(stage: &Stage, demo_output: &mut DemoOutput, scratch: &Path) -> Result<()> {
    let Stage { hub, acr, poor, .. } = stage;
    demo_output.print(&format!(
        "Registries in this process, on loopback. No network, no account, and nothing stays behind.\n\n  \
         {:5}  {}  like Docker Hub: anonymous tokens, blobs by redirect to a CDN, 100 pulls in 6 h\n  \
         {:5}  {}  like Azure Container Registry: user '{USER}', strict uploads, empty\n  \
         {:5}  {}  the same, with trouble to come",
        hub.name, hub.address, acr.name, acr.address, poor.name, poor.address
    ));
    let image = format!("{}/{REPOSITORY}", hub.address);
    step_copy(stage, demo_output, &image).await?;
    step_copy_unchanged(stage, demo_output, &image).await?;
    step_referrers(stage, demo_output, &image).await?;
    step_faults(stage, demo_output, &image).await?;
    step_pull_back(stage, demo_output, &scratch.join("back")).await
}

async fn step_copy(stage: &Stage, demo_output: &mut DemoOutput, image: &str) -> Result<()> {
    let words = ["copy", image, &stage.acr.address];
    let (hub, acr) =
        run_command(stage, &stage.acr, demo_output, "Copy hello-world, every platform of it", &words).await?;
    check_same_digest(stage, &stage.acr, demo_output).await?;
    let blobs = hub.distinct(Seen::BlobRead);
    let once = blobs == hub.count(Seen::BlobRead) && blobs == acr.count(Seen::BlobWritten);
    demo_output.check(once && blobs > 0, format!("each of the {blobs} blobs was read once and stored once"));
    Ok(())
}

async fn step_copy_unchanged(stage: &Stage, demo_output: &mut DemoOutput, image: &str) -> Result<()> {
    let before = stage.pulls();
    let words = ["copy", image, &stage.acr.address];
    let (hub, acr) = run_command(stage, &stage.acr, demo_output, "Copy it again: nothing to do", &words).await?;
    let asked = hub.asked() + acr.asked();
    let heads = hub.count(Seen::Head) + acr.count(Seen::Head);
    demo_output.check(
        asked == 2 && heads == 2 && stage.pulls() == before,
        format!("{asked} requests beside those for tokens, both HEAD, and no pull counted"),
    );
    Ok(())
}

async fn step_referrers(stage: &Stage, demo_output: &mut DemoOutput, image: &str) -> Result<()> {
    let words = ["copy", image, &stage.acr.address, "--referrers"];
    run_command(stage, &stage.acr, demo_output, "Bring what refers to it: an SBOM", &words).await?;
    let name = REPOSITORY.parse()?;
    let about = |site: &DemoRegistry| {
        let repository = site.store.repository(&name);
        async move { repository.referrers(&stage.digest).await }
    };
    let (here, there) = (about(&stage.hub).await?, about(&stage.acr).await?);
    let digests = |list: &[crate::descriptor::Descriptor]| list.iter().map(|entry| entry.digest).collect::<Vec<_>>();
    demo_output
        .check(!here.is_empty() && digests(&here) == digests(&there), "ACR lists the same referrer of the image");
    Ok(())
}

async fn step_faults(stage: &Stage, demo_output: &mut DemoOutput, image: &str) -> Result<()> {
    let expire = |at| PlannedFault { at, what: Fault::TokensExpire };
    stage.hub.front.plan_faults(&[expire(4)]);
    stage.poor.front.plan_faults(&[PlannedFault { at: 2, what: Fault::SessionIsLost }, expire(7)]);
    let words = ["copy", image, &stage.poor.address];
    let title = "Copy it to the other, while tokens expire at both ends and an upload is lost";
    let (hub, poor) = run_command(stage, &stage.poor, demo_output, title, &words).await?;
    let struck = hub.has_fault(Fault::TokensExpire)
        && poor.has_fault(Fault::TokensExpire)
        && poor.has_fault(Fault::SessionIsLost);
    demo_output.check(struck, "all three happened in the middle of the copy");
    check_same_digest(stage, &stage.poor, demo_output).await
}

async fn step_pull_back(stage: &Stage, demo_output: &mut DemoOutput, back: &Path) -> Result<()> {
    let from = format!("{}/{REPOSITORY}", stage.acr.address);
    let to = format!("oci:{}", back.display());
    run_command(stage, &stage.acr, demo_output, "Pull it back, and compare", &["copy", &from, &to, "--referrers"])
        .await?;
    let blobs = HELLO_WORLD.iter().filter(|file| file.path.starts_with("blobs/"));
    let all = blobs.clone().count();
    let same = blobs.filter(|file| std::fs::read(back.join(file.path)).is_ok_and(|read| read == file.bytes)).count();
    demo_output.check(same == all, format!("{same} of {all} manifests and blobs came back byte for byte"));
    Ok(())
}

async fn check_same_digest(stage: &Stage, site: &DemoRegistry, demo_output: &mut DemoOutput) -> Result<()> {
    let there = site.digest(REPOSITORY).await?;
    let what = format!("{REPOSITORY}:{TAG} is {}:{}… at {} as at the Hub", there.algorithm(), there.short(), site.name);
    demo_output.check(there == stage.digest, what);
    Ok(())
}

/// Runs a command as on the command line, without tokens of earlier ones. Returns the requests that the Hub and
/// `site` counted.
async fn run_command(
    stage: &Stage,
    site: &DemoRegistry,
    demo_output: &mut DemoOutput,
    title: &'static str,
    words: &[&str],
) -> Result<(Tally, Tally)> {
    demo_output.step(title, &format!("transload {}", words.join(" ")));
    let mut line = vec!["transload"];
    line.extend(words);
    if !demo_output.is_text() {
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
    demo_output.counted_by_hub(stage.hub.name, &hub, stage.pulls() - before);
    demo_output.counted_by(site.name, &other);
    if code != 0 {
        demo_output.check(false, format!("exit code {code}"));
    }
    Ok((hub, other))
}

const NEXT_STEPS: &str = "

  transload login myregistry.azurecr.io --username NAME --password-stdin < password.txt
  transload copy hello-world myregistry.azurecr.io";
