mod again;
mod ends;
mod heartbeats;
mod long;
mod pieces;
mod statements;
mod takeover;
mod unsure;

use super::*;
use crate::fleet::standby_message::StandbyMessage;
use crate::fleet::testing::{Everyone, message, shard};
use crate::message::Kind;
use crate::publish::Subject;

const NOW: u64 = 1_700_000_000_000;
const FOREVER: u64 = u64::MAX;

/// A replica and its outputs.
struct Side {
    replica: Replica,
    out: Vec<ReplicaOutput>,
}

impl Side {
    fn new(node: &str) -> Self {
        let names = Arc::new(Names::new());
        // The same ids have different numbers on each node.
        names.intern(node);
        let settings = ReplicaSettings {
            relay_heartbeats_min: 4,
            fleet: FleetSettings::default(),
            node: node.into(),
            timeout_ms: 30_000,
            chunk_bytes: 100,
            standby_message_bytes_max: 10_000,
            mutation: Mutation::None,
        };
        let shard = shard(&names);
        let mut replica = Replica::new(3, settings, names, shard);
        let mut out = Vec::new();
        replica.renewed(NOW, FOREVER, &mut out);
        Self { replica, out }
    }

    fn lead(&mut self, now: u64, epoch: u64, previous: PreviousOwner) {
        let role = Role::Lead { epoch, previous };
        self.replica.set_role(now, role, &mut self.out);
        self.replica.advance(now, &mut Everyone, &mut self.out);
    }

    fn follow(&mut self, now: u64, epoch: u64, owner: &str) {
        let owner = owner.into();
        self.replica
            .set_role(now, Role::Follow { epoch, owner }, &mut self.out);
    }

    fn handle(&mut self, now: u64, kind: Kind, user: &str, conn: &str) {
        self.input(now, message(kind, user, conn, now));
    }

    fn input(&mut self, now: u64, input: Input) {
        self.replica.input(now, input, &mut Everyone, &mut self.out);
    }

    fn advance(&mut self, now: u64) {
        self.replica.advance(now, &mut Everyone, &mut self.out);
    }

    /// What viewers are told by the outputs: users, and whether they are online.
    fn viewers_told(&mut self) -> Vec<(String, bool)> {
        let mut told = Vec::new();
        for out in self.out.drain(..) {
            if let ReplicaOutput::Shard(Output::Publish(publication)) = out {
                let online = match publication.subject {
                    Subject::FilteredOnline => true,
                    Subject::FilteredOffline => false,
                    _ => continue,
                };
                let body: serde_json::Value = serde_json::from_slice(&publication.body).unwrap();
                told.push((body["userId"].as_str().unwrap().to_owned(), online));
            }
        }
        told
    }

    /// Passes the owner's messages on to a standby. Returns how many there were.
    fn tell(&mut self, other: &mut Self, now: u64) -> usize {
        let mut count = 0;
        for out in &self.out {
            if let ReplicaOutput::ToStandbys(bytes) = out {
                other.replica.receive(now, bytes, &mut other.out).unwrap();
                count += 1;
            }
        }
        count
    }

    /// Makes a standby catch up.
    fn catch_up(&mut self, from: &mut Self, now: u64) {
        self.advance(now);
        let asked = self.out.iter().find_map(|out| match out {
            ReplicaOutput::Ask { nonce, .. } => Some(*nonce),
            _ => None,
        });
        let chunks = from.sends(now, asked.unwrap());
        assert!(chunks.len() > 1);
        for chunk in chunks {
            self.replica.chunk(now, &chunk, &mut self.out).unwrap();
        }
    }

    /// All chunks of the snapshot that the replica sends when it is asked.
    fn sends(&mut self, now: u64, nonce: u64) -> Vec<Vec<u8>> {
        let standby: Arc<str> = "standby".into();
        self.replica
            .snapshot_requested(now, &standby, nonce, &mut self.out);
        // Lets the replica finish its announcements first.
        let shard = &mut self.replica.shard;
        while self.replica.is_leading && shard.is_taking_over() {
            shard.advance(now, &mut Everyone, &mut Vec::new());
        }
        let mut chunks = Vec::new();
        while let Some(at) = self.replica.snapshots.next_at() {
            let mut out = Vec::new();
            self.replica.send_snapshots(at.max(now), &mut out);
            chunks.extend(out.into_iter().filter_map(|out| match out {
                ReplicaOutput::Chunk(_, bytes) => Some(bytes),
                _ => None,
            }));
        }
        chunks
    }

