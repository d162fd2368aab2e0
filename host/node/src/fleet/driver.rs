//! The task that drives this node's [`Member`]. It carries messages between the member, the bucket,
//! the shards and the other nodes, and blocks on none of them.

mod bucket;
mod heartbeats;
mod nodes;
mod watch_lag;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::future::{BoxFuture, FutureExt as _};
use futures_util::stream::{FuturesUnordered, StreamExt as _};
use presence_config::causes::Causes;
use presence_config::subjects::Subjects;
use presence_core::Input;
use presence_core::fleet::lease::WriteOutcome;
use presence_core::fleet::member::{Key, Member, MemberOutput};
use presence_core::fleet::replica::{PreviousOwner, Role};
use tokio::sync::{mpsc, watch};
use tokio::time::{sleep, timeout};

use self::heartbeats::Heartbeats;
use self::watch_lag::WatchLag;
use super::parts::{PartSender, SubscriptionChange};
use super::{Fleet, FleetStart, node_subject};
use crate::clock;
use crate::link::broker::BrokerHealth;
use crate::link::connection::{Connection, Subscription};
use crate::link::drops::SubscriptionKind;
use crate::link::fleet_bucket::{BucketWatch, Change, FleetBucket, Layout, WatchEvent};
use crate::pool::log_limiter::LogLimiter;
use crate::pool::{FleetTask, ShardReport, Shards};
use crate::tasks::{Tasks, blocking};

/// Limits for the longest time between two calls of `Member::advance`, which is a twelfth of the lease.
const ADVANCE_EVERY_MS: (u64, u64) = (100, 1_000);

/// The wait before the bucket is watched again after a watch has failed.
const WATCH_RETRY: Duration = Duration::from_millis(200);

/// How long, in milliseconds, gained shards are counted before the log names their number.
const GAINS_MS: u64 = 500;

/// How many reports are handled in a row before other events have a turn.
const REPORTS_MAX: usize = 256;

/// The result of an operation that ran beside the driver's loop.
enum Completion {
    Written(u64, Key, WriteOutcome),
    Read(Key, Option<Change>),
    /// The attempt number, and the watch. `None`: the attempt failed.
    Watched(u64, Option<Box<BucketWatch>>),
    Listens(u32, anyhow::Result<Subscription>),
    /// The shard, and whether the subscriptions are to its heartbeats or to everything else.
    Subscribed(u32, bool, anyhow::Result<Vec<Subscription>>),
    /// Whether the bucket is still the one that the node joined. `None`: that isn't known.
    IsSame(Option<bool>),
    /// A message was sent, or the attempt failed. Nothing depends on it.
    Sent,
}

/// Whether the node is subscribed to a shard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SubscriptionState {
    No,
    /// The subscription is being made.
    Begins,
    Yes,
}

/// Counts of the shards that this node has gained and that the log hasn't reported yet.
#[derive(Default)]
struct Gains {
    handed_over: u64,
    taken_over: u64,
    /// When the counting began.
    since: u64,
}

/// Tells whether the node can't decide about any user.
pub(crate) type IsClosed = Box<dyn Fn() -> bool + Send>;

/// The state of the driver's task.
struct Driver {
    fleet: Arc<Fleet>,
    member: Member,
    bucket: FleetBucket,
    /// The fleet's shared settings, as the bucket had them when the node joined.
    layout: Layout,
    tasks: Tasks,
    connection: Connection,
    broker: Arc<BrokerHealth>,
    /// The time up to which the node has received every message.
    received_up_to: watch::Receiver<u64>,
    is_closed: IsClosed,
    subjects: Subjects,
    shards: Shards,
    parts: PartSender,
    /// This node's role in each shard, and whether the node is subscribed to the shard.
    roles: Vec<(Role, SubscriptionState)>,
    heartbeats: Vec<Heartbeats>,
    /// Whether each shard has caught up at least once since this node took a role in it.
    caught_up: Vec<bool>,
    under_way: FuturesUnordered<BoxFuture<'static, Completion>>,
    watch: Option<BucketWatch>,
    /// How many times a watch was started.
    watches: u64,
    watch_lag: WatchLag,
    refusals: LogLimiter,
    is_announced: bool,
    gains: Gains,
    /// When to check whether the bucket still exists, if the node can't reach it; and whether a
    /// check is running.
    check_at: u64,
    is_checking: bool,
}

