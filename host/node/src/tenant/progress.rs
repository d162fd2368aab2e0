//! Logs corrections: that they have started, how far they are, and that they are finished.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::periodic_checks::EVERY;
use crate::pool::Shards;
use crate::tenant::RunningPipelines;

/// How often the progress is checked. Corrections that finish sooner are not logged, except
/// those of a new pipeline.
const CHECK_EVERY: Duration = Duration::from_secs(1);

/// How often the progress is logged.
const LOG_EVERY: Duration = Duration::from_secs(10);

/// The progress of corrections.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// How many users must still be decided again.
    backlog: u64,
    /// The newest pipeline that has decided on all users, on every shard.
    settled: u64,
    /// How many correction messages have been published.
    messages: u64,
}

impl Progress {
    fn of(shards: &Shards) -> Self {
        let settled = shards.iter().map(|shard| &shard.figures.settled);
        let settled = settled.map(|generation| generation.load(Ordering::Relaxed));
        Self {
            backlog: shards.total(|figures| &figures.backlog),
            settled: settled.min().unwrap_or_default(),
            messages: shards.counters().map(|counters| counters.corrections).sum(),
        }
    }
}

/// Corrections that take longer than one check.
struct LongCorrection {
    since: Instant,
    /// How many correction messages had been published before.
    messages: u64,
    logged_at: Instant,
}

/// Follows the corrections of a tenant.
pub(crate) struct Corrections {
    shards: Shards,
    running: watch::Receiver<RunningPipelines>,
    settled: u64,
    last: Progress,
    long: Option<LongCorrection>,
    look_at: Instant,
}

impl Corrections {
    pub(crate) fn new(shards: Shards, running: watch::Receiver<RunningPipelines>) -> Self {
        let settled = running.borrow().generation;
        Self {
            shards,
            running,
            settled,
            last: Progress::default(),
            long: None,
            look_at: Instant::now(),
        }
    }

    /// Logs the progress, if it is time. Returns whether the tenant still runs.
    pub(crate) fn check(&mut self) -> bool {
        let now = Instant::now();
        if now < self.look_at {
            return true;
        }
        // This is half a caller's interval early, so that a call that comes a little early still
        // counts.
        self.look_at = now + CHECK_EVERY - EVERY / 2;
        self.log(now);
        self.running.has_changed().is_ok()
    }

    fn log(&mut self, now: Instant) {
        let before = std::mem::replace(&mut self.last, Progress::of(&self.shards));
        let (last, users) = (self.last, self.last.backlog);
        if users > 0 {
            match &mut self.long {
                None if before.backlog > 0 => {
                    tracing::info!(users, "correction started: deciding again for online users");
                    self.long = Some(LongCorrection {
                        since: now,
                        messages: before.messages,
                        logged_at: now,
                    });
                }
                Some(long) if now - long.logged_at >= LOG_EVERY => {
                    let messages = last.messages - long.messages;
                    tracing::info!(users, messages, "correction in progress");
                    long.logged_at = now;
                }
                _ => {}
            }
        } else if self.long.is_some() || last.settled > self.settled {
            self.settled = last.settled;
            let (since, messages) = match self.long.take() {
                Some(long) => (long.since, long.messages),
                None => (now, before.messages),
            };
            tracing::info!(
                generation = self.settled,
                messages = last.messages - messages,
                seconds = (now - since).as_secs(),
                "correction finished: all online users were decided again"
            );
        }
    }
}
