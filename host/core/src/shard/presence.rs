//! What applications state of users themselves, beside what the tracker finds.
//!
//! A statement makes and ends no connection. While an application's offline holds,
//! the tracker's transitions of the user are nobody's concern; when a connect lifts it,
//! the user is online again by the connections that there are. An application's online
//! is about a user without connections: they take over as soon as there are any.

use super::{EXPIRIES_AT_ONCE, Output, Shard, is_full};
use crate::event::{Change, Event, Reason};
use crate::metadata::Metadata;
use crate::rules::Rules;
use crate::statements::Statement;

impl Shard {
    /// An application states that a user is online or offline.
    pub(super) fn state(&mut self, event: Event, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let (user, name) = (event.user, &event.name);
        let statement = match event.change {
            Change::Offline { .. } => Some(Statement::Offline),
            // Connections say better when they end.
            _ if self.tracker.is_online(name.as_str()) => None,
            _ => Some(Statement::Online {
                timestamp: event.timestamp,
            }),
        };
        match statement {
            Some(statement) => self.statements.state(self.now, user, name, statement),
            None => self.statements.forget(user),
        }
        self.happened(event, false, rules, out);
    }

    /// A user has connected: an application's offline holds no longer. Says whether
    /// one did.
    pub(super) fn lift_offline(&mut self, user: &str) -> bool {
        let user = self.names.find(user);
        let user = user.filter(|user| self.statements.is_offline(*user));
        if let Some(user) = user {
            self.statements.forget(user);
        }
        user.is_some()
    }

    /// A user whose connections outlived an application's offline is online again.
    pub(super) fn reappear(&mut self, user: &str, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        if let Some(metadata) = self.tracker.shown(user) {
            let metadata = metadata.clone();
            let event = self.event(user, self.clock.stamp(), Change::Online, metadata);
            self.happened(event, true, rules, out);
        }
    }

    /// Ends statements that are over for want of being repeated, so many at a time.
    pub(super) fn end_statements(&mut self, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let ttl_ms = self.settings.statement_ttl_ms.max(1);
        for _ in 0..EXPIRIES_AT_ONCE {
            let oldest = self.statements.oldest();
            let is_over = |said_at: u64| said_at.saturating_add(ttl_ms) <= self.now;
            if is_full(out) || !oldest.is_some_and(is_over) {
                break;
            }
            let Some((user, name, statement)) = self.statements.first() else {
                break;
            };
            let name = name.clone();
            match statement {
                Statement::Offline if self.tracker.is_online(name.as_str()) => {
                    self.statements.state(self.now, user, &name, statement);
                }
                Statement::Offline => self.statements.forget(user),
                Statement::Online { timestamp } => {
                    self.statements.forget(user);
                    let mut metadata = Metadata::default().edit();
                    metadata.set("timeoutDuration", &ttl_ms.to_string(), true);
                    metadata.set("lastHeartbeat", &timestamp.to_string(), true);
                    let change = Change::Offline {
                        last_seen: timestamp,
                        reason: Reason::Timeout,
                    };
                    let at = self.clock.stamp();
                    let event = self.event(name.as_str(), at, change, metadata.build());
                    self.happened(event, true, rules, out);
                }
            }
        }
    }

    /// When the next statement may be over.
    pub(super) fn next_statement_end(&self) -> Option<u64> {
        let said_at = self.statements.oldest()?;
        Some(said_at.saturating_add(self.settings.statement_ttl_ms.max(1)))
    }
}
