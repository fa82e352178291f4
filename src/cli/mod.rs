//! The commands. The only place that wires the parts together, reads the environment, and writes
//! to the terminal.
//!
//! Exit codes: 0 all done, 1 failed, 2 usage, 3 partly done, 130 interrupted.

#![expect(clippy::disallowed_methods, reason = "the command line reads the environment")]

mod copy;
mod demo;
mod faults;
mod global;
mod image;
mod inspect;
mod interval;
mod k8s;
mod login;
mod logs;
mod mirror;
mod node;
mod output;
mod progress;
mod proxy;
mod prune;
mod render;
mod serve;
mod shell;
mod watchdog;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::error::{Error, Kind, Result};
use crate::registry::{Options, Registries};
use global::Global;

/// Copies container images from registry to registry: streamed and verified, in one step.
#[derive(Debug, Parser)]
#[command(name = "transload", version, max_term_width = 100, arg_required_else_help = true, after_help = AFTER_HELP)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Copy(copy::Args),
    Mirror(Box<mirror::Args>),
    Diff(mirror::diff::Args),
    Login(login::Login),
    Logout(login::Logout),
    Inspect(inspect::InspectArgs),
    Tags(inspect::TagsArgs),
    Serve(serve::Args),
    Proxy(Box<proxy::Args>),
    K8s(k8s::Command),
    Node(node::Command),
    Demo(demo::Args),
    Completions(shell::CompletionsArgs),
    Man(shell::ManArgs),
}

impl Command {
    /// Whether it runs until it is asked to stop, and then ends by itself.
    fn stays(&self) -> bool {
        match self {
            Self::Serve(_) => true,
            Self::Proxy(args) => args.stays(),
            Self::Mirror(args) => args.is_scheduled(),
            _ => false,
        }
    }
}

/// Parses the arguments, runs the command, prints its error.
pub fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            return ExitCode::from(if error.use_stderr() { 2 } else { 0 });
        }
    };
    faults::shift_clock();
    // The demo makes trouble on purpose; warnings of it would only frighten.
    let calm = matches!(cli.command, Command::Demo(_));
    logs::init(&cli.global, calm, cli.command.stays());
    match runtime(&cli.command).and_then(|runtime| {
        let code = runtime.block_on(until_interrupted(&cli));
        // A write that is under way may end, so that its file is kept for the next run. A file operation or name look-up
        // that hangs must not keep the program.
        match &code {
            Err(error) if error.kind() == Kind::Interrupted => runtime.shutdown_timeout(SHUTDOWN_TIMEOUT),
            _ => runtime.shutdown_background(),
        }
        code
    }) {
        Ok(code) => match output::output_error() {
            Some(error) if code == 0 => {
                output::print_error(error);
                ExitCode::from(error.exit_code())
            }
            _ => ExitCode::from(code),
        },
        Err(error) => {
            output::print_error(&error);
            ExitCode::from(error.exit_code())
        }
    }
}

/// The whole command line, for completions, the manual and the tests of the documents.
pub fn command() -> clap::Command {
    Cli::command()
}

async fn until_interrupted(cli: &Cli) -> Result<u8> {
    if let Command::Demo(args) = &cli.command {
        // Before the user's credentials are read: a broken file of theirs is nothing to it.
        return tokio::select! {
            result = Box::pin(demo::run(args, &cli.global)) => result,
            signal = interrupt_signal() => Err(Error::new(Kind::Interrupted, format!("interrupted by {signal}"))),
        };
    }
    if let Command::Node(command) = &cli.command {
        // Has to do with no registry. It stops by itself, in the middle of no file.
        return node::run(command, interrupt_signal()).await;
    }
    if let Command::Mirror(args) = &cli.command
        && let Some(done) = args.run_offline(&cli.global)
    {
        return done;
    }
    if let Command::Proxy(args) = &cli.command
        && let Some(done) = args.run_offline()
    {
        return done;
    }
    if let Command::Proxy(args) = &cli.command
        && let Some(action) = args.admin()
    {
        return tokio::select! {
            result = Box::pin(proxy::admin(action, &cli.global)) => result,
            signal = interrupt_signal() => Err(Error::new(Kind::Interrupted, format!("interrupted by {signal}"))),
        };
    }
    let options = cli.global.options()?;
    let registries = Registries::new(match &cli.command {
        Command::Copy(args) => Options { chunk_size: args.chunk_size, pin_pushes: true, ..options },
        Command::Mirror(args) => args.options(options)?,
        Command::Proxy(args) => match args.warm() {
            Some(warm) => warm.options(options),
            None => options,
        },
        _ => options,
    });
    let run = async {
        match &cli.command {
            Command::Copy(args) => Box::pin(copy::run(args, &cli.global, &registries)).await,
            Command::Mirror(args) => Box::pin(mirror::run(args, &cli.global, &registries)).await,
            Command::Diff(args) => Box::pin(mirror::diff::run(args, &cli.global, &registries)).await,
            Command::Login(args) => {
                let verify = async |registry: &str, credential: &crate::credentials::Credential| {
                    cli.global.registries_as(registry, credential)?.verify(registry).await
                };
                let azure = async |registry: &str| registries.azure_refresh_token(registry).await;
                let settings = cli.global.settings()?;
                Box::pin(login::login(args, &settings, &mut login::Console, verify, azure)).await.map(|()| 0)
            }
            Command::Logout(args) => {
                login::logout(args, &cli.global.settings()?, &mut login::Console).await.map(|()| 0)
            }
            Command::Inspect(args) => Box::pin(inspect::inspect(args, &cli.global, &registries)).await,
            Command::Tags(args) => Box::pin(inspect::tags(args, &cli.global, &registries)).await,
            Command::K8s(command) => k8s::run(command, &cli.global).await,
            Command::Completions(args) => shell::completions(args),
            Command::Man(args) => shell::man(args),
            // Its own way to stop: what is being served is ended first.
            Command::Serve(args) => Box::pin(serve::run(args.clone(), stop_signal())).await.map(|()| 0),
            Command::Proxy(args) if args.warm().is_some() => {
                Box::pin(proxy::warm(args, &cli.global, &registries)).await
            }
            Command::Proxy(args) => {
                Box::pin(proxy::run((**args).clone(), &cli.global, stop_signal())).await.map(|()| 0)
            }
            // Run above.
            Command::Demo(_) | Command::Node(_) => Ok(0),
        }
    };
    let drains = cli.command.stays();
    let again = second_interrupt();
    // Counted while the copies are still there.
    let interrupted = interrupt_signal();
    let interrupted = async {
        let signal = interrupted.await;
        (signal, progress::kept())
    };
    watchdog::start();
    let result = tokio::select! {
        result = run => result,
        // Whoever asks twice doesn't want to wait for the end of what is under way.
        signal = again, if drains => return Err(Error::new(Kind::Interrupted, format!("interrupted again by {signal}"))),
        (signal, kept) = interrupted, if !drains => {
            let error = Error::new(Kind::Interrupted, format!("interrupted by {signal}"));
            Err(match kept {
                Some(kept) => error.hint(kept),
                None => error,
            })
        }
    };
    tokio::select! {
        () = registries.abandon_uploads() => {}
        // Whoever asks again doesn't want to wait for that.
        _ = interrupt_signal() => {}
    }
    result
}