/// Starts this node's task in the fleet. `parts` tells the intake what to subscribe to.
///
/// # Errors
/// If the connection is closed.
pub(crate) async fn start(
    start: FleetStart,
    (connection, broker): (&Connection, Arc<BrokerHealth>),
    subjects: Subjects,
    (shards, parts): (Shards, PartSender),
    (connects, received_up_to, tasks): (watch::Receiver<u64>, watch::Receiver<u64>, &Tasks),
    is_closed: IsClosed,
) -> anyhow::Result<()> {
    let FleetStart {
        fleet,
        bucket,
        layout,
        reports,
        ..
    } = start;
    let subject = node_subject(&subjects, &fleet.node);
    let messages = connection.subscribe(subject, SubscriptionKind::Other, &broker);
    let messages = messages.await?;
    // The time of the start: no other run of the node has the same number.
    let session = clock::wall_now_us();
    let member = Member::new(fleet.settings, &fleet.node, session, fleet.shards)
        .placed_by(layout.placement)
        .begins_closed(is_closed());
    let driver = Driver {
        roles: (0..fleet.shards)
            .map(|_| (Role::None, SubscriptionState::No))
            .collect(),
        heartbeats: vec![Heartbeats::default(); fleet.shards as usize],
        caught_up: vec![false; fleet.shards as usize],
        member,
        bucket,
        layout,
        tasks: tasks.clone(),
        connection: connection.clone(),
        broker,
        received_up_to,
        is_closed,
        subjects,
        shards,
        parts,
        under_way: FuturesUnordered::new(),
        watch: None,
        watches: 0,
        watch_lag: WatchLag::default(),
        refusals: LogLimiter::default(),
        is_announced: false,
        gains: Gains::default(),
        check_at: clock::now_ms() + fleet.settings.lease_ms,
        is_checking: false,
        fleet,
    };
    tasks.spawn("fleet", driver.run(messages, reports, connects));
    Ok(())
}

impl Driver {
    async fn run(
        mut self,
        mut messages: Subscription,
        mut reports: mpsc::UnboundedReceiver<(u32, ShardReport)>,
        mut connects: watch::Receiver<u64>,
    ) {
        connects.borrow_and_update();
        self.watch_anew(Duration::ZERO);
        let fleet = Arc::clone(&self.fleet);
        let advance_ms =
            (fleet.settings.lease_ms / 12).clamp(ADVANCE_EVERY_MS.0, ADVANCE_EVERY_MS.1);
        loop {
            let now = clock::now_ms();
            let due = self.member.next_deadline(now).unwrap_or(u64::MAX);
            let wait_ms = due.saturating_sub(now).clamp(1, advance_ms);
            tokio::select! {
                change = next_change(&mut self.watch) => self.on_change(change),
                Some(done) = self.under_way.next(), if !self.under_way.is_empty() => {
                    self.on_completion(done);
                }
                Some((shard, report)) = reports.recv() => {
                    self.on_report(shard, report);
                    for _ in 1..REPORTS_MAX {
                        let Ok((shard, report)) = reports.try_recv() else { break };
                        self.on_report(shard, report);
                    }
                }
                Some(message) = messages.next() => self.on_node_message(&message),
                Ok(()) = connects.changed() => self.on_reconnect(),
                () = fleet.leave.notified() => {
                    tracing::info!("handing over all shards that this node owns");
                    self.member.leave(clock::now_ms());
                }
                () = sleep(Duration::from_millis(wait_ms)) => {}
            }
            self.advance();
        }
    }

    /// Advances the member to the current time, and carries out all of its outputs.
    fn advance(&mut self) {
        let now = clock::now_ms();
        let is_closed = (self.is_closed)();
        if self.member.set_closed(now, is_closed) {
            match is_closed {
                true => tracing::warn!(
                    "this node can decide on nobody, as /readyz says: its shards are handed over to nodes \
                     that can, if there are any"
                ),
                false => tracing::info!("this node can decide again, and takes its shards"),
            }
        }
        self.member.advance(now);
        loop {
            let outputs: Vec<_> = self.member.outputs().collect();
            if outputs.is_empty() {
                break;
            }
            for output in outputs {
                self.carry_out(now, output);
            }
        }
        let in_touch = self.member.is_in_touch(now);
        self.fleet.in_touch.store(in_touch, Ordering::Relaxed);
        self.check_bucket(now);
        self.log_gains(now);
        let patience_ms = self.fleet.settings.lease_ms / 6;
        if self.watch.is_some() && self.watch_lag.is_longer_than(patience_ms, now) {
            tracing::debug!("the fleet's bucket is watched anew: the watch says nothing");
            self.watch_anew(Duration::ZERO);
        }
        self.publish_view();
    }

