//! Tests of a thread with several tenants, which are driven step by step. The test controls a
//! broker.

use std::rc::Rc;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use presence_config::subjects::{Source, Subjects};
use presence_core::directory::Directory;
use presence_core::message::{Kind, Message};
use presence_core::names::Names;
use presence_core::{Input, Settings, Shard};
use presence_sandbox::{Blueprint, Limits, Quarantine};
use serde_json::json;
use tokio::sync::oneshot;

use super::mailbox::Mailbox;
use super::outbox::Outbox;
use super::shards::ShardHandle;
use super::worker::Worker;
use super::*;
use crate::link::journal::{DeliveryMode, JournalEntry, SequenceNumber};
use crate::link::progress::Sources;
use crate::link::sequencer::Sequencer;
use crate::state::{Saver, Writer};

mod apart;
mod candidate;
mod failures;
mod fleet;
mod pauses;
mod resting;

const ONLINE: &str = "presence.events.user_online";

/// A broker that keeps what it gets, and takes what the test allows.
#[derive(Clone, Default)]
struct Broker(Arc<Mutex<Taken>>);

struct Taken {
    link: u64,
    is_connected: bool,
    /// How many messages the client has room for.
    room: usize,
    /// Each message: its subject, and its headers as text (source, epoch and number). Answers have
    /// empty headers.
    messages: Vec<(String, String)>,
    /// The body of each.
    bodies: Vec<Bytes>,
    /// Whether a question about the connection panics.
    panics: bool,
}

impl Default for Taken {
    fn default() -> Self {
        Self {
            link: 1,
            is_connected: true,
            room: usize::MAX,
            messages: Vec::new(),
            bodies: Vec::new(),
            panics: false,
        }
    }
}

impl Broker {
    fn set(&self, change: impl FnOnce(&mut Taken)) {
        change(&mut self.0.lock().unwrap());
    }

    /// The headers of the messages on a subject; empty for answers.
    fn on(&self, subject: &str) -> Vec<String> {
        let taken = self.0.lock().unwrap();
        let messages = taken.messages.iter().filter(|(on, _)| on == subject);
        messages.map(|(_, header)| header.clone()).collect()
    }

    /// How many of these messages are of a tenant.
    fn count(&self, subject: &str, tenant: &Tenant) -> usize {
        let source = format!("{}/", tenant.name);
        let headers = self.on(subject).into_iter();
        headers.filter(|header| header.starts_with(&source)).count()
    }
}

fn numbered(entry: &JournalEntry) -> Option<&SequenceNumber> {
    match &entry.delivery {
        DeliveryMode::Numbered(number) => Some(number),
        DeliveryMode::AtMostOnce | DeliveryMode::Unnumbered => None,
    }
}

impl Transport for Broker {
    fn link(&self) -> u64 {
        self.0.lock().unwrap().link
    }

    fn is_connected(&self) -> bool {
        let (panics, is_connected) = {
            let taken = self.0.lock().unwrap();
            (taken.panics, taken.is_connected)
        };
        assert!(!panics, "told to");
        is_connected
    }

    fn try_send(&self, entry: &JournalEntry) -> Option<anyhow::Result<()>> {
        let mut taken = self.0.lock().unwrap();
        taken.room = taken.room.checked_sub(1)?;
        let header = numbered(entry).and_then(|counted| {
            let (renewed, seq) = (counted.renewed, counted.seq);
            let mut headers = counted.source.headers(&entry.subject, renewed, seq);
            Some(headers.next()?.1)
        });
        let message = (entry.subject.to_string(), header.unwrap_or_default());
        taken.messages.push(message);
        taken.bodies.push(entry.body.clone());
        Some(Ok(()))
    }

    fn send(&self, entry: JournalEntry) -> BoxFuture<'static, anyhow::Result<()>> {
        let broker = self.clone();
        Box::pin(std::future::poll_fn(move |_| {
            broker
                .try_send(&entry)
                .map_or(std::task::Poll::Pending, std::task::Poll::Ready)
        }))
    }
}

