//! What a thread does in the middle of a plugin's call, while others wait for the thread: the call
//! is paused, and goes on afterwards. How long it was paused is none of its time.

use std::cell::{Cell, RefCell};
use std::fmt;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use wasmtime::{Store, UpdateDeadline};

use crate::call::Call;

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

/// Has the calls that are under way pause. Cloning it shares it.
#[derive(Clone)]
pub struct Pauser(wasmtime::Engine);

impl Pauser {
    pub(crate) fn new(engine: &wasmtime::Engine) -> Self {
        Self(engine.clone())
    }

    /// Has each call pause that is under way on any thread. It takes no longer than to write a
    /// number.
    pub fn pause(&self) {
        self.0.increment_epoch();
    }
}

impl fmt::Debug for Pauser {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pauser")
    }
}

/// Counts the ticks of an engine's clock. Cloning it shares it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Ticks(Arc<AtomicU64>);

impl Ticks {
    /// One more, at which calls whose time is over end.
    pub(crate) fn tick(&self, engine: &wasmtime::Engine) {
        self.0.fetch_add(1, Ordering::Relaxed);
        engine.increment_epoch();
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
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
    fn pause(&mut self) -> bool {
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

/// Has calls of this store pause, and end at their deadline. The engine's clock and a [`Pauser`] raise the
/// epoch; each time, a call is asked whether it may go on. One that begins afterwards is asked as well, so no
/// pause is missed that was wanted between two calls; and so is the first of a store.
pub(crate) fn follow_deadline(store: &mut Store<Call>) {
    store.epoch_deadline_callback(|mut store| {
        Ok(match store.data_mut().deadline.pause() {
            true => UpdateDeadline::Continue(1),
            false => UpdateDeadline::Interrupt,
        })
    });
}
