//! Who is online: by connections, as the tracker finds, and by what applications state of users.
//!
//! A statement opens and closes no connection. While an application's offline holds, the tracker's
//! transitions of the user are not announced. When a connect ends it, the user is online again by
//! the connections that are live. An application's online is about a user without connections. As
//! soon as there are any, they count instead.

use super::env::{Common, EXPIRIES_AT_ONCE, Env};
use super::events::Events;
use super::standby::StandbyState;
use crate::event::{Change, Event, Reason};
use crate::message::Rejection;
use crate::metadata::Metadata;
use crate::names::Name;
use crate::quota::Quota;
use crate::statements::{Statement, Statements};
use crate::tracker::Transition;

/// Who is online, and the events that announce it.
#[derive(Debug)]
pub(super) struct Presence {
    pub(super) statements: Statements,
    pub(super) events: Events,
    pub(super) standby: StandbyState,
}

impl Presence {
    /// Nobody is online yet.
    pub(super) fn new(events: Events) -> Self {
        Self {
            statements: Statements::default(),
            events,
            standby: StandbyState::default(),
        }
    }

    /// Announces users whose connections or graces have ended, a limited number per call.
    pub(super) fn expire(&mut self, env: &mut Env<'_>) {
        let now = env.common.now();
        for _ in 0..EXPIRIES_AT_ONCE {
            if env.is_full() {
                return;
            }
            let ended = env.common.tracker.expire(now);
            env.common.note_expired();
            let Some(transition) = ended else {
                return;
            };
            self.transition(transition, env);
        }
    }

    /// A user came online or went offline by their connections.
    pub(super) fn transition(&mut self, transition: Transition<Metadata>, env: &mut Env<'_>) {
        let event = self.event_of(transition, env.common);
        let user = event.user;
        let is_overridden = match self.statements.get(user) {
            // A heartbeat doesn't end an application's offline either. A user whom viewers know as
            // offline isn't announced as offline again.
            Some(Statement::Offline) => true,
            // It was stated after the last connection had gone.
            Some(Statement::Online { .. }) => event.change != Change::Online,
            None => false,
        };
        // An expected user is not waited for any longer.
        let event = self.standby.resolve_placeholder(event);
        if !is_overridden && self.defer_departure(&event, env.common) {
            return;
        }
        self.forget_status(&event, env.common);
        if !is_overridden {
            self.events.announce(event, true, env);
        }
    }

    /// Forgets the status of a user who has left.
    pub(super) fn forget_status(&mut self, event: &Event, common: &Common) {
        if event.change != Change::Online {
            let updates = &mut self.events.updates;
            updates.user_left(event.user, &event.name, common);
        }
    }

    /// Makes an event of a transition.
    pub(super) fn event_of(&self, transition: Transition<Metadata>, common: &Common) -> Event {
        match transition {
            Transition::Online {
                user, at, metadata, ..
            } => common.event(&user, at, Change::Online, metadata),
            Transition::Offline {
                user,
                at,
                last_seen,
                reason,
                last_heartbeat,
            } => {
                let mut metadata = Metadata::default().edit();
                if let Some(heartbeat) = last_heartbeat {
                    let timeout = common.settings.tracker.timeout_ms.to_string();
                    metadata.set("timeoutDuration", &timeout, true);
                    metadata.set("lastHeartbeat", &heartbeat.to_string(), true);
                }
                let change = Change::Offline { last_seen, reason };
                common.event(&user, at, change, metadata.build())
            }
        }
    }

    /// An application states that a user is online or offline.
    pub(super) fn apply_statement(&mut self, event: Event, env: &mut Env<'_>) {
        self.note_statement(&event, env.common);
        self.events.announce(event, false, env);
    }

    /// Notes what an application states of a user.
    pub(super) fn note_statement(&mut self, event: &Event, common: &Common) {
        let (user, name) = (event.user, &event.name);
        let statement = match event.change {
            Change::Offline { .. } => Some(Statement::Offline),
            // The connections say when the user leaves.
            _ if self.is_connected(user, name.as_str(), common) => None,
            _ => {
                self.note_arrival(name.as_str(), common);
                Some(Statement::Online {
                    timestamp: event.timestamp,
                })
            }
        };
        match statement {
            Some(statement) => self.statements.state(common.now(), user, name, statement),
            None => self.statements.forget(user),
        }
    }