    /// Publishes to the rest of the node who owns which shard, and which nodes live.
    fn publish_view(&mut self) {
        let owners: Vec<_> = self.member.owners().map(|it| it.cloned()).collect();
        self.fleet.owners.send_if_modified(|known| {
            let differs = **known != *owners;
            if differs {
                *known = owners.into();
            }
            differs
        });
        let catching_up = self.roles.iter().zip(&self.caught_up);
        let catching_up = catching_up.filter(|((role, _), done)| *role != Role::None && !**done);
        let catching_up = catching_up.count();
        self.fleet
            .shards_catching_up
            .store(catching_up, Ordering::Relaxed);
        let is_settled = catching_up == 0 && self.fleet.ownerless() == 0;
        self.fleet
            .settled
            .send_if_modified(|known| std::mem::replace(known, is_settled) != is_settled);
        let living: Vec<_> = self.member.living().cloned().collect();
        self.fleet.living.send_if_modified(|known| {
            let differs = **known != *living;
            if differs {
                tracing::info!(nodes = living.join(", "), "the fleet's nodes");
                *known = living.into();
            }
            differs
        });
    }

    fn carry_out(&mut self, now: u64, output: MemberOutput) {
        match output {
            MemberOutput::Write {
                id,
                key,
                value,
                revision,
            } => {
                let bucket = self.bucket.clone();
                let written = async move {
                    let outcome = bucket.write(key.clone(), value, revision).await;
                    Completion::Written(id, key, outcome)
                };
                self.under_way.push(written.boxed());
            }
            MemberOutput::Read(key) => self.read(key),
            MemberOutput::Role(shard, role) => self.role(shard, role),
            MemberOutput::Until(until) => {
                let was_over = now >= self.fleet.lease.until();
                self.fleet.lease.set_until(until);
                if !self.is_announced {
                    self.is_announced = true;
                    let shards = self.fleet.shards;
                    tracing::info!(shards, "this node is one of the fleet");
                }
                // Shards that are at work check the lease by themselves.
                if was_over {
                    self.send_fleet_task_to_all(|| FleetTask::Lease);
                }
            }
            MemberOutput::SessionLost => {
                self.fleet.lease.set_until(0);
                self.fleet
                    .figures
                    .sessions_lost
                    .fetch_add(1, Ordering::Relaxed);
                tracing::warn!(
                    "this node's lease in the fleet is over, and other nodes may take what it owned: it \
                     joins anew"
                );
                self.send_fleet_task_to_all(|| FleetTask::SessionLost);
            }
            MemberOutput::Left => {
                tracing::info!("this node has left the fleet");
                self.fleet.lease.set_until(0);
                self.fleet.left.send_replace(true);
            }
        }
    }

    fn read(&mut self, key: Key) {
        let bucket = self.bucket.clone();
        let read = async move {
            let found = bucket.read(key.clone()).await;
            Completion::Read(key, found)
        };
        self.under_way.push(read.boxed());
    }

    /// The node's role in a shard changes. It subscribes to the shard before it takes the role.
    fn role(&mut self, shard: u32, role: Role) {
        if let Role::Lead { epoch, previous } = &role {
            self.note_owner(shard, *epoch, previous);
        }
        let Some((known, listening)) = self.roles.get_mut(shard as usize) else {
            return;
        };
        *known = role;
        match (&*known, *listening) {
            (Role::None, _) => {
                if let Some(caught_up) = self.caught_up.get_mut(shard as usize) {
                    *caught_up = false;
                }
                *listening = SubscriptionState::No;
                self.fleet.set_part(shard, false);
                self.forget_heartbeats(shard);
                self.parts.change(SubscriptionChange::Remove(shard));
                self.send_fleet_task(shard, FleetTask::Role(Role::None));
            }
            (role, SubscriptionState::Yes) => {
                let role = role.clone();
                self.send_fleet_task(shard, FleetTask::Role(role));
            }
            (_, SubscriptionState::Begins) => {}
            (_, SubscriptionState::No) => {
                *listening = SubscriptionState::Begins;
                self.listen(shard);
            }
        }
    }

