//! One worker's share of a tenant: its users' connections, ledger and verdicts.
//!
//! The run loop's contract: hand over every input with [`Shard::handle`], call
//! [`Shard::advance`] when [`Shard::next_deadline`] has come, and carry out all
//! outputs in their order before the next input's.

mod agenda;
mod backlog;
mod correct;
mod explain;
mod heard;
mod pace;
mod query;
mod restart;
mod settle;
mod shown;
mod stated;
mod tell;
mod update;
mod waiting;

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;
use roaring::RoaringBitmap;

use self::agenda::Agenda;
use self::backlog::Backlog;
use self::heard::Outcome;
use self::pace::Pace;
use crate::allowance::{Allowance, SHORT_BYTES};
use crate::body;
use crate::clock::Clock;
use crate::departed::Departed;
use crate::directory::{Changes, Directory, Question};
use crate::event::{Change, Event};
use crate::inbox::{Delivery, Inboxes};
use crate::ledger::Ledger;
use crate::message::{Cause, Kind, Message, Rejection, Why};
use crate::metadata::Metadata;
use crate::names::Names;
use crate::publish::{Numbering, Publication, Subject};
use crate::rules::Rules;
use crate::statements::Statements;
use crate::status::{self, Statuses};
use crate::tracker::{self, Reason, Tracker, Transition};
use crate::verdicts::Verdicts;

pub use waiting::Step;
use waiting::Waiting;

/// How many users go offline, and how many statements end, before new inputs get their
/// turn.
const EXPIRIES_AT_ONCE: usize = 256;

/// How many outputs there are before they are to be carried out, and those of one event
/// more: what falls due at one moment may concern everyone who is online.
const OUTPUTS_AT_ONCE: usize = 1_024;

/// Whether the outputs so far are to be carried out before there are more.
fn is_full(out: &[Output]) -> bool {
    out.len() >= OUTPUTS_AT_ONCE
}

/// What a shard goes by.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The tracker's figures.
    pub tracker: tracker::Settings,
    /// The keys of a connect's metadata that are broadcast, in their order.
    pub broadcast: Vec<String>,
    /// Whether verdicts are reused while nothing they read has changed.
    pub reuse_verdicts: bool,
    /// How long a failed decision waits for its first retry.
    pub retry_ms: u64,
    /// The longest wait between retries.
    pub retry_ms_max: u64,
    /// How many messages a second may go out to correct what viewers have been told;
    /// 0 for as many as there are.
    pub corrections_per_s: u64,
    /// How long an event waits for answers of the directory that aren't at hand.
    pub answer_wait_ms: u64,
    /// How many departures are remembered, to tell viewers who ask since when a
    /// user is offline.
    pub departures_max: usize,
    /// Whether each viewer is also told on a subject of their own.
    pub inbox: bool,
    /// How users' statuses are told, if they are.
    pub status: Option<status::Settings>,
    /// How long an application's statement holds that a user is online who has no
    /// connection, unless it is repeated.
    pub statement_ttl_ms: u64,
    /// How many applications' statements may hold at a time.
    pub statements_max: usize,
    /// How many dead letters may be published.
    pub dead_letters: Allowance,
    /// The longest body that the broker takes, in bytes.
    pub body_bytes_max: usize,
    /// This node's name, for dead letters.
    pub node: String,
}

impl Settings {
    /// A further connection is no event: only where statuses are told may it change at
    /// once what is shown of its user.
    fn of_tracker(&self) -> tracker::Settings {
        tracker::Settings {
            shows_newest: self.status.is_some(),
            ..self.tracker
        }
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            tracker: tracker::Settings::default(),
            broadcast: ["device", "userAgent", "location", "connId"]
                .map(String::from)
                .into(),
            reuse_verdicts: true,
            retry_ms: 1_000,
            retry_ms_max: 60_000,
            corrections_per_s: 0,
            answer_wait_ms: 2_000,
            departures_max: 100_000,
            inbox: false,
            status: None,
            statement_ttl_ms: 24 * 60 * 60 * 1_000,
            statements_max: 1_000_000,
            dead_letters: Allowance::default(),
            body_bytes_max: 1 << 20,
            node: "presence".into(),
        }
    }
}

