//! The mailbox of one thread of the pool. Each shard with waiting messages has lanes with limits of
//! their own, so that a flood of one kind, or for one shard, takes no room from another. A shard
//! without waiting messages has no entry.

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use foldhash::fast::FixedState;
use presence_sandbox::Pauser;
use tokio::sync::Notify;

use super::Address;
use super::work::{Batch, ShardQuestion, Size, Task};

/// How many control tasks may wait for a shard before their sender has to wait.
const CONTROL_MAX: usize = 64;

/// How many empty lanes are kept for reuse, so that a message needs no allocation.
const SPARE_MAX: usize = 64;

/// A thread's mailbox.
#[derive(Default)]
pub(crate) struct Mailbox {
    state: Mutex<MailboxState>,
    arrived: Notify,
    freed: Notify,
    /// Makes calls of plugins pause.
    pauser: OnceLock<Pauser>,
}

#[derive(Default)]
struct MailboxState {
    /// The lanes of each shard for which something waits. Lanes here are never empty.
    lanes: HashMap<Address, Lanes, FixedState>,
    /// Empty lanes for reuse.
    spare: Vec<Lanes>,
    /// Shards that have got lanes since the thread last asked.
    touched: Vec<Address>,
    /// Whether the thread has been woken since it last asked.
    is_woken: bool,
    /// Shards whose messages may wait until the thread wakes by itself, if that is soon.
    deferrable: HashSet<Address, FixedState>,
    wakes_soon: bool,
    /// How many senders wait for room.
    waiting: usize,
    /// The tenant of the turn in progress.
    current: Option<u32>,
    /// Whether the thread has ended.
    is_closed: bool,
}

/// The messages that wait for one shard.
#[derive(Default)]
struct Lanes {
    control: VecDeque<Box<Task>>,
    inputs: VecDeque<Batch>,
    /// The size of the waiting inputs.
    used: Size,
    questions: VecDeque<ShardQuestion>,
}

impl fmt::Debug for Mailbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Mailbox")
    }
}

impl Lanes {
    fn is_empty(&self) -> bool {
        self.control.is_empty() && self.inputs.is_empty() && self.questions.is_empty()
    }
}

impl MailboxState {
    /// A shard's lanes, to put something in. The thread will be told of new ones.
    fn lanes(&mut self, shard: Address) -> &mut Lanes {
        let (spare, touched) = (&mut self.spare, &mut self.touched);
        self.lanes.entry(shard).or_insert_with(|| {
            touched.push(shard);
            spare.pop().unwrap_or_default()
        })
    }

