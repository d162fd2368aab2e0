//! Loads of the pipeline. Each runs on a thread of its own and replaces earlier loads. A load has a
//! time limit, and the number of loads that hang is limited.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{anyhow, bail};
use presence_rules::loader::Attempt;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use crate::tasks;

/// How many loads may run: the newest, and one that nobody waits for, but that can't be interrupted
/// while it compiles, or while it reads from a file system that hangs.
const AT_ONCE: usize = 2;

/// The nice value that is added for a load's thread.
const NICE: i32 = 10;

/// After this time, the log says that a load is in progress.
const LOG_AFTER: Duration = Duration::from_secs(1);

/// The work of a load.
type Work<T> = Box<dyn FnOnce(&Attempt) -> anyhow::Result<T> + Send>;

/// The loads of one node.
pub(super) struct Loads<T> {
    /// The load whose result is awaited.
    current: Option<Load>,
    /// The load that begins next when there is room, and its time limit.
    next: Option<(Work<T>, Duration)>,
    under_way: usize,
    /// How many loads were ever begun. The count numbers the next one.
    begun: u64,
    end: mpsc::UnboundedSender<(u64, anyhow::Result<T>)>,
    ended: mpsc::UnboundedReceiver<(u64, anyhow::Result<T>)>,
}

struct Load {
    number: u64,
    attempt: Arc<Attempt>,
    limit: Duration,
    until: Instant,
    /// When the log must say that it is in progress. `None` if it has.
    say_at: Option<Instant>,
}