/// What a shard is told.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message arrived, and was read.
    Message {
        /// The message.
        message: Message,
        /// Where the sender awaits an answer.
        reply: Option<String>,
    },
    /// A message arrived that couldn't be read.
    Rejected {
        /// The whole subject it arrived on.
        subject: String,
        /// Its body.
        payload: Bytes,
        /// What is wrong with it.
        rejection: Rejection,
        /// Where the sender awaits an answer.
        reply: Option<String>,
    },
    /// The directory has changed.
    Directory(Arc<Directory>, Arc<Changes>),
    /// The rules have changed: the next call goes to the new ones.
    Rules,
    /// The settings have changed.
    Settings(Box<Settings>),
    /// All that there was to hear up to a time has been handed over: leases and graces
    /// run by that alone, see [`Tracker::heard`].
    Heard {
        /// Up to when, by the clock of `now`.
        at: u64,
    },
    /// Something of what there was to hear up to a time was lost on the way here: no
    /// lease or grace runs on by the time since the last such word, see
    /// [`Tracker::missed`].
    Missed {
        /// Up to when, by the clock of `now`.
        at: u64,
    },
    /// The wall clock has moved against the time that is given as `now`.
    Clock {
        /// How far it is ahead, in milliseconds; behind, if negative.
        ahead_ms: i64,
    },
    /// The broker takes longer or shorter bodies than before.
    BodyBytesMax(
        /// The longest, in bytes.
        usize,
    ),
}

/// What a shard wants done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Publish this.
    Publish(Publication),
    /// Publish this on a viewer's own subject.
    Deliver(Delivery),
    /// Answer the sender of an input.
    Reply(String, Vec<u8>),
    /// Fetch these answers, and come back with a directory that has them.
    Fetch(BTreeSet<Question>),
    /// Say that this message was ignored. It has been counted.
    Ignored(Ignored),
    /// Say that there would have been more than there may be of something. It has been
    /// counted, and is a dead letter.
    Refused(Rejection),
}

/// A message that was ignored, since what is known of its connection overtook it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// What it was.
    pub kind: Kind,
    /// Whom it was about.
    pub user: ByteString,
    /// The connection.
    pub conn: ByteString,
    /// The sender's time, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Why, in one line.
    pub why: &'static str,
}

/// What a shard has counted since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Well-formed messages taken in, by [`Kind`].
    pub taken: [u64; Kind::ALL.len()],
    /// Dead letters, by [`Cause`].
    pub dead_letters: [u64; Cause::ALL.len()],
    /// Dead letters that weren't published, since there were too many.
    pub dead_letters_left_out: u64,
    /// Closes forgotten before their time, since too many were remembered.
    pub closes_forgotten: u64,
    /// Offlines held back, since their users flip.
    pub held_back: u64,
    /// Messages older than what is known of their connection.
    pub stale: u64,
    /// Reasons that weren't among those known.
    pub unknown_reasons: u64,
    /// Activities and statuses that weren't understood.
    pub unknown_statuses: u64,
    /// Decisions made by asking the components.
    pub decided: u64,
    /// Decisions reused.
    pub reused: u64,
    /// Calls of components that failed.
    pub failures: u64,
    /// Viewers corrected since what they had been told no longer held.
    pub corrected: u64,
    /// Messages that went out when users were decided on again.
    pub corrections: u64,
    /// Users whom viewers asked after.
    pub queried: u64,
}

/// One worker's share of a tenant.
#[derive(Debug)]
pub struct Shard {
    settings: Settings,
    names: Arc<Names>,
    directory: Arc<Directory>,
    tracker: Tracker<Metadata>,
    ledger: Ledger,
    verdicts: Verdicts,
    departed: Departed,
    statuses: Statuses,
    statements: Statements,
    numbering: Numbering,
    inboxes: Inboxes,
    counters: Counters,
    /// Users on whom to decide again.
    backlog: Backlog,
    pace: Pace,
    /// When to decide again on whom: failed, unanswered, or due by their own wish.
    agenda: Agenda,
    waiting: Waiting,
    /// The monotonic time.
    now: u64,
    clock: Clock,
}

impl Shard {
    /// A shard of nobody yet.
    pub fn new(settings: Settings, names: Arc<Names>, directory: Arc<Directory>) -> Self {
        Self {
            tracker: Tracker::new(settings.of_tracker()),
            departed: Departed::new(settings.departures_max),
            pace: Pace::new(settings.corrections_per_s),
            settings,
            names,
            directory,
            ledger: Ledger::default(),
            verdicts: Verdicts::default(),
            statuses: Statuses::default(),
            statements: Statements::default(),
            numbering: Numbering::default(),
            inboxes: Inboxes::default(),
            counters: Counters::default(),
            backlog: Backlog::default(),
            agenda: Agenda::default(),
            waiting: Waiting::default(),
            now: 0,
            clock: Clock::default(),
        }
    }

