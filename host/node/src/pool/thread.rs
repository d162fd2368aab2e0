//! A thread of the pool: the shards that live on it, what they wait for, and periodic work. Turns
//! are in [`worker`](super::worker).

use std::any::Any;
use std::cell::RefCell;
use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;

use tracing::Span;

use super::hosted_shard::{HostedShard, RunState};
use super::instances::Instances;
use super::mailbox::Mailbox;
use super::outbox::{CHECK_EVERY_MS, Outbox, Transport};
use super::scheduler::Scheduler;
use super::spare_time::SpareTime;
use super::thread_shards::ThreadShards;
use super::turn::TurnResult;
use super::work::Task;
use super::{Address, ThreadFigures};
use crate::candidate::Pipelines;
use crate::clock;

/// How long unused instances are kept, in milliseconds.
const UNUSED_MS: u64 = 60_000;

/// While comparisons wait, how often the thread checks for spare time, in milliseconds.
const COMPARE_MS: u64 = 1;

/// The state of a thread.
pub(super) struct Thread<C> {
    mailbox: Arc<Mailbox>,
    pub(super) thread_shards: ThreadShards,
    instances: Rc<RefCell<Instances>>,
    pub(super) scheduler: Scheduler,
    /// When shards need a turn without mail.
    timers: BTreeSet<(u64, Address)>,
    /// Shards that wait for room in the outbox.
    paused: Vec<Address>,
    /// Shards with changes that may be stored once the broker has all messages before these places.
    unsaved: VecDeque<(u64, Address)>,
    /// Shards that stop, restart or resign. They are checked at short intervals.
    watched: Vec<Address>,
    outbox: Rc<RefCell<Outbox<C>>>,
    touched: Vec<Address>,
    figures: Arc<ThreadFigures>,
    /// When unused instances are dropped next.
    release_at: u64,
    /// Shards with decisions to compare, and the time for it.
    pub(super) comparing: VecDeque<Address>,
    pub(super) spare: SpareTime,
}

/// Closes the mailbox, so that nobody waits for a thread that has ended.
impl<C> Drop for Thread<C> {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl<C: Transport> Thread<C> {
    pub(super) fn new(
        mailbox: Arc<Mailbox>,
        outbox: Rc<RefCell<Outbox<C>>>,
        instances: Rc<RefCell<Instances>>,
        figures: Arc<ThreadFigures>,
    ) -> Self {
        Self {
            mailbox,
            thread_shards: ThreadShards::default(),
            instances,
            scheduler: Scheduler::default(),
            timers: BTreeSet::new(),
            paused: Vec::new(),
            unsaved: VecDeque::new(),
            watched: Vec::new(),
            outbox,
            touched: Vec::new(),
            figures,
            release_at: clock::now_ms() + UNUSED_MS,
            comparing: VecDeque::new(),
            spare: SpareTime::default(),
        }
    }

    /// How many shards live here, and how many timers they have.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.thread_shards.len(), self.timers.len())
    }

    /// Checks what there is to do. Returns whether the thread continues.
    pub(super) fn check_for_work(&mut self) -> bool {
        let now = clock::now_ms();
        let goes_on = self.poll(now);
        let is_beacon_due = self.outbox.borrow_mut().is_beacon_due(now);
        if is_beacon_due {
            for address in self.thread_shards.addresses() {
                self.catch_panic(address, |thread| thread.beacon(address));
            }
            self.outbox.borrow_mut().hand_over();
        }
        self.save_acknowledged();
        self.check_watched();
        if now >= self.release_at {
            self.release_at = now + UNUSED_MS;
            self.instances.borrow_mut().release_unused();
        }
        let outbox = self.outbox.borrow();
        self.figures
            .set_outbox_figures(outbox.bytes(), outbox.repeated());
        goes_on
    }

    /// Takes in new mail, timers that are due, and acknowledgements of the broker. Returns whether
    /// the thread continues.
    pub(super) fn poll(&mut self, now: u64) -> bool {
        self.outbox.borrow_mut().update(now);
        let goes_on = self.receive();
        let mut is_out = None;
        while let Some((at, address)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            match self.thread_shards.get_mut(address) {
                Some(hosted) => hosted.timer = None,
                None => is_out = Some((at, address)),
            }
            self.make_ready(address);
        }
        // The shard's turn is paused. It sets its timer again when the turn is over.
        self.timers.extend(is_out);
        self.resume_paused();
        goes_on
    }

