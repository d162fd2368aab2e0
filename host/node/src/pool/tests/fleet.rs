//! Tests of a fleet's shard on its thread: it publishes while its node's lease lasts, and reports
//! to the fleet's task.

use presence_core::fleet::FleetSettings;
use presence_core::fleet::replica::{Mutation, PreviousOwner, ReplicaSettings, Role};
use presence_core::message::Rejection;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};

use super::super::work::PanicPoint;
use super::*;
use crate::link::journal::NodeLease;
use crate::link::shared_input::Receipt;

/// The number from which epochs count.
const BASE: u64 = 7_000_000;

/// A thread with one shard of a fleet, number 3.
struct Scene {
    node: Node,
    shard: ShardHandle,
    lease: Arc<NodeLease>,
    reports: UnboundedReceiver<(u32, ShardReport)>,
}

const ADDRESS: Address = Address {
    tenant: 0,
    shard: 3,
};

impl Scene {
    fn new() -> Self {
        let node = Node::new(1 << 20, 1);
        let (tell, reports) = unbounded_channel();
        let (lease, names) = (Arc::<NodeLease>::default(), Arc::<Names>::default());
        let links = FleetLinks {
            lease: Arc::clone(&lease),
            reports: tell,
            epoch_base: BASE,
        };
        let settings = ReplicaSettings {
            fleet: FleetSettings::default(),
            node: "node".into(),
            timeout_ms: 30_000,
            chunk_bytes: 1_000,
            standby_message_bytes_max: 1_000,
            relay_heartbeats_min: 8,
            mutation: Mutation::None,
        };
        let directory = Arc::new(Directory::new());
        let known = Shard::new(Settings::default(), Arc::clone(&names), directory);
        let subjects = Subjects::new(None);
        let source = Source::of_fleet(3, &subjects, false);
        let room = QueueLimits {
            batches: 1_024,
            input_bytes: 64 << 20,
            questions: 16,
        };
        let shard = ShardHandle::new(Arc::clone(&node.mailbox), ADDRESS, room);
        let hosted = HostedShard::new(
            ShardOrReplica::replica(known, (3, settings), names, links),
            Generation {
                number: 1,
                blueprint: Arc::clone(&node.blueprint),
            },
            Sequencer::of_fleet(source, subjects.shard_standby_messages(3)),
            None,
            Arc::default(),
            Arc::clone(&shard.figures),
        );
        node.mailbox
            .put_first(ADDRESS, Task::Place(Box::new(hosted)));
        let mut scene = Self {
            node,
            shard,
            lease,
            reports,
        };
        scene.node.work();
        scene
    }

    fn role(&mut self, role: Role) {
        self.shard.send_fleet_task(FleetTask::Role(role));
        self.node.work();
    }

    /// The shard leads, and one of its messages waits, because the lease has run out. The
    /// connection is a new one: everything that may be published is handed over again.
    fn queue_message(&mut self) {
        self.lead(5);
        self.node.broker.set(|taken| taken.room = 0);
        self.connect_user(1);
        self.lease.set_until(0);
        self.node.broker.set(|taken| {
            taken.room = 100;
            taken.link += 1;
        });
        self.node.work();
    }

    /// The node owns the shard in this epoch, and its lease lasts for a minute.
    fn lead(&mut self, epoch: u64) {
        self.lease.set_until(clock::now_ms() + 60_000);
        let previous = PreviousOwner::default();
        self.role(Role::Lead { epoch, previous });
    }

    /// A user comes online.
    fn connect_user(&mut self, user: usize) {
        offer(&self.shard, connects(user, 1, None));
        self.node.work();
    }

    /// A user comes online by a message of the input stream. `deliveries`: how often it was
    /// delivered.
    fn connect_user_from_stream(&mut self, user: usize, deliveries: usize) {
        let mut batch = connects(user, 1, None);
        let header = format!("7 {}", receipt(user, deliveries));
        let receipt = Receipt::of_header(&header, "in").unwrap();
        batch.receipts.push((0, receipt));
        offer(&self.shard, batch);
        self.node.work();
    }