    fn reasons(&mut self) -> Vec<CatchUpReason> {
        let reasons = self.out.iter().filter_map(|out| match out {
            ReplicaOutput::Differed(difference) => Some(*difference),
            _ => None,
        });
        let reasons = reasons.collect();
        self.out.clear();
        reasons
    }
}

/// An owner with one user online, and a standby with the same state.
fn pair() -> (Side, Side) {
    let (mut owner, mut standby) = (Side::new("owner"), Side::new("standby"));
    owner.lead(NOW - 40_000, 5, PreviousOwner::default());
    owner.advance(NOW);
    owner.handle(NOW, Kind::Connect, "ann", "c1");
    owner.out.clear();
    standby.follow(NOW + 10, 5, "owner");
    standby.catch_up(&mut owner, NOW + 1_000);
    assert_eq!(standby.replica.complete_epoch(), Some(5));
    standby.out.clear();
    (owner, standby)
}

fn both(owner: &mut Side, standby: &mut Side, now: u64, kind: Kind, user: &str, conn: &str) {
    owner.handle(now, kind, user, conn);
    standby.handle(now, kind, user, conn);
}

#[test]
fn what_is_published_is_told_before() {
    let (mut owner, mut standby) = pair();
    both(
        &mut owner,
        &mut standby,
        NOW + 2_000,
        Kind::Connect,
        "bob",
        "c1",
    );
    assert!(
        matches!(owner.out[0], ReplicaOutput::ToStandbys(_)),
        "{:?}",
        owner.out
    );
    assert_eq!(owner.tell(&mut standby, NOW + 2_001), 1);
    assert_eq!(owner.viewers_told(), [("bob".to_owned(), true)]);
    assert_eq!(standby.replica.shard().online_users(), 2);
    // The standby publishes nothing itself.
    assert_eq!(standby.viewers_told(), []);
}

#[test]
fn a_takeover_tells_differences_alone() {
    let (mut owner, mut standby) = pair();
    both(
        &mut owner,
        &mut standby,
        NOW + 2_000,
        Kind::Connect,
        "bob",
        "c1",
    );
    owner.tell(&mut standby, NOW + 2_001);
    // The owner dies. Bob goes offline, and Cyd comes online.
    standby.handle(NOW + 3_000, Kind::Disconnect, "bob", "c1");
    standby.handle(NOW + 3_001, Kind::Connect, "cyd", "c1");
    standby.out.clear();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    standby.lead(NOW + 9_000, 8, previous);
    assert!(matches!(standby.out[0], ReplicaOutput::ToStandbys(_)));
    let mut told = standby.viewers_told();
    told.sort();
    assert_eq!(told, [("bob".to_owned(), false), ("cyd".to_owned(), true)]);
    assert_eq!(standby.replica.epoch(), 8);
    let answers = standby.replica.query(
        NOW + 9_001,
        "v1",
        ["ann"].into_iter(),
        &mut Everyone,
        &mut Vec::new(),
    );
    assert!(answers.is_some());
}

#[test]
fn one_that_misses_something_catches_up() {
    let (mut owner, mut standby) = pair();
    both(
        &mut owner,
        &mut standby,
        NOW + 2_000,
        Kind::Connect,
        "bob",
        "c1",
    );
    owner.out.clear();
    both(
        &mut owner,
        &mut standby,
        NOW + 2_100,
        Kind::Connect,
        "cyd",
        "c1",
    );
    owner.tell(&mut standby, NOW + 2_101);
    assert_eq!(standby.reasons(), [CatchUpReason::Gap]);
    assert_eq!(standby.replica.complete_epoch(), None);
    standby.catch_up(&mut owner, NOW + 3_000);
    assert_eq!(standby.replica.complete_epoch(), Some(5));
    assert_eq!(standby.replica.shard().online_users(), 3);
}