    /// Takes an input that arrived at `now`, in milliseconds by a clock that nobody
    /// sets; it is wall time as well until [`Input::Clock`] says otherwise.
    pub fn handle(&mut self, now: u64, input: Input, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        self.pass(now);
        match input {
            Input::Message { message, reply } => {
                let (subject, payload) = (message.says.kind().subject(), message.payload.clone());
                let outcome = self.message(message, rules, out);
                let answer = || match &outcome {
                    Outcome::Taken => body::accepted(),
                    Outcome::Ignored(ignored) => body::stale(ignored.why),
                    Outcome::Refused(rejection) => body::refused(rejection),
                };
                if let Outcome::Refused(rejection) = &outcome {
                    self.dead_letter(subject, rejection, &payload, out);
                }
                out.extend(reply.map(|to| Output::Reply(to, answer())));
                match outcome {
                    Outcome::Taken => {}
                    Outcome::Ignored(ignored) => out.push(Output::Ignored(ignored)),
                    Outcome::Refused(rejection) => out.push(Output::Refused(rejection)),
                }
            }
            Input::Rejected {
                subject,
                payload,
                rejection,
                reply,
            } => {
                self.dead_letter(&subject, &rejection, &payload, out);
                out.extend(reply.map(|to| Output::Reply(to, body::refused(&rejection))));
            }
            Input::Directory(directory, changes) => {
                self.directory_changed(directory, &changes);
            }
            Input::Rules => self.rules_changed(),
            Input::Settings(settings) => {
                self.tracker.reconfigure(settings.of_tracker());
                self.departed.resize(settings.departures_max);
                self.pace.change(settings.corrections_per_s);
                if !settings.inbox {
                    self.inboxes.forget();
                }
                let had_statuses = self.settings.status.is_some();
                self.settings = *settings;
                if had_statuses && self.settings.status.is_none() {
                    self.forget_statuses();
                }
            }
            Input::Heard { at } => self.tracker.heard(self.now, at),
            Input::Missed { at } => self.tracker.missed(self.now, at),
            Input::Clock { ahead_ms } => self.wall_clock_moved(ahead_ms),
            Input::BodyBytesMax(bytes) => self.settings.body_bytes_max = bytes,
        }
    }

    /// Does what has fallen due by `now`, so much of it that the outputs stay few. Where
    /// that isn't all, [`Self::next_deadline`] is no later than `now`. `out` is to be emptied
    /// before this is called again: where it is full, nothing is done.
    pub fn advance(&mut self, now: u64, rules: &mut dyn Rules, out: &mut Vec<Output>) {
        self.pass(now);
        for _ in 0..EXPIRIES_AT_ONCE {
            if is_full(out) {
                return;
            }
            let Some(transition) = self.tracker.expire(self.now) else {
                break;
            };
            self.transition(transition, rules, out);
        }
        self.end_statements(rules, out);
        self.resume(rules, out);
        self.update(rules, out);
        self.correct(rules, out);
    }

    /// Whether connections, graces or statements may have ended by `now` that haven't been
    /// told of. All of them are, before a later input: it is to make no difference how many
    /// end at once.
    pub fn has_expiries(&self, now: u64) -> bool {
        let ends = [self.tracker.next_deadline(), self.next_statement_end()];
        ends.into_iter().flatten().any(|at| at <= now)
    }

    /// When [`Self::advance`] is to be called: never too late, perhaps early.
    pub fn next_deadline(&self) -> Option<u64> {
        let backlog = (!self.backlog.is_empty()).then(|| self.now.max(self.pace.next_at()));
        let deadlines = [
            self.tracker.next_deadline(),
            self.agenda.next_at(),
            self.statuses.next_look(),
            self.next_typing_end(),
            self.next_statement_end(),
            self.waiting.next_deadline(self.now),
            self.tracker.has_reshown().then_some(self.now),
            backlog,
        ];
        deadlines.into_iter().flatten().min()
    }

    /// What has been counted.
    pub fn counters(&self) -> Counters {
        Counters {
            closes_forgotten: self.tracker.closes_forgotten(),
            held_back: self.tracker.held_back(),
            ..self.counters
        }
    }

