//! `--interval`: a mirror that stays, and what it says to those who operate it.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio::sync::Notify;

use super::{interrupt_signal, output, serve};
use crate::error::{Error, Kind, Result, Side};
use crate::mirror::metrics::Metrics;
use crate::mirror::report::RunReport;
use crate::mirror::schedule::{self, Event, ListFile, Schedule};
use crate::ops::{self, Health};
use crate::panics;

/// When to run again, and where to say how it goes.
#[derive(Clone, Debug, clap::Args)]
#[group(skip)]
pub(super) struct Args {
    /// Repeat the run at this interval, such as 90s, 6h or 1d; also when the list changes, and on SIGHUP
    #[arg(long, value_name = "DURATION", value_parser = parse_interval, help_heading = HELP_HEADING)]
    interval: Option<Duration>,
    /// Serve /healthz, /readyz and /metrics at this address, such as 127.0.0.1:9090
    #[arg(long, value_name = "ADDRESS", requires = "interval", help_heading = HELP_HEADING)]
    listen_ops: Option<String>,
}

impl Args {
    /// Whether it stays: then it ends by itself when it's asked to stop, see [`Self::run`].
    pub(super) fn is_scheduled(&self) -> bool {
        self.interval.is_some()
    }

    /// Runs the list of `file` on schedule until SIGINT or SIGTERM. `once` makes one run and tells its
    /// report; it may have the metrics observe what moves.
    ///
    /// # Errors
    /// If the list is wrong in the beginning, or the address can't be listened at. That a run failed is
    /// told, and the next one comes.
    pub(super) async fn run<L>(
        &self,
        file: &Path,
        parse: impl Fn(&[u8]) -> Result<L>,
        mut once: impl AsyncFnMut(&L, &Metrics) -> Result<RunReport>,
    ) -> Result<u8> {
        if file == Path::new("-") {
            return Err(Error::new(Kind::Usage, "--interval reads its list again, which stdin can't give")
                .on(Side::Local)
                .hint("write the list into a file"));
        }
        let listener = match &self.listen_ops {
            Some(address) => Some(listen(address).await?),
            None => None,
        };
        let (hangup, mut registry) = (Notify::new(), Registry::default());
        let state = State::new(Metrics::new(&mut registry));
        let run = async |list: &L| match panics::catch_panic(Box::pin(once(list, &state.metrics))).await {
            Ok(run) => state.metrics.run_finished(&run),
            Err(error) => output::print_error(&error),
        };
        let schedule = Schedule::new(self.interval.unwrap_or(MIN_INTERVAL));
        let stop = async {
            let signal = interrupt_signal().await;
            output::note(&format!("{signal}: stopping; what was moved stays"));
        };
        let origin = ListFile(file.to_owned());
        let runs = schedule::run_every(&schedule, &origin, parse, run, &hangup, stop, |event| state.on_event(&event));
        let ops = async {
            match listener {
                Some(listener) => {
                    ops::serve(listener, state.health.clone(), Arc::new(registry), std::future::pending()).await
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            ended = runs => ended.map(|()| 0),
            ended = ops => ended.map(|()| 0),
            () = forward_hangups(&hangup) => Ok(0),
        }
    }
}

/// Binds, and says where: whoever gave port 0 must know.
pub(super) async fn listen(address: &str) -> Result<TcpListener> {
    let listener = serve::bind(address).await?;
    let bound = listener.local_addr().map_err(|error| Error::io("listen", &error))?;
    output::note(&format!("answering /healthz, /readyz and /metrics on http://{bound}"));
    Ok(listener)
}

/// How it goes.
struct State {
    metrics: Metrics,
    health: Health,
    /// Whether the first run is done, and what is wrong with the list as it is now.
    seen: std::sync::Mutex<(bool, Option<String>)>,
}

impl State {
    fn new(metrics: Metrics) -> Self {
        Self { metrics, health: Health::unready_from_start(NOT_READY_REASON), seen: std::sync::Mutex::default() }
    }

    fn on_event(&self, event: &Event<'_>) {
        let mut seen = self.seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        match event {
            Event::Loaded => seen.1 = None,
            Event::Rejected(error) => {
                output::print_error(error);
                output::note("the list as it is now is not taken; the last good one is kept");
                seen.1 = Some(format!("the list as it is now is not taken: {error}"));
            }
            Event::Begun => tracing::info!("a run begins"),
            Event::Ended => seen.0 = true,
            Event::Next(wait) => {
                self.metrics.next_run_in(*wait);
                tracing::info!("the next run is due in {}", output::format_duration(*wait));
            }
        }
        self.metrics.list_read(seen.1.is_none());
        match &*seen {
            (_, Some(why)) => self.health.set_unready(why.as_str()),
            (false, None) => self.health.set_unready(NOT_READY_REASON),
            (true, None) => self.health.set_ready(),
        }
    }
}

/// Passes each SIGHUP on. Never ready.
async fn forward_hangups(notify: &Notify) {
    use tokio::signal::unix::{SignalKind, signal};
    if let Ok(mut hangup) = signal(SignalKind::hangup()) {
        while hangup.recv().await.is_some() {
            notify.notify_one();
        }
    }
    std::future::pending().await
}

fn parse_interval(text: &str) -> Result<Duration> {
    let every = schedule::parse_duration(text)?;
    if every < MIN_INTERVAL {
        return Err(Error::new(Kind::Usage, format!("{text} is too short an interval"))
            .hint("each run asks the registries for every tag: take a second at least, and hours rather"));
    }
    Ok(every)
}

const MIN_INTERVAL: Duration = Duration::from_secs(1);
const NOT_READY_REASON: &str = "the first run is not done yet";
const HELP_HEADING: &str = "Schedule";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_after_the_first_run_with_a_good_list() {
        let state = State::new(Metrics::default());
        let broken = Error::new(Kind::Usage, "line 3: what is this?");
        let mut told = Vec::new();
        for event in [
            Event::Loaded,
            Event::Begun,
            Event::Rejected(&broken),
            Event::Ended,
            Event::Loaded,
            Event::Next(Duration::from_secs(5)),
        ] {
            state.on_event(&event);
            told.push(state.health.unready_reason().unwrap_or_default());
        }
        let bad = "the list as it is now is not taken: line 3: what is this?";
        assert_eq!(told, [NOT_READY_REASON, NOT_READY_REASON, bad, bad, "", ""]);
    }

    #[test]
    fn intervals() {
        assert_eq!(parse_interval("6h").ok(), Some(Duration::from_secs(21600)));
        assert!(parse_interval("10ms").is_err() && parse_interval("x").is_err());
    }
}
