//! The main loop of a thread of the pool: it gives shards their turns, and waits while no shard has
//! anything to do.
//!
//! A turn may pause in the middle of a plugin's call while others wait. Then the shards of other
//! tenants have their turns inside the pause, in the order of the scheduler, and the call continues
//! afterwards. So while rules are called, only the shard itself and its tenant's instances are
//! borrowed. The outbox is borrowed for one message at a time.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use presence_core::{Input, Output};
use presence_sandbox::set_pause_work;
use tracing::Span;

use super::hosted_shard::{HostedShard, RunState};
use super::instances::Instances;
use super::mailbox::Mailbox;
use super::outbox::{Outbox, Transport};
use super::scheduler::Turn;
use super::thread::Thread;
use super::turn::{TurnContext, TurnResult};
use super::work::Task;
use super::{Address, Clocks, ThreadFigures};
use crate::clock;
use crate::tasks;

const NS_PER_MS: u64 = 1_000_000;

/// After how many milliseconds a thread looks for inputs of standbys again, if it has just handled
/// some.
const DEFERRED_MS: u64 = 5;

/// After this many nanoseconds of turns without inputs, the thread yields the processor to other
/// threads, such as those that read and write the connection. Corrections take such time. Without a
/// yield, the system may let a thread run for several milliseconds while another waits for the
/// processor.
const YIELD_NS: u64 = 100_000;

/// By how much processor time a turn must exceed its time before it pauses for others: a call that
/// ends soon needs no pause. Elapsed time isn't used, since a thread may wait long for a processor.
const PAUSE_NS: u64 = 250_000;

/// By how much processor time a turn must exceed its time for the tenant's plugins to count as
/// slow.
const SLOW_NS: u64 = 5_000_000;

/// The state of a thread's main loop.
pub(super) struct Worker<C> {
    thread: RefCell<Thread<C>>,
    mailbox: Arc<Mailbox>,
    figures: Arc<ThreadFigures>,
    instances: Rc<RefCell<Instances>>,
    outbox: Rc<RefCell<Outbox<C>>>,
    clocks: Clocks,
    /// The turn in progress. While it is paused, the turn inside its pause.
    current: Cell<Option<Current>>,
    /// A panic in a pause, outside of any shard's turn. It ends the thread when the paused turn is
    /// over.
    panic: Cell<Option<Box<dyn Any + Send>>>,
    /// The buffer for the outputs of turns, kept between two of them.
    out: Cell<Vec<Output>>,
    /// How many nanoseconds turns without inputs have taken since the thread last waited or
    /// yielded.
    background_ns: Cell<u64>,
    /// Whether a deferrable shard has handled inputs since the thread last waited.
    had_deferrable: Cell<bool>,
}

/// A turn in progress.
#[derive(Clone, Copy)]
struct Current {
    tenant: u32,
    /// Up to when its time has been counted.
    counted_ns: u64,
    /// How much time has been counted.
    took_ns: u64,
    /// Its length as planned by the scheduler.
    limit_ns: u64,
    /// The total time after which it pauses next: at first the planned length; after a pause, the
    /// time taken so far plus what the scheduler gave it then.
    may_take_ns: u64,
    /// The processor time from which the turn's own use is counted. Time used in its pauses doesn't
    /// count. `None` if it wasn't measured yet, because no other tenant had a shard on this thread.
    processor_ns: Option<u64>,
    /// Whether the turn runs inside the pause of another.
    is_within: bool,
}

impl<C: Transport> Worker<C> {
    pub(super) fn new(
        mailbox: Arc<Mailbox>,
        outbox: Outbox<C>,
        figures: Arc<ThreadFigures>,
        clocks: Clocks,
    ) -> Rc<Self> {
        let outbox = Rc::new(RefCell::new(outbox));
        let instances = Rc::<RefCell<Instances>>::default();
        let thread = Thread::new(
            Arc::clone(&mailbox),
            Rc::clone(&outbox),
            Rc::clone(&instances),
            Arc::clone(&figures),
        );
        let worker = Rc::new(Self {
            thread: RefCell::new(thread),
            mailbox,
            figures,
            instances,
            outbox,
            clocks,
            current: Cell::new(None),
            panic: Cell::default(),
            out: Cell::default(),
            background_ns: Cell::new(0),
            had_deferrable: Cell::new(false),
        });
        let pausing = Rc::downgrade(&worker);
        set_pause_work(Rc::new(move || {
            let worker = pausing.upgrade();
            worker.map_or(Duration::ZERO, |worker| worker.pause())
        }));
        worker
    }