    fn listen(&mut self, shard: u32) {
        let (connection, broker) = (self.connection.clone(), Arc::clone(&self.broker));
        let subject = self.subjects.shard_wildcard(shard);
        let subscribed = async move {
            let messages = connection.subscribe(subject, SubscriptionKind::Inputs, &broker);
            Completion::Listens(shard, messages.await)
        };
        self.under_way.push(subscribed.boxed());
    }

    fn note_owner(&mut self, shard: u32, epoch: u64, previous: &PreviousOwner) {
        let figures = &self.fleet.figures;
        match &previous.handed_over {
            Some((node, _)) => {
                figures.handovers.fetch_add(1, Ordering::Relaxed);
                self.gains.handed_over += 1;
                tracing::debug!(shard, epoch, from = &**node, "a shard was handed over");
            }
            None if previous.epoch > 0 => {
                figures.takeovers.fetch_add(1, Ordering::Relaxed);
                self.gains.taken_over += 1;
                tracing::debug!(shard, epoch, "a shard was taken over");
            }
            None => tracing::debug!(shard, epoch, "the first owner of a shard"),
        }
    }

    /// Logs how many shards the node has gained lately.
    fn log_gains(&mut self, now: u64) {
        let Gains {
            handed_over,
            taken_over,
            since,
        } = &mut self.gains;
        if *handed_over + *taken_over == 0 {
            *since = now;
        }
        if now < *since + GAINS_MS {
            return;
        }
        if *taken_over > 0 {
            let shards = *taken_over;
            tracing::warn!(shards, "took over shards that had lost their owner");
        }
        if *handed_over > 0 {
            let shards = *handed_over;
            tracing::info!(shards, "other nodes have handed over shards to this one");
        }
        self.gains = Gains {
            since: now,
            ..Gains::default()
        };
    }

    /// Handles a change in the bucket. `None`: the watch has ended, and a new one is started.
    fn on_change(&mut self, seen: Option<WatchEvent>) {
        let Change {
            key,
            value,
            revision,
        } = match seen {
            Some(WatchEvent::Entry(change)) => change,
            Some(WatchEvent::Layout) => return self.keep_layout(),
            None => return self.watch_anew(WATCH_RETRY),
        };
        self.watch_lag.note_reported(revision);
        let now = clock::now_ms();
        self.member.changed(now, &key, value.as_deref(), revision);
    }

    fn watch_anew(&mut self, wait: Duration) {
        self.watch = None;
        self.watch_lag = WatchLag::default();
        self.watches += 1;
        let number = self.watches;
        let bucket = self.bucket.clone();
        let patience = Duration::from_millis(self.fleet.settings.lease_ms / 3);
        let watched = async move {
            sleep(wait).await;
            let watch = match timeout(patience, bucket.watch()).await {
                Ok(Ok(watch)) => Some(Box::new(watch)),
                Ok(Err(error)) => {
                    tracing::debug!("{}", Causes(&error));
                    None
                }
                Err(_) => None,
            };
            Completion::Watched(number, watch)
        };
        self.under_way.push(watched.boxed());
    }

    fn on_completion(&mut self, done: Completion) {
        let now = clock::now_ms();
        match done {
            Completion::Written(id, key, outcome) => {
                match outcome {
                    WriteOutcome::Stored(revision) if revision > 0 => {
                        self.watch_lag.note_written(revision, now);
                    }
                    // Another node has changed the key, or it is gone: read the current value.
                    WriteOutcome::Refused => self.read(key),
                    WriteOutcome::Stored(_) | WriteOutcome::Unknown => {}
                }
                self.member.written(now, id, outcome);
            }
            Completion::Read(key, found) => {
                // The key is gone. So the bucket's shared settings may be gone, too.
                if found.as_ref().is_some_and(|it| it.revision == 0) {
                    self.keep_layout();
                }
                let found = found.as_ref().map(|it| (it.value.as_deref(), it.revision));
                self.member.read(now, &key, found);
            }
            // A newer attempt is running.
            Completion::Watched(number, _) if number != self.watches => {}
            Completion::Watched(_, Some(watch)) => self.watch = Some(*watch),
            Completion::Watched(_, None) => self.watch_anew(WATCH_RETRY),
            Completion::Listens(shard, messages) => self.on_listening(shard, messages),
            Completion::Subscribed(shard, to_heartbeats, messages) => {
                self.on_subscribed((shard, to_heartbeats), messages);
            }
            Completion::IsSame(same) => self.on_checked(same),
            Completion::Sent => {}
        }
    }

