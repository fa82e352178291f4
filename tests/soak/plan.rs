//! The schedule of events, from the seed alone.

use std::time::Duration;

use super::random::Random;

/// Something that happens to the programs or to the world around them.
#[derive(Debug, Clone)]
pub(crate) enum Event {
    /// kill -9, then a start on the same cache.
    KillProxy,
    /// The same of the proxy whose disk is too small.
    KillSmallProxy,
    /// kill -9, then a start on the same directory.
    KillServe,
    /// kill -9 of one of the copies that run.
    KillCopy(usize),
    KillMirror,
    HangUpProxy,
    HangUpMirror,
    /// A front takes no connections for so long.
    Refuse {
        source: bool,
        millis: u64,
    },
    /// The source's tag gets its next image.
    MoveTag,
    /// All programs' wall clocks are off by so many seconds from now on.
    SetClock(i64),
    /// So many of 10,000 file operations of the proxies fail from now on.
    SetDiskFaults(u64),
    /// So many of 1,000 requests meet a fault from now on.
    SetFaults(u64),
    /// All tokens of the source are invalid from now on.
    ExpireTokens,
}

pub(crate) struct Plan {
    /// Sorted by time from the start.
    pub(crate) events: Vec<(Duration, Event)>,
}

impl Plan {
    pub(crate) fn new(seed: u64, length: Duration) -> Self {
        let mut events = Vec::new();
        let mut every = |name: &str, mean: f64, until: f64, event: &mut dyn FnMut(&mut Random) -> Event| {
            let mut random = Random::of(seed, name);
            let mut at = 0.5;
            loop {
                at += mean * (0.5 + random.below(1000) as f64 / 1000.0);
                if at > length.as_secs_f64() * until {
                    return;
                }
                events.push((Duration::from_secs_f64(at), event(&mut random)));
            }
        };
        // The last proxy lives long enough that what it leaks would show.
        every("kill-proxy", 6.0, 0.75, &mut |_| Event::KillProxy);
        every("kill-small-proxy", 9.0, 1.0, &mut |_| Event::KillSmallProxy);
        every("kill-serve", 7.0, 1.0, &mut |_| Event::KillServe);
        every("kill-copy", 3.0, 1.0, &mut |random| Event::KillCopy(random.below(16) as usize));
        every("kill-mirror", 8.0, 1.0, &mut |_| Event::KillMirror);
        every("hang-up-proxy", 5.0, 1.0, &mut |_| Event::HangUpProxy);
        every("hang-up-mirror", 6.0, 1.0, &mut |_| Event::HangUpMirror);
        every("refuse", 6.0, 1.0, &mut |random| Event::Refuse {
            source: random.percent(50),
            millis: 100 + random.below(1500),
        });
        every("move", 4.0, 1.0, &mut |_| Event::MoveTag);
        every("clock", 5.0, 1.0, &mut |random| Event::SetClock(*random.pick(&CLOCKS)));
        every("disk", 7.0, 1.0, &mut |random| Event::SetDiskFaults(*random.pick(&DISK_RATES)));
        every("faults", 5.0, 1.0, &mut |random| Event::SetFaults(*random.pick(&RATES)));
        every("tokens", 5.0, 1.0, &mut |_| Event::ExpireTokens);
        events.push((Duration::ZERO, Event::SetFaults(150)));
        events.push((length, Event::SetFaults(0)));
        events.sort_by_key(|(at, _)| *at);
        Self { events }
    }
}

const DAY: i64 = 24 * 3600;

/// Seconds that a clock is off: a correction, daylight saving done wrong, a machine without a battery.
const CLOCKS: [i64; 8] = [0, 5, -5, 3600, -3600, 2 * DAY, -400 * DAY, 3650 * DAY];

const DISK_RATES: [u64; 5] = [0, 0, 50, 300, 1500];

const RATES: [u64; 6] = [20, 60, 150, 250, 400, 600];
