//! A user joins a large group. The tests count the work: on whom the rules decide again, and how
//! much memory this takes.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    missing_docs,
    reason = "a test may panic"
)]

mod early;

use std::sync::Arc;

use allocation_counter::measure;
use presence_core::audience::Audience;
use presence_core::directory::{Changes, Directory, Question};
use presence_core::message::Kind;
use presence_core::names::{Id, Names};
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_core::{Input, Output, Settings, Shard};
use roaring::RoaringBitmap;
use serde_json::{Value, json};

/// The number of group members; how many of them are online; and how many of these share another
/// group with the user who joins.
const MEMBERS: u32 = 100_000;
const ONLINE: u32 = 6;
const CLOSE: u32 = 2;

/// The size of a bitmap of the group.
const GROUP_BYTES: u64 = MEMBERS as u64 / 8;

/// The default pipeline: contacts and co-members may see a user, except those who are blocked.
#[derive(Default)]
struct Both {
    asked: usize,
}

impl Rules for Both {
    fn enrich(&mut self, _: Context<'_>) -> Enriched {
        Enriched::default()
    }

    fn decide(&mut self, context: Context<'_>) -> Decision {
        self.asked += 1;
        let user = context.event.user;
        let questions = [
            Question::Contacts(user),
            Question::CoMembers(user),
            Question::BlockedBy(user),
        ];
        let answers = questions.each_ref();
        let [contacts, group, blocked] =
            answers.map(|question| context.directory.audience(question).unwrap());
        let reads = Reads {
            questions: questions.into(),
            ..Reads::default()
        };
        Decision::Decided(
            rendition(contacts.union(&group).difference(&blocked)),
            reads,
        )
    }

    fn redact(&mut self, _: Context<'_>, told: &Audience) -> Decision {
        Decision::Decided(rendition(told.clone()), Reads::default())
    }
}

fn rendition(audience: Audience) -> Vec<Rendition> {
    vec![Rendition {
        audience,
        keys: ["device".into()].into(),
        last_seen: true,
    }]
}

struct World {
    shard: Shard,
    rules: Both,
    now: u64,
}

impl World {
    fn input(&mut self, input: Input) -> Vec<Output> {
        let mut out = Vec::new();
        self.shard
            .handle(self.now, input, &mut self.rules, &mut out);
        // Lets as much time pass as the corrections take at their rate.
        while let Some(at) = self
            .shard
            .next_deadline()
            .filter(|at| *at < self.now + 5_000)
        {
            self.now = self.now.max(at);
            self.shard.advance(self.now, &mut self.rules, &mut out);
        }
        out
    }
}

fn name(user: u32) -> String {
    format!("u{user}")
}

/// The group, with the user who joins once they have joined.
fn group(joined: Option<Id>) -> RoaringBitmap {
    (0..MEMBERS).chain(joined.map(|id| id.0)).collect()
}

fn told(out: Vec<Output>) -> Vec<Value> {
    let bodies = out.into_iter().filter_map(|output| match output {
        Output::Publish(publication) => serde_json::from_slice(&publication.body).ok(),
        _ => None,
    });
    let mut told: Vec<Value> = bodies.collect();
    told.sort_by_key(|body| body["userId"].to_string());
    told
}

#[test]
fn a_join_in_a_large_group_decides_again_on_whom_it_shows_somebody_new_and_copies_no_group() {
    let names = Arc::new(Names::new());
    for user in 0..MEMBERS {
        assert_eq!(names.intern(&name(user)), Id(user));
    }
    let joins = names.intern("joins");
    let mut edit = Directory::new().edit();
    edit.group("all", Some(group(None)));
    edit.group("close", Some((0..CLOSE).chain([joins.0]).collect()));
    for user in 0..ONLINE {
        let stranger = |number| names.intern(&format!("s{number}")).0;
        edit.contacts(Id(user), Some((user..user + 5).map(stranger).collect()));
        edit.blocked(Id(user), Some([MEMBERS - 1].into()));
    }
    let directory = Arc::new(edit.finish().0);
    let mut world = World {
        shard: Shard::new(
            Settings::default(),
            Arc::clone(&names),
            Arc::clone(&directory),
        ),
        rules: Both::default(),
        now: 1_000,
    };
    let comes = measure(|| {
        for user in 0..ONLINE {
            let body = json!({"userId": name(user), "connId": "c", "timestamp": world.now});
            let message = early::message(Kind::Connect, &body);
            let reply = None;
            let out = world.input(Input::Message { message, reply });
            assert!(out.len() > 2);
        }
    });
    assert_eq!(world.rules.asked, ONLINE as usize);
    let kept = comes.bytes_current as u64 / u64::from(ONLINE);
    assert!(kept < GROUP_BYTES / 4, "{kept} bytes are kept for a user");

    let mut changed = None;
    let members = group(Some(joins));
    let change = measure(|| {
        let mut edit = directory.edit();
        edit.group("all", Some(members));
        changed = Some(edit.finish());
    });
    let (after, changes): (Directory, Changes) = changed.unwrap();
    assert_eq!(changes.co_members().len(), u64::from(MEMBERS - CLOSE + 1));
    let bytes = change.bytes_total;
    assert!(bytes < 16 * GROUP_BYTES, "{bytes} bytes for the change");

    let mut out = Vec::new();
    let input = Input::Directory(Arc::new(after), Arc::new(changes));
    let decided = measure(|| out = world.input(input));
    assert_eq!(world.rules.asked, (2 * ONLINE - CLOSE) as usize);
    // Memory is allocated for one message per user, and for little more.
    let bytes = decided.bytes_total / u64::from(ONLINE - CLOSE);
    assert!(bytes < GROUP_BYTES, "{bytes} bytes for a user");
    let told: Vec<_> = told(out)
        .iter()
        .map(|body| (body["userId"].clone(), body["visibleTo"].clone()))
        .collect();
    let mut expected: Vec<_> = (CLOSE..ONLINE)
        .map(|user| (json!(name(user)), json!(["joins"])))
        .collect();
    expected.sort_by_key(|(user, _)| user.to_string());
    assert_eq!(told, expected);
}