    /// How many users are online, as far as anyone has been told.
    pub fn online_users(&self) -> usize {
        self.ledger.len()
    }

    /// What is known of an online user, of which rules show each viewer a part.
    pub fn shown(&self, user: &str) -> Option<&Metadata> {
        let entry = self.ledger.get(self.names.find(user)?)?;
        Some(&entry.event.metadata)
    }

    /// How many connections are live.
    pub fn connections(&self) -> usize {
        self.tracker.connections()
    }

    /// How many users are still to be decided on again.
    pub fn backlog(&self) -> usize {
        self.backlog.len()
    }

    /// All the numbers of ids this shard holds.
    pub fn ids(&self) -> RoaringBitmap {
        self.ledger.ids()
            | self.verdicts.ids()
            | self.departed.ids()
            | self.inboxes.ids()
            | self.statuses.ids()
            | self.statements.ids()
            | self.agenda.unanswered.ids()
            | self.waiting.ids()
    }

    /// Whether what is known of online users depends on an answer of the directory,
    /// or something waits for it.
    pub fn uses(&self, question: &Question) -> bool {
        self.agenda.unanswered.has(question)
            || self.waiting.lacks(question)
            || self
                .verdicts
                .reads(question, |user| self.ledger.get(user).is_some())
    }

    /// It has become `now`, unless it was later already.
    fn pass(&mut self, now: u64) {
        self.clock.pass(now);
        self.now = self.clock.now();
    }

    fn transition(
        &mut self,
        transition: Transition<Metadata>,
        rules: &mut dyn Rules,
        out: &mut Vec<Output>,
    ) {
        match transition {
            Transition::Online {
                user, at, metadata, ..
            } => {
                let event = self.event(&user, at, Change::Online, metadata);
                // Neither does a heartbeat speak against an application's offline.
                if self.statements.is_offline(event.user) {
                    return;
                }
                // From now on the connections say when the user is offline.
                self.statements.forget(event.user);
                self.happened(event, true, rules, out);
            }
            Transition::Offline {
                user,
                at,
                last_seen,
                reason,
                last_heartbeat,
            } => {
                let mut metadata = Metadata::default().edit();
                if let Some(heartbeat) = last_heartbeat {
                    let timeout = self.settings.tracker.timeout_ms.to_string();
                    metadata.set("timeoutDuration", &timeout, true);
                    metadata.set("lastHeartbeat", &heartbeat.to_string(), true);
                }
                let change = Change::Offline { last_seen, reason };
                let event = self.event(&user, at, change, metadata.build());
                if self.status_waits(event.user)
                    && let Some(entry) = self.ledger.get_mut(event.user)
                {
                    entry.unsettled = true;
                }
                self.statuses.forget(event.user, &event.name);
                // They are offline already, as far as anyone has been told.
                if self.statements.is_offline(event.user) {
                    return;
                }
                self.happened(event, true, rules, out);
            }
        }
    }

    fn event(&self, user: &str, timestamp: u64, change: Change, metadata: Metadata) -> Event {
        let (user, name) = self.names.intern_name(user);
        Event {
            user,
            name,
            timestamp,
            change,
            metadata,
        }
    }

    fn reason(&mut self, why: Why) -> Reason {
        self.counters.unknown_reasons += u64::from(!why.known);
        why.reason
    }

    fn publish(&mut self, subject: Subject, body: impl Into<Bytes>, out: &mut Vec<Output>) {
        out.push(Output::Publish(self.numbering.number(subject, body.into())));
    }

    fn dead_letter(
        &mut self,
        subject: &str,
        rejection: &Rejection,
        payload: &[u8],
        out: &mut Vec<Output>,
    ) {
        count(&mut self.counters.dead_letters, rejection.cause as usize);
        let Settings {
            node,
            body_bytes_max,
            dead_letters,
            ..
        } = &self.settings;
        if !dead_letters.take_letter(self.now) {
            self.counters.dead_letters_left_out += 1;
            return;
        }
        let at = self.clock.stamp();
        let letter = |max| body::dead_letter(subject, rejection, payload, at, node, max);
        let mut body = letter(*body_bytes_max);
        if !dead_letters.take_bytes(body.len()) {
            body = letter(SHORT_BYTES.min(*body_bytes_max));
        }
        self.publish(Subject::DeadLetters, body, out);
    }
}

fn count(counts: &mut [u64], place: usize) {
    if let Some(count) = counts.get_mut(place) {
        *count += 1;
    }
}
