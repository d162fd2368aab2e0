//! A shard that begins to lead: what it saw while it followed another one, and was not told the outcome
//! of, is announced.

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::event::{Change, Event, Reason};
use crate::metadata::Metadata;
use crate::names::Id;
use crate::shard::Shard;
use crate::shard::env::Common;
use crate::shard::presence::Presence;
use crate::statements::Statement;
use crate::step::Step;

impl Shard {
    /// Leads from now on: what was missed is announced, and everyone is decided on, by
    /// [`Self::advance`]. Where it isn't `sure` that this shard has heard all that the other
    /// one did, nobody is taken for gone who may only not have been heard from.
    pub fn lead(&mut self, now: u64, sure: bool) {
        self.common.clock.pass(now);
        let Self {
            common, presence, ..
        } = self;
        common.tracker.pass(common.clock.now());
        if !sure {
            presence.be_unsure(common.settings.tracker.timeout_ms, common);
        }
        let sure = presence.unsure_ms(common) == 0;
        presence.drop_overtaken(common);
        let missed = std::mem::take(&mut presence.followed.missed);
        let events = &presence.events;
        let mut users: BTreeSet<Id> = events.queue.users().into_iter().collect();
        users.extend(events.updates.decisions.ledger.users());
        for user in users {
            presence.look_after(user, missed.get(&user), sure, common);
        }
        let online: Vec<Arc<str>> = common.tracker.users().map(|it| Arc::clone(it.0)).collect();
        for name in online {
            let user = common.names.find(&name);
            if let Some(user) = user.filter(|user| presence.is_told(*user)) {
                if !sure {
                    presence.compare_shown(user, common);
                }
                continue;
            }
            // They came and went.
            common.tracker.drop_grace_of(&name);
            if let Some(metadata) = common.tracker.shown(&name).cloned() {
                let at = common.clock.stamp();
                let event = common.event(&name, at, Change::Online, metadata);
                if !presence.statements.is_offline(event.user) {
                    presence.announce_missed(event, true, common);
                }
            }
        }
        for (event, ours) in missed.into_values() {
            let told = presence.will_be_told(event.user);
            let is_new = told.is_none_or(|told| told.timestamp < event.timestamp);
            let is_stated = presence.statements.get(event.user).is_some();
            if event.change == Change::Online && is_stated && is_new {
                let step = Step::Announce(Arc::new(event), ours);
                presence.events.queue_step(step, common);
            }
        }
        presence.announce_stated(common);
        for name in std::mem::take(&mut presence.followed.reshown) {
            let at = common.clock.stamp();
            let event = common.event(&name, at, Change::Online, Metadata::default());
            let events = &presence.events;
            let ledger = &events.updates.decisions.ledger;
            if ledger.get(event.user).is_some() || events.queue.holds(event.user) {
                presence
                    .events
                    .queue_step(Step::Show(Arc::new(event)), common);
            }
        }
        presence.events.rules_changed();
    }
}

impl Presence {
    /// Some users have left and come back, and their departure is still to be announced. It isn't any
    /// more.
    fn drop_overtaken(&mut self, common: &Common) {
        let until = common.now() + common.settings.answer_wait_ms;
        for user in self.events.queue.users() {
            let last = self.events.queue.last_announced(user);
            let Some(gone) = last.filter(|event| event.change != Change::Online) else {
                continue;
            };
            let name: Arc<str> = gone.name.as_str().into();
            let is_back = common.tracker.is_online(&name)
                && !self.followed.expected.contains_key(&user)
                && !self.statements.is_offline(user);
            if is_back {
                self.events.queue.drop_last_announced(user, until);
                self.followed.reshown.insert(name);
            }
        }
    }

    /// Looks after a user whom viewers were told of, or are to be told of by what waits.
    fn look_after(
        &mut self,
        user: Id,
        missed: Option<&(Event, bool)>,
        sure: bool,
        common: &mut Common,
    ) {
        let Some(event) = self.will_be_told(user) else {
            return;
        };
        let name = event.name.clone();
        let stated = self.statements.get(user);
        let gone = missed.filter(|(event, _)| event.change != Change::Online);
        match stated {
            None if common.tracker.is_online(name.as_str()) => {}
            Some(Statement::Online { .. }) => {}
            Some(Statement::Offline) | None => match gone {
                Some((gone, ours)) if sure || stated.is_some() => {
                    let step = Step::Announce(Arc::new(gone.clone()), *ours);
                    self.events.queue_step(step, common);
                }
                // It is known from a record, and holds whatever connections the user may have.
                _ if stated.is_some() => {
                    let at = common.clock.stamp();
                    let change = Change::Offline {
                        last_seen: at,
                        reason: Reason::Disconnect,
                    };
                    let gone = common.event(name.as_str(), at, change, Metadata::default());
                    let step = Step::Announce(Arc::new(gone), false);
                    self.events.queue_step(step, common);
                }
                _ => self.expect(&event, common),
            },
        }
    }

    /// Announces whom an application has stated to be online, and no viewer was told so. Of what it said of
    /// them, nothing else is known.
    fn announce_stated(&mut self, common: &Common) {
        let mut events = Vec::new();
        for (name, _, statement) in self.statements.all() {
            if let Statement::Online { timestamp } = statement {
                let (at, change) = (timestamp, Change::Online);
                events.push(common.event(name.as_str(), at, change, Metadata::default()));
            }
        }
        for event in events {
            self.announce_missed(event, false, common);
        }
    }

    /// Announces a transition that no viewer was told of.
    fn announce_missed(&mut self, event: Event, ours: bool, common: &Common) {
        if self.will_be_told(event.user).is_none() {
            let step = Step::Announce(Arc::new(event), ours);
            self.events.queue_step(step, common);
        }
    }
}
