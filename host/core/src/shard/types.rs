//! What goes into a shard, and what comes out of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use bytestring::ByteString;

use super::settings::Settings;
use crate::directory::{Changes, Directory, Question};
use crate::inbox::Delivery;
use crate::message::{Cause, Kind, Message, Redrive, Rejection};
use crate::names::Name;
use crate::publish::Publication;
use crate::quota::Quota;
use crate::share::Assignment;

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
    /// A message arrived, and was read, though its tenant has had all the messages that it may
    /// have now. It is refused, unless a connection would be kept or lost wrongly for that.
    Excess {
        /// The message.
        message: Message,
        /// Where the sender awaits an answer.
        reply: Option<String>,
    },
    /// A message arrived that couldn't be read.
    Rejected {
        /// What kind of message it is, by its subject.
        kind: Kind,
        /// Its body.
        payload: Bytes,
        /// What is wrong with it.
        rejection: Rejection,
        /// Where the sender awaits an answer.
        reply: Option<String>,
    },
    /// A plugin has failed on an event, and it is to be decided again.
    Redrive {
        /// Which event, or what is wrong with the request.
        event: Result<Redrive, Rejection>,
        /// Where the answer goes.
        reply: String,
    },
    /// The directory has changed.
    Directory(Arc<Directory>, Arc<Changes>),
    /// The rules have changed: the next call goes to the new ones.
    Rules,
    /// Other rules decide on some users from now on: the users for whom the two assignments
    /// differ. Only these users are decided on again, and the next call goes to the other rules.
    Reassigned {
        /// How it was.
        before: Assignment,
        /// How it is from now on.
        after: Assignment,
        /// Whether enrichers change events of users otherwise than before.
        has_other_enrichers: bool,
    },
    /// The settings have changed.
    Settings(Box<Settings>),
    /// All inputs up to a time have been handed over: leases and graces run by that alone,
    /// see [`Tracker::received_up_to`](crate::tracker::Tracker::received_up_to).
    ReceivedUpTo {
        /// Up to when, by the clock of `now`.
        at: u64,
    },
    /// Some inputs up to a time were lost on the way here: no lease or grace runs on by the
    /// time since the last such report, see
    /// [`Tracker::lost_up_to`](crate::tracker::Tracker::lost_up_to).
    LostUpTo {
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
    /// Say that a plugin has failed. The event is a dead letter.
    PluginFailed(PluginFailed),
    /// Log that a quota was exceeded. It has been counted, and a dead letter was made.
    Refused(Rejection),
}

/// A message that was ignored, since what is known by now overtook it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// What it was.
    pub kind: Kind,
    /// Whom it was about.
    pub user: ByteString,
    /// The connection; empty where an application said it of the user.
    pub conn: ByteString,
    /// The sender's time, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Why, in one line.
    pub why: &'static str,
}

/// A plugin that failed on an event: for a decision, the first time that it did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginFailed {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// Whom the event is about.
    pub user: Name,
    /// What happened, in one line.
    pub error: String,
    /// When the decision is made again, in milliseconds from now; none where it isn't, since
    /// the event went on without the plugin.
    pub retry_ms: Option<u64>,
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
    /// What was refused since a quota would have been exceeded, by [`Quota`].
    pub over_quota: [u64; Quota::ALL.len()],
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
    /// Viewers corrected since what they had been told no longer held.
    pub corrected: u64,
    /// Messages that went out when users were decided on again.
    pub corrections: u64,
    /// Users that viewers asked about.
    pub queried: u64,
}

impl Counters {
    /// One more well-formed message of a kind.
    pub(super) fn taken(&mut self, kind: Kind) {
        count(&mut self.taken, kind as usize);
    }

    /// One more dead letter for a cause.
    pub(super) fn dead_letter(&mut self, cause: Cause) {
        count(&mut self.dead_letters, cause as usize);
    }

    /// One more thing that a quota doesn't allow.
    pub(super) fn over(&mut self, quota: Quota) {
        count(&mut self.over_quota, quota as usize);
    }
}

fn count(counts: &mut [u64], place: usize) {
    if let Some(count) = counts.get_mut(place) {
        *count += 1;
    }
}
