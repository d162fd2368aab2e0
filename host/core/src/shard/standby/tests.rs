use bytes::Bytes;

use super::*;
use crate::fleet::testing::{Everyone, message, shard};
use crate::message::Kind;
use crate::names::Names;
use crate::shard::types::Output;

#[test]
fn who_leaves_is_not_kept_as_one_to_be_shown_anew() {
    let mut shard = shard(&Arc::new(Names::new()));
    shard.keep_standby_records(true);
    for conn in ["c1", "c2"] {
        shard.follow(
            1_700_000_000_000,
            message(Kind::Connect, "ann", conn, 1_700_000_000_000),
        );
    }
    let mut leave = |conn, at| shard.follow(at, message(Kind::Disconnect, "ann", conn, at));
    leave("c1", 1_700_000_000_001);
    leave("c2", 1_700_000_000_002);
    let standby = &shard.presence.standby;
    assert_eq!(standby.reshown.len(), 0);
    assert_eq!(standby.missed.len(), 1);
}

const NOW: u64 = 1_700_000_000_000;

/// An owner, and a standby that follows it.
struct Pair {
    names: Arc<Names>,
    owner: Shard,
    standby: Shard,
    now: u64,
}

impl Pair {
    fn new() -> Self {
        let names = Arc::new(Names::new());
        let mut pair = Self {
            owner: shard(&names),
            standby: shard(&names),
            names,
            now: NOW,
        };
        for shard in [&mut pair.owner, &mut pair.standby] {
            shard.keep_standby_records(true);
        }
        pair
    }

    /// Both take a message with this device, and the standby is told what viewers were told.
    fn take(&mut self, kind: Kind, conn: &str, device: &str) {
        self.owner_takes(kind, conn, device);
        self.standby_takes(kind, conn, device);
        for record in self.owner.take_standby_records() {
            let (key, value) = record.encode(&self.names);
            let record = match value {
                Some(value) => Record::decode(&key, &value, &self.names),
                None => Record::decode_gone(&key, &self.names),
            };
            self.standby.apply(record.unwrap());
        }
    }

    fn message(&mut self, kind: Kind, conn: &str, device: &str) -> Input {
        self.now += 10;
        let now = self.now;
        let body = format!(
            r#"{{"userId":"ann","connId":"{conn}","timestamp":{now},"metadata":{{"device":"{device}"}}}}"#
        );
        let message = Message::parse(kind, &Bytes::from(body), 1 << 20).unwrap();
        Input::Message {
            message,
            reply: None,
        }
    }

    fn owner_takes(&mut self, kind: Kind, conn: &str, device: &str) {
        let input = self.message(kind, conn, device);
        self.owner
            .handle(self.now, input, &mut Everyone, &mut Vec::new());
    }

    fn standby_takes(&mut self, kind: Kind, conn: &str, device: &str) {
        self.now -= 10;
        let input = self.message(kind, conn, device);
        self.standby.follow(self.now, input);
    }

    /// The standby takes over. Returns the devices that it tells viewers.
    fn take_over(mut self, sure: bool) -> Vec<String> {
        self.standby.set_from_snapshot();
        self.standby.lead(self.now, sure);
        let mut out = Vec::new();
        for later in 0..10 {
            self.standby
                .advance(self.now + later, &mut Everyone, &mut out);
        }
        let bodies = out.iter().filter_map(|output| match output {
            Output::Publish(it) if it.subject != Subject::Events => {
                serde_json::from_slice::<serde_json::Value>(&it.body).ok()
            }
            _ => None,
        });
        bodies
            .map(|body| body["metadata"]["device"].to_string())
            .collect()
    }
}

#[test]
fn what_an_application_states_of_a_connected_user_stays_shown_after_a_takeover() {
    for sure in [true, false] {
        let mut pair = Pair::new();
        pair.take(Kind::Connect, "c1", "phone");
        pair.take(Kind::Connect, "c2", "tablet");
        pair.take(Kind::Online, "", "web");
        assert_eq!(pair.take_over(sure), [""; 0], "sure: {sure}");
    }
}

#[test]
fn a_node_that_takes_over_shows_what_an_application_states_until_connections_change() {
    let stated = || {
        let mut pair = Pair::new();
        pair.take(Kind::Connect, "c1", "phone");
        pair.take(Kind::Connect, "c2", "tablet");
        pair.take(Kind::Online, "", "web");
        pair
    };
    // The owner doesn't live to tell that a connection is closed.
    let mut pair = stated();
    pair.now += 10;
    pair.standby_takes(Kind::Disconnect, "c1", "");
    assert_eq!(pair.take_over(true), ["\"tablet\""]);
    // It has told.
    let mut pair = stated();
    pair.take(Kind::Disconnect, "c1", "");
    assert_eq!(pair.take_over(false), [""; 0]);
    // It was stated after that.
    let mut pair = stated();
    pair.take(Kind::Disconnect, "c1", "");
    pair.take(Kind::Online, "", "web");
    assert_eq!(pair.take_over(true), [""; 0]);
}

#[test]
fn what_an_application_states_last_is_told_by_the_node_that_takes_over() {
    let mut pair = Pair::new();
    pair.take(Kind::Connect, "c1", "phone");
    pair.now += 10;
    pair.standby_takes(Kind::Online, "", "web");
    assert_eq!(pair.take_over(true), ["\"web\""]);
}