    /// Works until the mailbox is closed.
    pub(super) async fn run(self: Rc<Self>) {
        while self.check_for_work() {
            let turn = self.next();
            let is_idle = turn.is_none();
            if let Some(turn) = turn {
                self.turn(turn);
            }
            if !self.compare() && is_idle {
                self.wait().await;
            } else if self.background_ns.get() >= YIELD_NS {
                self.background_ns.set(0);
                thread::yield_now();
            }
        }
    }

    /// Checks what there is to do. Returns whether the thread continues.
    pub(super) fn check_for_work(&self) -> bool {
        self.thread.borrow_mut().check_for_work()
    }

    /// The next turn, if any shard has something to do.
    pub(super) fn next(&self) -> Option<Turn> {
        self.thread
            .borrow_mut()
            .scheduler
            .next((self.clocks.elapsed)())
    }

    /// How many shards live here, and how many timers they have.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        self.thread.borrow().counts()
    }

    /// Gives a shard its turn.
    pub(super) fn turn(&self, Turn { shard, limit_ns }: Turn) {
        let (hosted, has_others) = {
            let thread_shards = &mut self.thread.borrow_mut().thread_shards;
            (
                thread_shards.take_out(shard),
                thread_shards.has_several_tenants(),
            )
        };
        let Some(mut hosted) = hosted else {
            return;
        };
        let begun = (self.clocks.elapsed)();
        let outer = self.current.get();
        self.begin(Some(Current {
            tenant: shard.tenant,
            counted_ns: begun,
            took_ns: 0,
            limit_ns,
            may_take_ns: limit_ns,
            processor_ns: has_others.then(&self.clocks.processor),
            is_within: outer.is_some(),
        }));
        let mut out = self.out.take();
        let span = hosted.tenant.span.clone();
        let worked = catch_unwind(AssertUnwindSafe(|| {
            let _tenant = span.as_ref().map(Span::enter);
            let until_ns = begun.saturating_add(limit_ns);
            self.work(shard, &mut hosted, until_ns, &mut out)
        }));
        // After a panic, nothing that the turn has produced is published.
        out.clear();
        self.out.set(out);
        if let Some(panic) = self.panic.take() {
            resume_unwind(panic);
        }
        let current = self.current.get();
        self.begin(outer);
        let took_inputs = hosted.took_inputs;
        if took_inputs && hosted.is_deferrable {
            self.had_deferrable.set(true);
        }
        let is_judged = has_others && hosted.called_rules && hosted.tenant.share.is_unknown();
        if is_judged && current.is_some_and(|mut it| self.over_ns(&mut it) <= SLOW_NS) {
            hosted.tenant.share.note_quick();
        }
        let thread = &mut *self.thread.borrow_mut();
        thread.thread_shards.put_back(shard, hosted);
        match worked {
            Ok(TurnOutcome { turned, has_more }) => {
                thread.catch_panic(shard, |thread| thread.end_turn(shard, turned, has_more));
            }
            Err(panic) => {
                thread.catch_panic(shard, |thread| thread.on_panic(shard, &*panic));
                thread.catch_panic(shard, |thread| {
                    thread.end_turn(shard, TurnResult::Over, false);
                });
            }
        }
        let ended = (self.clocks.elapsed)();
        let counted_ns = current.map_or(begun, |it| it.counted_ns);
        let took = ended.saturating_sub(counted_ns);
        thread.scheduler.charge(shard.tenant, ended, took);
        thread.spare.add_busy(took);
        if !took_inputs {
            self.background_ns.set(self.background_ns.get() + took);
        }
    }

    /// Sets the current turn, which begins or continues. `None`: no turn is in progress.
    fn begin(&self, turn: Option<Current>) {
        self.current.set(turn);
        let is_awaited = self.thread.borrow().scheduler.is_contended();
        self.mailbox
            .begin_turn(turn.map(|it| it.tenant), is_awaited);
    }

    /// Called when a plugin's call may pause. Returns how long the pause took. A panic in it is
    /// kept: it has nothing to do with the paused call.
    pub(super) fn pause(&self) -> Duration {
        let paused = catch_unwind(AssertUnwindSafe(|| self.give_way()));
        paused.unwrap_or_else(|panic| {
            // Without a current turn, no call pauses any more.
            self.current.set(None);
            self.panic.set(Some(panic));
            Duration::ZERO
        })
    }

    /// If the current turn has used up its time, gives others their turns. A turn inside another's
    /// pause doesn't pause. Returns how long the others took.
    fn give_way(&self) -> Duration {
        let Some(mut current) = self.current.get() else {
            return Duration::ZERO;
        };
        let now = (self.clocks.elapsed)();
        let took = now.saturating_sub(current.counted_ns);
        let total = current.took_ns + took;
        if total < current.may_take_ns {
            // It may continue.
            self.begin(Some(current));
            return Duration::ZERO;
        }
        let over_ns = self.over_ns(&mut current);
        let mut thread = self.thread.borrow_mut();
        if over_ns > SLOW_NS {
            thread.scheduler.note_slow(current.tenant, now);
        }
        if current.is_within || over_ns < PAUSE_NS {
            drop(thread);
            self.begin(Some(current));
            return Duration::ZERO;
        }
        thread.poll(clock::now_ms());
        thread.scheduler.pause(current.tenant, now, took);
        thread.spare.add_busy(took);
        drop(thread);
        while let Some(turn) = self.next() {
            self.turn(turn);
        }
        let given_ns = self.thread.borrow_mut().scheduler.resume();
        current.may_take_ns = total.saturating_add(given_ns);
        (current.counted_ns, current.took_ns) = ((self.clocks.elapsed)(), total);
        let processor_ns = (self.clocks.processor)();
        current.processor_ns = Some(processor_ns.saturating_sub(current.limit_ns + over_ns));
        self.begin(Some(current));
        Duration::from_nanos(current.counted_ns.saturating_sub(now))
    }

    /// By how much processor time a turn has exceeded its time, as far as it is known.
    fn over_ns(&self, turn: &mut Current) -> u64 {
        let processor_ns = (self.clocks.processor)();
        let begun = *turn.processor_ns.get_or_insert(processor_ns);
        processor_ns
            .saturating_sub(begun)
            .saturating_sub(turn.limit_ns)
    }

    fn work(
        &self,
        address: Address,
        hosted: &mut HostedShard,
        until_ns: u64,
        out: &mut Vec<Output>,
    ) -> TurnOutcome {
        hosted.run_state = RunState::Idle;
        hosted.called_rules = false;
        let mut context = TurnContext {
            address,
            mailbox: &self.mailbox,
            outbox: &self.outbox,
            out,
            figures: &self.figures,
            until_ns,
            stopwatch: &self.clocks.elapsed,
        };
        while !hosted.has_given_up() {
            // A shard that restarts publishes nothing, so it needs no room.
            if !hosted.restart.is_under_way() && hosted.must_pause(&self.outbox.borrow()) {
                return TurnResult::Full.into();
            }
            let Some(task) = self.mailbox.take_control(address) else {
                break;
            };
            context.mark_busy();
            let task = match task {
                Task::Pipelines(pipelines) => {
                    let before = hosted.pipelines.assignment();
                    let after = pipelines.assignment();
                    let has_other_enrichers = !hosted.pipelines.has_same_enrichers(&pipelines);
                    self.thread.borrow().enable_pauses(&pipelines);
                    // Enrichers pass their states on in calls that don't pause.
                    let current = self.current.take();
                    let instances = &self.instances;
                    instances
                        .borrow_mut()
                        .change(address.tenant, hosted, pipelines);
                    self.current.set(current);
                    Task::Input(Input::Reassigned {
                        before,
                        after,
                        has_other_enrichers,
                    })
                }
                Task::Discard => return TurnResult::Gone.into(),
                Task::Restored(restored) if hosted.restart.is_under_way() => {
                    hosted.on_restored(restored, &mut self.outbox.borrow_mut());
                    continue;
                }
                task => task,
            };
            Instances::with(&self.instances, address, hosted, |hosted, rules| {
                hosted.control(task, rules, &mut context);
            });
        }
        if hosted.restart.is_under_way() {
            // It has no data from which to answer.
            self.mailbox.drop_questions(address);
            return TurnResult::Over.into();
        }
        Instances::with(&self.instances, address, hosted, |hosted, rules| {
            TurnOutcome {
                turned: hosted.turn(rules, &mut context),
                has_more: hosted.has_more(clock::now_ms(), rules),
            }
        })
    }

    /// Compares what two pipelines decide on one event, if one waits and there is spare time.
    /// Returns whether it did.
    pub(super) fn compare(&self) -> bool {
        let thread = &mut *self.thread.borrow_mut();
        if thread.comparing.is_empty() || !thread.spare.has_any() {
            return false;
        }
        let Some(address) = thread.comparing.pop_front() else {
            return false;
        };
        let Some(hosted) = thread.thread_shards.get_mut(address) else {
            return true;
        };
        let begun = (self.clocks.elapsed)();
        self.figures.mark_busy(clock::now_ms());
        let compared = catch_unwind(AssertUnwindSafe(|| {
            let fetch =
                Instances::with(&self.instances, address, hosted, |_, rules| rules.compare());
            if let (Some(questions), Some(fetcher)) = (fetch, &hosted.tenant.fetcher) {
                fetcher.want(questions);
            }
        }));
        if let Err(panic) = compared {
            // The pipelines' decisions aren't affected, so they continue.
            tracing::error!(
                "what two pipelines decide could not be compared: {}",
                tasks::message(&*panic)
            );
            hosted.reset_rules();
        }
        hosted.has_comparisons = !hosted.comparisons.is_empty();
        if hosted.has_comparisons {
            thread.comparing.push_back(address);
        }
        let took = (self.clocks.elapsed)().saturating_sub(begun);
        thread.spare.spend(took);
        true
    }

    /// Waits until there may be something to do.
    async fn wait(&self) {
        self.figures.mark_idle();
        let now = clock::now_ms();
        let begun = (self.clocks.elapsed)();
        let due = {
            let thread = self.thread.borrow();
            let free_at = thread.scheduler.free_at_ns();
            let free_ms = free_at.map(|at| at.saturating_sub(begun).div_ceil(NS_PER_MS));
            let free_at = free_ms.map(|ms| now.saturating_add(ms));
            thread.due(now).into_iter().chain(free_at).min()
        };
        let wakes_soon = self.had_deferrable.take();
        if !self.mailbox.may_wait(wakes_soon) {
            return;
        }
        let soon = wakes_soon.then_some(now.saturating_add(DEFERRED_MS));
        let due = due.into_iter().chain(soon).min();
        let woken = async {
            tokio::select! {
                biased;
                () = self.mailbox.arrived() => {}
                () = Outbox::until_advanced(&self.outbox) => {}
            }
        };
        match due {
            Some(at) => {
                let wait = Duration::from_millis(at.saturating_sub(now));
                // After a timeout, the caller checks for work, too.
                let _ = tokio::time::timeout(wait, woken).await;
            }
            None => woken.await,
        }
        let idle = (self.clocks.elapsed)().saturating_sub(begun);
        self.thread.borrow_mut().spare.add_idle(idle);
        self.background_ns.set(0);
    }
}

/// The result of a turn's work.
struct TurnOutcome {
    turned: TurnResult,
    /// Whether there is more to do, apart from what waits in the shard's lanes.
    has_more: bool,
}

impl From<TurnResult> for TurnOutcome {
    fn from(turned: TurnResult) -> Self {
        Self {
            turned,
            has_more: false,
        }
    }
}
