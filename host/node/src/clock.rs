//! The host's two clocks.
//!
//! *Now* is the clock for durations. It starts at the wall time of the process's start, goes on
//! while the machine sleeps, and isn't moved when somebody sets the machine's clock. *Wall time* is
//! the machine's clock, for message bodies and for rules about the time of day. A task tells the
//! shards how far the two are apart.

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use presence_config::CLOCK_OFFSET_FILE;
use presence_core::Input;
use rustix::time::{ClockId, clock_gettime};
use tokio::sync::watch::{Receiver, Sender, channel};

use crate::pool::Shards;
use crate::tasks::Tasks;

/// How often the two clocks are compared.
const CHECK_EVERY: Duration = Duration::from_millis(500);

/// By how much the distance of the clocks must change before the shards are told, in milliseconds.
const DRIFT_MS: u64 = 20;

/// From this change on, in milliseconds, the clock counts as having been set: no clock drifts so
/// far between two comparisons.
const JUMP_MS: u64 = 500;

/// The longest time for reading both clocks. A comparison that took longer is dropped.
const READING_MAX: Duration = Duration::from_millis(5);

/// The values of the clocks when the process first asked for the time.
struct Start {
    since_boot: Duration,
    /// In microseconds. With whole milliseconds, the two clocks would tick at different moments.
    wall_us: u64,
    offset_file: Option<PathBuf>,
}

static START: LazyLock<Start> = LazyLock::new(|| {
    let offset_file = std::env::var_os(CLOCK_OFFSET_FILE).map(PathBuf::from);
    Start {
        since_boot: since_boot(),
        wall_us: wall_us(offset_file.as_ref()),
        offset_file,
    }
});

/// The monotonic time in milliseconds: the Unix time at which the process started, plus the time
/// since then. Nobody can set it.
#[must_use]
pub fn now_ms() -> u64 {
    // The first call initializes this, before it reads the clock.
    let start = &*START;
    let elapsed = since_boot().saturating_sub(start.since_boot).as_micros();
    let elapsed = u64::try_from(elapsed).unwrap_or(u64::MAX);
    start.wall_us.saturating_add(elapsed) / 1_000
}

/// The wall time, in microseconds since the Unix epoch.
pub(crate) fn wall_now_us() -> u64 {
    wall_us(START.offset_file.as_ref())
}

/// The processor time that this thread has used.
pub(crate) fn thread_cpu() -> Duration {
    let used = clock_gettime(ClockId::ThreadCPUTime);
    used.try_into().unwrap_or_default()
}

/// The time since the machine booted, including the time in which it slept.
fn since_boot() -> Duration {
    #[cfg(any(target_os = "linux", target_os = "android"))]
    let clock = ClockId::Boottime;
    #[cfg(not(any(target_os = "linux", target_os = "android")))]
    let clock = ClockId::Monotonic;
    let at = clock_gettime(clock);
    let seconds = u64::try_from(at.tv_sec).unwrap_or_default();
    let nanos = u32::try_from(at.tv_nsec).unwrap_or_default();
    Duration::new(seconds, nanos)
}

/// The wall time with the offset of a file added, in microseconds since the Unix epoch.
fn wall_us(offset_file: Option<&PathBuf>) -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let wall_us = u64::try_from(since.as_micros()).unwrap_or(u64::MAX);
    let offset = offset_file.and_then(|path| std::fs::read_to_string(path).ok());
    let offset_ms: Option<i64> = offset.and_then(|text| text.trim().parse().ok());
    wall_us.saturating_add_signed(offset_ms.unwrap_or(0).saturating_mul(1_000))
}

/// By how much wall time is ahead of [`now_ms`], in milliseconds. `None` if reading both took too
/// long, because something else had the processor.
fn ahead_ms() -> Option<i64> {
    let before = Instant::now();
    let now = now_ms();
    let wall_ms = wall_now_us() / 1_000;
    let took = before.elapsed();
    (took <= READING_MAX).then(|| signed(wall_ms).saturating_sub(signed(now)))
}

fn signed(ms: u64) -> i64 {
    i64::try_from(ms).unwrap_or(i64::MAX)
}

/// Follows by how much wall time is ahead of [`now_ms`], in milliseconds. Drift is followed
/// silently; if the clock was set, that is logged.
pub(crate) fn watch(tasks: &Tasks) -> Receiver<i64> {
    let (ahead, known) = channel(0);
    tasks.spawn("clock", follow_offset(ahead));
    known
}

async fn follow_offset(known: Sender<i64>) {
    let mut look = tokio::time::interval(CHECK_EVERY);
    loop {
        look.tick().await;
        let Some(ahead_ms) = ahead_ms() else { continue };
        let change = ahead_ms.saturating_sub(*known.borrow());
        if change.unsigned_abs() < DRIFT_MS {
            continue;
        }
        if change.unsigned_abs() >= JUMP_MS {
            let direction = if change > 0 { "forward" } else { "back" };
            tracing::warn!(
                "the machine's clock was set {direction} by {} ms: timeouts are not affected, \
                 and bodies bear the new time once it is later than what was written before; until \
                 then, their time goes on at half the speed",
                change.unsigned_abs()
            );
        }
        known.send_replace(ahead_ms);
    }
}

/// Tells the shards of a tenant how far wall time is ahead of [`now_ms`].
pub(crate) async fn follow(mut ahead: Receiver<i64>, shards: Shards) {
    let mut told_ms = 0;
    loop {
        let ahead_ms = *ahead.borrow_and_update();
        if ahead_ms != told_ms {
            told_ms = ahead_ms;
            shards.broadcast(|| Input::Clock { ahead_ms }).await;
        }
        if ahead.changed().await.is_err() {
            // The sender is gone: the node is ending.
            std::future::pending().await
        }
    }
}