    /// The subjects of all publications, without beacons.
    fn published(&self) -> Vec<String> {
        let mut subjects = Vec::new();
        self.node.broker.set(|taken| {
            let all = taken.messages.iter().map(|(subject, _)| subject.clone());
            subjects.extend(all.filter(|it| it != "presence.beacon"));
        });
        subjects
    }

    fn reports(&mut self) -> Vec<String> {
        let reports = std::iter::from_fn(|| self.reports.try_recv().ok());
        reports.map(|(_, report)| format!("{report:?}")).collect()
    }

    fn online(&self) -> Vec<String> {
        self.node.broker.on(ONLINE)
    }
}

#[test]
fn a_shard_publishes_while_its_node_owns_it_under_the_owners_epoch() {
    let mut scene = Scene::new();
    scene.connect_user(1);
    assert!(scene.online().is_empty(), "nobody owns it here");
    scene.lead(5);
    scene.connect_user(2);
    assert_eq!(scene.online(), [format!("shard/3 {} 1", BASE + 5_000)]);
    let told = scene.node.broker.on("presence.shard.3.told");
    assert_eq!(told, ["", ""], "it begins, and a user is online");
    assert_eq!(scene.reports(), ["Leads", "InSync(Some(5))"]);
    scene.role(Role::None);
    scene.connect_user(3);
    assert_eq!(scene.online().len(), 1);
    assert_eq!(scene.reports(), ["InSync(None)"]);
    scene.lead(9);
    scene.connect_user(4);
    let last = scene.online().pop().unwrap();
    assert!(
        last.starts_with(&format!("shard/3 {} ", BASE + 9_000)),
        "{last}"
    );
}

/// The subject on which a message of the stream is acknowledged.
fn receipt(user: usize, deliveries: usize) -> String {
    format!("$JS.ACK.in.presence-fleet.{deliveries}.{user}.{user}.1.0")
}

#[test]
fn the_owner_alone_acknowledges_a_message_behind_all_that_came_of_it() {
    let mut scene = Scene::new();
    let follow = Role::Follow {
        epoch: 1,
        owner: "other".into(),
    };
    scene.role(follow);
    scene.connect_user_from_stream(1, 1);
    assert!(scene.published().is_empty(), "another node owns it");
    scene.lead(5);
    scene.connect_user_from_stream(2, 1);
    let published = scene.published();
    let acknowledged = receipt(2, 1);
    assert_eq!(published.last(), Some(&acknowledged), "{published:?}");
    assert_eq!(scene.online().len(), 2, "with the one who had come before");
    assert!(!published.contains(&receipt(1, 1)));
    // They are delivered again, and nothing is published twice.
    for user in [1, 2] {
        scene.connect_user_from_stream(user, 2);
        assert_eq!(scene.published().last(), Some(&receipt(user, 2)));
    }
    assert_eq!(scene.online().len(), 2);
    scene.role(Role::Resign { epoch: 5 });
    scene.connect_user_from_stream(3, 1);
    assert!(!scene.published().contains(&receipt(3, 1)));
}

#[test]
fn a_message_that_comes_again_though_it_was_acknowledged_is_not_handled_again() {
    let mut scene = Scene::new();
    scene.lead(5);
    let cant_be_read = |scene: &mut Scene, deliveries| {
        let header = format!("7 {}", receipt(1, deliveries));
        let rejected = Input::Rejected {
            kind: Kind::Connect,
            payload: "{".into(),
            rejection: Rejection::excess(1),
            reply: None,
        };
        let mut batch = Batch::new(clock::now_ms(), vec![rejected], 1);
        batch
            .receipts
            .push((0, Receipt::of_header(&header, "in").unwrap()));
        offer(&scene.shard, batch);
        scene.node.work();
        let published = scene.published();
        assert_eq!(published.last(), Some(&receipt(1, deliveries)));
        let letters = published.iter().filter(|it| *it == "presence.dlq");
        letters.count()
    };
    for deliveries in [1, 2, 20, 21] {
        assert_eq!(cant_be_read(&mut scene, deliveries), 1);
    }
    // The owner of the next epoch doesn't know of the earlier acknowledgement.
    scene.role(Role::None);
    scene.lead(9);
    assert_eq!(cant_be_read(&mut scene, 3), 2);
    assert_eq!(cant_be_read(&mut scene, 4), 2);
}

