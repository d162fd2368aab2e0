//! A tenant's users and directory, and what tests ask about them.

use std::sync::Arc;

use presence_core::audience::Audience;
use presence_core::directory::{Answer, Directory, Edit, Question, UserSettings};
use presence_core::event::{Change, Event, Reason};
use presence_core::metadata::Metadata;
use presence_core::names::{Id, Names};
use presence_core::rules::{Context, Decision, Enriched, Reads, Rendition, Rules};
use presence_sandbox::Pipeline;
use serde_json::Value;

/// The time in most tests.
pub(crate) const NOW: u64 = 1_698_000_000_000;

pub(crate) struct World {
    pub(crate) now: u64,
    /// How far the wall time is ahead of `now`.
    pub(crate) ahead_ms: i64,
    pub(crate) names: Arc<Names>,
    /// Everything that `set_directory` was given.
    known: Directory,
    pub(crate) directory: Arc<Directory>,
    pub(crate) event: Arc<Event>,
}

impl World {
    /// `ada` comes online, and the directory has all answers.
    pub(crate) fn new(directory: &Value) -> Self {
        Self::in_directory(Directory::new(), directory)
    }

    /// `ada` comes online, and the directory has only the answers that it was given.
    pub(crate) fn on_demand() -> Self {
        Self::in_directory(Directory::on_demand(), &Value::Null)
    }

    fn in_directory(directory: Directory, directory_json: &Value) -> Self {
        let names = Arc::new(Names::new());
        let directory = Arc::new(directory);
        let event = Arc::new(online(&names, "ada", "{}"));
        let mut world = Self {
            now: NOW,
            ahead_ms: 0,
            names,
            known: Directory::new(),
            directory,
            event,
        };
        world.set_directory(directory_json, &[]);
        world
    }

    /// Adds this to what is known, and lets the directory answer these questions.
    pub(crate) fn set_directory(&mut self, directory_json: &Value, answered: &[Question]) {
        let mut edit = self.known.edit();
        add_sections(&mut edit, &self.names, directory_json);
        self.known = edit.finish().0;
        if !self.directory.is_on_demand() {
            self.directory = Arc::new(self.known.clone());
        }
        let mut edit = self.directory.edit();
        for question in answered {
            edit.answer(question.clone(), Some(self.answer(question)));
        }
        self.directory = Arc::new(edit.finish().0);
    }

    fn answer(&self, question: &Question) -> Answer {
        match question {
            Question::Groups(user) => Answer::groups(self.known.groups(*user).unwrap().into()),
            Question::Settings(user) => {
                let value =
                    |key: &str| Some((key.into(), self.known.setting(*user, key).ok()??.into()));
                Answer::settings(["lastSeen"].into_iter().filter_map(value).collect())
            }
            question => Answer::users(self.known.audience(question).unwrap().bitmap()),
        }
    }

    /// This user comes online, with this metadata.
    pub(crate) fn online(&mut self, user: &str, metadata: &str) {
        self.event = Arc::new(online(&self.names, user, metadata));
    }

    /// `ada` goes offline.
    pub(crate) fn offline(&mut self, last_seen: u64, reason: Reason) {
        self.event = Arc::new(Event {
            change: Change::Offline { last_seen, reason },
            ..Event::clone(&self.event)
        });
    }

    pub(crate) fn decide(&self, rules: &mut Pipeline) -> Decision {
        rules.decide(self.context())
    }

    pub(crate) fn enrich(&self, rules: &mut Pipeline) -> Enriched {
        rules.enrich(self.context())
    }

    /// The renditions of the decision. Panics if there is no decision.
    pub(crate) fn renditions(&self, rules: &mut Pipeline) -> Vec<Rendition> {
        match self.decide(rules) {
            Decision::Decided(renditions, _) => renditions,
            other => panic!("not decided: {other:?}"),
        }
    }

    /// What the decision read. Panics if there is no decision.
    pub(crate) fn reads(&self, rules: &mut Pipeline) -> Reads {
        match self.decide(rules) {
            Decision::Decided(_, reads) => reads,
            other => panic!("not decided: {other:?}"),
        }
    }

    /// Who may see the user. Panics unless the decision has exactly one rendition.
    pub(crate) fn visible(&self, rules: &mut Pipeline) -> Vec<String> {
        match self.renditions(rules).as_slice() {
            [rendition] => self.viewers(&rendition.audience),
            others => panic!("not one rendition: {others:?}"),
        }
    }

    /// What each viewer in `told` gets. Panics if the redactor didn't answer.
    pub(crate) fn redacted(&self, rules: &mut Pipeline, told: &Audience) -> Vec<Rendition> {
        match rules.redact(self.context(), told) {
            Decision::Decided(renditions, _) => renditions,
            other => panic!("not redacted: {other:?}"),
        }
    }

    /// Which plugin failed, and its error. Panics unless the decision failed.
    pub(crate) fn failure(&self, rules: &mut Pipeline) -> (String, String) {
        match self.decide(rules) {
            Decision::Failed(failure) => (failure.plugin.to_string(), failure.error),
            other => panic!("not failed: {other:?}"),
        }
    }

    /// The names of an audience, sorted.
    pub(crate) fn viewers(&self, audience: &Audience) -> Vec<String> {
        let name = |id| self.names.name(id).unwrap().as_str().to_owned();
        let mut viewers: Vec<_> = audience.ids().map(name).collect();
        viewers.sort_unstable();
        viewers
    }

    pub(crate) fn audience(&self, users: &[&str]) -> Audience {
        users.iter().map(|user| self.id(user)).collect()
    }

    pub(crate) fn id(&self, user: &str) -> Id {
        self.names.intern(user)
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context {
            now: self.now.saturating_add_signed(self.ahead_ms),
            monotonic: self.now,
            event: &self.event,
            directory: &self.directory,
            names: &self.names,
        }
    }
}

fn online(names: &Names, user: &str, metadata: &str) -> Event {
    let (user, name) = names.intern_name(user);
    Event {
        user,
        name,
        timestamp: NOW,
        change: Change::Online,
        metadata: Metadata::parse(metadata, |_| true),
    }
}

/// Adds the sections `contacts`, `groups`, `blocks` and `settings`.
fn add_sections(edit: &mut Edit, names: &Names, directory_json: &Value) {
    let section = |key: &str| directory_json[key].as_object().into_iter().flatten();
    let set = |users: &Value| {
        let users = users.as_array().unwrap().iter();
        Some(
            users
                .map(|user| names.intern(user.as_str().unwrap()).0)
                .collect(),
        )
    };
    section("contacts").for_each(|(user, list)| edit.contacts(names.intern(user), set(list)));
    section("groups").for_each(|(group, list)| edit.group(group, set(list)));
    section("blocks").for_each(|(user, list)| edit.blocked(names.intern(user), set(list)));
    for (user, settings) in section("settings") {
        let settings = settings.as_object().unwrap().iter();
        let settings = settings.map(|(key, value)| (key.as_str().into(), value.to_string().into()));
        edit.settings(names.intern(user), Some(settings.collect::<UserSettings>()));
    }
}
