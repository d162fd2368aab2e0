//! A thread of the pool: shards live on it, and take their turns. It waits only where none
//! of them has anything to do.

use std::any::Any;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use foldhash::fast::FixedState;
use presence_core::{Input, Output};
use tracing::Span;

use super::cell::{Cell, RunState};
use super::instances::Instances;
use super::mailbox::Mailbox;
use super::outbox::{Carrier, LOOK_MS, Outbox};
use super::rounds::{Rounds, Turn};
use super::spare_time::SpareTime;
use super::turn::{TurnContext, Turned};
use super::work::Task;
use super::{Address, Meter, ThreadFigures};
use crate::clock;
use crate::tasks;

/// How long instances are kept that nobody calls, in milliseconds.
const UNUSED_MS: u64 = 60_000;

const NS_PER_MS: u64 = 1_000_000;

/// After how many milliseconds it is looked whether there is time to compare.
const COMPARE_MS: u64 = 1;

/// A thread.
pub(super) struct Thread<C> {
    mailbox: Arc<Mailbox>,
    cells: HashMap<Address, Box<Cell>, FixedState>,
    instances: Instances,
    rounds: Rounds,
    /// When shards are to have a turn though nothing comes.
    timers: BTreeSet<(u64, Address)>,
    /// Shards that wait for room in the outbox.
    resting: Vec<Address>,
    /// Shards that have handed out changes, which the state is to have once the broker has
    /// all before these places.
    unsaved: VecDeque<(u64, Address)>,
    /// Shards that end, or begin anew: they are looked after now and then.
    attended: Vec<Address>,
    outbox: Outbox<C>,
    out: Vec<Output>,
    touched: Vec<Address>,
    figures: Arc<ThreadFigures>,
    /// Counts nanoseconds.
    meter: Meter,
    /// When instances that nobody calls are next given back.
    give_back_at: u64,
    /// Shards with decisions to compare, and how much time there is for it.
    comparing: VecDeque<Address>,
    spare: SpareTime,
}

/// Nobody waits for a thread that is gone, whatever ended it.
impl<C> Drop for Thread<C> {
    fn drop(&mut self) {
        self.mailbox.close();
    }
}

impl<C: Carrier> Thread<C> {
    pub(super) fn new(
        mailbox: Arc<Mailbox>,
        outbox: Outbox<C>,
        figures: Arc<ThreadFigures>,
        meter: Meter,
    ) -> Self {
        Self {
            mailbox,
            cells: HashMap::default(),
            instances: Instances::default(),
            rounds: Rounds::default(),
            timers: BTreeSet::new(),
            resting: Vec::new(),
            unsaved: VecDeque::new(),
            attended: Vec::new(),
            outbox,
            out: Vec::new(),
            touched: Vec::new(),
            figures,
            meter,
            give_back_at: clock::now_ms() + UNUSED_MS,
            comparing: VecDeque::new(),
            spare: SpareTime::default(),
        }
    }

    /// Works until the mailbox is closed.
    pub(super) async fn run(mut self) {
        while self.look() {
            let turn = self.rounds.next((self.meter)());
            let is_idle = turn.is_none();
            if let Some(turn) = turn {
                self.turn(turn);
            }
            if !self.compare() && is_idle {
                self.wait().await;
            }
        }
    }

    /// Compares what two pipelines decide on one event, if there is time for it. Says whether
    /// it did.
    pub(super) fn compare(&mut self) -> bool {
        if self.comparing.is_empty() || !self.spare.is_left() {
            return false;
        }
        let Some(address) = self.comparing.pop_front() else {
            return false;
        };
        let Some(cell) = self.cells.get_mut(&address) else {
            return true;
        };
        let begun = (self.meter)();
        self.figures.is_busy(clock::now_ms());
        let compared = catch_unwind(AssertUnwindSafe(|| {
            let fetch = self
                .instances
                .with(address, cell, |_, rules| rules.compare());
            if let (Some(questions), Some(fetcher)) = (fetch, &cell.tenant.fetcher) {
                fetcher.want(questions);
            }
        }));
        if let Err(panic) = compared {
            // What decides goes on: it has no part in this.
            tracing::error!(
                "what two pipelines decide could not be compared: {}",
                tasks::message(&*panic)
            );
            self.instances.begin_anew(address.tenant, cell);
        }
        cell.has_comparisons = !cell.comparisons.is_empty();
        if cell.has_comparisons {
            self.comparing.push_back(address);
        }
        let took = (self.meter)().saturating_sub(begun);
        self.spare.spend(took);
        true
    }

