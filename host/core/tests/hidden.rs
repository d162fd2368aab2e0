//! What a viewer receives when a user leaves, and when the user is hidden from them, compared byte
//! by byte: on the filtered subjects, on the viewer's own subject, and in answers to queries. Two
//! worlds with the same past are compared, for any rules, settings and statuses.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use presence_core::audience::Audience;
use presence_core::directory::{Directory, Question};
use presence_core::message::{Kind, Message};
use presence_core::names::Names;
use presence_core::record::Record;
use presence_core::rules::{Context, Decision, Enriched, Failure, Reads, Rendition, Rules};
use presence_core::{Input, Output, Settings, Shard, status, tracker};
use proptest::prelude::*;
use serde_json::{Value, json};

/// The user whom viewers are told of, the viewer who is examined, and other users.
const USER: &str = "ada";
const VIEWER: &str = "vic";
const OTHERS: [&str; 6] = ["ben", "cleo", "dan", "eve", "fay", "gus"];

/// Longer than any script takes.
const TIMEOUT_MS: u64 = 10_000_000;

/// What a viewer is shown: the metadata keys, and whether they may know when the user was last
/// seen.
type Tier = (Vec<&'static str>, bool);

/// Contacts may see the user, except those who are blocked, and those from whom the user is hidden.
/// Friends (who have the user among their own contacts) are shown one tier, and all others another.
#[derive(Clone)]
struct Rule {
    friends: Tier,
    others: Tier,
    hidden_from_viewer: bool,
    hidden_from_all: bool,
    unredacted: bool,
    failing: bool,
    /// Whether the redactor recognizes friends by the user's contacts.
    by_contacts: bool,
}

impl Rule {
    fn split(&self, context: Context<'_>, audience: &Audience) -> Vec<Rendition> {
        let user = context.event.user;
        let friends = context.directory.audience(&self.friends_of(user)).unwrap();
        let viewer = context.names.intern(VIEWER);
        let audience = match self.unredacted {
            true => audience.without(viewer),
            false => audience.clone(),
        };
        let part = |audience, (keys, last_seen): &Tier| Rendition {
            audience,
            keys: keys.iter().map(|key| (*key).into()).collect(),
            last_seen: *last_seen,
        };
        vec![
            part(audience.intersection(&friends), &self.friends),
            part(audience.difference(&friends), &self.others),
        ]
    }

    fn friends_of(&self, user: presence_core::names::Id) -> Question {
        match self.by_contacts {
            true => Question::Contacts(user),
            false => Question::WithContact(user),
        }
    }
}

impl Rules for Rule {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        if self.failing {
            return Decision::Failed(Failure {
                plugin: "rule".into(),
                error: "told to fail".into(),
            });
        }
        let user = context.event.user;
        let viewer = context.names.intern(VIEWER);
        let questions = [Question::Contacts(user), Question::BlockedBy(user)];
        let [contacts, blocked] = questions
            .each_ref()
            .map(|question| context.directory.audience(question).unwrap());
        let mut audience = contacts.difference(&blocked);
        if self.hidden_from_viewer {
            audience = audience.without(viewer);
        }
        if self.hidden_from_all {
            audience = Audience::nobody();
        }
        let mut questions = std::collections::BTreeSet::from(questions);
        questions.insert(self.friends_of(user));
        let reads = Reads {
            questions,
            ..Reads::default()
        };
        Decision::Decided(self.split(context, &audience), reads)
    }

    fn redact(&mut self, context: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(self.split(context, told), Reads::default())
    }
}

/// The way in which the user becomes hidden.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// A filter removes the viewer, or everyone.
    Viewer,
    All,
    /// The redactor leaves out the viewer.
    Unredacted,
    /// A block in the directory.
    Block,
    /// The viewer is no longer a contact, which also changes the tier.
    Contact,
}

