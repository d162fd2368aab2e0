//! Pauses the call of a plugin while others wait for its thread: the thread does their work in the
//! middle of the call, and the call goes on afterwards. A pause doesn't count as time of the call.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// The time between two ticks of the clock, in milliseconds. A deadline is kept to within a tick.
pub(crate) const TICK_MS: u64 = 10;

/// The work that is done while a call is paused. Returns how long it took.
type Work = dyn Fn() -> Duration;

thread_local! {
    /// The work that this thread does while a call is paused.
    static WORK: RefCell<Option<Rc<Work>>> = const { RefCell::new(None) };
    /// How long calls on this thread have been paused in all.
    static PAUSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Sets the work that this thread does each time that a call on it may pause. The work returns how
/// long it took. It may call other plugins, whose calls may pause as well.
pub fn while_paused(work: Rc<dyn Fn() -> Duration>) {
    WORK.set(Some(work));
}

/// How long calls on this thread have been paused in all.
pub(crate) fn paused() -> Duration {
    PAUSED.get()
}

/// How long after a request calls are paused. Most calls are over by then.
const PAUSE_AFTER: Duration = Duration::from_micros(500);

/// Requests pauses of long calls. Clones share one clock.
#[derive(Clone, Debug)]
pub struct Pauser(pub(crate) Ticks);

impl Pauser {
    /// Pauses the calls on all threads that are still running half a millisecond from now.
    pub fn pause_soon(&self) {
        let Ticks(clock) = &self.0;
        if !clock.is_asked.swap(true, Ordering::Relaxed)
            && let Some(thread) = clock.thread.get()
        {
            thread.unpark();
        }
    }
}

/// Counts the ticks of an engine's clock. Clones share one clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticks(Arc<Clock>);

#[derive(Debug, Default)]
struct Clock {
    ticks: AtomicU64,
    /// Whether a pause is requested.
    is_asked: AtomicBool,
    /// The thread that raises the epoch.
    thread: OnceLock<Thread>,
}

impl Ticks {
    /// Raises the epoch of an engine at each tick, and when a pause is requested, until it is
    /// stopped. It is called once, on a thread of its own: a component that spins must not keep it
    /// from ticking.
    pub(crate) fn run(&self, engine: &wasmtime::Engine, stop: &AtomicBool) {
        let Self(clock) = self;
        // There is only one such thread.
        let _ = clock.thread.set(thread::current());
        let (begin, tick) = (Instant::now(), Duration::from_millis(TICK_MS));
        let mut told = 0;
        while !stop.load(Ordering::Relaxed) {
            thread::park_timeout((tick * (told + 1)).saturating_sub(begin.elapsed()));
            if clock.is_asked.load(Ordering::Relaxed) {
                thread::sleep(PAUSE_AFTER);
                clock.is_asked.store(false, Ordering::Relaxed);
                engine.increment_epoch();
            }
            // On a busy machine the thread may have slept for longer: catch up.
            while tick * (told + 1) <= begin.elapsed() {
                self.tick(engine);
                told += 1;
            }
        }
    }

    /// Counts a tick. Calls that are past their deadline end at their next epoch check.
    pub(crate) fn tick(&self, engine: &wasmtime::Engine) {
        self.0.ticks.fetch_add(1, Ordering::Relaxed);
        engine.increment_epoch();
    }

    fn now(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }
}

/// The end of a call's time, in ticks of the engine's clock.
#[derive(Debug, Default)]
pub(crate) struct Deadline {
    ticks: Ticks,
    at: u64,
}

impl Deadline {
    pub(crate) fn new(ticks: &Ticks) -> Self {
        Self {
            ticks: ticks.clone(),
            at: 0,
        }
    }

    /// Begins a call, which may take this many ticks. `None`: any number.
    pub(crate) fn begin(&mut self, ticks: Option<u64>) {
        self.at = ticks.map_or(u64::MAX, |it| self.ticks.now().saturating_add(it));
    }

    /// Pauses the call: does the work of this thread, and moves the deadline by the ticks that this
    /// took. Returns whether the call may go on.
    pub(crate) fn pause(&mut self) -> bool {
        if let Some(work) = WORK.with_borrow(Clone::clone) {
            let (paused, before) = (PAUSED.get(), self.ticks.now());
            let took = work();
            // `took` includes the pauses of other calls during the work.
            PAUSED.set(paused + took);
            let ticks = self.ticks.now().saturating_sub(before);
            if !took.is_zero() {
                self.at = self.at.saturating_add(ticks);
            }
        }
        self.ticks.now() < self.at
    }
}
