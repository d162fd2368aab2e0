//! What viewers are told and may know, computed anew from what was published: every message is
//! followed, and every answer to a query is compared with it.

use std::collections::BTreeSet;

use presence_core::directory::Question;
use presence_core::publish::Subject;
use presence_core::{Output, Shard};
use serde_json::{Value, json};

use crate::{Gone, MIN_INTERVAL_MS, USERS, World};

impl World {
    /// A viewer queries all users.
    pub(crate) fn ask(&mut self) {
        let viewer = USERS[self.asks % USERS.len()];
        self.asks += 1;
        for user in USERS {
            let mut out = Vec::new();
            let rules = &mut self.rules;
            let answers = self
                .shard
                .query(self.now, viewer, [user].into_iter(), rules, &mut out);
            self.fetch(&out);
            let is_fetch = |it: &Output| matches!(it, Output::Fetch(_));
            assert!(out.iter().all(is_fetch), "a query publishes nothing");
            let answer: Value = serde_json::from_slice(answers.get(0).unwrap()).unwrap();
            let id = self.names.find(user);
            let hidden = json!({"userId": user, "status": "offline"});
            if id.is_some_and(|id| self.pending.contains(&id)) && answer == hidden {
                continue;
            }
            let gone = self
                .gone
                .get(user)
                .filter(|_| !self.online.contains_key(user));
            if answer == hidden && gone.is_some_and(|it| it.unsure || !it.knows.contains(viewer)) {
                continue;
            }
            assert_eq!(
                answer,
                self.known(viewer, user),
                "{viewer} asks after {user}"
            );
        }
    }

    /// What a viewer may know: what they have been told, restricted by the current rules.
    pub(crate) fn known(&self, viewer: &str, user: &str) -> Value {
        let hidden = json!({"userId": user, "status": "offline"});
        let Some(id) = self.names.find(user) else {
            return hidden;
        };
        if !self.allowed(user).contains(viewer) {
            return hidden;
        }
        match self.online.get(user) {
            Some(metadata) if self.told[user].contains(viewer) => {
                let metadata = self.visible(user, metadata, viewer);
                json!({"userId": user, "status": "online", "metadata": metadata})
            }
            None if !self
                .gone
                .get(user)
                .is_some_and(|it| it.told.contains(viewer)) =>
            {
                hidden
            }
            None if !self.rules.of(user).secretive.contains(&id) => {
                match self.last_seen.get(user) {
                    Some(at) => json!({"userId": user, "status": "offline", "lastSeen": at}),
                    None => hidden,
                }
            }
            _ => hidden,
        }
    }

    /// Follows the publications as viewers do.
    pub(crate) fn see(&mut self, out: Vec<Output>) {
        self.fetch(&out);
        self.see_inboxes(&out);
        for output in out {
            let Output::Publish(publication) = output else {
                continue;
            };
            let body: Value = serde_json::from_slice(&publication.body).unwrap();
            let user = body["userId"].as_str().unwrap_or_default().to_owned();
            let viewers = body["visibleTo"].as_array().into_iter().flatten();
            let viewers: Vec<_> = viewers
                .map(|viewer| viewer.as_str().unwrap().to_owned())
                .collect();
            let allowed = if viewers.is_empty() {
                BTreeSet::new()
            } else {
                self.allowed(&user)
            };
            let told = self.told.entry(user.clone()).or_default();
            match publication.subject {
                Subject::Events if body["type"] == "user_online" => {
                    self.online.insert(user, body["metadata"].clone());
                }
                Subject::Updated => {
                    let before = self.online.insert(user.clone(), body["metadata"].clone());
                    assert_ne!(before.as_ref(), Some(&body["metadata"]), "nothing is new");
                    if let Some(at) = self.updated_at.insert(user, self.now)
                        && self.statuses
                    {
                        assert!(self.now >= at + MIN_INTERVAL_MS, "too soon");
                    }
                }
                Subject::Events => {
                    let id = self.names.find(&user);
                    let metadata = self.online.remove(&user);
                    let unsure = self.shard.backlog() > 0
                        || id.is_some_and(|id| {
                            self.pending.contains(&id) || self.rules.of(&user).failing.contains(&id)
                        });
                    let gone = Gone {
                        unsure: unsure || self.statuses || !self.wanted.is_empty(),
                        metadata: metadata.unwrap_or(json!({})),
                        told: told.clone(),
                        knows: BTreeSet::new(),
                    };
                    self.gone.insert(user.clone(), gone);
                    self.updated_at.remove(&user);
                    self.last_seen.insert(user, body["lastSeen"].clone());
                }
                Subject::FilteredOnline | Subject::FilteredUpdated => {
                    let metadata = &body["metadata"];
                    let is_update = publication.subject == Subject::FilteredUpdated;
                    for viewer in viewers {
                        assert_ne!(viewer, user, "a user is never in their own audience");
                        assert!(allowed.contains(&viewer), "{viewer} may not see {user}");
                        let is_first = told.insert(viewer.clone());
                        assert!(!(is_first && is_update), "{viewer} isn't told of {user}");
                        let before = self.seen.insert((user.clone(), viewer), metadata.clone());
                        assert_ne!(before.as_ref(), Some(metadata), "nothing is new");
                    }
                }
                Subject::FilteredOffline => {
                    for viewer in viewers {
                        assert!(told.remove(&viewer), "{viewer} was never told of {user}");
                        let gone = self.gone.get_mut(&user);
                        if let Some(gone) = gone.filter(|_| !self.online.contains_key(&user))
                            && body.get("lastSeen").is_some()
                        {
                            gone.knows.insert(viewer.clone());
                        }
                        self.seen.remove(&(user.clone(), viewer));
                    }
                }
                Subject::Online | Subject::Offline | Subject::DeadLetters => {}
            }
        }
        // Without statuses, it isn't broadcast that another connection becomes the shown one.
        if !self.statuses {
            for (user, metadata) in &mut self.online {
                *metadata = shown(&self.shard, user);
            }
        }
        for (user, told) in &self.told {
            assert!(
                told.is_empty() || self.online.contains_key(user),
                "{told:?} still believe that {user} is online"
            );
        }
    }

