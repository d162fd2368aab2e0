//! Whatever falls due at one moment, and however much: it is told bit by bit, in order, and
//! makes no difference to what comes after it.

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
use presence_core::message::Kind;
use presence_core::names::Names;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rules};
use presence_core::{Input, Output, Settings, Shard};
use serde_json::{Value, json};

/// Nobody may see anybody.
struct Nobody;

impl Rules for Nobody {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, _: Context<'_>) -> Decision {
        Decision::Decided(Vec::new(), Reads::default())
    }

    fn redact(&mut self, _: Context<'_>, _: &Audience) -> Decision {
        Decision::Decided(Vec::new(), Reads::default())
    }
}

struct World {
    shard: Shard,
    now: u64,
}

impl World {
    fn new(settings: Settings) -> Self {
        let directory = Arc::new(Directory::new());
        Self {
            shard: Shard::new(settings, Arc::new(Names::new()), directory),
            now: 1_000,
        }
    }

    fn send(&mut self, kind: Kind, body: &Value) -> Vec<Output> {
        let mut out = Vec::new();
        let input = Input::Message {
            message: early::message(kind, body),
            reply: Some("_INBOX.1".into()),
        };
        self.shard.handle(self.now, input, &mut Nobody, &mut out);
        out
    }

    fn connect(&mut self, user: &str, conn: &str) -> Vec<Output> {
        let body = json!({"userId": user, "connId": conn, "timestamp": self.now});
        self.send(Kind::Connect, &body)
    }

    fn advance(&mut self) -> Vec<Output> {
        let mut out = Vec::new();
        self.shard.advance(self.now, &mut Nobody, &mut out);
        out
    }
}

/// The users of the events on a subject.
fn users(out: &[Output], on: &str) -> Vec<String> {
    let published = out.iter().filter_map(|output| match output {
        Output::Publish(publication) if publication.subject.as_str() == on => {
            let body: Value = serde_json::from_slice(&publication.body).unwrap();
            Some(body["userId"].as_str().unwrap().to_owned())
        }
        _ => None,
    });
    published.collect()
}

const OFFLINE: &str = "presence.events.user_offline";

#[test]
fn all_who_time_out_at_one_moment_are_told_of_bit_by_bit_and_in_order() {
    let mut world = World::new(Settings::default());
    let all: Vec<_> = (0..10_000).map(|number| format!("user-{number}")).collect();
    for user in &all {
        world.connect(user, "c");
    }
    world.now += 30_000;
    let mut told = Vec::new();
    while world.shard.has_expiries(world.now) {
        let out = world.advance();
        assert!(out.len() < 2_000, "{} at once", out.len());
        told.extend(users(&out, OFFLINE));
        assert!(
            told.len() == all.len() || world.shard.next_deadline().unwrap() <= world.now,
            "the rest is due"
        );
    }
    assert_eq!(told, all);
}

#[test]
fn all_statements_that_end_at_one_moment_are_told_of_bit_by_bit() {
    let mut world = World::new(Settings::default());
    for number in 0..5_000 {
        let user = format!("user-{number}");
        world.send(
            Kind::Online,
            &json!({"userId": user, "timestamp": world.now}),
        );
    }
    world.now += Settings::default().statement_ttl_ms;
    let mut told = 0;
    while world.shard.has_expiries(world.now) {
        let out = world.advance();
        assert!(out.len() < 2_000, "{} at once", out.len());
        told += users(&out, OFFLINE).len();
    }
    assert_eq!(told, 5_000);
}
