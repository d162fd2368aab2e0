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

/// An input of a shard.
#[derive(Clone, Debug)]
pub enum Input {
    /// A message arrived, and was read.
    Message {
        /// The message.
        message: Message,
        /// The subject on which the sender awaits an answer.
        reply: Option<String>,
    },
    /// A message arrived, and was read, beyond the rate of messages that its tenant may have. It is
    /// refused, unless a connection would live on or end wrongly without it.
    Excess {
        /// The message.
        message: Message,
        /// The subject on which the sender awaits an answer.
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
        /// The subject on which the sender awaits an answer.
        reply: Option<String>,
    },
    /// An event on which a plugin has failed is to be decided on again.
    Redrive {
        /// The event, or what is wrong with the request.
        event: Result<Redrive, Rejection>,
        /// The subject for the answer.
        reply: String,
    },
    /// The directory has changed.
    Directory(Arc<Directory>, Arc<Changes>),
    /// The rules have changed: the next call uses the new ones.
    Rules,
    /// Other rules decide on some users from now on: on those for whom the two assignments differ.
    /// Only these users are decided on again. The next call uses the new assignment.
    Reassigned {
        /// The assignment until now.
        before: Assignment,
        /// The assignment from now on.
        after: Assignment,
        /// Whether some users' events have other enrichers from now on.
        has_other_enrichers: bool,
    },
    /// The settings have changed.
    Settings(Box<Settings>),
    /// All inputs up to a time have been handed over. Leases and graces run only by these reports,
    /// see [`Tracker::received_up_to`](crate::tracker::Tracker::received_up_to).
    ReceivedUpTo {
        /// The time, by the clock of `now`.
        at: u64,
    },
    /// Some inputs up to a time were lost on the way to this shard. Leases and graces don't run on
    /// by the time since the last report, see
    /// [`Tracker::lost_up_to`](crate::tracker::Tracker::lost_up_to).
    LostUpTo {
        /// The time, by the clock of `now`.
        at: u64,
    },
    /// The distance between wall time and the time that is given as `now` has changed.
    Clock {
        /// How far wall time is ahead, in milliseconds; negative: behind.
        ahead_ms: i64,
    },
    /// The broker takes longer or shorter bodies than before.
    BodyBytesMax(
        /// The longest body, in bytes.
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
    /// Fetch the answers to these questions, and hand over a directory that has them.
    Fetch(BTreeSet<Question>),
    /// Say that this message was ignored. It has been counted.
    Ignored(Ignored),
    /// Say that a plugin has failed. A dead letter was made of the event.
    PluginFailed(PluginFailed),
    /// Log that a quota was exceeded. It has been counted, and a dead letter was made.
    Refused(Rejection),
}

/// A message that was ignored, since what is known already is newer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ignored {
    /// The kind of the message.
    pub kind: Kind,
    /// The user.
    pub user: ByteString,
    /// The connection; empty for an application's statement.
    pub conn: ByteString,
    /// The sender's time, in milliseconds since the Unix epoch.
    pub timestamp: u64,
    /// Why it was ignored, in one line.
    pub why: &'static str,
}

/// A failure of a plugin on an event. Of a decision that fails again and again, only the first
/// failure.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PluginFailed {
    /// The plugin's name.
    pub plugin: Arc<str>,
    /// The user of the event.
    pub user: Name,
    /// What happened, in one line.
    pub error: String,
    /// In how many milliseconds the decision is made again. `None`: it isn't, since the event went
    /// on without the plugin.
    pub retry_ms: Option<u64>,
}

/// What a shard has counted since it began.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Well-formed messages taken in, by [`Kind`].
    pub accepted: [u64; Kind::ALL.len()],
    /// Dead letters, by [`Cause`].
    pub dead_letters: [u64; Cause::ALL.len()],
    /// Dead letters that weren't published, since there were too many.
    pub dead_letters_left_out: u64,
    /// What was refused since a quota would have been exceeded, by [`Quota`].
    pub over_quota: [u64; Quota::ALL.len()],
    /// Closes forgotten early, since too many were remembered.
    pub closes_forgotten: u64,
    /// Offlines held back by damping, since their users flip.
    pub damped_offlines: u64,
    /// Messages older than what is known of their connection.
    pub stale: u64,
    /// Reasons that are unknown.
    pub unknown_reasons: u64,
    /// Activities and statuses that weren't understood.
    pub unknown_statuses: u64,
    /// Decisions for which plugins were called.
    pub decided: u64,
    /// Decisions that were reused.
    pub reused: u64,
    /// Viewers who lost sight of a user by a correction.
    pub corrected: u64,
    /// Messages that went out when users were decided on again.
    pub corrections: u64,
    /// Users that viewers asked about.
    pub queried: u64,
}

impl Counters {
    /// One more well-formed message of a kind.
    pub(super) fn count_accepted(&mut self, kind: Kind) {
        count(&mut self.accepted, kind as usize);
    }

    /// One more dead letter for a cause.
    pub(super) fn dead_letter(&mut self, cause: Cause) {
        count(&mut self.dead_letters, cause as usize);
    }

    /// One more thing that a quota refuses.
    pub(super) fn over(&mut self, quota: Quota) {
        count(&mut self.over_quota, quota as usize);
    }
}

fn count(counts: &mut [u64], place: usize) {
    if let Some(count) = counts.get_mut(place) {
        *count += 1;
    }
}