    fn on_listening(&mut self, shard: u32, messages: anyhow::Result<Subscription>) {
        let Some((role, listening)) = self.roles.get_mut(shard as usize) else {
            return;
        };
        // The node has left the shard meanwhile.
        if *listening != SubscriptionState::Begins {
            return;
        }
        match messages {
            Ok(messages) => {
                *listening = SubscriptionState::Yes;
                let role = role.clone();
                self.parts.change(SubscriptionChange::Add(shard, messages));
                self.fleet.set_part(shard, true);
                self.send_fleet_task(shard, FleetTask::Role(role));
            }
            // The connection is closed only when the node ends.
            Err(error) => tracing::error!("can't listen to a shard: {}", Causes(&error)),
        }
    }

    fn on_report(&mut self, shard: u32, report: ShardReport) {
        let now = clock::now_ms();
        match report {
            ShardReport::InSync(epoch) => {
                if let Some(caught_up) = self.caught_up.get_mut(shard as usize) {
                    *caught_up |= epoch.is_some();
                }
                self.member.holds(shard, epoch);
            }
            ShardReport::Resigned { epoch, seq } => self.member.resigned(now, shard, epoch, seq),
            ShardReport::RequestSnapshot { node, nonce } => {
                self.ask_for_snapshot(&node, shard, nonce)
            }
            ShardReport::Chunk(node, bytes) => self.send_chunk(&node, shard, bytes),
            ShardReport::Synced { node, epoch, seq } => {
                self.send_synced(&node, shard, (epoch, seq));
            }
            ShardReport::TakesHeartbeats(takes) => self.set_receives_heartbeats(shard, takes),
            ShardReport::Differed(why) => {
                let why = self.fleet.figures.count_catch_up(why);
                tracing::debug!(shard, why, "a shard catches up");
            }
            ShardReport::Discard(discarded) => drop(blocking(move || drop(discarded))),
            ShardReport::Refused(what) => self.refuse(&format!("shard {shard}: {what}")),
            ShardReport::Leads => tracing::debug!(shard, "leads"),
            ShardReport::Failed { led } => self.on_failed_shard(shard, led),
        }
    }

    /// A shard has failed and lost its state. If this node led it, the node gives up its session,
    /// so that the standby takes over.
    fn on_failed_shard(&mut self, shard: u32, led: bool) {
        if led {
            self.member.give_up_session(clock::now_ms());
        }
        if let Some((role @ Role::Follow { .. }, SubscriptionState::Yes)) =
            self.roles.get(shard as usize)
        {
            let role = role.clone();
            self.send_fleet_task(shard, FleetTask::Role(role));
        }
    }

    /// Tells the shards that what was sent while there was no connection is lost.
    fn on_reconnect(&mut self) {
        self.watch_anew(Duration::ZERO);
        let (shards, at) = (self.shards.clone(), clock::now_ms());
        let lost = async move {
            shards.broadcast(|| Input::LostUpTo { at }).await;
            Completion::Sent
        };
        self.under_way.push(lost.boxed());
    }

    fn send_fleet_task(&self, shard: u32, task: FleetTask) {
        if let Some(shard) = self.shards.get(shard as usize) {
            shard.send_fleet_task(task);
        }
    }

    fn send_fleet_task_to_all(&self, task: impl Fn() -> FleetTask) {
        for shard in self.shards.iter() {
            shard.send_fleet_task(task());
        }
    }
}

/// The next change in the bucket. Waits forever if there is no watch.
async fn next_change(watch: &mut Option<BucketWatch>) -> Option<WatchEvent> {
    match watch {
        Some(watch) => watch.next().await,
        None => std::future::pending().await,
    }
}
