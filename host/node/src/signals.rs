//! Signals to the process. They are handled on a thread of their own, so that the process ends in
//! time whatever else hangs.
//!
//! SIGTERM or SIGINT begins a stop, and a second one ends the process at once. SIGHUP has files
//! read again. A stop that exceeds its limit ends the process with the state as it was last
//! written: the state's files are consistent at any moment.

use std::sync::mpsc::channel;
use std::thread;
use std::time::Duration;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use crate::tasks::Tasks;

/// A signal this soon after the first counts as the same one: some tools send it to the process and
/// to its group, and a terminal sends it to all processes that run in it.
const ECHO: Duration = Duration::from_millis(100);

/// How long the last log line may take: the log may be what hangs.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// The exit code of a process that could not stop in order.
const NOT_STOPPED: i32 = 1;

/// The signals that the process has received.
#[derive(Clone, Debug)]
pub(crate) struct Signals {
    stop: watch::Sender<Stop>,
    /// Counts the orders to read files again. The receiver has never been read, so that each copy
    /// sees the first change.
    reloads: (watch::Sender<u64>, watch::Receiver<u64>),
}

/// The state of a stop.
#[derive(Clone, Copy, Debug, Default)]
struct Stop {
    /// The deadline of the stop. `None` while the process isn't stopping.
    by: Option<Instant>,
    /// What is being done, for the log.
    step: &'static str,
}

/// The streams of signals.
struct Inbox {
    terminate: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    /// Handles signals from now on. `limit`: how long a stop may take in all.
    ///
    /// # Errors
    /// If the system refuses the runtime, the handlers or the thread.
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
        // Handles SIGXFSZ, so that a file that may not grow any more is an error of the write, as
        // with a full disk. By default the signal would end the process.
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

    /// Waits until the node has to stop.
    pub(crate) async fn stopping(&self) {
        let mut stop = self.stop.subscribe();
        // It can't fail: the sender is in `self`.
        let _ = stop.wait_for(|stop| stop.by.is_some()).await;
    }

    /// Stops the node without a signal. Returns the deadline, which is that of the stop under way
    /// if there is one.
    pub(crate) fn stop(&self, limit: Duration) -> Instant {
        let mut by = Instant::now() + limit;
        self.stop.send_if_modified(|stop| {
            by = *stop.by.get_or_insert(by);
            true
        });
        by
    }

    /// Notes what the stop is doing, for the last log line.
    pub(crate) fn step(&self, step: &'static str) {
        self.stop.send_modify(|stop| stop.step = step);
    }

    /// A receiver that changes whenever files have to be read again.
    pub(crate) fn reloads(&self) -> watch::Receiver<u64> {
        self.reloads.1.clone()
    }

    async fn follow(self, mut inbox: Inbox, limit: Duration) {
        let mut stop = self.stop.subscribe();
        loop {
            let by = self.stop.borrow().by;
            let over = sleep_until(by.unwrap_or_else(Instant::now));
            tokio::select! {
                Some(()) = inbox.terminate.recv() => self.on_stop_signal("SIGTERM", by, limit),
                Some(()) = inbox.interrupt.recv() => self.on_stop_signal("SIGINT", by, limit),
                Some(()) = inbox.hangup.recv() => self.reloads.0.send_modify(|count| *count += 1),
                // A stop may have begun without a signal, so that the deadline is new.
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

    fn on_stop_signal(&self, signal: &str, stops_by: Option<Instant>, limit: Duration) {
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

/// Whether a signal belongs to the one that has begun the stop. `stops_by`: the stop's deadline.
fn is_echo(now: Instant, stops_by: Instant, limit: Duration) -> bool {
    stops_by > now + limit.saturating_sub(ECHO)
}

/// Ends the process, after a last log line if it can be written in time.
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
