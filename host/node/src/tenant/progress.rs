//! What the log says of corrections: that they go on, how far they are, and that
//! they are done.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::pool::Shards;
use crate::tenant::Running;

/// How often the progress is checked. Corrections that finish sooner are not logged, except
/// those of a new pipeline.
const LOOK: Duration = Duration::from_secs(1);

/// How often the progress is logged.
const TELL: Duration = Duration::from_secs(10);

/// How far corrections are.
#[derive(Clone, Copy, Default)]
struct Progress {
    /// How many users are still to be decided on again.
    backlog: u64,
    /// The pipeline by which everyone has been decided on.
    settled: u64,
    /// How many messages went out.
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

/// Corrections that take longer.
struct Long {
    since: Instant,
    /// How many messages had gone out before.
    messages: u64,
    told_at: Instant,
}

/// Follows corrections for as long as the node runs.
pub(crate) async fn follow(shards: Shards, running: watch::Receiver<Running>) {
    let mut settled = running.borrow().generation;
    let mut last = Progress::default();
    let mut long: Option<Long> = None;
    let mut looks = tokio::time::interval(LOOK);
    loop {
        let now = looks.tick().await;
        let before = std::mem::replace(&mut last, Progress::of(&shards));
        let users = last.backlog;
        if users > 0 {
            match &mut long {
                None if before.backlog > 0 => {
                    tracing::info!(users, "correction started: deciding again for online users");
                    long = Some(Long {
                        since: now,
                        messages: before.messages,
                        told_at: now,
                    });
                }
                Some(long) if now - long.told_at >= TELL => {
                    let messages = last.messages - long.messages;
                    tracing::info!(users, messages, "correction in progress");
                    long.told_at = now;
                }
                _ => {}
            }
        } else if long.is_some() || last.settled > settled {
            settled = last.settled;
            let (since, messages) = match long.take() {
                Some(long) => (long.since, long.messages),
                None => (now, before.messages),
            };
            tracing::info!(
                generation = settled,
                messages = last.messages - messages,
                seconds = (now - since).as_secs(),
                "correction finished: all online users were decided again"
            );
        }
    }
}
