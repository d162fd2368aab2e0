//! A shard that begins to lead. For each user, it announces what it missed while it followed
//! another shard.
//!
//! It announces that of some users at a time, with inputs in between, and before all other work
//! that is due. If a user sends something meanwhile, it begins with that user.

use std::ops::Range;
use std::sync::Arc;

use roaring::RoaringBitmap;

use crate::event::{Change, Event, Reason};
use crate::metadata::Metadata;
use crate::names::{Id, Name};
use crate::shard::Shard;
use crate::shard::env::Common;
use crate::shard::presence::Presence;
use crate::statements::Statement;
use crate::step::Step;

/// For how many users what was missed is announced before inputs get their turn.
const USERS_AT_ONCE: usize = 64;

/// The users whose missed events a shard that begins to lead has yet to announce.
#[derive(Debug)]
pub(super) struct Takeover {
    /// Whether it has heard all that the previous owner had heard.
    sure: bool,
    /// Users in the ledger or the queue, users with a statement, and users with a missed event.
    users: RoaringBitmap,
    /// The slots of the tracker's users. Some may be online without a viewer knowing.
    tracked: Range<usize>,
}

impl Shard {
    /// Begins to lead: [`Self::advance`] then announces what was missed, and decides on everyone.
    /// `sure`: this shard has heard all that the previous owner had heard. If not, a user who may
    /// just not have been heard from isn't taken for gone.
    pub fn lead(&mut self, now: u64, sure: bool) {
        self.common.clock.advance_to(now);
        let Self {
            common, presence, ..
        } = self;
        common.tracker.advance_to(common.clock.now());
        if !sure {
            presence.set_unsure_for(common.settings.tracker.timeout_ms, common);
        }
        let events = &presence.events;
        let mut users = events.updates.decisions.ledger.user_numbers();
        users.extend(events.queue.users().iter().map(|user| user.0));
        users.extend(presence.standby.missed.keys().map(|user| user.0));
        users.extend(presence.statements.users());
        presence.standby.takeover = Some(Takeover {
            sure: presence.unsure_ms(common) == 0,
            users,
            tracked: common.tracker.user_places(),
        });
        presence.events.rules_changed();
        let decisions = &mut presence.events.updates.decisions;
        decisions.verdicts.make_room(decisions.ledger.len());
    }

    /// Whether it has begun to lead, and hasn't announced everything that it missed yet.
    pub fn is_taking_over(&self) -> bool {
        self.presence.is_taking_over()
    }
}

impl Presence {
    /// Whether it has begun to lead, and hasn't announced everything that it missed yet.
    pub(in crate::shard) fn is_taking_over(&self) -> bool {
        self.standby.takeover.is_some()
    }

    /// Announces what was missed of some of the users that are left, if it has begun to lead.
    pub(in crate::shard) fn announce_missed_of_some(&mut self, common: &mut Common) {
        let Some(Takeover {
            sure,
            users,
            tracked,
        }) = &mut self.standby.takeover
        else {
            return;
        };
        let sure = *sure;
        let some: Vec<_> = users.iter().take(USERS_AT_ONCE).map(Id).collect();
        for user in &some {
            users.remove(user.0);
        }
        let places = match some.is_empty() {
            true => tracked.start..tracked.end.min(tracked.start + USERS_AT_ONCE),
            false => tracked.start..tracked.start,
        };
        tracked.start = places.end;
        if some.is_empty() && places.is_empty() {
            self.standby.takeover = None;
            // Nothing else is known of the users that are left here.
            self.standby.reshown.clear();
            self.standby.is_from_snapshot = false;
            return;
        }
        for user in some {
            if let Some(name) = common.names.name(user) {
                self.announce_missed_of(user, &name, sure, common);
            }
        }
        let online: Vec<_> = common.tracker.users_at(places).map(Arc::clone).collect();
        for name in online {
            let (user, name) = common.names.intern_name(&name);
            // What viewers missed of users whom they know as online was announced before.
            if !self.is_announced_online(user) {
                self.announce_missed_of(user, &name, sure, common);
            }
        }
    }

    /// Announces what was missed of a user before an input of theirs is handled, if it has begun to
    /// lead.
    pub(in crate::shard) fn announce_missed_before(&mut self, user: &str, common: &mut Common) {
        let Some(Takeover { sure, users, .. }) = &mut self.standby.takeover else {
            return;
        };
        let (sure, (id, name)) = (*sure, common.names.intern_name(user));
        users.remove(id.0);
        self.announce_missed_of(id, &name, sure, common);
    }