    pub(crate) fn fetch(&mut self, out: &[Output]) {
        for output in out {
            if let Output::Fetch(questions) = output {
                self.wanted.extend(questions.iter().cloned());
            }
        }
    }

    /// A message to several viewers corresponds to messages to each of them, in the same order.
    pub(crate) fn see_inboxes(&mut self, out: &[Output]) {
        let (mut told, mut delivered) = (Vec::new(), Vec::new());
        for output in out {
            match output {
                Output::Publish(publication)
                    if publication
                        .subject
                        .as_str()
                        .starts_with("presence.filtered.") =>
                {
                    let body: Value = serde_json::from_slice(&publication.body).unwrap();
                    for viewer in body["visibleTo"].as_array().unwrap() {
                        let mut alone = body.clone();
                        alone["visibleTo"] = json!([viewer]);
                        told.push(alone);
                    }
                }
                Output::Deliver(delivery) => {
                    let body: Value = serde_json::from_slice(&delivery.body).unwrap();
                    let viewer = delivery.viewer.as_str();
                    assert_eq!(body["visibleTo"], json!([viewer]));
                    let before = self.delivered.entry(viewer.to_owned()).or_default();
                    *before += 1;
                    assert_eq!((delivery.seq, delivery.renewed), (*before, 0));
                    delivered.push(body);
                }
                _ => {}
            }
        }
        assert_eq!(delivered, told);
    }

    /// What every viewer believes is what they may see, and what a query answers.
    pub(crate) fn beliefs_are_true(&mut self) {
        for (user, metadata) in &self.online {
            assert_eq!(self.told[user], self.allowed(user), "of {user}");
            for viewer in &self.told[user] {
                let seen = &self.seen[&(user.clone(), viewer.clone())];
                let should = self.visible(user, metadata, viewer);
                assert_eq!(*seen, should, "{viewer} of {user}");
            }
        }
        for _ in USERS {
            self.ask();
        }
    }

    /// What a viewer may see of a user's metadata.
    pub(crate) fn visible(&self, user: &str, metadata: &Value, viewer: &str) -> Value {
        let rules = self.rules.of(user);
        let plain = rules.plain.and_then(|plain| self.names.name(plain));
        match plain.is_some_and(|plain| plain.as_str() == viewer) {
            true => only(metadata, &rules.plain_keys),
            false => only(metadata, &["device", "activity", "status"]),
        }
    }

    /// The viewers who may see a user, computed anew.
    pub(crate) fn allowed(&self, user: &str) -> BTreeSet<String> {
        let Self {
            rules,
            directory,
            names,
            ..
        } = self;
        let rules = rules.of(user);
        let gone = self.gone.get(user).map(|gone| &gone.metadata);
        let shown = self.online.get(user).or(gone);
        let idle = shown.is_some_and(|it| it["activity"] == "idle");
        let user = names.find(user).unwrap();
        let hidden = rules.hidden.contains(&user) || (rules.shy.contains(&user) && idle);
        if hidden || rules.failing.contains(&user) {
            return BTreeSet::new();
        }
        let answer = |question| directory.audience(&question);
        let answers = (
            answer(Question::Contacts(user)),
            answer(Question::BlockedBy(user)),
        );
        // If an answer isn't known, nobody may see the user.
        let (Ok(contacts), Ok(blocked)) = answers else {
            return BTreeSet::new();
        };
        let ids = contacts
            .ids()
            .filter(|id| !blocked.contains(*id) && rules.unredacted != Some(*id));
        ids.map(|id| names.name(id).unwrap().as_str().to_owned())
            .collect()
    }
}

/// The metadata with only these keys.
pub(crate) fn only(metadata: &Value, keys: &[&str]) -> Value {
    let entries = metadata.as_object().unwrap().iter();
    let entries = entries.filter(|(key, _)| keys.contains(&key.as_str()));
    let entries = entries.map(|(key, value)| (key.clone(), value.clone()));
    Value::Object(entries.collect())
}

/// The public metadata of an online user.
fn shown(shard: &Shard, user: &str) -> Value {
    let mut json = Vec::new();
    let metadata = shard.shown(user).unwrap();
    metadata.write_public(&mut json, |_| true);
    serde_json::from_slice(&json).unwrap()
}