    /// A user has a further connection: ends an application's online. From now on, the connections
    /// say when the user is offline.
    pub(super) fn end_stated_online(&mut self, user: &str, common: &Common) {
        if self.statements.is_empty() {
            return;
        }
        if let Some(user) = common.names.find(user)
            && let Some(Statement::Online { .. }) = self.statements.get(user)
        {
            self.statements.forget(user);
        }
    }

    /// Refuses a statement about a further user if too many statements hold.
    pub(super) fn refuse_statement(&self, user: &str, common: &Common) -> Option<Rejection> {
        if self.statements.len() < common.settings.statements_max {
            return None;
        }
        let id = common.names.find(user);
        if id.is_some_and(|id| self.statements.get(id).is_some()) {
            return None;
        }
        let error = format!(
            "the limit of application statements is reached ([tracker] statements_max): the \
             statement about `{user}` is refused"
        );
        Some(Rejection::over(Quota::Statements, error))
    }

    /// A user has connected: ends an application's offline. Returns whether there was one.
    pub(super) fn end_stated_offline(&mut self, user: &str, common: &Common) -> bool {
        let user = common.names.find(user);
        let user = user.filter(|user| self.statements.is_offline(*user));
        if let Some(user) = user {
            self.statements.forget(user);
        }
        user.is_some()
    }

    /// Announces a user as online whose connections outlived an application's offline.
    pub(super) fn announce_return(&mut self, user: &str, env: &mut Env<'_>) {
        let common = &*env.common;
        if let Some(metadata) = common.tracker.shown(user) {
            let (at, metadata) = (common.clock.stamp(), metadata.clone());
            let event = common.event(user, at, Change::Online, metadata);
            self.events.announce(event, true, env);
        }
    }

    /// Ends statements that weren't repeated in time, a limited number per call.
    pub(super) fn end_statements(&mut self, env: &mut Env<'_>) {
        for _ in 0..EXPIRIES_AT_ONCE {
            if env.is_full() {
                break;
            }
            let Some((name, statement)) = self.take_ended_statement(env.common) else {
                break;
            };
            if let Some(event) = statement_ended(&name, statement, env.common)
                && !self.defer_departure(&event, env.common)
            {
                self.events.announce(event, true, env);
            }
        }
    }

    /// Takes the oldest statement, if it is over by now. An offline holds on while its user is
    /// online by connections.
    pub(super) fn take_ended_statement(&mut self, common: &Common) -> Option<(Name, Statement)> {
        if self.next_statement_end(common)? > common.now() {
            return None;
        }
        let (user, name, statement) = self.statements.first()?;
        let name = name.clone();
        match statement {
            Statement::Offline if common.tracker.is_online(name.as_str()) => {
                self.statements.state(common.now(), user, &name, statement);
            }
            Statement::Offline | Statement::Online { .. } => self.statements.forget(user),
        }
        Some((name, statement))
    }

    /// When the next statement may be over.
    pub(super) fn next_statement_end(&self, common: &Common) -> Option<u64> {
        let stated_at = self.statements.oldest()?;
        Some(stated_at.saturating_add(common.settings.statement_ttl_ms.max(1)))
    }
}

/// The offline event at the end of an application's online that wasn't repeated. `None` for an
/// offline. Also `None` if the user has a connection or a grace: its end makes the event.
pub(super) fn statement_ended(user: &Name, statement: Statement, common: &Common) -> Option<Event> {
    let Statement::Online { timestamp } = statement else {
        return None;
    };
    if common.tracker.is_online(user.as_str()) {
        return None;
    }
    let ttl_ms = common.settings.statement_ttl_ms.max(1);
    let mut metadata = Metadata::default().edit();
    metadata.set("timeoutDuration", &ttl_ms.to_string(), true);
    metadata.set("lastHeartbeat", &timestamp.to_string(), true);
    let change = Change::Offline {
        last_seen: timestamp,
        reason: Reason::Timeout,
    };
    let at = common.clock.stamp();
    Some(common.event(user.as_str(), at, change, metadata.build()))
}