/// One thread of a pool.
struct Node {
    broker: Broker,
    sources: Sources,
    mailbox: Arc<Mailbox>,
    worker: Rc<Worker<Broker>>,
    figures: Arc<ThreadFigures>,
    blueprint: Arc<Blueprint>,
    tenants: u32,
}

struct Tenant {
    name: String,
    handles: Vec<ShardHandle>,
}

impl Node {
    /// With an outbox of `bytes_max`. Each measurement of time advances it by `step_ns`.
    fn new(bytes_max: usize, step_ns: u64) -> Self {
        Self::measured(bytes_max, step_ns, step_ns)
    }

    /// As [`Self::new`]. Each measurement of processor time advances it by `processor_ns`.
    fn measured(bytes_max: usize, step_ns: u64, processor_ns: u64) -> Self {
        let settings = OutboxSettings {
            bytes_max,
            shard_bytes_max: None,
            beacon_ms: 3_600_000,
        };
        Self::begin(settings, step_ns, processor_ns)
    }

    /// As [`Self::new`], with an outbox of these settings.
    fn with(settings: OutboxSettings, step_ns: u64) -> Self {
        Self::begin(settings, step_ns, step_ns)
    }

    fn begin(settings: OutboxSettings, step_ns: u64, processor_ns: u64) -> Self {
        let mut sources = Sources::new(1_000);
        let (broker, mailbox) = (Broker::default(), Arc::<Mailbox>::default());
        let outbox = Outbox::new(broker.clone(), sources.add(), settings);
        let stopwatch = |step_ns| -> Stopwatch {
            let ns = AtomicU64::default();
            Box::new(move || step_ns + ns.fetch_add(step_ns, Ordering::Relaxed))
        };
        let clocks = Clocks {
            elapsed: stopwatch(step_ns),
            processor: stopwatch(processor_ns),
        };
        let figures = Arc::<ThreadFigures>::default();
        let limits = Limits {
            fuel: 1_000_000,
            memory_bytes_max: 4 << 20,
            deadline_ms: None,
            quarantine: Quarantine {
                users: 3,
                window_ms: 1_000,
                ms: 1_000,
            },
            metadata: Default::default(),
        };
        let blueprint = Blueprint::prepare(Vec::new(), limits, None);
        Self {
            worker: Worker::new(Arc::clone(&mailbox), outbox, Arc::clone(&figures), clocks),
            broker,
            sources,
            mailbox,
            figures,
            blueprint: Arc::new(blueprint.unwrap_or_else(|_| panic!("it is empty"))),
            tenants: 0,
        }
    }

    /// A tenant with this many shards and no stored state.
    fn tenant(&mut self, shards: u32) -> Tenant {
        self.tenant_with(shards, Arc::default(), TenantContext::default(), || None)
    }

    /// A tenant with this many shards and a stored state.
    fn kept_tenant(&mut self, shards: u32, names: Arc<Names>, state: &Writer) -> Tenant {
        let common = TenantContext {
            restorer: Some(state.restorer()),
            ..TenantContext::default()
        };
        self.tenant_with(shards, names, common, || Some(state.saver()))
    }

    /// A tenant with this many shards. `saver` makes the saver of each.
    fn tenant_with(
        &mut self,
        shards: u32,
        names: Arc<Names>,
        common: TenantContext,
        saver: impl Fn() -> Option<Saver>,
    ) -> Tenant {
        let tenant = self.tenants;
        self.tenants += 1;
        let name = format!("t{tenant}");
        let common = Arc::new(TenantContext {
            shards: shards as usize,
            ..common
        });
        let handles = (0..shards).map(|shard| {
            let address = Address { tenant, shard };
            self.place(address, 1, &names, &common, saver())
        });
        let handles = handles.collect();
        Tenant { name, handles }
    }

