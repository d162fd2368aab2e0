//! What is published: subjects, and the sequence numbers by which a subscriber notices a loss.

use bytes::Bytes;

use crate::message::Kind;

/// The subjects that the host publishes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Subject {
    /// `presence.events.user_online`
    Online,
    /// `presence.events.user_offline`
    Offline,
    /// `presence.events`
    Events,
    /// `presence.filtered.user_online`
    FilteredOnline,
    /// `presence.filtered.user_offline`
    FilteredOffline,
    /// `presence.dlq`
    DeadLetters,
    /// `presence.events.user_updated`
    Updated,
    /// `presence.filtered.user_updated`
    FilteredUpdated,
}

impl Subject {
    /// All subjects, in the order of their discriminants.
    pub const ALL: [Self; 8] = [
        Self::Online,
        Self::Offline,
        Self::Events,
        Self::FilteredOnline,
        Self::FilteredOffline,
        Self::DeadLetters,
        Self::Updated,
        Self::FilteredUpdated,
    ];

    /// The subject, without a tenant's prefix.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Online => Kind::Online.subject(),
            Self::Offline => Kind::Offline.subject(),
            Self::Events => "presence.events",
            Self::FilteredOnline => "presence.filtered.user_online",
            Self::FilteredOffline => "presence.filtered.user_offline",
            Self::DeadLetters => "presence.dlq",
            Self::Updated => "presence.events.user_updated",
            Self::FilteredUpdated => "presence.filtered.user_updated",
        }
    }
}

/// A message to publish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Publication {
    /// The subject.
    pub subject: Subject,
    /// The sequence number among the messages of this source on this subject, from 1.
    pub seq: u64,
    /// The body, a JSON object.
    pub body: Bytes,
}

/// Assigns sequence numbers to the messages of one source, without gaps on each subject.
#[derive(Clone, Debug, Default)]
pub struct Numbering([u64; Subject::ALL.len()]);

impl Numbering {
    /// The last sequence number on each subject that has any message.
    pub fn last(&self) -> impl Iterator<Item = (Subject, u64)> {
        let seqs = Subject::ALL.into_iter().zip(self.0);
        seqs.filter(|(_, seq)| *seq > 0)
    }

    /// The next message on a subject.
    pub fn number(&mut self, subject: Subject, body: Bytes) -> Publication {
        // The array is indexed by the subject's discriminant.
        let seq = self.0.get_mut(subject as usize).map_or(0, |seq| {
            *seq += 1;
            *seq
        });
        Publication { subject, seq, body }
    }
}