impl<T: Send + 'static> Loads<T> {
    /// No load yet.
    pub(super) fn new() -> Self {
        let (end, ended) = mpsc::unbounded_channel();
        Self {
            current: None,
            next: None,
            under_way: 0,
            begun: 0,
            end,
            ended,
        }
    }

    /// Whether no result is awaited.
    pub(super) fn is_idle(&self) -> bool {
        self.current.is_none() && self.next.is_none()
    }

    /// Starts a load. It replaces a load in progress. If too many run, it begins after one of them
    /// has ended, so that even frequent changes are taken at some time.
    pub(super) fn start(
        &mut self,
        limit: Duration,
        work: impl FnOnce(&Attempt) -> anyhow::Result<T> + Send + 'static,
    ) {
        if self.under_way < AT_ONCE {
            if let Some(superseded) = self.current.take() {
                superseded.attempt.give_up();
            }
        } else if self.next.is_none() {
            tracing::warn!(
                "{AT_ONCE} earlier loads of the pipeline have not ended: this one waits"
            );
        }
        self.next = Some((Box::new(work), limit));
        self.begin();
    }

    /// Waits for the result of the newest load. Waits forever while there is none. Dropping the
    /// future loses no result.
    ///
    /// # Errors
    /// The load's error, or a timeout.
    pub(super) async fn done(&mut self) -> anyhow::Result<T> {
        loop {
            // The next load begins only now, when the last result is in force.
            self.begin();
            let until = self.current.as_ref().map(|load| load.until);
            let over = sleep_until(until.unwrap_or_else(Instant::now));
            let say_at = self.current.as_ref().and_then(|load| load.say_at);
            let say = sleep_until(say_at.unwrap_or_else(Instant::now));
            tokio::select! {
                Some((number, outcome)) = self.ended.recv() => {
                    self.under_way -= 1;
                    if self.current.take_if(|load| load.number == number).is_some() {
                        return outcome;
                    }
                }
                () = say, if say_at.is_some() => {
                    if let Some(load) = &mut self.current {
                        load.say_at = None;
                        tracing::info!(
                            "the pipeline on disk is being loaded, {}: a plugin in TypeScript or \
                             Python takes seconds to compile",
                            load.attempt.at()
                        );
                    }
                }
                () = over, if until.is_some() => {
                    if let Some(load) = self.current.take() {
                        load.attempt.give_up();
                        bail!(
                            "not loaded within {} s ([plugins] load_timeout_ms), at last {}",
                            load.limit.as_secs_f32(),
                            load.attempt.at()
                        );
                    }
                }
            }
        }
    }

    /// Begins the next load, if there is room.
    fn begin(&mut self) {
        if self.under_way >= AT_ONCE || self.current.is_some() {
            return;
        }
        let Some((work, limit)) = self.next.take() else {
            return;
        };
        self.begun += 1;
        self.under_way += 1;
        let (number, attempt) = (self.begun, Arc::<Attempt>::default());
        self.current = Some(Load {
            number,
            attempt: Arc::clone(&attempt),
            limit,
            until: Instant::now() + limit,
            say_at: Some(Instant::now() + LOG_AFTER),
        });
        let end = self.end.clone();
        let refused = self.end.clone();
        let load = move || {
            // Self-tests and new instances take processor time, and events must come first. This
            // changes the priority of this thread alone. If the system refuses, the priority stays
            // the same.
            let _ = rustix::process::nice(NICE);
            let outcome = catch_unwind(AssertUnwindSafe(|| work(&attempt)));
            let outcome = outcome.unwrap_or_else(|panic| {
                Err(anyhow!(
                    "an error of the program: {}",
                    tasks::message(&*panic)
                ))
            });
            // The node may have ended.
            let _ = end.send((number, outcome));
        };
        let began = thread::Builder::new().name("load".into()).spawn(load);
        if let Err(error) = began {
            let error = anyhow!("no thread can be had: {error}");
            let _ = refused.send((number, Err(error)));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::{Receiver, Sender, channel};

    const LONG: Duration = Duration::from_secs(600);

    /// A load that runs until it is told to end.
    fn hanging() -> (
        Sender<u8>,
        impl FnOnce(&Attempt) -> anyhow::Result<u8> + Send,
    ) {
        let (end, told): (Sender<u8>, Receiver<u8>) = channel();
        (end, move |_: &Attempt| Ok(told.recv()?))
    }

    #[tokio::test]
    async fn a_newer_load_takes_the_place_of_one_that_hangs() {
        let mut loads = Loads::new();
        let (old, work) = hanging();
        loads.start(LONG, work);
        loads.start(LONG, |_| Ok(2));
        assert_eq!(loads.done().await.unwrap(), 2);
        old.send(1).unwrap();
        loads.start(LONG, |_| Ok(3));
        assert_eq!(loads.done().await.unwrap(), 3);
    }

    #[tokio::test]
    async fn one_that_takes_too_long_is_given_up_and_few_hang_at_once() {
        let mut loads = Loads::new();
        let (first, work) = hanging();
        loads.start(Duration::from_millis(1), work);
        let error = loads.done().await.unwrap_err().to_string();
        assert!(error.contains("not loaded within 0.001 s"), "{error}");
        let (_second, work) = hanging();
        loads.start(Duration::from_millis(1), work);
        loads.start(LONG, |_| Ok(3));
        loads.start(LONG, |_| Ok(4));
        assert_eq!((loads.under_way, loads.begun), (AT_ONCE, 2));
        assert!(loads.done().await.is_err());
        first.send(1).unwrap();
        assert_eq!(loads.done().await.unwrap(), 4, "the newest, and only that");
        assert_eq!(loads.begun, 3);
    }

    #[tokio::test]
    async fn changes_all_the_time_keep_none_from_being_taken() {
        let mut loads = Loads::new();
        let (_first, work) = hanging();
        loads.start(LONG, work);
        let (second, work) = hanging();
        loads.start(LONG, work);
        for number in 3..100 {
            loads.start(LONG, move |_| Ok(number));
        }
        second.send(2).unwrap();
        assert_eq!(loads.done().await.unwrap(), 2);
        assert_eq!(loads.done().await.unwrap(), 99);
    }

    #[tokio::test]
    async fn a_panic_is_a_refusal() {
        let mut loads = Loads::<u8>::new();
        loads.start(LONG, |_| panic!("broken"));
        let error = loads.done().await.unwrap_err().to_string();
        assert_eq!(error, "an error of the program: broken");
    }
}
