//! Users whom connects and applications state to be online or offline, in a fleet.

mod statuses;

use super::*;

impl Side {
    /// Receives a message with a given timestamp of the sender.
    fn handle_sent(&mut self, now: u64, kind: Kind, user: &str, sent: u64) {
        let input = message(kind, user, "c1", sent);
        self.replica.input(now, input, &mut Everyone, &mut self.out);
    }

    /// Whether viewers see each of these users as online.
    fn shown(&mut self, now: u64, users: &[&str]) -> Vec<bool> {
        let ledger = self.replica.shard().ledger();
        let shown: Vec<_> = ledger.map(|it| it.event.name.clone()).collect();
        self.advance(now);
        let is_shown = |user: &&str| shown.iter().any(|name| name.as_str() == *user);
        users.iter().map(is_shown).collect()
    }
}

const USERS: [&str; 3] = ["stated", "connected", "back"];

/// Messages about three users within a millisecond, in the order in which they were sent. In the
/// end, the first two users are offline, and the third is online.
const SAID: [(Kind, &str, u64); 6] = [
    (Kind::Online, "stated", 0),
    (Kind::Offline, "stated", 1),
    (Kind::Connect, "connected", 0),
    (Kind::Offline, "connected", 1),
    (Kind::Offline, "back", 0),
    (Kind::Online, "back", 1),
];

#[test]
fn what_an_application_said_last_holds_though_it_arrives_first() {
    let (mut owner, mut standby) = pair();
    let now = NOW + 2_000;
    for (kind, user, after) in SAID {
        owner.handle_sent(now + 5, kind, user, now + after);
    }
    // The standby receives them in the opposite order.
    for (kind, user, after) in SAID.into_iter().rev() {
        standby.handle_sent(now + 5, kind, user, now + after);
    }
    let told = owner.tell(&mut standby, now + 6);
    assert!(told > 0);
    assert_eq!(owner.shown(now + 7, &USERS), [false, false, true]);
    standby.out.clear();
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    standby.lead(now + 9_000, 8, previous);
    assert_eq!(standby.viewers_told(), [], "nothing differs");
    assert_eq!(standby.shown(now + 9_001, &USERS), [false, false, true]);

    // An owner that receives them in the opposite order has the same result.
    let (mut owner, _) = pair();
    for (kind, user, after) in SAID.into_iter().rev() {
        owner.handle_sent(now + 5, kind, user, now + after);
    }
    assert_eq!(owner.shown(now + 6, &USERS), [false, false, true]);
    // As always, a connect that was sent later overrides the offline.
    owner.handle_sent(now + 20, Kind::Connect, "connected", now + 2);
    assert_eq!(owner.shown(now + 21, &USERS), [false, true, true]);
}

#[test]
fn a_sender_whose_clock_is_far_ahead_hides_and_shows_nobody_by_that() {
    let (mut owner, _) = pair();
    let now = NOW + 2_000;
    owner.handle_sent(now, Kind::Connect, "connected", now + 60_000);
    owner.handle_sent(now + 500, Kind::Offline, "connected", now + 500);
    assert_eq!(owner.shown(now + 501, &["connected"]), [false]);
}

#[test]
fn who_connects_to_a_shards_first_owner_and_leaves_is_offline_at_once() {
    let mut owner = Side::new("owner");
    owner.lead(NOW, 8, PreviousOwner::default());
    owner.handle(NOW + 1_000, Kind::Connect, "ann", "c1");
    owner.handle(NOW + 2_000, Kind::Disconnect, "ann", "c1");
    let ann = |online| ("ann".to_owned(), online);
    assert_eq!(owner.viewers_told(), [ann(true), ann(false)]);
    // A user who has been there before may have another connection that hasn't been heard from yet.
    owner.handle(NOW + 3_000, Kind::Heartbeat, "bob", "c1");
    owner.handle(NOW + 4_000, Kind::Disconnect, "bob", "c1");
    assert_eq!(owner.viewers_told(), [("bob".to_owned(), true)]);

    // A later owner that doesn't know what was before waits, even for users who came by a connect.
    let mut owner = Side::new("owner");
    let previous = PreviousOwner {
        epoch: 5,
        handed_over: None,
    };
    owner.lead(NOW, 8, previous);
    owner.handle(NOW + 1_000, Kind::Connect, "ann", "c1");
    owner.handle(NOW + 2_000, Kind::Disconnect, "ann", "c1");
    assert_eq!(owner.viewers_told(), [ann(true)]);

    // So does a node that was the first owner, and has missed what happened since.
    let mut owner = Side::new("owner");
    owner.lead(NOW, 8, PreviousOwner::default());
    owner.handle(NOW + 1_000, Kind::Connect, "ann", "c1");
    owner
        .replica
        .set_role(NOW + 2_000, Role::None, &mut owner.out);
    let previous = PreviousOwner {
        epoch: 9,
        handed_over: None,
    };
    owner.lead(NOW + 3_000, 12, previous);
    owner.out.clear();
    owner.handle(NOW + 4_000, Kind::Disconnect, "ann", "c1");
    assert_eq!(owner.viewers_told(), []);
}

#[test]
fn a_first_owner_that_lost_inputs_while_its_lease_was_over_waits_for_whom_it_has_not_heard() {
    let mut owner = Side::new("owner");
    owner.lead(NOW, 8, PreviousOwner::default());
    owner.handle(NOW + 1_000, Kind::Connect, "ann", "c1");
    assert_eq!(owner.viewers_told(), [("ann".to_owned(), true)]);
    let replica = &mut owner.replica;
    replica.renewed(NOW + 1_500, NOW + 2_000, &mut owner.out);
    let lost = Input::LostUpTo { at: NOW + 5_000 };
    replica.input(NOW + 5_000, lost, &mut Everyone, &mut owner.out);
    replica.renewed(NOW + 5_001, FOREVER, &mut owner.out);
    // Ann may have another connection now.
    owner.handle(NOW + 6_000, Kind::Disconnect, "ann", "c1");
    owner.advance(NOW + 6_001);
    assert_eq!(owner.viewers_told(), []);
}

#[test]
fn the_ids_of_who_was_missed_are_kept() {
    let (_, mut standby) = pair();
    standby.handle(NOW + 2_000, Kind::Connect, "bob", "c1");
    standby.handle(NOW + 2_001, Kind::Disconnect, "bob", "c1");
    let bob = standby.replica.names.find("bob").unwrap();
    assert!(standby.replica.ids().contains(bob.0));
}