    /// Whose turn it is, if it is anybody's.
    #[cfg(test)]
    pub(super) fn next(&mut self) -> Option<Turn> {
        self.rounds.next((self.meter)())
    }

    /// How many shards live here, and how many timers they have.
    #[cfg(test)]
    pub(super) fn counts(&self) -> (usize, usize) {
        (self.cells.len(), self.timers.len())
    }

    /// Looks what there is to do. Says whether to go on.
    pub(super) fn look(&mut self) -> bool {
        let now = clock::now_ms();
        self.outbox.tend(now);
        let goes_on = self.receive();
        while let Some((at, address)) = self.timers.first().copied()
            && at <= now
        {
            self.timers.pop_first();
            if let Some(cell) = self.cells.get_mut(&address) {
                cell.timer = None;
            }
            self.make_ready(address);
        }
        if self.outbox.is_beacon_due(now) {
            let addresses: Vec<_> = self.cells.keys().copied().collect();
            for address in addresses {
                self.guarded(address, |thread| thread.beacon(address));
            }
            self.outbox.hand_over();
        }
        self.wake_resting();
        self.save_acknowledged();
        self.attend();
        if now >= self.give_back_at {
            self.give_back_at = now + UNUSED_MS;
            self.instances.give_back_unused();
        }
        self.figures
            .tell_outbox(self.outbox.bytes(), self.outbox.repeated());
        goes_on
    }