#[test]
fn connections_that_go_on_differing_have_it_catch_up() {
    let (mut owner, mut standby) = pair();
    // The standby misses the second connection. This changes nothing that the owner tells.
    owner.handle(NOW + 2_000, Kind::Connect, "ann", "c2");
    let mut now = NOW + 10_000;
    for round in 0..3 {
        assert_eq!(standby.reasons(), [], "round {round}");
        owner.out.clear();
        // A heartbeat keeps the first connection live on both sides.
        both(&mut owner, &mut standby, now, Kind::Heartbeat, "ann", "c1");
        owner.handle(now, Kind::Heartbeat, "ann", "c2");
        owner.advance(now);
        owner.tell(&mut standby, now);
        now += 6_000;
    }
    assert_eq!(standby.reasons(), [CatchUpReason::Connections]);
    standby.catch_up(&mut owner, now);
    assert_eq!(standby.replica.shard().connections(), 2);
}

#[test]
fn a_lost_input_is_a_reason_to_catch_up() {
    let (_, mut standby) = pair();
    let lost = Input::LostUpTo { at: NOW + 2_000 };
    standby
        .replica
        .input(NOW + 2_000, lost, &mut Everyone, &mut standby.out);
    assert_eq!(standby.reasons(), [CatchUpReason::LostInput]);
}

#[test]
fn an_owner_decides_nothing_when_its_lease_has_ended() {
    let (mut owner, _) = pair();
    owner
        .replica
        .renewed(NOW + 2_000, NOW + 5_000, &mut owner.out);
    owner.handle(NOW + 4_999, Kind::Connect, "bob", "c1");
    assert_eq!(owner.viewers_told(), [("bob".to_owned(), true)]);
    owner.handle(NOW + 5_000, Kind::Connect, "cyd", "c1");
    owner.handle(NOW + 5_001, Kind::Disconnect, "bob", "c1");
    assert!(!owner.replica.is_leading(NOW + 5_001));
    assert_eq!(owner.viewers_told(), []);
    // Nobody has taken the shard: the transitions that it saw meanwhile are announced now.
    owner.replica.renewed(NOW + 6_000, FOREVER, &mut owner.out);
    owner.advance(NOW + 6_000);
    let mut told = owner.viewers_told();
    told.sort();
    assert_eq!(told, [("bob".to_owned(), false), ("cyd".to_owned(), true)]);
    assert_eq!(owner.replica.epoch(), 5);
}

#[test]
fn who_is_handed_a_shard_waits_for_the_last_that_was_told() {
    let (mut owner, mut standby) = pair();
    both(
        &mut owner,
        &mut standby,
        NOW + 2_000,
        Kind::Connect,
        "bob",
        "c1",
    );
    let told = owner.out.clone();
    owner.out.clear();
    owner
        .replica
        .set_role(NOW + 2_010, Role::Resign { epoch: 5 }, &mut owner.out);
    let Some(ReplicaOutput::Resigned { epoch: 5, seq }) = owner.out.pop() else {
        panic!("{:?}", owner.out);
    };
    owner.out.clear();
    both(
        &mut owner,
        &mut standby,
        NOW + 2_015,
        Kind::Connect,
        "cyd",
        "c1",
    );
    assert_eq!(owner.viewers_told(), []);
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: Some(("owner".into(), seq)),
    };
    standby.lead(NOW + 2_020, 8, previous);
    assert!(!standby.replica.is_leading(NOW + 2_020));
    for out in told {
        if let ReplicaOutput::ToStandbys(bytes) = out {
            standby
                .replica
                .receive(NOW + 2_030, &bytes, &mut standby.out)
                .unwrap();
        }
    }
    assert!(standby.replica.is_leading(NOW + 2_030));
    standby.advance(NOW + 2_031);
    // The previous owner told of Bob, so he isn't told of again.
    assert_eq!(standby.viewers_told(), [("cyd".to_owned(), true)]);
}

