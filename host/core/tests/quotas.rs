//! A tenant's quotas. Whatever exceeds a quota is refused, counted and reported, and takes nothing
//! from others.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;

use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::Directory;
use presence_core::message::{Kind, Redrive};
use presence_core::names::Names;
use presence_core::quota::{Cap, Quota};
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_core::{Input, Output, Settings, Shard};
use serde_json::{Value, json};

const FILTERED_ONLINE: &str = "presence.filtered.user_online";
const FILTERED_OFFLINE: &str = "presence.filtered.user_offline";
const OFFLINE: &str = "presence.events.user_offline";
const DLQ: &str = "presence.dlq";

/// These viewers may see everyone.
struct Viewers(Vec<&'static str>);

impl Rules for Viewers {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let ids = self.0.iter().map(|viewer| context.names.intern(viewer));
        let rendition = Rendition {
            audience: ids.collect(),
            keys: Arc::new([]),
            last_seen: false,
        };
        Decision::Decided(vec![rendition], Reads::default())
    }

    fn redact(&mut self, _: Context<'_>, _: &Audience) -> Decision {
        Decision::Decided(Vec::new(), Reads::default())
    }
}

struct World {
    shard: Shard,
    rules: Viewers,
    now: u64,
}

impl World {
    fn new(settings: Settings) -> Self {
        let directory = Arc::new(Directory::new());
        Self {
            shard: Shard::new(settings, Arc::new(Names::new()), directory),
            rules: Viewers(Vec::new()),
            now: 100_000,
        }
    }

    fn handle(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.shard
            .handle(self.now, input, &mut self.rules, &mut out);
        out
    }

    fn send(&mut self, kind: Kind, user: &str, conn: &str, is_excess: bool) -> Vec<Output> {
        let body = json!({"userId": user, "connId": conn, "timestamp": self.now});
        let (message, reply) = (early::message(kind, &body), Some("_INBOX.1".into()));
        self.handle(match is_excess {
            true => Input::Excess { message, reply },
            false => Input::Message { message, reply },
        })
    }

    fn connect(&mut self, user: &str, conn: &str) -> String {
        reply(&self.send(Kind::Connect, user, conn, false))
    }

    fn disconnect(&mut self, user: &str, conn: &str) -> String {
        reply(&self.send(Kind::Disconnect, user, conn, false))
    }

    fn wait(&mut self, ms: u64) -> Vec<Output> {
        let end = self.now + ms;
        let mut out = Vec::new();
        while let Some(at) = self.shard.next_deadline()
            && at <= end
        {
            self.now = self.now.max(at);
            self.shard.advance(self.now, &mut self.rules, &mut out);
        }
        self.now = end;
        out
    }

    fn over(&self, quota: Quota) -> u64 {
        self.shard.counters().over_quota[quota as usize]
    }
}

/// The reason in the reply; `ok` for an accepted input.
fn reply(out: &[Output]) -> String {
    let reply = out.iter().find_map(|output| match output {
        Output::Reply(_, body) => Some(serde_json::from_slice::<Value>(body).unwrap()),
        _ => None,
    });
    let reply = reply.unwrap();
    reply["reason"].as_str().unwrap_or("ok").to_owned()
}

fn bodies(out: &[Output], on: &str) -> Vec<Value> {
    let published = out.iter().filter_map(|output| match output {
        Output::Publish(it) if it.subject.as_str() == on => {
            Some(serde_json::from_slice(&it.body).unwrap())
        }
        _ => None,
    });
    published.collect()
}

/// The refusals that are reported for the log.
fn logged(out: &[Output]) -> Vec<(Option<Quota>, &str)> {
    let logged = out.iter().filter_map(|output| match output {
        Output::Refused(it) => Some((it.quota, &*it.error)),
        _ => None,
    });
    logged.collect()
}

#[test]
fn past_the_rate_new_connections_are_refused_and_live_ones_are_neither_lost_nor_kept() {
    let mut world = World::new(Settings {
        messages_per_s: 7,
        ..Settings::default()
    });
    assert_eq!(world.connect("ann", "c"), "ok");
    let refused = world.send(Kind::Connect, "eve", "c", true);
    assert_eq!(reply(&refused), "quota-exceeded");
    let [letter] = &*bodies(&refused, DLQ) else {
        panic!("one dead letter");
    };
    assert_eq!(letter["reason"], "quota-exceeded");
    let error = letter["error"].as_str().unwrap();
    assert!(error.contains("7 messages a second") && error.contains("[limits] messages_per_s"));
    assert_eq!(logged(&refused), [(Some(Quota::Messages), error)]);
    assert_eq!(world.over(Quota::Messages), 1);
    // One heartbeat in a quarter of the lease is accepted, and no more.
    let beat = |world: &mut World, ms| {
        world.wait(ms);
        reply(&world.send(Kind::Heartbeat, "ann", "c", true))
    };
    assert_eq!(beat(&mut world, 7_499), "quota-exceeded");
    for _ in 0..20 {
        assert_eq!(beat(&mut world, 7_500), "ok");
        assert_eq!(beat(&mut world, 0), "quota-exceeded");
    }
    // An excess heartbeat makes no connection live, and an excess disconnect is only accepted once.
    let unknown = world.send(Kind::Heartbeat, "eve", "c", true);
    assert_eq!(reply(&unknown), "quota-exceeded");
    let end = world.send(Kind::Disconnect, "ann", "c", true);
    assert_eq!((reply(&end), bodies(&end, OFFLINE).len()), ("ok".into(), 1));
    let again = world.send(Kind::Disconnect, "ann", "c", true);
    assert_eq!(reply(&again), "quota-exceeded");
}

