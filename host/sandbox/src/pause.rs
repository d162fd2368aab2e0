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
pub fn set_pause_work(work: Rc<dyn Fn() -> Duration>) {
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
        if !clock.pause_requested.swap(true, Ordering::Relaxed) {
            clock.wake();
        }
    }
}

/// Counts the ticks of an engine's clock, which stands still while no call is under way. Clones
/// share one clock.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticks(Arc<Clock>);

#[derive(Debug, Default)]
struct Clock {
    ticks: AtomicU64,
    /// The tick at which the last of the calls under way is over, at the latest. After it, the
    /// clock stands still until the next call.
    needed_until: AtomicU64,
    is_idle: AtomicBool,
    /// Whether a pause is requested.
    pause_requested: AtomicBool,
    /// The thread that raises the epoch.
    thread: OnceLock<Thread>,
}

impl Clock {
    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }

    /// Whether no call is under way that the next tick could end.
    fn has_no_calls(&self) -> bool {
        self.ticks.load(Ordering::SeqCst) >= self.needed_until.load(Ordering::SeqCst)
    }
}

impl Ticks {
    /// Raises the epoch of an engine at each tick, and when a pause is requested, until it is
    /// stopped. It is called once, on a thread of its own: a component that spins must not keep it
    /// from ticking.
    pub(crate) fn run(&self, engine: &wasmtime::Engine, stop: &AtomicBool) {
        let Self(clock) = self;
        // There is only one such thread.
        let _ = clock.thread.set(thread::current());
        let begin = Instant::now();
        let elapsed = || begin.elapsed().as_millis() as u64 / TICK_MS;
        let mut ticked = 0;
        while !stop.load(Ordering::Relaxed) {
            if self.wait_while_idle(stop) {
                ticked = elapsed();
            } else {
                let next = Duration::from_millis((ticked + 1) * TICK_MS);
                thread::park_timeout(next.saturating_sub(begin.elapsed()));
            }
            if clock.pause_requested.load(Ordering::Relaxed) {
                thread::sleep(PAUSE_AFTER);
                clock.pause_requested.store(false, Ordering::Relaxed);
                engine.increment_epoch();
            }
            // On a busy machine the thread may have slept for longer: catch up.
            while ticked < elapsed() {
                self.tick(engine);
                ticked += 1;
            }
        }
    }

    /// Waits for the next call, if none is under way. Returns whether it has waited.
    fn wait_while_idle(&self, stop: &AtomicBool) -> bool {
        let Self(clock) = self;
        if !clock.has_no_calls() {
            return false;
        }
        // A call that begins now either sees that the clock stands, or is seen here.
        clock.is_idle.store(true, Ordering::SeqCst);
        while clock.has_no_calls()
            && !clock.pause_requested.load(Ordering::Relaxed)
            && !stop.load(Ordering::Relaxed)
        {
            thread::park();
        }
        clock.is_idle.store(false, Ordering::SeqCst);
        true
    }

    /// Lets the clock tick until then, at least.
    fn keep_ticking_until(&self, until: u64) {
        let Self(clock) = self;
        if clock.needed_until.load(Ordering::Relaxed) < until {
            clock.needed_until.fetch_max(until, Ordering::SeqCst);
            if clock.is_idle.load(Ordering::SeqCst) {
                clock.wake();
            }
        }
    }

    /// Wakes the clock's thread, which then sees that it is stopped.
    pub(crate) fn wake(&self) {
        self.0.wake();
    }

    /// Counts a tick. Calls that are past their deadline end at their next epoch check.
    pub(crate) fn tick(&self, engine: &wasmtime::Engine) {
        self.0.ticks.fetch_add(1, Ordering::SeqCst);
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
        self.at = u64::MAX;
        if let Some(ticks) = ticks {
            self.at = self.ticks.now().saturating_add(ticks);
            self.ticks.keep_ticking_until(self.at);
        }
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
                self.ticks.keep_ticking_until(self.at);
            }
        }
        self.ticks.now() < self.at
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A clock that runs, and what stops it.
    fn clock() -> (Ticks, impl FnOnce()) {
        let engine = wasmtime::Engine::new(wasmtime::Config::new().epoch_interruption(true));
        let (engine, ticks) = (engine.unwrap(), Ticks::default());
        let stop = Arc::new(AtomicBool::new(false));
        let running = {
            let (ticks, stop) = (ticks.clone(), Arc::clone(&stop));
            thread::Builder::new()
                .spawn(move || ticks.run(&engine, &stop))
                .unwrap()
        };
        let end = {
            let ticks = ticks.clone();
            move || {
                stop.store(true, Ordering::Relaxed);
                ticks.wake();
                running.join().unwrap();
            }
        };
        (ticks, end)
    }

    fn wait_until_idle(ticks: &Ticks) {
        while !ticks.0.is_idle.load(Ordering::SeqCst) {
            thread::yield_now();
        }
    }

    #[test]
    fn the_clock_ticks_while_a_call_is_under_way_and_stands_when_none_is() {
        let (ticks, end) = clock();
        for _ in 0..3 {
            wait_until_idle(&ticks);
            let before = ticks.now();
            let mut deadline = Deadline::new(&ticks);
            deadline.begin(Some(2));
            while deadline.pause() {
                thread::yield_now();
            }
            wait_until_idle(&ticks);
            assert!(ticks.now() >= before + 2);
            let at = ticks.now();
            thread::sleep(Duration::from_millis(5 * TICK_MS));
            assert_eq!(ticks.now(), at, "no call was under way");
        }
        end();
    }

    #[test]
    fn a_clock_that_stands_ends() {
        let (ticks, end) = clock();
        wait_until_idle(&ticks);
        end();
    }
}