#[test]
fn an_owner_that_resigns_hears_whether_the_other_has_all() {
    let (mut owner, mut standby) = pair();
    both(
        &mut owner,
        &mut standby,
        NOW + 2_000,
        Kind::Connect,
        "bob",
        "c1",
    );
    owner
        .replica
        .set_role(NOW + 2_010, Role::Resign { epoch: 5 }, &mut owner.out);
    let Some(ReplicaOutput::Resigned { seq, .. }) = owner.out.last() else {
        panic!("{:?}", owner.out);
    };
    let seq = *seq;
    owner.tell(&mut standby, NOW + 2_011);
    let synced = ReplicaOutput::Synced {
        node: "owner".into(),
        epoch: 5,
        seq,
    };
    assert!(standby.out.contains(&synced), "{:?}", standby.out);
}

#[test]
fn an_owner_that_resigned_follows_the_next_from_its_first_word() {
    let (mut owner, mut next) = pair();
    let resign = Role::Resign { epoch: 5 };
    owner.replica.set_role(NOW + 2_000, resign, &mut owner.out);
    owner.tell(&mut next, NOW + 2_001);
    let Some(ReplicaOutput::Resigned { seq, .. }) = owner.out.last() else {
        panic!("{:?}", owner.out);
    };
    let handed_over = Some(("owner".into(), *seq));
    owner.out.clear();
    // The next owner leads and tells before this node knows who owns the shard.
    next.lead(
        NOW + 2_010,
        8,
        PreviousOwner {
            epoch: 5,
            handed_over,
        },
    );
    both(
        &mut next,
        &mut owner,
        NOW + 2_011,
        Kind::Connect,
        "bob",
        "c1",
    );
    assert_eq!(next.tell(&mut owner, NOW + 2_012), 2);
    owner.follow(NOW + 2_020, 8, "standby");
    let synced = ReplicaOutput::Synced {
        node: "standby".into(),
        epoch: 8,
        seq: 2,
    };
    assert!(owner.out.contains(&synced), "{:?}", owner.out);
    assert_eq!(owner.replica.complete_epoch(), Some(8));
    assert_eq!(owner.replica.shard().online_users(), 2);
    assert_eq!(owner.reasons(), []);
}

#[test]
fn one_that_knows_nothing_takes_nobody_for_gone_and_answers_nobody() {
    let mut owner = Side::new("owner");
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    owner.lead(NOW, 8, previous);
    // A heartbeat adopts one connection. There may be another one.
    owner.handle(NOW + 1_000, Kind::Heartbeat, "ann", "c2");
    owner.handle(NOW + 2_000, Kind::Disconnect, "ann", "c2");
    assert_eq!(owner.viewers_told(), [("ann".to_owned(), true)]);
    let mut ask = |now| {
        let users = ["ann"].into_iter();
        owner
            .replica
            .query(now, "v1", users, &mut Everyone, &mut Vec::new())
            .is_some()
    };
    assert!(!ask(NOW + 29_999));
    owner.advance(NOW + 30_000);
    assert_eq!(owner.viewers_told(), [("ann".to_owned(), false)]);
    let users = ["ann"].into_iter();
    let answers = owner
        .replica
        .query(NOW + 30_001, "v1", users, &mut Everyone, &mut Vec::new());
    assert!(answers.is_some());
}

#[test]
fn a_shards_first_owner_and_who_takes_over_from_it_in_step_answer_at_once() {
    let mut owner = Side::new("owner");
    owner.lead(NOW, 8, PreviousOwner::default());
    owner.advance(NOW);
    let ask = |side: &mut Side| {
        let users = ["ann"].into_iter();
        let answers = side
            .replica
            .query(NOW, "v1", users, &mut Everyone, &mut Vec::new());
        answers.is_some()
    };
    assert!(ask(&mut owner));
    // After its lease was over for a while, inputs may be missing, but the owner still knows what
    // it has told.
    owner.replica.renewed(NOW, NOW + 1, &mut owner.out);
    let lost = Input::LostUpTo { at: NOW + 2 };
    owner
        .replica
        .input(NOW + 2, lost, &mut Everyone, &mut owner.out);
    owner.replica.renewed(NOW + 3, FOREVER, &mut owner.out);
    owner.advance(NOW + 3);
    assert!(owner.replica.shard().unsure_ms() > 0 && ask(&mut owner));
}