    /// Takes in new mail. Returns whether the thread continues.
    fn receive(&mut self) -> bool {
        let mut touched = std::mem::take(&mut self.touched);
        let goes_on = self.mailbox.take_woken(&mut touched);
        for address in touched.drain(..) {
            if !self.thread_shards.has(address) {
                match self.mailbox.take_control(address) {
                    Some(Task::Place(hosted)) => self.place(address, hosted),
                    // The shard has ended.
                    _ => {
                        self.mailbox.discard(address);
                        continue;
                    }
                }
            }
            self.make_ready(address);
        }
        self.touched = touched;
        goes_on
    }

    fn beacon(&mut self, address: Address) {
        if let Some(hosted) = self.thread_shards.get_mut(address) {
            hosted.send_beacon(&mut self.outbox.borrow_mut());
        }
    }

    fn place(&mut self, address: Address, mut hosted: Box<HostedShard>) {
        let tenant = address.tenant;
        self.instances.borrow_mut().enter(tenant, &mut hosted);
        self.enable_pauses(&hosted.pipelines);
        self.thread_shards.place(address, hosted);
    }

    fn make_ready(&mut self, address: Address) {
        if let Some(hosted) = self.thread_shards.get_mut(address)
            && hosted.run_state == RunState::Idle
        {
            hosted.run_state = RunState::Ready;
            self.scheduler.push(address, &hosted.tenant.share);
        }
    }

    /// Lets shards continue that have waited for room in the outbox.
    fn resume_paused(&mut self) {
        if self.paused.is_empty() {
            return;
        }
        for address in std::mem::take(&mut self.paused) {
            let Some(hosted) = self.thread_shards.get_mut(address) else {
                continue;
            };
            if hosted.must_pause(&self.outbox.borrow()) {
                self.paused.push(address);
            } else {
                hosted.run_state = RunState::Idle;
                self.make_ready(address);
            }
        }
    }

    /// Hands changes to the state that have waited for the broker.
    fn save_acknowledged(&mut self) {
        let acknowledged = self.outbox.borrow().acknowledged();
        while let Some((end, address)) = self.unsaved.front().copied()
            && end <= acknowledged
        {
            self.unsaved.pop_front();
            if let Some(hosted) = self.thread_shards.get_mut(address) {
                hosted.is_unsaved = false;
            }
            self.catch_panic(address, |thread| thread.save(address));
        }
    }

    /// Checks shards that stop, restart or resign.
    fn check_watched(&mut self) {
        for address in std::mem::take(&mut self.watched) {
            self.catch_panic(address, |thread| thread.check_shard(address));
        }
    }

    fn check_shard(&mut self, address: Address) {
        let Some(hosted) = self.thread_shards.get_mut(address) else {
            return;
        };
        if hosted.waits_to_resign(&mut self.outbox.borrow_mut()) {
            self.watched.push(address);
        }
        if hosted.restart.is_under_way() {
            if hosted.ends_unrestored(&mut self.outbox.borrow_mut()) {
                tracing::warn!(
                    "NATS can't be reached, so a shard that has failed can't be restarted before \
                     the node stops: its waiting inputs are dropped"
                );
                return self.remove(address);
            }
            hosted.continue_restart(address, &self.mailbox, &self.outbox.borrow());
            self.keep_watching(address);
            if self.mailbox.has_other_than_inputs(address) {
                self.make_ready(address);
            }
        } else if hosted.try_end(&mut self.outbox.borrow_mut()) {
            self.remove(address);
        } else if hosted.has_given_up() {
            self.keep_watching(address);
        }
    }

    fn remove(&mut self, address: Address) {
        let Some(mut hosted) = self.thread_shards.remove(address) else {
            return;
        };
        if let Some(at) = hosted.timer {
            self.timers.remove(&(at, address));
        }
        let tenant = address.tenant;
        self.instances.borrow_mut().leave(tenant, &hosted.pipelines);
        self.mailbox.discard(address);
        if let Some(done) = hosted.ending.as_mut().and_then(|ending| ending.done.take()) {
            // The requester may have given up.
            let _ = done.send(());
        }
    }