/// Returns when the user or the system asks to stop.
/// From the call on, not from the first poll: what is done in between isn't cut off.
fn interrupt_signal() -> impl Future<Output = &'static str> {
    let signals = Signals::new();
    async {
        let Some(mut signals) = signals else { return std::future::pending().await };
        let signal = signals.next().await;
        watchdog::seen();
        signal
    }
}

/// The signals that ask a program to stop.
struct Signals {
    int: Signal,
    term: Signal,
}

impl Signals {
    /// Those that come from the call on. `None` if the system gives none.
    fn new() -> Option<Self> {
        let (int, term) = (signal(SignalKind::interrupt()).ok()?, signal(SignalKind::terminate()).ok()?);
        Some(Self { int, term })
    }

    /// The name of the next one.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.int.recv() => "SIGINT",
            _ = self.term.recv() => "SIGTERM",
        }
    }
}

/// The same, from the call on: a signal that comes while the listeners are opened is not lost.
fn stop_signal() -> impl Future<Output = ()> {
    let stop = interrupt_signal();
    async move {
        let _ = stop.await;
    }
}

/// Returns when the user or the system asks to stop for the second time, counted from the call on.
fn second_interrupt() -> impl Future<Output = &'static str> {
    let signals = Signals::new();
    async {
        let Some(mut signals) = signals else { return std::future::pending().await };
        signals.next().await;
        watchdog::seen();
        signals.next().await
    }
}

/// Has glibc keep some memory that is freed, rather than give it back and get it anew, page by page, for the next bytes
/// that a connection receives: that is a twelfth of what a blob's way through the proxy's cache costs.
///
/// A block that is mapped by itself makes it so when it's freed: blocks of its size aren't mapped by themselves any more,
/// and twice as much stays at a heap's end (mallopt(3), "M_MMAP_THRESHOLD"). No page of it is touched.
fn keep_freed_memory() {
    const RETAINED_HEAP: usize = 4 << 20;
    drop(std::hint::black_box(Vec::<u8>::with_capacity(RETAINED_HEAP)));
}

/// A runtime with threads for the command.
///
/// A blob passes from the source's connection to the destination's: where they wake each other on
/// two threads, the hand-over costs some 5 % of the CPU time. So a client takes half of the cores, which
/// is still far beyond its network; who serves many takes all.
fn runtime(command: &Command) -> Result<tokio::runtime::Runtime> {
    keep_freed_memory();
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let serves = matches!(command, Command::Serve(_) | Command::Proxy(_) | Command::Demo(_));
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(if serves { cores } else { cores.div_ceil(2) })
        .enable_all()
        .build()
        .map_err(|error| Error::io("start the runtime", &error))
}

/// What an interrupted command waits for file operations that are under way.
const SHUTDOWN_TIMEOUT: std::time::Duration = std::time::Duration::from_millis(500);

const AFTER_HELP: &str = "\
Exit codes: 0 all done, 1 failed, 2 usage, 3 partly done, 130 interrupted.

Examples:
  transload copy hello-world myregistry.azurecr.io
  transload copy nginx:1.27 myregistry.azurecr.io/web/nginx --platform linux/amd64,linux/arm64
  transload copy ghcr.io/o/r:v1 oci:./images";