    /// Places one shard on the thread, with this generation of the pipeline.
    fn place(
        &self,
        address: Address,
        number: u64,
        names: &Arc<Names>,
        common: &Arc<TenantContext>,
        saver: Option<Saver>,
    ) -> ShardHandle {
        let room = QueueLimits {
            batches: 1_024,
            input_bytes: 64 << 20,
            questions: 16,
        };
        let handle = ShardHandle::new(Arc::clone(&self.mailbox), address, room);
        let mut known = Shard::new(
            Settings::default(),
            Arc::clone(names),
            Arc::new(Directory::new()),
        );
        known.keep_records(saver.is_some());
        let generation = Generation {
            number,
            blueprint: Arc::clone(&self.blueprint),
        };
        let name = format!("t{}", address.tenant);
        let shard = address.shard as usize;
        let source = Source::new(&name, shard, 1, &Subjects::new(None), false);
        let hosted = HostedShard::new(
            ShardOrReplica::alone(known),
            generation,
            Sequencer::new(source),
            saver,
            Arc::clone(common),
            Arc::clone(&handle.figures),
        );
        self.mailbox
            .put_first(address, Task::Place(Box::new(hosted)));
        handle
    }

    /// Runs turns until there are none, or `max` were made. Returns how many were made.
    fn turns(&mut self, max: usize) -> usize {
        for turn in 0..max {
            assert!(self.worker.check_for_work());
            let Some(next) = self.worker.next() else {
                return turn;
            };
            self.worker.turn(next);
        }
        max
    }

    /// Runs turns until the thread would wait.
    fn work(&mut self) {
        assert!(self.turns(100_000) < 100_000, "it goes on for ever");
    }

    /// The broker acknowledges everything that was handed over.
    fn acknowledge(&self) {
        let link = self.broker.link();
        self.sources.acknowledge(&self.sources.marks(), link);
    }

    /// Runs turns until a condition holds.
    fn until(&mut self, holds: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !holds(self) {
            assert!(begun.elapsed().as_secs() < 60, "it never does");
            self.work();
            std::thread::yield_now();
        }
    }
}

/// Connects of `count` users, from the number `from` on.
fn connects(from: usize, count: usize, reply: Option<&str>) -> Batch {
    let now = clock::now_ms();
    let inputs = (from..from + count).map(|user| {
        let body = json!({"userId": format!("u{user}"), "connId": "c", "timestamp": now});
        let payload = Bytes::from(body.to_string());
        Input::Message {
            message: Message::parse(Kind::Connect, &payload, 1 << 20).unwrap(),
            reply: reply.map(Into::into),
        }
    });
    Batch::new(now, inputs.collect(), count * 100)
}

fn offer(handle: &ShardHandle, batch: Batch) {
    assert!(handle.offer(batch).is_ok());
}

#[test]
fn a_shard_that_has_nothing_to_do_has_no_mail_no_timer_and_no_turn() {
    let mut node = Node::new(1 << 20, 1);
    let tenants: Vec<_> = (0..100).map(|_| node.tenant(8)).collect();
    node.work();
    assert_eq!(node.worker.counts(), (800, 0));
    for tenant in &tenants {
        assert!(
            tenant
                .handles
                .iter()
                .all(|handle| handle.queued_bytes() == 0)
        );
    }
    offer(&tenants[7].handles[3], connects(0, 1, None));
    node.work();
    assert_eq!(node.worker.counts(), (800, 1), "a lease has a timer");
    assert_eq!(node.broker.on(ONLINE), ["t7/3 1 1"]);
}

