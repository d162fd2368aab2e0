//! A shard: a share of a tenant's users, with their connections, ledger and verdicts.
//!
//! The run loop's contract: hand over every input with [`Shard::handle`], call
//! [`Shard::advance`] when [`Shard::next_deadline`] has come, and carry out all
//! outputs in their order before the next input's.
//!
//! It is made of parts. [`Presence`] (who is online) owns [`Events`](events::Events) (enriching,
//! broadcasting and publishing an event), which owns [`Updates`] (statuses), which owns
//! [`Decisions`] (verdicts and the ledger). No part calls a part above it. [`Corrections`] makes
//! decisions again, on the `Decisions` that the shard passes to it. Each part takes an [`Env`]:
//! the rules, the outputs, and what the parts share.

mod asking;
mod copying;
mod corrections;
mod dead_letters;
mod decisions;
mod dirty_users;
mod env;
mod event_queue;
mod events;
mod explain;
mod heartbeats;
mod invalidation;
mod messages;
mod presence;
mod publishing;
mod query;
mod rate_limiter;
mod reconcile;
mod restart;
mod retries;
mod settings;
mod standby;
mod types;
mod updates;

use std::sync::Arc;

use roaring::RoaringBitmap;

pub use self::copying::ShardCursor;
use self::corrections::Corrections;
use self::decisions::Decisions;
use self::env::{Common, Env};
use self::events::Events;
pub use self::heartbeats::{HeartbeatBatch, UnreadableHeartbeats};
use self::messages::Outcome;
use self::presence::Presence;
pub use self::settings::Settings;
pub use self::types::{Counters, Ignored, Input, Output, PluginFailed};
use self::updates::Updates;
use crate::body;
use crate::body::explain::ExplainReport;
use crate::body::query::Answers;
use crate::directory::{Directory, Question};
use crate::message::Message;
use crate::metadata::Metadata;
use crate::names::{Name, Names};
use crate::rules::Rules;

/// A share of a tenant's users.
#[derive(Debug)]
pub struct Shard {
    common: Common,
    presence: Presence,
    corrections: Corrections,
}

impl Shard {
    /// A shard without users.
    pub fn new(settings: Settings, names: Arc<Names>, directory: Arc<Directory>) -> Self {
        let decisions = Decisions::new(settings.departures_max);
        Self {
            presence: Presence::new(Events::new(Updates::new(decisions))),
            corrections: Corrections::new(settings.corrections_per_s),
            common: Common::new(settings, names, directory),
        }
    }

    /// Takes an input that arrived at `now`, in milliseconds of a monotonic clock. Until
    /// [`Input::Clock`] says otherwise, `now` is wall time as well.
    pub fn handle(&mut self, now: u64, input: Input, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let common = &mut self.common;
        common.clock.advance_to(now);
        let now = common.now();
        match input {
            Input::Message { message, reply } => {
                self.presence.announce_missed_before(message.user(), common);
                let env = &mut Env { common, rules, out };
                take_message(&message, reply, &mut self.presence, env, Presence::message);
            }
            Input::Excess { message, reply } => {
                self.presence.announce_missed_before(message.user(), common);
                let env = &mut Env { common, rules, out };
                take_message(&message, reply, &mut self.presence, env, Presence::excess);
            }
            Input::Rejected {
                kind,
                payload,
                rejection,
                reply,
            } => {
                let env = &mut Env { common, rules, out };
                env.dead_letter(kind.subject(), &rejection, &payload);
                out.extend(reply.map(|to| Output::Reply(to, body::refused(&rejection))));
                if rejection.quota.is_some() {
                    out.push(Output::Refused(rejection));
                }
            }
            Input::Redrive { event, reply } => {
                let answer = match event {
                    Ok(event) if self.presence.redrive(&event, common) => body::accepted(),
                    Ok(_) => body::stale(NOT_NEWEST),
                    Err(rejection) => body::refused(&rejection),
                };
                out.push(Output::Reply(reply, answer));
            }
            other => self.change(now, other),
        }
    }