#[test]
fn users_and_connections_are_limited_over_all_shards_and_room_comes_back() {
    let (users, connections) = (Cap::new(2), Cap::new(3));
    let mut shards = [(), ()].map(|()| {
        World::new(Settings {
            users: users.clone(),
            connections: connections.clone(),
            ..Settings::default()
        })
    });
    let [one, other] = &mut shards;
    assert_eq!(
        [one.connect("a", "1"), other.connect("b", "1")],
        ["ok", "ok"]
    );
    assert_eq!(one.connect("c", "1"), "quota-exceeded");
    assert_eq!(one.over(Quota::Users), 1);
    assert_eq!(one.connect("a", "2"), "ok");
    assert_eq!(other.connect("b", "2"), "quota-exceeded");
    assert_eq!(other.over(Quota::Connections), 1);
    assert_eq!(one.shard.connections() + other.shard.connections(), 3);
    // A repeated connect, and a heartbeat of a live connection, take no place.
    assert_eq!(one.connect("a", "1"), "ok");
    // The last connection of a user frees a place for another user, and so does a timeout.
    assert_eq!(other.disconnect("b", "1"), "ok");
    assert_eq!(one.connect("c", "1"), "ok");
    one.wait(60_000);
    other.wait(60_000);
    assert_eq!((users.held(), connections.held()), (0, 0));
    assert_eq!(other.connect("d", "1"), "ok");
    // A shard that is replaced gives back its places, and takes them again.
    one.connect("e", "1");
    one.shard = one.shard.replacement();
    assert_eq!((users.held(), connections.held()), (1, 1));
    // If the limit gets lower, existing connections stay.
    users.change(1);
    assert_eq!(other.shard.connections(), 1);
    assert_eq!(other.connect("f", "1"), "quota-exceeded");
}

#[test]
fn a_grace_holds_its_users_place() {
    let mut world = World::new(Settings {
        users: Cap::new(1),
        tracker: presence_core::tracker::TrackerSettings {
            grace_ms: 1_000,
            ..Default::default()
        },
        ..Settings::default()
    });
    world.connect("a", "1");
    world.disconnect("a", "1");
    assert_eq!(world.connect("b", "1"), "quota-exceeded");
    assert_eq!(world.connect("a", "2"), "ok");
    world.disconnect("a", "2");
    world.wait(1_000);
    assert_eq!(world.connect("b", "1"), "ok");
}

#[test]
fn a_user_whom_too_many_may_see_is_shown_to_nobody_new_and_losses_are_told() {
    let settings = Settings {
        audience_max: 2,
        ..Settings::default()
    };
    let mut world = World::new(settings.clone());
    world.rules.0 = vec!["v1", "v2"];
    let out = world.send(Kind::Connect, "ann", "c", false);
    assert_eq!(
        bodies(&out, FILTERED_ONLINE)[0]["visibleTo"],
        json!(["v1", "v2"])
    );
    // The rules admit two more viewers, and one less.
    world.rules.0 = vec!["v1", "v3", "v4"];
    world.handle(Input::Rules);
    let out = world.wait(0);
    assert_eq!(
        bodies(&out, FILTERED_OFFLINE)[0]["visibleTo"],
        json!(["v2"])
    );
    assert_eq!(bodies(&out, FILTERED_ONLINE), Vec::<Value>::new());
    let [letter] = &*bodies(&out, DLQ) else {
        panic!("one dead letter");
    };
    assert_eq!(letter["subject"], FILTERED_ONLINE);
    let error = letter["error"].as_str().unwrap();
    assert!(
        error.contains("3 viewers") && error.contains("[limits] audience_max"),
        "{error}"
    );
    assert_eq!(logged(&out), [(Some(Quota::Audience), error)]);
    // The decision is tried again, without another dead letter, unless a redrive asks for it.
    assert_eq!(bodies(&world.wait(20_000), DLQ), Vec::<Value>::new());
    assert_eq!(world.over(Quota::Audience), 1);
    assert_eq!(world.connect("ann", "c"), "ok");
    let event = Redrive::parse(letter["payload"].as_str().unwrap().as_bytes());
    let reply_to = "_INBOX.2".to_owned();
    let out = world.handle(Input::Redrive {
        event,
        reply: reply_to,
    });
    assert_eq!(reply(&out), "ok");
    assert_eq!(bodies(&world.wait(0), DLQ).len(), 1);
    // As soon as the limit permits it, the viewers are told.
    let settings = Settings {
        audience_max: 3,
        ..settings
    };
    world.handle(Input::Settings(Box::new(settings)));
    let out = world.wait(20_000);
    assert_eq!(
        bodies(&out, FILTERED_ONLINE)[0]["visibleTo"],
        json!(["v3", "v4"])
    );
}