#[test]
fn one_that_has_no_part_any_more_forgets_what_it_held_after_a_timeout() {
    let mut owner = Side::new("owner");
    owner.lead(NOW, 8, PreviousOwner::default());
    owner.handle(NOW, Kind::Connect, "ann", "c1");
    owner.replica.set_role(NOW, Role::None, &mut owner.out);
    assert!(owner.replica.complete_epoch().is_none());
    assert_eq!(owner.replica.next_deadline(), Some(NOW + 30_000));
    owner.advance(NOW + 29_999);
    assert_eq!(owner.replica.shard().connections(), 1);
    owner.advance(NOW + 30_000);
    assert_eq!(owner.replica.shard().connections(), 0);
    assert_eq!(owner.replica.next_deadline(), None);
}

#[test]
fn what_is_about_another_shard_or_damaged_is_refused() {
    let (_, mut standby) = pair();
    let told = StandbyMessage {
        shard: 4,
        epoch: 5,
        seq: 1,
        node: "owner".into(),
        content: StandbyContent::Begin(0),
    };
    let bytes = told.encode();
    assert!(
        standby
            .replica
            .receive(NOW, &bytes, &mut standby.out)
            .is_err()
    );
    assert!(
        standby
            .replica
            .receive(NOW, &bytes[1..], &mut standby.out)
            .is_err()
    );
    assert_eq!(standby.replica.complete_epoch(), Some(5));
}

/// A standby that has seen ann leave begins to lead. Before it has announced anything, another node
/// follows it.
fn about_to_announce() -> Side {
    let (_, mut standby) = pair();
    standby.handle(NOW + 3_000, Kind::Disconnect, "ann", "c1");
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    let role = Role::Lead { epoch: 8, previous };
    standby
        .replica
        .set_role(NOW + 4_000, role, &mut standby.out);
    let mut next = Side::new("next");
    next.follow(NOW + 4_000, 8, "standby");
    next.catch_up(&mut standby, NOW + 5_000);
    next.out.clear();
    next
}

#[test]
fn what_an_owner_was_about_to_announce_is_announced_once_by_the_next() {
    let mut next = about_to_announce();
    let previous = PreviousOwner {
        epoch: 8,
        handed_over: None,
    };
    next.lead(NOW + 5_001, 9, previous);
    assert_eq!(next.viewers_told(), [("ann".to_owned(), false)]);
    assert_eq!(next.replica.shard().connections(), 0);
    next.handle(NOW + 6_000, Kind::Connect, "ann", "c2");
    assert_eq!(next.viewers_told(), [("ann".to_owned(), true)]);
}

#[test]
fn a_user_who_is_back_before_their_offline_is_announced_stays_online() {
    let mut next = about_to_announce();
    next.handle(NOW + 5_000, Kind::Connect, "ann", "c2");
    let previous = PreviousOwner {
        epoch: 8,
        handed_over: None,
    };
    next.lead(NOW + 5_001, 9, previous);
    assert_eq!(next.viewers_told(), []);
    next.handle(NOW + 6_000, Kind::Disconnect, "ann", "c2");
    assert_eq!(next.viewers_told(), [("ann".to_owned(), false)]);
}

/// An owner that isn't sure and expects ann, and another node that follows it.
fn unsure_pair() -> (Side, Side) {
    let (_, mut owner) = pair();
    owner.handle(NOW + 3_000, Kind::Disconnect, "ann", "c1");
    let previous = PreviousOwner {
        epoch: 7,
        handed_over: None,
    };
    owner.lead(NOW + 4_000, 8, previous);
    assert_eq!(owner.viewers_told(), []);
    let mut next = Side::new("next");
    next.follow(NOW + 4_000, 8, "standby");
    next.catch_up(&mut owner, NOW + 5_000);
    next.out.clear();
    (owner, next)
}

#[test]
fn who_is_expected_by_a_snapshot_is_expected_no_longer_once_heard_from() {
    let (_, mut next) = unsure_pair();
    assert_eq!(next.replica.shard().connections(), 1);
    next.handle(NOW + 6_000, Kind::Connect, "ann", "c2");
    assert_eq!(next.replica.shard().connections(), 1);
}