    /// Takes something out of a shard's lanes, if there are any, and removes them when they are
    /// empty.
    fn take<T>(&mut self, shard: Address, take: impl FnOnce(&mut Lanes) -> Option<T>) -> Option<T> {
        let lanes = self.lanes.get_mut(&shard)?;
        let taken = take(lanes);
        if lanes.is_empty()
            && let Some(lanes) = self.lanes.remove(&shard)
            && self.spare.len() < SPARE_MAX
        {
            self.spare.push(lanes);
        }
        taken
    }
}

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, MailboxState> {
        // No step under the lock leaves it half-changed, so a panic does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts something into a shard's lanes, if `has_room` says so. Lanes that don't exist always
    /// have room.
    fn put<T>(
        &self,
        shard: Address,
        item: T,
        has_room: impl FnOnce(&Lanes, &T) -> bool,
        put: impl FnOnce(&mut Lanes, T),
    ) -> Result<(), T> {
        let mut state = self.state();
        if state.is_closed {
            return Err(item);
        }
        let is_deferred = state.wakes_soon && state.deferrable.contains(&shard);
        let known = state.lanes.get(&shard);
        let is_first = known.is_none();
        if known.is_some_and(|lanes| !has_room(lanes, &item)) {
            // What fills the lane has waited long enough.
            let wakes = is_deferred && !std::mem::replace(&mut state.is_woken, true);
            drop(state);
            if wakes {
                self.arrived.notify_one();
            }
            return Err(item);
        }
        put(state.lanes(shard), item);
        let wakes = is_first && !is_deferred && !state.is_woken;
        state.is_woken |= wakes;
        let is_others = state.current.is_some_and(|it| it != shard.tenant);
        drop(state);
        if wakes {
            self.arrived.notify_one();
        }
        if is_first && is_others {
            self.pause_soon();
        }
        Ok(())
    }

    /// From now on, calls of plugins can be paused with this pauser.
    pub(super) fn set_pauser(&self, pauser: Pauser) {
        // The whole process has only one.
        let _ = self.pauser.set(pauser);
    }

    /// Asks a running call of a plugin to pause soon, because others wait for the thread.
    pub(super) fn pause_soon(&self) {
        if let Some(pauser) = self.pauser.get() {
            pauser.pause_soon();
        }
    }

    /// Notes that a tenant's turn begins or continues. `None`: no turn is in progress.
    /// `is_awaited`: whether others wait for their turns.
    pub(super) fn begin_turn(&self, tenant: Option<u32>, is_awaited: bool) {
        let mut state = self.state();
        state.current = tenant;
        let is_awaited = is_awaited || !state.touched.is_empty();
        drop(state);
        if tenant.is_some() && is_awaited {
            self.pause_soon();
        }
    }

    /// Puts inputs in, if there is room for them now. An empty lane takes a batch of any size.
    ///
    /// # Errors
    /// Returns the batch if there is no room.
    pub(super) fn offer_inputs(
        &self,
        shard: Address,
        batch: Batch,
        max: Size,
    ) -> Result<(), Batch> {
        let has_room = |lanes: &Lanes, batch: &Batch| {
            lanes.inputs.is_empty() || lanes.used.plus(batch.size()).fits(max)
        };
        self.put(shard, batch, has_room, |lanes, batch| {
            lanes.used = lanes.used.plus(batch.size());
            lanes.inputs.push_back(batch);
        })
    }

    /// Puts a question in, if there is room for it now.
    pub(super) fn offer_question(&self, shard: Address, ask: ShardQuestion, max: usize) -> bool {
        let has_room = |lanes: &Lanes, _: &ShardQuestion| lanes.questions.len() < max;
        let put = |lanes: &mut Lanes, ask| lanes.questions.push_back(ask);
        self.put(shard, ask, has_room, put).is_ok()
    }

    /// Puts a task in, if fewer than `max` wait.
    pub(super) fn offer(&self, shard: Address, task: Task, max: usize) -> bool {
        let has_room = |lanes: &Lanes, _: &_| lanes.control.len() < max;
        let put = |lanes: &mut Lanes, task| lanes.control.push_back(task);
        self.put(shard, Box::new(task), has_room, put).is_ok()
    }

    /// Puts a task in before all others, whether there is room or not.
    pub(super) fn put_first(&self, shard: Address, task: Task) {
        let put = |lanes: &mut Lanes, task| lanes.control.push_front(task);
        let task = Box::new(task);
        // If the thread has ended, nobody needs the task.
        let _ = self.put(shard, task, |_, _| true, put);
        // The thread may know these lanes already, and wait for something else.
        self.arrived.notify_one();
    }

    /// Puts a task in when there is room for it. If the thread has ended, the task is dropped.
    pub(super) async fn send(&self, shard: Address, task: Task) {
        let offer = |task| {
            let has_room = |lanes: &Lanes, _: &_| lanes.control.len() < CONTROL_MAX;
            let put = |lanes: &mut Lanes, task| lanes.control.push_back(task);
            self.put(shard, task, has_room, put)
        };
        self.wait_and_offer(Box::new(task), offer).await;
    }

    /// Puts inputs in when there is room for them. If the thread has ended, they are dropped.
    pub(super) async fn send_inputs(&self, shard: Address, batch: Batch, max: Size) {
        self.wait_and_offer(batch, |batch| self.offer_inputs(shard, batch, max))
            .await;
    }

    async fn wait_and_offer<T>(&self, item: T, offer: impl Fn(T) -> Result<(), T>) {
        let mut item = item;
        loop {
            // Created before the check, so that no notification is missed.
            let freed = self.freed.notified();
            self.state().waiting += 1;
            let refused = offer(item);
            let Err(refused) = refused else {
                self.state().waiting -= 1;
                return;
            };
            item = refused;
            let is_closed = self.state().is_closed;
            if !is_closed {
                freed.await;
            }
            self.state().waiting -= 1;
            if is_closed {
                return;
            }
        }
    }

    /// How many bytes of inputs wait for a shard.
    pub(super) fn queued_bytes(&self, shard: Address) -> usize {
        self.state()
            .lanes
            .get(&shard)
            .map_or(0, |lanes| lanes.used.bytes)
    }

    /// Sets whether the messages of a shard may wait until the thread wakes by itself, if that is
    /// soon. Waking a thread for each of few messages costs more than handling them.
    pub(super) fn set_deferrable(&self, shard: Address, is_deferrable: bool) {
        let deferrable = &mut self.state().deferrable;
        if is_deferrable {
            deferrable.insert(shard);
        } else {
            deferrable.remove(&shard);
        }
    }

    /// Notes that the thread is about to wait, and whether it wakes soon by itself. Returns whether
    /// it may wait: not if something deferred has come, and it doesn't wake soon.
    pub(super) fn may_wait(&self, wakes_soon: bool) -> bool {
        let mut state = self.state();
        state.wakes_soon = wakes_soon;
        wakes_soon || state.touched.is_empty()
    }

    /// Waits until [`Self::take_woken`] has something new that isn't deferred.
    pub(super) async fn arrived(&self) {
        self.arrived.notified().await;
    }

    /// Appends the shards that have got something to do since the last call. Returns whether the
    /// thread continues.
    pub(super) fn take_woken(&self, touched: &mut Vec<Address>) -> bool {
        let mut state = self.state();
        state.is_woken = false;
        touched.append(&mut state.touched);
        !state.is_closed
    }

    /// Whether anything waits for a shard.
    pub(super) fn has(&self, shard: Address) -> bool {
        self.state().lanes.contains_key(&shard)
    }

    /// Whether inputs wait for a shard.
    pub(super) fn has_inputs(&self, shard: Address) -> bool {
        let state = self.state();
        let lanes = state.lanes.get(&shard);
        lanes.is_some_and(|lanes| !lanes.inputs.is_empty())
    }

    /// Whether anything but inputs waits for a shard.
    pub(super) fn has_other_than_inputs(&self, shard: Address) -> bool {
        let state = self.state();
        let lanes = state.lanes.get(&shard);
        lanes.is_some_and(|lanes| !lanes.control.is_empty() || !lanes.questions.is_empty())
    }

    /// Takes the next control task.
    pub(super) fn take_control(&self, shard: Address) -> Option<Task> {
        let task = self.take(shard, |lanes| lanes.control.pop_front());
        task.map(|task| *task)
    }

    /// Takes the oldest batch of inputs.
    pub(super) fn take_inputs(&self, shard: Address) -> Option<Batch> {
        self.take(shard, |lanes| {
            let batch = lanes.inputs.pop_front()?;
            lanes.used = lanes.used.minus(batch.size());
            Some(batch)
        })
    }

    /// Takes the oldest question.
    pub(super) fn take_question(&self, shard: Address) -> Option<ShardQuestion> {
        self.take(shard, |lanes| lanes.questions.pop_front())
    }

    /// Drops the questions that wait for a shard. Dropping a question tells the requester that
    /// there is no answer.
    pub(super) fn drop_questions(&self, shard: Address) {
        let questions = self.take(shard, |lanes| Some(std::mem::take(&mut lanes.questions)));
        drop(questions);
    }

    /// Drops everything that waits for a shard that isn't there.
    pub(super) fn discard(&self, shard: Address) {
        let mut state = self.state();
        state.deferrable.remove(&shard);
        let discarded = state.lanes.remove(&shard);
        drop(state);
        drop(discarded);
        self.freed.notify_waiters();
    }

    /// Closes the mailbox: it takes nothing any more, and drops everything that waits.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closed = true;
        let lanes = std::mem::take(&mut state.lanes);
        drop(state);
        // Dropping the messages tells those who wait for an answer.
        drop(lanes);
        self.freed.notify_waiters();
        self.arrived.notify_one();
    }

    fn take<T>(&self, shard: Address, take: impl FnOnce(&mut Lanes) -> Option<T>) -> Option<T> {
        let mut state = self.state();
        let taken = state.take(shard, take);
        let is_awaited = state.waiting > 0;
        drop(state);
        if is_awaited && taken.is_some() {
            self.freed.notify_waiters();
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use presence_core::Input;

    use super::*;

    const ONE: Address = Address {
        tenant: 1,
        shard: 0,
    };
    const OTHER: Address = Address {
        tenant: 2,
        shard: 0,
    };

    const fn size(messages: usize, bytes: usize) -> Size {
        Size { messages, bytes }
    }

    /// A batch with this many inputs, whose messages have this many bytes in all.
    fn batch(inputs: usize, bytes: usize) -> Batch {
        let input = Input::ReceivedUpTo { at: 1 };
        Batch::new(0, vec![input; inputs], bytes)
    }

    fn room(bytes: usize) -> Size {
        size(3, bytes + 3 * super::super::work::INPUT_BYTES)
    }

    #[test]
    fn inputs_are_bounded_in_messages_and_in_bytes_for_each_shard() {
        let mailbox = Mailbox::default();
        let offer = |shard, batch| mailbox.offer_inputs(shard, batch, room(100)).is_ok();
        assert!(offer(ONE, batch(2, 10)));
        assert!(!offer(ONE, batch(2, 10)), "messages");
        assert!(!offer(ONE, batch(1, 91)), "bytes");
        assert!(offer(OTHER, batch(3, 90)), "another's");
        assert!(offer(ONE, batch(1, 90)));
        assert_eq!(mailbox.take_inputs(ONE).unwrap().inputs.len(), 2);
        assert_eq!(mailbox.take_inputs(ONE).unwrap().inputs.len(), 1);
        assert!(mailbox.take_inputs(ONE).is_none());
        assert_eq!(mailbox.queued_bytes(ONE), 0);
        assert!(mailbox.queued_bytes(OTHER) > 0);
    }

    #[test]
    fn one_batch_alone_always_has_room_and_takes_none_from_questions() {
        let mailbox = Mailbox::default();
        let (done, _answer) = tokio::sync::oneshot::channel();
        assert!(mailbox.offer_inputs(ONE, batch(9, 5_000), room(1)).is_ok());
        assert!(mailbox.offer_inputs(ONE, batch(0, 1), room(1)).is_err());
        let ask = |done| ShardQuestion::Contacts("ann".into(), done);
        assert!(mailbox.offer_question(ONE, ask(done), 1));
        let (done, _answer) = tokio::sync::oneshot::channel();
        assert!(!mailbox.offer_question(ONE, ask(done), 1));
    }

    #[test]
    fn the_thread_is_told_once_and_a_shard_that_nothing_waits_for_has_no_place() {
        let mailbox = Mailbox::default();
        let mut touched = Vec::new();
        for _ in 0..2 {
            mailbox.offer_inputs(ONE, batch(1, 0), room(9)).unwrap();
        }
        assert!(mailbox.take_woken(&mut touched));
        assert_eq!(touched, [ONE]);
        mailbox.take_inputs(ONE).unwrap();
        mailbox.offer_inputs(ONE, batch(1, 0), room(9)).unwrap();
        touched.clear();
        mailbox.take_woken(&mut touched);
        assert!(touched.is_empty(), "it knows of what waits");
        while mailbox.take_inputs(ONE).is_some() {}
        assert!(!mailbox.has(ONE) && mailbox.state().lanes.is_empty());
        mailbox.offer_inputs(ONE, batch(1, 0), room(9)).unwrap();
        mailbox.take_woken(&mut touched);
        assert_eq!(touched, [ONE]);
    }

    #[tokio::test]
    async fn a_deferrable_shard_wakes_no_thread_that_wakes_soon() {
        let mailbox = Mailbox::default();
        let is_woken = async || {
            let woken = tokio::time::timeout(std::time::Duration::ZERO, mailbox.arrived());
            woken.await.is_ok()
        };
        let mut touched = Vec::new();
        let offer = |shard| mailbox.offer_inputs(shard, batch(1, 0), room(9));
        mailbox.set_deferrable(ONE, true);
        assert!(mailbox.may_wait(true));
        offer(ONE).unwrap();
        assert!(!is_woken().await);
        assert!(!mailbox.may_wait(false), "nothing would wake the thread");
        offer(OTHER).unwrap();
        assert!(is_woken().await, "the other shard can't wait");
        mailbox.take_woken(&mut touched);
        assert_eq!(touched, [ONE, OTHER]);

        while mailbox.take_inputs(ONE).is_some() {}
        assert!(mailbox.may_wait(true));
        for _ in 0..3 {
            offer(ONE).unwrap();
        }
        assert!(!is_woken().await);
        assert!(offer(ONE).is_err() && is_woken().await, "the lane is full");
        mailbox.take_woken(&mut touched);

        while mailbox.take_inputs(ONE).is_some() {}
        assert!(mailbox.may_wait(false));
        offer(ONE).unwrap();
        assert!(is_woken().await, "the thread waits for long");
    }

    #[tokio::test]
    async fn who_sends_waits_for_room_and_for_no_thread_that_has_ended() {
        let mailbox = Mailbox::default();
        mailbox.send_inputs(ONE, batch(3, 0), room(0)).await;
        mailbox.send_inputs(OTHER, batch(3, 0), room(0)).await;
        let taken = async {
            tokio::task::yield_now().await;
            assert_eq!(mailbox.state().waiting, 2);
            mailbox.take_inputs(OTHER).unwrap();
            mailbox.take_inputs(ONE).unwrap();
        };
        let (one, other) = (batch(1, 0), batch(2, 0));
        tokio::join!(
            mailbox.send_inputs(ONE, one, room(0)),
            mailbox.send_inputs(OTHER, other, room(0)),
            taken
        );
        assert_eq!(mailbox.state().waiting, 0);
        let more = mailbox.send_inputs(ONE, batch(3, 0), room(0));
        tokio::join!(more, async { mailbox.close() });
        assert!(mailbox.offer_inputs(ONE, batch(1, 0), room(9)).is_err());
        assert!(!mailbox.take_woken(&mut Vec::new()));
    }
}