    /// Does some work for one shard. If it panics, only this shard restarts.
    pub(super) fn catch_panic<T>(
        &mut self,
        address: Address,
        work: impl FnOnce(&mut Self) -> T,
    ) -> Option<T> {
        let hosted = self.thread_shards.get_mut(address);
        let span = hosted.and_then(|hosted| hosted.tenant.span.clone());
        let _tenant = span.as_ref().map(Span::enter);
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(done) => Some(done),
            Err(panic) => {
                self.on_panic(address, &*panic);
                None
            }
        }
    }

    /// Handles a panic of a shard: it restarts, unless it was about to end.
    pub(super) fn on_panic(&mut self, address: Address, panic: &(dyn Any + Send)) {
        let Some(hosted) = self.thread_shards.get_mut(address) else {
            return;
        };
        hosted.on_panic(panic);
        if hosted.has_given_up() {
            return self.remove(address);
        }
        hosted.reset_rules();
        self.keep_watching(address);
    }

    fn keep_watching(&mut self, address: Address) {
        if !self.watched.contains(&address) {
            self.watched.push(address);
        }
    }

    /// Notes what a shard has left to do after its turn.
    pub(super) fn end_turn(&mut self, address: Address, turned: TurnResult, has_more: bool) {
        if turned == TurnResult::Gone {
            return self.remove(address);
        }
        let Some(hosted) = self.thread_shards.get_mut(address) else {
            return;
        };
        hosted.update_figures();
        let is_deferrable = hosted.shard.is_synced();
        if std::mem::replace(&mut hosted.is_deferrable, is_deferrable) != is_deferrable {
            self.mailbox.set_deferrable(address, is_deferrable);
        }
        if !hosted.comparisons.is_empty() && !std::mem::replace(&mut hosted.has_comparisons, true) {
            self.comparing.push_back(address);
        }
        let is_waiting = hosted.restart.is_under_way() || hosted.has_given_up();
        let resigns = hosted.waits_to_resign(&mut self.outbox.borrow_mut());
        if is_waiting {
            self.keep_watching(address);
        } else if turned == TurnResult::Full {
            hosted.run_state = RunState::Paused;
            self.paused.push(address);
        } else if has_more || self.mailbox.has(address) {
            self.make_ready(address);
        }
        if resigns {
            self.keep_watching(address);
        }
        self.save(address);
    }

    /// Hands a shard's changes to the state, or notes when that must be done, and sets its timer.
    fn save(&mut self, address: Address) {
        let Some(hosted) = self.thread_shards.get_mut(address) else {
            return;
        };
        // A stopping shard is checked until the state has all of its changes.
        if !hosted.has_given_up() {
            hosted.save(&self.outbox.borrow());
            if let Some(end) = hosted.waits_for()
                && !std::mem::replace(&mut hosted.is_unsaved, true)
            {
                self.unsaved.push_back((end, address));
            }
        }
        let due = hosted.due();
        let before = std::mem::replace(&mut hosted.timer, due);
        if before != due {
            if let Some(at) = before {
                self.timers.remove(&(at, address));
            }
            self.timers.extend(due.map(|at| (at, address)));
        }
    }

    /// When the thread must check for work, even without mail. Resting tenants are not considered.
    pub(super) fn due(&self, now: u64) -> Option<u64> {
        let due = [
            self.timers.first().map(|(at, _)| *at),
            self.outbox.borrow().due(now),
            (!self.watched.is_empty()).then_some(now + CHECK_EVERY_MS),
            // Without a connection, the outbox may have room although the broker acknowledges
            // nothing.
            (!self.paused.is_empty()).then_some(now + CHECK_EVERY_MS),
            (!self.instances.borrow().is_empty()).then_some(self.release_at),
            (!self.comparing.is_empty()).then_some(now + COMPARE_MS),
        ];
        due.into_iter().flatten().min()
    }

    /// Makes sure that calls of these pipelines can be paused.
    pub(super) fn enable_pauses(&self, pipelines: &Pipelines) {
        if let Some(pauser) = pipelines.active.blueprint.pauser() {
            self.mailbox.set_pauser(pauser);
        }
    }
}