#[test]
fn an_owner_that_has_lost_its_lease_acknowledges_nothing() {
    let mut scene = Scene::new();
    scene.lead(5);
    scene.node.broker.set(|taken| taken.room = 0);
    scene.connect_user_from_stream(1, 1);
    scene.lease.set_until(0);
    scene.role(Role::None);
    scene.node.broker.set(|taken| {
        taken.room = 100;
        taken.link += 1;
    });
    scene.node.work();
    let published = scene.published();
    assert!(!published.contains(&receipt(1, 1)), "{published:?}");
}

#[test]
fn a_message_on_which_nodes_may_fail_is_acknowledged_before_it_is_handled() {
    let mut scene = Scene::new();
    scene.lead(5);
    let before = scene.published().len();
    scene.connect_user_from_stream(1, 20);
    let published = scene.published();
    assert_eq!(
        published.get(before),
        Some(&receipt(1, 20)),
        "{published:?}"
    );
    assert_eq!(scene.online().len(), 1);
}

#[test]
fn what_was_not_handed_over_before_the_lease_ended_is_dropped_once_the_shard_is_anothers() {
    let mut scene = Scene::new();
    scene.queue_message();
    assert!(scene.online().is_empty(), "whose the shard is, isn't known");
    scene.role(Role::None);
    scene.node.work();
    assert!(scene.online().is_empty());
    assert!(scene.lease.dropped() > 0);
}

#[test]
fn what_waits_goes_out_when_the_lease_is_renewed() {
    let mut scene = Scene::new();
    scene.queue_message();
    assert!(scene.online().is_empty());
    scene.lease.set_until(clock::now_ms() + 60_000);
    scene.node.work();
    assert_eq!(scene.online().len(), 1);
    assert_eq!(scene.lease.dropped(), 0);
}

/// A message of the fleet waits for the node's lease, and a message of another tenant is behind it.
/// Returns a function that counts how often the latter was published.
fn block_outbox(scene: &mut Scene) -> impl Fn(&Node) -> usize + use<> {
    let other = scene.node.tenant(1);
    scene.queue_message();
    offer(&other.handles[0], connects(7, 1, None));
    scene.node.work();
    move |node| node.broker.count(ONLINE, &other)
}

#[test]
fn a_fleet_without_its_lease_does_not_keep_other_tenants_waiting() {
    let mut scene = Scene::new();
    let published = block_outbox(&mut scene);
    assert_eq!(published(&scene.node), 1, "the other's");
    assert_eq!(scene.node.broker.on(ONLINE).len(), 1, "and nothing else is");
    assert_eq!(scene.lease.dropped(), 0, "the lease may be renewed");
    // On a new connection, the message is handed over again, if the messages before it are, too.
    scene.node.broker.set(|taken| taken.link += 1);
    scene.node.work();
    assert_eq!(scene.lease.dropped(), 0);
    scene.node.acknowledge();
    scene.node.broker.set(|taken| taken.link += 1);
    scene.node.work();
    assert!(scene.lease.dropped() > 0);
    // The shard continues, with a gap in its numbers.
    scene.lease.set_until(clock::now_ms() + 60_000);
    scene.connect_user(2);
    let numbers = scene.online();
    let gone = format!("shard/3 {} 1", BASE + 5_000);
    let expected = format!("shard/3 {} 2", BASE + 5_000);
    assert!(
        numbers.contains(&expected) && !numbers.contains(&gone),
        "{numbers:?}"
    );
}