    /// Announces what was missed of a user. To do so twice makes no difference.
    fn announce_missed_of(&mut self, user: Id, name: &Name, sure: bool, common: &mut Common) {
        self.drop_overtaken(user, common);
        let missed = self.standby.missed.remove(&user);
        self.announce_missed_if_told(user, missed.as_ref(), sure, common);
        if common.tracker.is_online(name.as_str()) {
            self.announce_missed_if_online(user, name, sure, common);
        }
        if let Some((event, broadcast_by_shard)) = missed {
            let told = self.announced_online(user);
            let is_new = told.is_none_or(|told| told.timestamp < event.timestamp);
            // A statement about a user with a connection isn't kept, but shown until that changes.
            let is_connected = self.is_connected(user, name.as_str(), common);
            let holds =
                self.statements.get(user).is_some() || (!broadcast_by_shard && is_connected);
            if event.change == Change::Online && holds && is_new {
                let step = Step::Announce(Arc::new(event), broadcast_by_shard);
                self.events.queue_step(step, common);
            }
        }
        // If viewers weren't told of an application's online, only its time is known.
        if let Some(Statement::Online { timestamp }) = self.statements.get(user) {
            let change = Change::Online;
            let event = common.event(name.as_str(), timestamp, change, Metadata::default());
            self.announce_missed_online(event, false, common);
        }
        if self.standby.reshown.remove(name.as_str()) {
            self.queue_reshow(user, name.as_str(), common);
        }
    }

    /// If a user has left and come back, and the offline still waits to be announced, drops the
    /// offline.
    fn drop_overtaken(&mut self, user: Id, common: &Common) {
        let last = self.events.queue.last_announced(user);
        let Some(gone) = last.filter(|event| event.change != Change::Online) else {
            return;
        };
        let name: Arc<str> = gone.name.as_str().into();
        let is_back = common.tracker.is_online(&name)
            && !self.standby.placeholders.contains_key(&user)
            && !self.statements.is_offline(user);
        if is_back {
            let until = common.now() + common.settings.answer_wait_ms;
            self.events.queue.drop_last_announced(user, until);
            self.standby.reshown.insert(name);
        }
    }

    /// Announces what was missed of a user of whom viewers were told, or will be told by a waiting
    /// event.
    fn announce_missed_if_told(
        &mut self,
        user: Id,
        missed: Option<&(Event, bool)>,
        sure: bool,
        common: &mut Common,
    ) {
        let Some(event) = self.announced_online(user) else {
            return;
        };
        let name = event.name.clone();
        let stated = self.statements.get(user);
        let gone = missed.filter(|(event, _)| event.change != Change::Online);
        match stated {
            None if common.tracker.is_online(name.as_str()) => {}
            Some(Statement::Online { .. }) => {}
            Some(Statement::Offline) | None => match gone {
                Some((gone, broadcast_by_shard))
                    if sure || stated.is_some() || self.knows_all_connections(user, common) =>
                {
                    // The user may have been expected until now.
                    if !common.tracker.is_online(name.as_str()) {
                        self.forget_status(gone, common);
                    }
                    let step = Step::Announce(Arc::new(gone.clone()), *broadcast_by_shard);
                    self.events.queue_step(step, common);
                }
                // The statement is known from a record only, and holds whatever connections there
                // are.
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
                _ => {
                    let left = gone.map(|(gone, _)| gone.clone());
                    self.add_placeholder(&event, left, common);
                }
            },
        }
    }

    /// Announces what was missed of a user who is online by connections.
    fn announce_missed_if_online(
        &mut self,
        user: Id,
        name: &Name,
        sure: bool,
        common: &mut Common,
    ) {
        if self.is_announced_online(user) {
            if !sure || self.standby.is_from_snapshot {
                self.compare_shown(user, common);
            }
            return;
        }
        // The user came and went, and viewers were told of neither.
        if let Some(left) = common.tracker.drop_grace_of(name.as_str()) {
            let left = self.event_of(left, common);
            self.forget_status(&left, common);
        }
        if self.statements.is_offline(user) {
            return;
        }
        if let Some(metadata) = common.tracker.shown(name.as_str()).cloned() {
            let at = common.clock.stamp();
            let event = common.event(name.as_str(), at, Change::Online, metadata);
            self.announce_missed_online(event, true, common);
        }
    }

    /// Has a user shown by their present connection.
    fn queue_reshow(&mut self, user: Id, name: &str, common: &Common) {
        let events = &mut self.events;
        let is_online = events.updates.decisions.ledger.get(user).is_some();
        if is_online || events.queue.holds(user) {
            let at = common.clock.stamp();
            let event = common.event(name, at, Change::Online, Metadata::default());
            events.queue_step(Step::Reshow(Arc::new(event)), common);
        }
    }

    /// Announces an online of which no viewer was told.
    fn announce_missed_online(&mut self, event: Event, broadcast_by_shard: bool, common: &Common) {
        if self.announced_online(event.user).is_none() {
            let step = Step::Announce(Arc::new(event), broadcast_by_shard);
            self.events.queue_step(step, common);
        }
    }
}