    /// Takes an input that changes what the shard works with, such as directory, rules or settings.
    /// It publishes nothing at once.
    fn change(&mut self, now: u64, input: Input) {
        let (common, presence) = (&mut self.common, &mut self.presence);
        match input {
            Input::Message { .. }
            | Input::Excess { .. }
            | Input::Rejected { .. }
            | Input::Redrive { .. } => {}
            Input::Directory(directory, changes) => {
                presence.events.directory_changed(&directory, &changes);
                common.directory = directory;
            }
            Input::Rules => presence.events.rules_changed(),
            Input::Reassigned {
                before,
                after,
                has_other_enrichers,
            } => {
                presence.events.reassigned(before, after, common);
                if has_other_enrichers {
                    common.reshow_all(&presence.events.updates.decisions.ledger);
                }
            }
            Input::Settings(settings) => self.change_settings(*settings),
            Input::ReceivedUpTo { at } => common.tracker.received_up_to(now, at),
            Input::LostUpTo { at } => common.tracker.lost_up_to(now, at),
            Input::Clock { ahead_ms } => {
                common.clock.set_ahead(ahead_ms);
                common.tracker.set_ahead(now, ahead_ms);
                presence.events.updates.clock_moved(now);
            }
            Input::BodyBytesMax(bytes) => common.settings.body_bytes_max = bytes,
        }
    }

    /// Runs what is due by `now`, in steps that keep the outputs few. If something is left,
    /// [`Self::next_deadline`] is no later than `now`. Empty `out` before each call: nothing is
    /// done while it is full.
    pub fn advance(&mut self, now: u64, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        let (presence, env) = (&mut self.presence, &mut self.common.env(now, rules, out));
        if presence.is_taking_over() {
            return presence.announce_missed_of_some(env.common);
        }
        presence.expire(env);
        if env.is_full() {
            return;
        }
        presence.end_statements(env);
        presence.events.resume(env);
        presence.events.update(env);
        presence.events.apply_replaced_rules(env);
        let decisions = &mut presence.events.updates.decisions;
        self.corrections.correct(decisions, env);
    }

    /// Ends all waiting for the directory: events that wait for answers go on without them, for a
    /// limited number of users per call. Returns whether there are more: then call it again.
    pub fn give_up(&mut self, now: u64, rules: &mut dyn Rules, out: &mut Vec<Output>) -> bool {
        let env = &mut self.common.env(now, rules, out);
        self.presence.events.give_up(env)
    }