#[test]
fn what_waits_aside_goes_out_in_its_order_when_the_lease_is_renewed() {
    let mut scene = Scene::new();
    let published = block_outbox(&mut scene);
    assert_eq!(published(&scene.node), 1);
    // The shard resigns. It must report this when the broker has everything that it published.
    scene.lease.set_until(clock::now_ms() + 60_000);
    offer(&scene.shard, connects(2, 1, None));
    scene
        .shard
        .send_fleet_task(FleetTask::Role(Role::Resign { epoch: 5 }));
    scene.node.acknowledge();
    scene.node.work();
    let of_fleet = |scene: &Scene| {
        let mut online = scene.online();
        online.retain(|it| it.starts_with("shard/3 "));
        online
    };
    let one = format!("shard/3 {} 1", BASE + 5_000);
    assert_eq!(of_fleet(&scene).first(), Some(&one));
    let has_resigned = |scene: &mut Scene| {
        let reports = scene.reports();
        reports.iter().any(|it| it.starts_with("Resigned"))
    };
    assert!(!has_resigned(&mut scene), "not all is acknowledged");
    scene.node.acknowledge();
    scene.node.work();
    assert!(has_resigned(&mut scene));
    assert_eq!(scene.lease.dropped(), 0);
}

#[test]
fn a_node_that_is_no_part_of_a_fleet_any_more_keeps_nobody_waiting() {
    let mut scene = Scene::new();
    let published = block_outbox(&mut scene);
    scene.lease.end();
    scene.node.work();
    assert_eq!(published(&scene.node), 1);
    assert_eq!(scene.node.broker.on(ONLINE).len(), 1, "and nothing else is");
}

#[test]
fn a_snapshot_has_all_that_had_arrived_when_it_was_asked_for() {
    let mut scene = Scene::new();
    scene.lead(5);
    scene.reports();
    // This input waits in the shard's lane.
    offer(&scene.shard, connects(77, 1, None));
    scene
        .shard
        .send_fleet_task(FleetTask::SnapshotRequest("other".into(), 1));
    scene.node.work();
    let reports = std::iter::from_fn(|| scene.reports.try_recv().ok());
    let chunks = reports.filter_map(|(_, report)| match report {
        ShardReport::Chunk(node, bytes) => Some((node, bytes)),
        _ => None,
    });
    let chunks: Vec<_> = chunks.collect();
    assert!(chunks.iter().all(|(node, _)| &**node == "other"));
    let sent: Vec<u8> = chunks.into_iter().flat_map(|(_, bytes)| bytes).collect();
    let has_user = sent.windows(3).any(|bytes| bytes == b"u77");
    assert!(has_user, "{:?}", String::from_utf8_lossy(&sent));
}

#[test]
fn a_shard_has_resigned_when_the_broker_has_all_that_it_published() {
    let mut scene = Scene::new();
    scene.lead(5);
    scene.connect_user(1);
    scene.role(Role::Resign { epoch: 5 });
    let resigned = "Resigned { epoch: 5, seq: 2 }";
    assert!(!scene.reports().contains(&resigned.to_owned()));
    scene.node.acknowledge();
    scene.node.work();
    assert_eq!(scene.reports(), [resigned]);
    scene.connect_user(2);
    assert_eq!(scene.online().len(), 1, "it decides nothing any more");
}

#[test]
fn a_shard_that_panics_says_whether_it_was_owned_and_knows_nothing_any_more() {
    let mut scene = Scene::new();
    scene.lead(5);
    scene.connect_user(1);
    scene.reports();
    let panics = |scene: &mut Scene| {
        let mailbox = &scene.node.mailbox;
        mailbox.put_first(ADDRESS, Task::Panic(PanicPoint::Turn));
        scene.node.work();
        scene.reports()
    };
    assert_eq!(panics(&mut scene), ["Failed { led: true }"]);
    let figures = &scene.shard.figures;
    assert_eq!(figures.leads.load(Ordering::Relaxed), 0);
    assert_eq!(figures.restarts.load(Ordering::Relaxed), 1);
    assert_eq!(panics(&mut scene), ["Failed { led: false }"]);
}
