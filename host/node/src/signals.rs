//! The process's signals, on a thread of their own: whatever else hangs, the process ends
//! within its time.
//!
//! SIGTERM or SIGINT begins a stop, and a second one ends the process at once. SIGHUP has
//! files read again. A stop that isn't done within its limit ends the process with what
//! has been written so far: the state's files are whole at any moment.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::tasks::Tasks;

/// How long after the first signal another is the same one again: some tools send it to the
/// process and to its group, and a terminal to all that run in it.
const ECHO: Duration = Duration::from_millis(100);

/// How long the last words may take: the log may be what hangs.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The exit code of a process that didn't get to stop in order.
const NOT_STOPPED: i32 = 1;

/// What the process has been told.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    stop: watch::Sender<Stop>,
    /// How often files are to be read again. Nothing has been read of it.
    reloads: (watch::Sender<u64>, watch::Receiver<u64>),
}

/// How a stop is going.
#[derive(Clone, Copy, Debug, Default)]
struct Stop {
    /// When all of it must be done; none while nothing stops.
    by: Option<Instant>,
    /// What it is at.
    step: &'static str,
}

/// Where the signals come in.
struct Inbox {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Takes signals from now on. A stop may take as long as `limit`, in all.
    ///
    /// # Errors
    /// If the system doesn't let it.
    pub(crate) fn take(limit: Duration, tasks: &Tasks) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()?;
        let inbox = {
            let _context = runtime.enter();
            Inbox {
                terminate: signal(SignalKind::terminate())?,
                interrupt: signal(SignalKind::interrupt())?,
                hangup: signal(SignalKind::hangup())?,
            }
        };
        // A file that may not grow any further is an error of the write, as on a disk that is
        // full: untaken, the signal would end the process.
        {
            let _context = runtime.enter();
            let too_long = SignalKind::from_raw(rustix::process::Signal::XFSZ.as_raw());
            drop(signal(too_long)?);
        }
        let signals = Self {
            stop: watch::Sender::new(Stop::default()),
            reloads: watch::channel(0),
        };
        let heard = signals.clone();
        tasks.thread("signals", move || {
            runtime.block_on(heard.follow(inbox, limit))
        })?;
        Ok(signals)
    }

    /// Waits until the node is to stop.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.subscribe();
        // The sender is here.
        let _ = stop.wait_for(|stop| stop.by.is_some()).await;
    }

    /// Stops the node, for a reason of its own; returns by when that must be done.
    pub(crate) fn stop(&self, limit: Duration) -> Instant {
        let mut by = Instant::now() + limit;
        self.stop.send_if_modified(|stop| {
            by = *stop.by.get_or_insert(by);
            true
        });
        by
    }

    /// What the stop is at, for the last words.
    pub(crate) fn step(&self, step: &'static str) {
        self.stop.send_modify(|stop| stop.step = step);
    }

    /// Changes whenever files are to be read again.
    pub(crate) fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.1.clone()
    }

    async fn follow(self, mut inbox: Inbox, limit: Duration) {
        let mut stop = self.stop.subscribe();
        loop {
            let by = self.stop.borrow().by;
            let over = sleep_until(by.unwrap_or_else(Instant::now));
            tokio::select! {
                Some(()) = inbox.terminate.recv() => self.told("SIGTERM", by, limit),
                Some(()) = inbox.interrupt.recv() => self.told("SIGINT", by, limit),
                Some(()) = inbox.hangup.recv() => self.reloads.0.send_modify(|count| *count += 1),
                // Its limit may have begun to run.
                Ok(()) = stop.changed() => {}
                () = over, if by.is_some() => {
                    let step = self.stop.borrow().step;
                    let limit = limit.as_secs_f32();
                    end(format!(
                        "not stopped within {limit} s ([node] stop_timeout_ms), while {step}: \
                         ending now, with the state as it was last written"
                    ));
                }
            }
        }
    }

    fn told(&self, signal: &str, stops_by: Option<Instant>, limit: Duration) {
        if let Some(by) = stops_by {
            if is_echo(Instant::now(), by, limit) {
                return;
            }
            end(format!(
                "{signal} again while stopping: ending now, with the state as it was last written"
            ));
        }
        self.stop(limit);
    }
}

/// Whether a signal is the one again by which a stop has begun that must be done by a time.
fn is_echo(now: Instant, stops_by: Instant, limit: Duration) -> bool {
    stops_by > now + limit.saturating_sub(ECHO)
}

/// Ends the process, with last words if they can be said.
fn end(words: String) -> ! {
    let (said, wait) = channel();
    let say = move || {
        tracing::error!("{words}");
        let _ = said.send(());
    };
    if thread::Builder::new().spawn(say).is_ok() {
        let _ = wait.recv_timeout(LAST_WORDS);
    }
    std::process::exit(NOT_STOPPED)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_signal_that_comes_twice_at_a_time_is_one() {
        let (begin, limit) = (Instant::now(), Duration::from_secs(25));
        for (after_ms, is) in [(0, true), (99, true), (101, false), (24_000, false)] {
            let now = begin + Duration::from_millis(after_ms);
            assert_eq!(is_echo(now, begin + limit, limit), is, "{after_ms}");
        }
    }
}