    /// Answers a viewer's query about users of this shard. If answers of the directory are missing
    /// in the cache, they have to be fetched, and the call repeated.
    pub fn query<'a>(
        &mut self,
        now: u64,
        viewer: &str,
        users: impl Iterator<Item = &'a str>,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> Answers {
        let common = &mut self.common;
        let wall = common.clock.wall_at(common.now().max(now));
        let env = &mut Env { common, rules, out };
        let events = &mut self.presence.events;
        events.apply_replaced_rules(env);
        let answers = query::query(wall, viewer, users, &mut events.updates.decisions, env);
        events.apply_replaced_rules(env);
        answers
    }

    /// A viewer's own contacts, in the directory's order.
    ///
    /// # Errors
    /// The directory's answer isn't cached: the question to fetch it by.
    pub fn contacts(&self, viewer: &str, out: &mut Vec<Output>) -> Result<Vec<Name>, Question> {
        query::contacts(viewer, &self.common, out)
    }

    /// Decides on the last announced event of a user, and explains the decision on a viewer. It
    /// changes nothing that viewers are told.
    pub fn explain(
        &mut self,
        now: u64,
        viewer: &str,
        user: &str,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) -> ExplainReport {
        let common = &mut self.common;
        let wall = common.clock.wall_at(common.now().max(now));
        let env = &mut Env { common, rules, out };
        explain::explain(wall, viewer, user, &mut self.presence.events, env)
    }

    /// Whether connections, graces or statements may have ended by `now` that haven't been
    /// announced. All of these are announced before a later input, so that it makes no difference
    /// how many end at once. Only while a shard begins to lead do inputs not wait for that.
    pub fn has_expiries(&self, now: u64) -> bool {
        let (tracker, presence) = (&self.common.tracker, &self.presence);
        if presence.is_taking_over() {
            return false;
        }
        let ends = [
            tracker.next_deadline(),
            presence.next_statement_end(&self.common),
        ];
        ends.into_iter().flatten().any(|at| at <= now)
    }

    /// Whether something that has happened by `now` is still to be announced: the shard has begun
    /// to lead, or has much to do. Decisions that are to be made again don't count.
    pub fn is_behind(&self, now: u64) -> bool {
        let announces = self.presence.events.next_deadline(now);
        let is_due = announces.is_some_and(|at| at <= now);
        self.presence.is_taking_over() || self.has_expiries(now) || is_due
    }

    /// When [`Self::advance`] is to be called: never too late, perhaps early.
    pub fn next_deadline(&self) -> Option<u64> {
        let (common, presence) = (&self.common, &self.presence);
        let (tracker, events, now) = (&common.tracker, &presence.events, common.now());
        let typing = common.settings.status;
        let deadlines = [
            // It is 0 since inputs that wait have arrived before `now`.
            presence.is_taking_over().then_some(0),
            tracker.next_deadline(),
            tracker.has_reshown().then_some(now),
            typing.and_then(|status| tracker.next_typing_end(status.typing_ms)),
            presence.next_statement_end(common),
            events.next_deadline(now),
            events.updates.statuses.next_check(),
            self.corrections.next_deadline(self.decisions(), now),
        ];
        deadlines.into_iter().flatten().min()
    }

    /// The counters of this shard.
    pub fn counters(&self) -> Counters {
        // The tracker counts these two itself. `counted` has what the tracker before it counted.
        let (counted, tracker) = (&self.common.counters, &self.common.tracker);
        Counters {
            closes_forgotten: counted.closes_forgotten + tracker.closes_forgotten(),
            damped_offlines: counted.damped_offlines + tracker.damped_offlines(),
            ..*counted
        }
    }

    /// How many users are online, as far as viewers have been told.
    pub fn online_users(&self) -> usize {
        self.decisions().ledger.len()
    }

    /// The metadata of an online user. Rules decide which part of it each viewer is shown.
    pub fn shown(&self, user: &str) -> Option<&Metadata> {
        let user = self.common.names.find(user)?;
        Some(&self.decisions().ledger.get(user)?.event.metadata)
    }

    /// How many connections are live.
    pub fn connections(&self) -> usize {
        self.common.tracker.connections()
    }

    /// How many users are still to be decided on again.
    pub fn backlog(&self) -> usize {
        self.decisions().dirty.len()
    }

    /// How many decisions are pending, since they failed or lack an answer of the directory. Since
    /// when the oldest one is pending, in milliseconds by the monotonic time.
    pub fn pending(&self) -> (usize, Option<u64>) {
        self.decisions().retries.waiting()
    }

    /// The numbers of all ids that this shard holds.
    pub fn ids(&self) -> RoaringBitmap {
        let events = &self.presence.events;
        self.decisions().ids()
            | self.common.inboxes.ids()
            | events.updates.statuses.ids()
            | self.presence.statements.ids()
            | self.presence.standby.ids().collect::<RoaringBitmap>()
            | events.queue.ids()
    }

    /// Whether a decision on an online user depends on an answer of the directory, or an event
    /// waits for it.
    pub fn uses(&self, question: &Question) -> bool {
        self.decisions().uses(question) || self.presence.events.queue.waits_for(question)
    }

    fn change_settings(&mut self, settings: Settings) {
        let (common, updates) = (&mut self.common, &mut self.presence.events.updates);
        common.tracker.reconfigure(settings.tracker_settings());
        let maxima = (settings.users.max(), settings.connections.max());
        common.tracker.change_maxima(maxima.0, maxima.1);
        let departed = &mut updates.decisions.departed;
        departed.resize(settings.departures_max);
        self.corrections.change_rate(settings.corrections_per_s);
        if !settings.inbox {
            common.inboxes.forget();
        }
        let had_statuses = common.settings.status.is_some();
        let has_other_keys = common.settings.broadcast != settings.broadcast;
        let has_other_audiences = common.settings.audience_max != settings.audience_max;
        common.settings = settings;
        if has_other_keys {
            common.apply_broadcast(&updates.decisions.ledger);
        }
        if had_statuses && common.settings.status.is_none() {
            updates.forget_all(common);
        }
        if has_other_audiences {
            // Other audiences are too large now: everyone is decided on again.
            self.presence.events.rules_changed();
        }
    }

    fn decisions(&self) -> &Decisions {
        &self.presence.events.updates.decisions
    }
}

/// Why an event is not decided on again.
const NOT_NEWEST: &str = "it is not the newest event of its user, who may have left since";

/// Takes a message, and answers its sender if there is a reply subject.
fn take_message(
    message: &Message,
    reply: Option<String>,
    presence: &mut Presence,
    env: &mut Env<'_>,
    take: fn(&mut Presence, &Message, &mut Env<'_>) -> Outcome,
) {
    let outcome = take(presence, message, env);
    let answer = || match &outcome {
        Outcome::Taken => body::accepted(),
        Outcome::Ignored(ignored) => body::stale(ignored.why),
        Outcome::Refused(rejection) => body::refused(rejection),
    };
    if let Outcome::Refused(rejection) = &outcome {
        env.dead_letter(message.kind.subject(), rejection, message.body());
    }
    env.out.extend(reply.map(|to| Output::Reply(to, answer())));
    match outcome {
        Outcome::Taken => {}
        Outcome::Ignored(ignored) => env.out.push(Output::Ignored(ignored)),
        Outcome::Refused(rejection) => env.out.push(Output::Refused(rejection)),
    }
}