/// A step before the user leaves or is hidden.
#[derive(Clone, Debug)]
enum Before {
    /// A connect or heartbeat of a connection of the user, with an activity.
    Connect(u8, &'static str),
    Heartbeat(u8, &'static str),
    /// The redactor changes its tiers.
    Tiers(Tier, Tier),
    /// The viewer is blocked, or no longer is.
    Block(bool),
    Fail(bool),
    /// The host is restarted.
    Restart,
    Wait(u64),
}

#[derive(Clone, Debug)]
struct Scenario {
    way: Way,
    before: Vec<Before>,
    friends: Tier,
    others: Tier,
    by_contacts: bool,
    statuses: bool,
    grace_ms: u64,
    connect_delay_ms: u64,
    body_bytes_max: usize,
    corrections_per_s: u64,
}

fn tier() -> impl Strategy<Value = Tier> {
    let keys = prop::sample::subsequence(vec!["device", "activity"], 0..=2);
    (keys, any::<bool>())
}

fn scenario() -> impl Strategy<Value = Scenario> {
    let way = prop::sample::select(vec![
        Way::Viewer,
        Way::All,
        Way::Unredacted,
        Way::Block,
        Way::Contact,
    ]);
    let activity = || prop::sample::select(vec!["active", "idle", "typing"]);
    let before = prop_oneof![
        2 => (0..2_u8, activity()).prop_map(|(conn, it)| Before::Connect(conn, it)),
        3 => (0..2_u8, activity()).prop_map(|(conn, it)| Before::Heartbeat(conn, it)),
        2 => (tier(), tier()).prop_map(|(friends, others)| Before::Tiers(friends, others)),
        1 => any::<bool>().prop_map(Before::Block),
        1 => any::<bool>().prop_map(Before::Fail),
        1 => Just(Before::Restart),
        1 => (1..5_000_u64).prop_map(Before::Wait),
    ];
    let before = prop::collection::vec(before, 0..8);
    let settings = (
        any::<bool>(),
        prop_oneof![Just(0), 1..3_000_u64],
        0..400_u64,
        prop_oneof![Just(1 << 20), Just(160_usize)],
        prop_oneof![Just(0), Just(20_u64)],
    );
    (way, before, (tier(), tier()), any::<bool>(), settings).prop_map(
        |(way, before, (friends, others), by_contacts, settings)| Scenario {
            way,
            before,
            friends,
            others,
            by_contacts,
            statuses: settings.0,
            grace_ms: settings.1,
            connect_delay_ms: settings.2,
            body_bytes_max: settings.3,
            corrections_per_s: settings.4,
        },
    )
}

struct World {
    names: Arc<Names>,
    directory: Arc<Directory>,
    shard: Shard,
    settings: Settings,
    rule: Rule,
    now: u64,
    connect_delay_ms: u64,
    out: Vec<Output>,
    store: BTreeMap<Vec<u8>, Vec<u8>>,
}

impl World {
    fn new(scenario: &Scenario) -> Self {
        let settings = Settings {
            tracker: tracker::TrackerSettings {
                timeout_ms: TIMEOUT_MS,
                grace_ms: scenario.grace_ms,
                ..tracker::TrackerSettings::default()
            },
            inbox: true,
            status: scenario.statuses.then_some(status::StatusSettings {
                min_interval_ms: 500,
                typing_ms: 10_000_000,
                users_max: 1_000,
            }),
            body_bytes_max: scenario.body_bytes_max,
            corrections_per_s: scenario.corrections_per_s,
            ..Settings::default()
        };
        let names = Arc::new(Names::new());
        let directory = Arc::new(Directory::new());
        let mut world = Self {
            shard: shard(&settings, &names, &directory),
            names,
            directory,
            settings,
            rule: Rule {
                friends: scenario.friends.clone(),
                others: scenario.others.clone(),
                hidden_from_viewer: false,
                hidden_from_all: false,
                unredacted: false,
                failing: false,
                by_contacts: scenario.by_contacts,
            },
            now: 1_700_000_000_000,
            connect_delay_ms: scenario.connect_delay_ms,
            out: Vec::new(),
            store: BTreeMap::new(),
        };
        let all = OTHERS.iter().copied().chain([VIEWER]);
        world.set_contacts(USER, &all.collect::<Vec<_>>());
        for friend in [VIEWER, OTHERS[0]] {
            world.set_contacts(friend, &[USER]);
        }
        world.connect(0, "active");
        for step in &scenario.before {
            world.before(step);
        }
        // After this, everything has been told, and the user is online and visible.
        world.rule.failing = false;
        world.input(Input::Rules);
        world.block(false);
        world.connect(0, "active");
        // One connection is left, since the end of another might change what is shown.
        world.disconnect(1);
        world.wait(20_000);
        world
    }

    fn before(&mut self, step: &Before) {
        self.wait(700);
        match step {
            Before::Connect(conn, activity) => self.connect(*conn, activity),
            Before::Heartbeat(conn, activity) => self.say(Kind::Heartbeat, *conn, activity),
            Before::Tiers(friends, others) => {
                self.rule.friends.clone_from(friends);
                self.rule.others.clone_from(others);
                self.input(Input::Rules);
            }
            Before::Block(blocked) => self.block(*blocked),
            Before::Fail(fails) => {
                self.rule.failing = *fails;
                self.input(Input::Rules);
            }
            Before::Restart => self.restart(),
            Before::Wait(ms) => self.wait(*ms),
        }
    }

    fn connect(&mut self, conn: u8, activity: &str) {
        self.say(Kind::Connect, conn, activity);
    }

    fn say(&mut self, kind: Kind, conn: u8, activity: &str) {
        let metadata = json!({"device": format!("d{conn}"), "activity": activity});
        let body = json!({
            "userId": USER,
            "connId": format!("c{conn}"),
            "timestamp": self.now - self.connect_delay_ms,
            "metadata": metadata,
        });
        let message = Message::parse(kind, &Bytes::from(body.to_string()), 1 << 20).unwrap();
        self.input(Input::Message {
            message,
            reply: None,
        });
    }

    fn input(&mut self, input: Input) {
        let (rule, out) = (&mut self.rule, &mut self.out);
        self.shard.handle(self.now, input, rule, out);
        self.wait(0);
    }

    fn wait(&mut self, ms: u64) {
        let until = self.now + ms;
        while let Some(at) = self.shard.next_deadline()
            && at <= until
        {
            self.now = self.now.max(at);
            self.shard.advance(self.now, &mut self.rule, &mut self.out);
        }
        self.now = until;
    }

    fn edit(&mut self, edit: presence_core::directory::Edit) {
        let (directory, changes) = edit.finish();
        self.directory = Arc::new(directory);
        let directory = Arc::clone(&self.directory);
        self.input(Input::Directory(directory, Arc::new(changes)));
    }

    fn set_contacts(&mut self, user: &str, contacts: &[&str]) {
        let contacts = contacts.iter().map(|name| self.names.intern(name).0);
        let mut edit = self.directory.edit();
        edit.contacts(self.names.intern(user), Some(contacts.collect()));
        self.edit(edit);
    }

    fn block(&mut self, blocked: bool) {
        let viewer = self.names.intern(VIEWER).0;
        let mut edit = self.directory.edit();
        let blocked = blocked.then(|| [viewer].into_iter().collect());
        edit.blocked(self.names.intern(USER), blocked);
        self.edit(edit);
    }

    fn restart(&mut self) {
        for record in self.shard.take_records(1) {
            match record.encode(&self.names) {
                (key, Some(value)) => drop(self.store.insert(key, value)),
                (key, None) => drop(self.store.remove(&key)),
            }
        }
        self.shard = shard(&self.settings, &self.names, &self.directory);
        let records = self.store.iter();
        let records = records.map(|(key, value)| Record::decode(key, value, &self.names).unwrap());
        self.shard.restore(self.now, 0, records);
        self.wait(0);
    }

    /// The user leaves. The result comes after the grace.
    fn leave(&mut self) {
        self.disconnect(0);
        self.wait(self.settings.tracker.grace_ms);
    }

    fn disconnect(&mut self, conn: u8) {
        let body = json!({
            "userId": USER,
            "connId": format!("c{conn}"),
            "timestamp": self.now - self.connect_delay_ms,
            "reason": "client_disconnect",
        });
        let payload = Bytes::from(body.to_string());
        let message = Message::parse(Kind::Disconnect, &payload, 1 << 20).unwrap();
        self.input(Input::Message {
            message,
            reply: None,
        });
    }

    /// The user is hidden from the viewer at the time at which leaving would take effect.
    fn hide(&mut self, way: Way) {
        self.wait(self.settings.tracker.grace_ms);
        match way {
            Way::Viewer => self.rule.hidden_from_viewer = true,
            Way::All => self.rule.hidden_from_all = true,
            Way::Unredacted => self.rule.unredacted = true,
            Way::Block => return self.block(true),
            Way::Contact => return self.set_contacts(USER, &OTHERS),
        }
        self.input(Input::Rules);
    }

    /// The published messages that the viewer receives, as text.
    fn told(&mut self) -> Vec<(String, String)> {
        let out = std::mem::take(&mut self.out);
        let own = format!("\"{VIEWER}\"");
        let told = out.iter().filter_map(|output| match output {
            Output::Publish(publication) => {
                let subject = publication.subject.as_str();
                let body = std::str::from_utf8(&publication.body).unwrap();
                let (head, rest) = body.split_once("\"visibleTo\":[")?;
                let (viewers, tail) = rest.split_once(']').unwrap();
                assert!(body.len() <= self.settings.body_bytes_max);
                let is_told = viewers.split(',').any(|viewer| viewer == own);
                is_told.then(|| (subject.to_owned(), format!("{head}{own}{tail}")))
            }
            Output::Deliver(delivery) if delivery.viewer.as_str() == VIEWER => {
                let body = std::str::from_utf8(&delivery.body).unwrap();
                let number = format!("inbox {:?} {}", delivery.renewed, delivery.seq);
                Some((number, body.to_owned()))
            }
            _ => None,
        });
        told.collect()
    }

    fn asked(&mut self) -> String {
        let (rule, out) = (&mut self.rule, &mut self.out);
        let users = [USER].into_iter();
        let answers = self.shard.query(self.now, VIEWER, users, rule, out);
        String::from_utf8(answers.get(0).unwrap().to_vec()).unwrap()
    }
}

fn shard(settings: &Settings, names: &Arc<Names>, directory: &Arc<Directory>) -> Shard {
    let (names, directory) = (Arc::clone(names), Arc::clone(directory));
    let mut shard = Shard::new(settings.clone(), names, directory);
    shard.keep_records(true);
    shard
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3_000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn being_hidden_looks_like_the_users_leaving(scenario in scenario()) {
        let [mut left, mut hidden] = [(); 2].map(|()| World::new(&scenario));
        let before = [left.told(), hidden.told()];
        prop_assert_eq!(&before[0], &before[1]);
        prop_assert_eq!(left.asked(), hidden.asked());

        left.leave();
        hidden.hide(scenario.way);
        let (of_left, of_hidden) = (left.told(), hidden.told());
        prop_assert_eq!(of_left.len(), 2, "{:?}", &of_left);
        prop_assert_eq!(&of_left, &of_hidden);

        // A viewer who may know when the user was last seen gets this answer once the user has
        // left. A hidden user looks like a user whose last-seen time the viewer may not know.
        let mut answer: Value = serde_json::from_str(&left.asked()).unwrap();
        let last_seen = answer.as_object_mut().unwrap().remove("lastSeen");
        let event: Value = serde_json::from_str(&of_left[1].1).unwrap();
        prop_assert_eq!(last_seen.as_ref(), event.get("lastSeen"));
        prop_assert_eq!(answer, json!({"userId": USER, "status": "offline"}));
        let nothing = format!("{{\"userId\":\"{USER}\",\"status\":\"offline\"}}");
        prop_assert_eq!(hidden.asked(), nothing);
        for world in [&mut left, &mut hidden] {
            world.wait(30_000);
            prop_assert_eq!(world.told(), []);
        }
    }
}