#[test]
fn a_tenant_that_floods_the_node_does_not_keep_another_from_its_turn() {
    // An input takes about a millisecond.
    let mut node = Node::new(usize::MAX, 1_000_000);
    let (flooding, quiet) = (node.tenant(2), node.tenant(1));
    node.work();
    for batch in 0..40 {
        let users = connects(batch * 16, 16, None);
        offer(&flooding.handles[batch % 2], users);
    }
    node.turns(40);
    let before = node.broker.count(ONLINE, &flooding);
    assert!((32..=48).contains(&before), "it is alone, and goes on");
    offer(&quiet.handles[0], connects(0, 1, None));
    while node.broker.count(ONLINE, &quiet) == 0 {
        assert_eq!(node.turns(1), 1);
    }
    let since = node.broker.count(ONLINE, &flooding) - before;
    assert!(since <= 2, "it waited for no batch, but for {since} inputs");
    node.work();
    assert_eq!(node.broker.count(ONLINE, &flooding), 40 * 16);
}

#[tokio::test]
async fn a_question_waits_for_the_inputs_before_it_but_not_for_a_flood_of_them() {
    // Each input ends its turn.
    let mut node = Node::new(usize::MAX, 1_000_000);
    let tenant = node.tenant(1);
    node.work();
    for (batches, known) in [(2, 2), (40, 18)] {
        let online = node.broker.count(ONLINE, &tenant);
        for batch in 0..batches {
            offer(&tenant.handles[0], connects(online + batch, 1, None));
        }
        let (answer, mut answered) = oneshot::channel();
        assert!(tenant.handles[0].ask(ShardQuestion::Contacts("ann".into(), answer)));
        while answered.try_recv().is_err() {
            assert_eq!(node.turns(1), 1);
        }
        assert_eq!(node.broker.count(ONLINE, &tenant), known, "{batches}");
        node.work();
    }
}

#[test]
fn while_the_outbox_is_full_only_shards_rest_that_have_something_in_it() {
    let mut node = Node::new(4_000, 1);
    let (loud, other) = (node.tenant(1), node.tenant(1));
    node.work();
    offer(&loud.handles[0], connects(0, 256, None));
    offer(&loud.handles[0], connects(256, 256, None));
    node.work();
    let first = node.broker.on(ONLINE).len();
    assert!((10..512).contains(&first), "{first}");
    offer(&other.handles[0], connects(0, 1, None));
    node.work();
    assert_eq!(node.broker.count(ONLINE, &other), 1);
    offer(&other.handles[0], connects(1, 1, None));
    node.work();
    assert_eq!(
        node.broker.count(ONLINE, &other),
        1,
        "now it has something in"
    );
    let mut rounds = 0;
    while node.broker.on(ONLINE).len() < 514 {
        node.acknowledge();
        node.work();
        rounds += 1;
        assert!(rounds < 1_000);
    }
    let loud: Vec<_> = node
        .broker
        .on(ONLINE)
        .into_iter()
        .filter(|it| it.starts_with("t0/"))
        .collect();
    let expected: Vec<_> = (1..=512).map(|seq| format!("t0/0 1 {seq}")).collect();
    assert_eq!(loud, expected, "in order, and each once");
}

#[test]
fn what_the_client_has_no_room_for_waits_in_order_and_holds_up_no_shard() {
    let mut node = Node::new(1 << 20, 1);
    let tenant = node.tenant(1);
    node.work();
    node.broker.set(|taken| taken.room = 3);
    offer(&tenant.handles[0], connects(0, 4, None));
    node.work();
    offer(&tenant.handles[0], connects(4, 4, None));
    node.work();
    assert_eq!(node.broker.0.lock().unwrap().messages.len(), 3);
    assert_eq!(
        tenant.handles[0]
            .figures
            .online_users
            .load(Ordering::Relaxed),
        8
    );
    node.broker.set(|taken| taken.room = usize::MAX);
    node.work();
    let expected: Vec<_> = (1..=8).map(|seq| format!("t0/0 1 {seq}")).collect();
    assert_eq!(node.broker.on(ONLINE), expected);
}

