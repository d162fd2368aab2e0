//! What a thread does in the middle of a plugin's call, while others wait for the thread: the call
//! is paused, and goes on afterwards. How long it was paused is none of its time.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

/// How often the clock ticks. A deadline is kept to within one tick.
pub(crate) const TICK_MS: u64 = 10;

/// What is done while a call is paused. It says how long it took.
type Work = dyn Fn() -> Duration;

thread_local! {
    /// What this thread does while a call is paused.
    static WORK: RefCell<Option<Rc<Work>>> = const { RefCell::new(None) };
    /// For how long calls on this thread have been paused.
    static PAUSED: Cell<Duration> = const { Cell::new(Duration::ZERO) };
}

/// Has this thread do something else each time that a call on it may pause, and say how long that took. In
/// it, other plugins may be called, whose calls may pause as well.
pub fn while_paused(work: Rc<dyn Fn() -> Duration>) {
    WORK.set(Some(work));
}

/// For how long calls on this thread have been paused so far.
pub(crate) fn paused() -> Duration {
    PAUSED.get()
}

/// How long a call is let go on before it pauses, where others have begun to wait. Most calls are
/// over by then.
const PAUSE_AFTER: Duration = Duration::from_micros(500);

/// Has calls pause that go on for too long. Cloning it shares it.
#[derive(Clone, Debug)]
pub struct Pauser(pub(crate) Ticks);

impl Pauser {
    /// Has the calls that are under way on any thread half a millisecond from now pause.
    pub fn pause_soon(&self) {
        let Ticks(clock) = &self.0;
        if !clock.is_asked.swap(true, Ordering::Relaxed)
            && let Some(thread) = clock.thread.get()
        {
            thread.unpark();
        }
    }
}

/// Counts the ticks of an engine's clock. Cloning it shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticks(Arc<Clock>);

#[derive(Debug, Default)]
struct Clock {
    ticks: AtomicU64,
    /// Whether calls are to pause before the next tick.
    is_asked: AtomicBool,
    /// Which raises the epoch.
    thread: OnceLock<Thread>,
}

impl Ticks {
    /// Raises the epoch of an engine at each tick, and when calls are to pause, until it is stopped. It is
    /// called once, on a thread of its own: a component that spins must not keep it from ticking.
    pub(crate) fn run(&self, engine: &wasmtime::Engine, stop: &AtomicBool) {
        let Self(clock) = self;
        // There is no other one.
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
            // On a busy machine it may have slept for longer.
            while tick * (told + 1) <= begin.elapsed() {
                self.tick(engine);
                told += 1;
            }
        }
    }

    /// One more, at which calls whose time is over end.
    pub(crate) fn tick(&self, engine: &wasmtime::Engine) {
        self.0.ticks.fetch_add(1, Ordering::Relaxed);
        engine.increment_epoch();
    }

    fn now(&self) -> u64 {
        self.0.ticks.load(Ordering::Relaxed)
    }
}

/// Until when a call may take, in ticks.
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

    /// A call begins, and may take so many ticks; none if any number.
    pub(crate) fn begin(&mut self, ticks: Option<u64>) {
        self.at = ticks.map_or(u64::MAX, |it| self.ticks.now().saturating_add(it));
    }

    /// Pauses the call. Says whether it may go on.
    pub(crate) fn pause(&mut self) -> bool {
        if let Some(work) = WORK.with_borrow(Clone::clone) {
            let (paused, before) = (PAUSED.get(), self.ticks.now());
            let took = work();
            // With the calls that were paused meanwhile.
            PAUSED.set(paused + took);
            let ticks = self.ticks.now().saturating_sub(before);
            if !took.is_zero() {
                self.at = self.at.saturating_add(ticks);
            }
        }
        self.ticks.now() < self.at
    }
}
