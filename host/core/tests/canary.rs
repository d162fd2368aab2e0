//! A canary: other rules decide on a share of the users. A change of the share decides again
//! exactly on the users whom it moves between the rules. It corrects what viewers have been told of
//! them, losses before gains, and reuses no verdict of the other rules.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;

use std::collections::BTreeSet;
use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::Directory;
use presence_core::message::Kind;
use presence_core::names::Names;
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_core::share::{Assignment, Share, place};
use presence_core::{Input, Output, Settings, Shard};
use serde_json::{Value, json};

const USERS: usize = 200;

/// The viewer to whom the active rules show everyone, and the one to whom the candidate does.
const OLD_VIEWER: &str = "old";
const NEW_VIEWER: &str = "new";

/// Rules that are identified by numbers: number 1 shows everyone to one viewer, and the others to
/// another viewer.
struct Numbered {
    assignment: Assignment,
    /// The users whom the rules were asked about, and the number of the rules.
    asked: BTreeSet<(String, u64)>,
}

impl Numbered {
    fn decision(&self, context: Context<'_>) -> Decision {
        let viewer = match self.assignment.rules_of(context.event.name.as_str()) {
            1 => OLD_VIEWER,
            _ => NEW_VIEWER,
        };
        let rendition = Rendition {
            audience: [context.names.intern(viewer)].into_iter().collect(),
            keys: Arc::new([]),
            last_seen: true,
        };
        Decision::Decided(vec![rendition], Reads::default())
    }
}

impl Rules for Numbered {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        let user = context.event.name.as_str();
        let number = self.assignment.rules_of(user);
        self.asked.insert((user.to_owned(), number));
        self.decision(context)
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision {
        match self.decision(context) {
            Decision::Decided(mut renditions, reads) => {
                renditions[0].audience = told.clone();
                Decision::Decided(renditions, reads)
            }
            other => other,
        }
    }
}

struct World {
    shard: Shard,
    rules: Numbered,
    now: u64,
}

impl World {
    /// Everyone is online, and the active rules decide on all.
    fn new() -> Self {
        let shard = Shard::new(
            Settings::default(),
            Arc::new(Names::new()),
            Arc::new(Directory::new()),
        );
        let rules = Numbered {
            assignment: Assignment::to_all(1),
            asked: BTreeSet::new(),
        };
        let mut world = Self {
            shard,
            rules,
            now: 1_000,
        };
        for user in 0..USERS {
            world.connect(&name(user), Kind::Connect);
        }
        world.rules.asked.clear();
        world
    }

    fn connect(&mut self, user: &str, kind: Kind) -> Vec<(String, String, Vec<Value>)> {
        let body = json!({"userId": user, "connId": "c", "timestamp": self.now});
        self.input(Input::Message {
            message: early::message(kind, &body),
            reply: None,
        })
    }

    /// Gives an input. Returns the subject, user and viewers of each filtered message.
    fn input(&mut self, input: Input) -> Vec<(String, String, Vec<Value>)> {
        self.now += 1;
        let mut out = Vec::new();
        self.shard
            .handle(self.now, input, &mut self.rules, &mut out);
        while self.shard.backlog() > 0 {
            self.shard.advance(self.now, &mut self.rules, &mut out);
        }
        let told = out.into_iter().filter_map(|output| match output {
            Output::Publish(it) if it.subject.as_str().starts_with("presence.filtered.") => {
                let body: Value = serde_json::from_slice(&it.body).unwrap();
                let user = body["userId"].as_str().unwrap().to_owned();
                let viewers = body["visibleTo"].as_array().unwrap().clone();
                Some((it.subject.as_str().to_owned(), user, viewers))
            }
            _ => None,
        });
        told.collect()
    }

    fn assign(&mut self, after: Assignment) -> Vec<(String, String, Vec<Value>)> {
        let before = std::mem::replace(&mut self.rules.assignment, after);
        self.rules.asked.clear();
        self.input(Input::Reassigned {
            before,
            after,
            has_other_enrichers: false,
        })
    }

    /// Changes the share, and checks that exactly the users whom this moves are decided on again,
    /// and corrected.
    fn moves(&mut self, after: Assignment, moved: impl Fn(u16) -> bool) {
        let told = self.assign(after);
        let expected: BTreeSet<_> = (0..USERS).map(name).filter(|it| moved(place(it))).collect();
        let asked: BTreeSet<_> = self.rules.asked.iter().map(|it| it.0.clone()).collect();
        assert_eq!(asked, expected);
        let gained = told.iter().position(|it| it.0.ends_with("online"));
        let (lost, gained) = told.split_at(gained.unwrap_or(told.len()));
        assert!(
            gained.iter().all(|it| it.0.ends_with("online")),
            "losses first"
        );
        for told in [lost, gained] {
            let users: BTreeSet<_> = told.iter().map(|it| it.1.clone()).collect();
            assert_eq!(users, expected, "each is corrected");
            assert_eq!(told.len(), expected.len(), "once");
        }
        for user in 0..USERS {
            let user = name(user);
            let new = after.rules_of(&user) != 1;
            for (viewer, sees) in [(OLD_VIEWER, !new), (NEW_VIEWER, new)] {
                let answers = self.ask(viewer, &user);
                assert_eq!(answers["status"] == "online", sees, "{viewer} of {user}");
            }
        }
    }

    fn ask(&mut self, viewer: &str, user: &str) -> Value {
        let (rules, mut out) = (&mut self.rules, Vec::new());
        let users = [user].into_iter();
        let answers = self.shard.query(self.now, viewer, users, rules, &mut out);
        serde_json::from_slice(answers.get(0).unwrap()).unwrap()
    }
}

fn name(user: usize) -> String {
    format!("user-{user}")
}

fn canary(places: u16) -> Assignment {
    Assignment {
        active: 1,
        candidate: Some((2, Share::of_places(places))),
    }
}

#[test]
fn each_change_of_the_share_decides_again_exactly_those_whom_it_moves() {
    let mut world = World::new();
    world.moves(canary(0), |_| false);
    world.moves(canary(1_000), |place| place < 1_000);
    world.moves(canary(4_000), |place| (1_000..4_000).contains(&place));
    world.moves(canary(2_000), |place| (2_000..4_000).contains(&place));
    world.moves(canary(2_000), |_| false);
    world.moves(Assignment::to_all(2), |place| place >= 2_000);
    world.moves(Assignment::to_all(1), |_| true);
    world.moves(canary(500), |place| place < 500);
    world.moves(Assignment::to_all(1), |place| place < 500);
}

#[test]
fn a_verdict_on_a_user_who_has_gone_is_not_reused_by_the_other_rules() {
    let mut world = World::new();
    let user = name(0);
    world.connect(&user, Kind::Disconnect);
    assert!(world.ask(OLD_VIEWER, &user)["lastSeen"].is_u64());
    world.assign(canary(10_000));
    // A viewer must be admitted by the last verdict and by the current one to know when the user
    // was last seen.
    assert!(world.ask(OLD_VIEWER, &user)["lastSeen"].is_null());
    assert!(world.ask(NEW_VIEWER, &user)["lastSeen"].is_null());
    let told = world.connect(&user, Kind::Connect);
    assert_eq!(told.len(), 1);
    assert_eq!(told[0].2, [NEW_VIEWER], "by the candidate");
    world.connect(&user, Kind::Disconnect);
    world.assign(Assignment::to_all(1));
    assert_eq!(world.connect(&user, Kind::Connect)[0].2, [OLD_VIEWER]);
}