#[test]
fn a_new_connection_is_handed_again_what_the_broker_may_not_have_but_no_answer() {
    let mut node = Node::new(1 << 20, 1);
    let tenant = node.tenant(1);
    node.work();
    offer(&tenant.handles[0], connects(0, 1, Some("r")));
    node.work();
    node.acknowledge();
    offer(&tenant.handles[0], connects(1, 1, Some("r")));
    node.work();
    node.broker.set(|taken| taken.is_connected = false);
    offer(&tenant.handles[0], connects(2, 1, Some("r")));
    node.work();
    assert_eq!(node.broker.on("r").len(), 2);
    node.broker
        .set(|taken| (taken.link, taken.is_connected) = (2, true));
    node.work();
    let online = ["t0/0 1 1", "t0/0 1 2", "t0/0 1 2", "t0/0 1 3"];
    assert_eq!(node.broker.on(ONLINE), online);
    assert_eq!(node.broker.on("r").len(), 3);
    assert!(node.figures.repeated.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn a_shard_that_is_told_to_stop_does_what_it_was_given_before() {
    let mut node = Node::new(1 << 20, 1);
    let tenant = node.tenant(1);
    node.work();
    for batch in 0..20 {
        offer(&tenant.handles[0], connects(batch * 10, 10, None));
    }
    let (done, mut ended) = oneshot::channel();
    tenant.handles[0].send(Task::Stop(done)).await;
    node.broker.set(|taken| taken.room = 300);
    node.work();
    assert!(ended.try_recv().is_err(), "not all is handed over");
    node.broker.set(|taken| taken.room = usize::MAX);
    node.work();
    assert_eq!(node.broker.on(ONLINE).len(), 200);
    ended.await.unwrap();
    assert_eq!(node.worker.counts(), (0, 0));
    let (done, never) = oneshot::channel();
    tenant.handles[0].send(Task::Ids(done)).await;
    node.work();
    assert!(never.await.is_err(), "nobody is there to answer");
}

#[tokio::test]
async fn a_shard_that_stops_ends_once_the_broker_has_what_its_state_waits_for() {
    let mut node = Node::new(1 << 20, 1);
    let (jobs, mut written) = Saver::channel();
    let saver = || Some(jobs.saver());
    let tenant = node.tenant_with(1, Arc::default(), TenantContext::default(), saver);
    offer(&tenant.handles[0], connects(0, 10, None));
    node.work();
    assert_eq!(
        written(),
        0,
        "the broker isn't known to have what viewers were told"
    );
    let (done, mut ended) = oneshot::channel();
    tenant.handles[0].send(Task::Stop(done)).await;
    node.work();
    assert!(ended.try_recv().is_err(), "the broker lacks it still");
    node.acknowledge();
    node.work();
    ended.await.unwrap();
    assert_eq!(node.worker.counts(), (0, 0));
    assert!(written() > 0);
}

#[tokio::test]
async fn shards_of_a_tenant_that_is_given_up_are_gone_and_hold_no_state() {
    let mut node = Node::new(1 << 20, 1);
    let (kept, mut inbox) = Saver::channel();
    let saver = || Some(kept.saver());
    let tenant = node.tenant_with(4, Arc::default(), TenantContext::default(), saver);
    let other = node.tenant(1);
    for shard in &tenant.handles[..2] {
        offer(shard, connects(0, 10, None));
    }
    node.work();
    // Mail waits for two shards, and a third isn't placed on the thread yet.
    offer(&tenant.handles[0], connects(10, 10, None));
    let late = node.tenant(1);
    drop(kept);
    drop(ShardsGuard::of(&Shards::from(tenant.handles)));
    drop(ShardsGuard::of(&Shards::from(late.handles)));
    node.work();
    assert_eq!(node.worker.counts().0, 1, "the other's");
    assert_eq!(inbox(), 0, "nothing is stored");
    offer(&other.handles[0], connects(0, 1, None));
    node.work();
    assert_eq!(node.broker.count(ONLINE, &other), 1);
}