    /// Takes note of what has come.
    fn receive(&mut self) -> bool {
        let mut touched = std::mem::take(&mut self.touched);
        let goes_on = self.mailbox.take_touched(&mut touched);
        for address in touched.drain(..) {
            if !self.cells.contains_key(&address) {
                match self.mailbox.take_control(address) {
                    Some(Task::Place(cell)) => self.place(address, cell),
                    // It has ended.
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
        if let Some(cell) = self.cells.get_mut(&address) {
            cell.beacon(&mut self.outbox);
        }
    }

    fn place(&mut self, address: Address, mut cell: Box<Cell>) {
        self.instances.enter(address.tenant, &mut cell);
        self.cells.insert(address, cell);
    }

    fn make_ready(&mut self, address: Address) {
        if let Some(cell) = self.cells.get_mut(&address)
            && cell.run_state == RunState::Idle
        {
            cell.run_state = RunState::Ready;
            self.rounds.push(address, &cell.tenant.share);
        }
    }

    /// Has shards go on that have waited for room in the outbox.
    fn wake_resting(&mut self) {
        if self.resting.is_empty() {
            return;
        }
        for address in std::mem::take(&mut self.resting) {
            let Some(cell) = self.cells.get_mut(&address) else {
                continue;
            };
            if cell.is_to_rest(&self.outbox) {
                self.resting.push(address);
            } else {
                cell.run_state = RunState::Idle;
                self.make_ready(address);
            }
        }
    }

    /// Hands to the state what has waited for the broker.
    fn save_acknowledged(&mut self) {
        let acknowledged = self.outbox.acknowledged();
        while let Some((end, address)) = self.unsaved.front().copied()
            && end <= acknowledged
        {
            self.unsaved.pop_front();
            if let Some(cell) = self.cells.get_mut(&address) {
                cell.is_unsaved = false;
            }
            self.guarded(address, |thread| thread.save(address));
        }
    }

    /// Looks after shards that end, or begin anew.
    fn attend(&mut self) {
        for address in std::mem::take(&mut self.attended) {
            self.guarded(address, |thread| thread.attend_to(address));
        }
    }

    fn attend_to(&mut self, address: Address) {
        let Some(cell) = self.cells.get_mut(&address) else {
            return;
        };
        if cell.restart.is_under_way() {
            if cell.ends_unrestored(&mut self.outbox) {
                tracing::warn!(
                    "NATS can't be reached, so a shard that has failed can't be restarted before \
                     the node stops: its waiting inputs are dropped"
                );
                return self.remove(address);
            }
            cell.attend_restart(address, &self.mailbox, &self.outbox);
            self.attended.push(address);
            if self.mailbox.has_other_than_inputs(address) {
                self.make_ready(address);
            }
        } else if cell.has_ended(&mut self.outbox) {
            self.remove(address);
        } else if cell.has_given_up() {
            self.attended.push(address);
        }
    }

    fn remove(&mut self, address: Address) {
        let Some(mut cell) = self.cells.remove(&address) else {
            return;
        };
        if let Some(at) = cell.timer {
            self.timers.remove(&(at, address));
        }
        self.instances.leave(address.tenant, &cell.pipelines);
        self.mailbox.discard(address);
        if let Some(done) = cell.ending.as_mut().and_then(|ending| ending.done.take()) {
            // The one who asked may have given up.
            let _ = done.send(());
        }
    }

    /// Has a shard take its turn.
    pub(super) fn turn(&mut self, Turn { shard, limit_ns }: Turn) {
        let begun = (self.meter)();
        let limit = limit_ns.and_then(|limit| u64::try_from(limit).ok());
        let until = limit.map(|limit| begun.saturating_add(limit));
        let turned = self.guarded(shard, |thread| thread.work(shard, until));
        let turned = turned.unwrap_or(Turned::Over);
        self.guarded(shard, |thread| thread.end_turn(shard, turned));
        let ended = (self.meter)();
        let took = ended.saturating_sub(begun);
        self.rounds.took(shard.tenant, ended, took);
        self.spare.was_busy(took);
    }

    /// Has something be done with one shard. If it panics, that shard alone begins anew.
    fn guarded<T>(&mut self, address: Address, work: impl FnOnce(&mut Self) -> T) -> Option<T> {
        let cell = self.cells.get(&address);
        let span = cell.and_then(|cell| cell.tenant.span.clone());
        let _tenant = span.as_ref().map(Span::enter);
        match catch_unwind(AssertUnwindSafe(|| work(self))) {
            Ok(done) => Some(done),
            Err(panic) => {
                self.failed(address, &*panic);
                None
            }
        }
    }

    fn work(&mut self, address: Address, until_ns: Option<u64>) -> Turned {
        let Some(cell) = self.cells.get_mut(&address) else {
            return Turned::Over;
        };
        cell.run_state = RunState::Idle;
        let mut context = TurnContext {
            address,
            mailbox: &self.mailbox,
            outbox: &mut self.outbox,
            out: &mut self.out,
            figures: &self.figures,
            until_ns,
            meter: &mut self.meter,
        };
        while !cell.has_given_up() {
            // One that begins anew publishes nothing, and needs no room for it.
            if !cell.restart.is_under_way() && cell.is_to_rest(context.outbox) {
                return Turned::Full;
            }
            let Some(task) = context.mailbox.take_control(address) else {
                break;
            };
            context.is_busy();
            let task = match task {
                Task::Pipelines(pipelines) => {
                    let before = cell.pipelines.assignment();
                    let after = pipelines.assignment();
                    self.instances.change(address.tenant, cell, pipelines);
                    Task::Tell(Input::Reassigned { before, after })
                }
                Task::Restored(restored) if cell.restart.is_under_way() => {
                    cell.restored(restored, context.outbox);
                    continue;
                }
                task => task,
            };
            self.instances.with(address, cell, |cell, rules| {
                cell.control(task, rules, &mut context);
            });
        }
        if cell.restart.is_under_way() {
            // It knows nothing that it could answer by.
            context.mailbox.drop_questions(address);
            return Turned::Over;
        }
        self.instances
            .with(address, cell, |cell, rules| cell.turn(rules, &mut context))
    }

    /// A shard has panicked: it begins anew, unless it was about to end.
    fn failed(&mut self, address: Address, panic: &(dyn Any + Send)) {
        // Nothing is published that came of it.
        self.out.clear();
        let Some(cell) = self.cells.get_mut(&address) else {
            return;
        };
        cell.failed(panic);
        if cell.has_given_up() {
            return self.remove(address);
        }
        self.instances.begin_anew(address.tenant, cell);
        self.has_to_be_attended(address);
    }

    fn has_to_be_attended(&mut self, address: Address) {
        if !self.attended.contains(&address) {
            self.attended.push(address);
        }
    }

    /// Takes note of what a shard's turn has left to do.
    fn end_turn(&mut self, address: Address, turned: Turned) {
        let Some(cell) = self.cells.get_mut(&address) else {
            return;
        };
        cell.tell_figures();
        if !cell.comparisons.is_empty() && !std::mem::replace(&mut cell.has_comparisons, true) {
            self.comparing.push_back(address);
        }
        let is_waiting = cell.restart.is_under_way() || cell.has_given_up();
        if is_waiting {
            self.has_to_be_attended(address);
        } else if turned == Turned::Full {
            cell.run_state = RunState::Resting;
            self.resting.push(address);
        } else {
            let now = clock::now_ms();
            let has_more = self
                .instances
                .with(address, cell, |cell, rules| cell.has_more(now, rules));
            if has_more || self.mailbox.has(address) {
                self.make_ready(address);
            }
        }
        self.save(address);
    }

    /// Hands to the state what a shard has to be kept, or notes when that is to be done.
    fn save(&mut self, address: Address) {
        let Some(cell) = self.cells.get_mut(&address) else {
            return;
        };
        // One that ends is looked after until the state has all of it.
        if !cell.has_given_up() {
            cell.save(&self.outbox);
            if let Some(end) = cell.waits_for()
                && !std::mem::replace(&mut cell.is_unsaved, true)
            {
                self.unsaved.push_back((end, address));
            }
        }
        let due = cell.due();
        let before = std::mem::replace(&mut cell.timer, due);
        if before != due {
            if let Some(at) = before {
                self.timers.remove(&(at, address));
            }
            self.timers.extend(due.map(|at| (at, address)));
        }
    }

    /// Waits until there may be something to do.
    async fn wait(&mut self) {
        self.figures.is_idle();
        let now = clock::now_ms();
        let begun = (self.meter)();
        let free_at = self.rounds.free_at_ns();
        let free_ms = free_at.map(|at| at.saturating_sub(begun).div_ceil(NS_PER_MS));
        let due = [
            self.timers.first().map(|(at, _)| *at),
            self.outbox.due(now),
            (!self.attended.is_empty()).then_some(now + LOOK_MS),
            (!self.instances.is_empty()).then_some(self.give_back_at),
            (!self.comparing.is_empty()).then_some(now + COMPARE_MS),
            free_ms.map(|ms| now.saturating_add(ms)),
        ];
        let woken = async {
            tokio::select! {
                biased;
                () = self.mailbox.arrived() => {}
                () = self.outbox.moved() => {}
            }
        };
        match due.into_iter().flatten().min() {
            Some(at) => {
                let wait = Duration::from_millis(at.saturating_sub(now));
                // It is looked what there is to do in any case.
                let _ = tokio::time::timeout(wait, woken).await;
            }
            None => woken.await,
        }
        let idle = (self.meter)().saturating_sub(begun);
        self.spare.was_idle(idle);
    }
}
