//! Copies and mirrors, one after another. An exit code of 0 is checked at the destination.

use std::time::{Duration, Instant};

use super::checks;
use super::images::{LARGE, Tagged};
use super::random::Random;
use super::support::{Run, Tool};
use super::world::{MIRROR, World};

/// Copies until the run is over.
pub(crate) fn copies(world: &World, number: usize) {
    let mut random = Random::of(world.seed, &format!("copies {number}"));
    while !world.is_over() {
        let tagged = random.pick(&world.truth.tags);
        if is_large(tagged) && !random.percent(10) {
            continue;
        }
        let source = source(world, tagged, random.percent(60));
        let (serve, prefix) = (random.percent(50), "copied");
        let flags = flags(&mut random);
        let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
        let to = destination(world, tagged, serve, prefix);
        let run = run(world, number, world.tool(&[&["copy", &source, &to], &flags[..]].concat()), None);
        let name = if serve { "serve" } else { "target" };
        judge(world, "copy", &run, || checks::holds(world, name, prefix, tagged));
    }
}

/// Mirrors until the run is over: once, or staying for some seconds.
pub(crate) fn mirrors(world: &World) {
    let mut random = Random::of(world.seed, "mirrors");
    let list = world.dir.write("list", list(world));
    while !world.is_over() {
        let to = format!("{}/mirrored", world.target_front.addr());
        let mut args = vec!["mirror", &list, "--to", &to];
        let stays = random.percent(50);
        let time = stays.then(|| Duration::from_millis(3000 + random.below(9000)));
        if stays {
            args.extend(["--interval", "2s", "--listen-ops", "127.0.0.1:0"]);
        } else if random.percent(30) {
            args.push("--force");
        }
        let run = run(world, MIRROR, world.tool(&args), time);
        if stays {
            // SIGTERM ends it in an orderly way, whatever its last run was.
            judge(world, "staying mirror", &run, || Ok(()));
        } else {
            judge(world, "mirror", &run, || checks::mirrored(world));
        }
    }
}

/// The list of the mirrors, without the large image.
fn list(world: &World) -> String {
    let tags = world.truth.tags.iter().filter(|tagged| !is_large(tagged));
    tags.map(|tagged| format!("docker.io/{}:{}\n", tagged.repository, tagged.tag)).collect()
}

/// Docker Hub itself, or the proxy of it.
pub(crate) fn source(world: &World, tagged: &Tagged, itself: bool) -> String {
    match itself {
        true => format!("docker.io/{}:{}", tagged.repository, tagged.tag),
        false => format!("{}/docker.io/{}:{}", world.proxy.addr(), tagged.repository, tagged.tag),
    }
}

pub(crate) fn destination(world: &World, tagged: &Tagged, serve: bool, prefix: &str) -> String {
    let front = if serve { &world.serve_front } else { &world.target_front };
    format!("{}/{prefix}/{}:{}", front.addr(), tagged.repository, tagged.tag)
}

pub(crate) fn is_large(tagged: &Tagged) -> bool {
    tagged.images[0].blobs.iter().any(|blob| blob.bytes.len() == LARGE)
}

fn flags(random: &mut Random) -> Vec<String> {
    let mut flags = vec!["--jobs".to_owned(), (1 + random.below(4)).to_string()];
    flags.extend(["--retries".to_owned(), random.pick(&["1", "4", "8"]).to_string()]);
    if random.percent(40) {
        flags.push("--force".to_owned());
    }
    if random.percent(30) {
        flags.extend(["--chunk-size".to_owned(), "1MiB".to_owned()]);
    }
    flags
}

/// Runs a program where it can be killed. After `time`, or at the end of the run, it is asked to stop.
fn run(world: &World, number: usize, tool: Tool, time: Option<Duration>) -> Run {
    let begun = Instant::now();
    *world.jobs[number].lock().expect("no panic while held") = Some(tool.spawn());
    let mut asked = None;
    loop {
        let mut job = world.jobs[number].lock().expect("no panic while held");
        let process = job.as_mut().expect("a program that was started");
        if !process.is_running() {
            let process = job.take().expect("a program that was started");
            return process.finish(Duration::from_secs(10));
        }
        let due = world.is_over() || time.is_some_and(|time| begun.elapsed() > time);
        if due && asked.is_none() {
            process.terminate();
            asked = Some(Instant::now());
        }
        if asked.is_some_and(|asked| asked.elapsed() > PATIENCE) || begun.elapsed() > LONGEST {
            let told = process.stderr.text();
            world.report.violation(format!("job {number} does not end: {told}"));
            process.kill();
        }
        drop(job);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Whether a program ended as it may under faults, and tells the truth about it.
fn judge(world: &World, what: &str, run: &Run, check: impl FnOnce() -> Result<(), String>) {
    let Run { code, stdout, stderr, .. } = run;
    world.report.count(format!("{what} exited with {code}"));
    if stderr.contains("panicked") {
        world.report.violation(format!("{what} panicked: {stderr}"));
    }
    match code {
        0 => {
            if let Err(why) = check() {
                world.report.violation(format!("{what} exited with 0, but {why}\n{stdout}\n{stderr}"));
            }
        }
        // Failed, partly done, terminated, killed.
        1 | 3 | 130 | 143 | -1 => {}
        _ => world.report.violation(format!("{what} exited with {code}: {stderr}")),
    }
}

/// A program that is asked to stop does so within this time.
const PATIENCE: Duration = Duration::from_secs(60);

/// No program runs longer than this.
const LONGEST: Duration = Duration::from_secs(400);
