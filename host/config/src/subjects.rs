//! A tenant's subjects, and the source and sequence number of each message that a node publishes.

use std::fmt::Write as _;

use presence_core::message::Kind;
use presence_core::publish::Subject;
use presence_core::token;

/// The header of every message that a node publishes: `<source> <epoch> <seq>`. A message with this
/// header isn't input.
pub const SEQ: &str = "Presence-Seq";

/// The header of an input above the rate limit, which a router of a fleet passes on all the same:
/// its shard decides whether it can be refused.
pub const EXCESS: &str = "Presence-Excess";

/// The header of an input that a router of a fleet passes on late: the longest delay, in
/// milliseconds.
pub const DELAYED: &str = "Presence-Delayed";

/// The header of a message of the input stream that a router of a fleet passes on: its position in
/// the stream, and the subject on which its owner acknowledges it.
pub const STORED: &str = "Presence-Stored";

/// The header of a message of the input stream that is too long to be passed on: its length, in
/// bytes.
pub const CUT: &str = "Presence-Cut";

/// The subject on which operators ask that an event be decided again, after a plugin failed on it.
pub const REDRIVE: &str = "presence.redrive";
/// How the subjects begin on which operators' commands ask a node. The question and the node's id
/// follow.
pub const ADMIN: &str = "presence.admin";
/// The subject of operators' commands that ask a node what it runs. The node's id follows.
pub const ADMIN_STATUS: &str = "presence.admin.status";
/// The subject of operators' commands that have a node validate a revision of the pipeline. The
/// node's id follows.
pub const ADMIN_VALIDATE: &str = "presence.admin.validate";
/// The subject of operators' commands that have a node run a plugin in a shadow. The node's id
/// follows.
pub const ADMIN_SHADOW: &str = "presence.admin.shadow";
/// The subject of operators' commands that have a node publish what a plugin logs. The node's id
/// follows.
pub const ADMIN_FOLLOW: &str = "presence.admin.follow";
/// The subject of operators' commands that ask a node about all its tenants. The node's id follows.
/// It has no tenant's prefix.
pub const ADMIN_TENANTS: &str = "presence.admin.tenants";
/// The subject of what plugins log, while somebody follows it. The plugin's name follows.
pub const LOGS: &str = "presence.admin.logs";
/// The subject of alerts, which an operator should look at.
pub const ALERTS: &str = "presence.admin.alerts";
/// The header by which a JetStream stream recognizes a message that it has already.
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// The length of the longest sequence number, in characters.
const SEQ_CHARS_MAX: usize = 20;

/// The subject of beacons: now and then, each source publishes its last sequence numbers.
pub const BEACON: &str = "presence.beacon";

/// A tenant's subjects.
#[derive(Clone, Debug)]
pub struct Subjects {
    prefix: String,
}

impl Subjects {
    /// The subjects of the tenant with this prefix, or of the default tenant.
    pub fn new(prefix: Option<&str>) -> Self {
        Self {
            prefix: prefix.map_or_else(String::new, |prefix| format!("{prefix}.")),
        }
    }

    /// The tenant's subject that corresponds to this subject of the default tenant.
    pub fn of(&self, subject: &str) -> String {
        format!("{}{subject}", self.prefix)
    }

    /// The kind of input on a subject. `None` if it carries no input.
    pub fn kind(&self, subject: &str) -> Option<Kind> {
        Kind::of_subject(subject.strip_prefix(&self.prefix)?)
    }

    /// Whether operators ask on this subject that an event be decided again.
    pub fn is_redrive(&self, subject: &str) -> bool {
        subject.strip_prefix(&self.prefix) == Some(REDRIVE)
    }

    /// The question that a subject asks. `None` if it asks none.
    pub fn question_kind<'a>(&self, subject: &'a str) -> Option<QuestionKind<'a>> {
        match subject.strip_prefix(&self.prefix)? {
            "presence.query" => Some(QuestionKind::Query(None)),
            "presence.explain" => Some(QuestionKind::Explain),
            other => Some(QuestionKind::Query(Some(
                other.strip_prefix("presence.query.")?,
            ))),
        }
    }
}

/// The queue group in which the nodes of a fleet share the input that applications send.
pub const FLEET_QUEUE: &str = "presence-fleet";

/// How the subjects of a fleet's shards begin.
const SHARD: &str = "presence.shard.";

/// The kind of a message on a shard's subject.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShardMessage {
    /// An input.
    Input(Kind),
    /// Several heartbeats that a router passes on together.
    Heartbeats,
    /// An input from the input stream, which only routers pass on.
    Stored(Kind),
    /// A request to decide about an event again.
    Redrive,
    /// A standby message: what the owner tells its standbys.
    Standby,
}

/// The subjects of a fleet.
impl Subjects {
    /// A wildcard for everything that is sent to a shard. Its owner and its standbys subscribe to
    /// it.
    pub fn shard_wildcard(&self, shard: u32) -> String {
        format!("{}{SHARD}{shard}.>", self.prefix)
    }

    /// The subjects of `shard_wildcard` without heartbeats, and without requests that only an owner
    /// handles. A standby subscribes to them if its owner tells it of heartbeats.
    pub fn shard_without_heartbeats(&self, shard: u32) -> Vec<String> {
        let kinds = Kind::ALL.into_iter().filter(|it| *it != Kind::Heartbeat);
        let inputs = kinds.map(|kind| self.shard_input(shard, Some(kind)));
        let stored = format!("{}{SHARD}{shard}.stored.*", self.prefix);
        inputs
            .chain([stored, self.shard_standby_messages(shard)])
            .collect()
    }

    /// The subject on which routers pass an input on to a shard. `None`: a request to decide again.
    pub fn shard_input(&self, shard: u32, kind: Option<Kind>) -> String {
        let name = kind.map_or("redrive", name_of);
        format!("{}{SHARD}{shard}.in.{name}", self.prefix)
    }

    /// The subject on which routers pass several heartbeats on to a shard together, a line each.
    pub fn shard_heartbeats(&self, shard: u32) -> String {
        format!("{}{SHARD}{shard}.heartbeats", self.prefix)
    }

    /// The subject on which routers pass on to a shard what they take from the input stream. Nobody
    /// else may publish on it: what arrives on it is acknowledged in the stream.
    pub fn shard_stored(&self, shard: u32, kind: Kind) -> String {
        format!("{}{SHARD}{shard}.stored.{}", self.prefix, name_of(kind))
    }

    /// The subject on which a shard's owner tells its standbys what it is about to publish.
    pub fn shard_standby_messages(&self, shard: u32) -> String {
        format!("{}{SHARD}{shard}.told", self.prefix)
    }

    /// The shard of a subject, and the kind of message on it. `None` if it is no shard's subject.
    pub fn shard_message(&self, subject: &str) -> Option<(u32, ShardMessage)> {
        let rest = subject.strip_prefix(&self.prefix)?.strip_prefix(SHARD)?;
        let (shard, what) = rest.split_once('.')?;
        let message = match what {
            "told" => ShardMessage::Standby,
            "heartbeats" => ShardMessage::Heartbeats,
            "in.redrive" => ShardMessage::Redrive,
            _ => {
                let (way, name) = what.split_once('.')?;
                let kind = Kind::ALL.into_iter().find(|kind| name_of(*kind) == name)?;
                match way {
                    "in" => ShardMessage::Input(kind),
                    "stored" => ShardMessage::Stored(kind),
                    _ => return None,
                }
            }
        };
        Some((shard.parse().ok()?, message))
    }

    /// The subject on which the other nodes of a fleet ask this node, or tell it, something.
    pub fn of_node(&self, node: &str, what: &str) -> String {
        format!("{}presence.node.{node}.{what}", self.prefix)
    }
}

/// A kind of input, as the subjects of shards name it.
fn name_of(kind: Kind) -> &'static str {
    let subject = kind.subject();
    subject.rsplit('.').next().unwrap_or(subject)
}

/// The question that a subject asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuestionKind<'a> {
    /// A viewer asks who is online. The value is the token of the viewer, if the subject has one.
    Query(Option<&'a str>),
    /// An operator asks why a viewer can or can't see a user.
    Explain,
}

impl QuestionKind<'_> {
    /// The subjects to subscribe to, without a tenant's prefix.
    pub const SUBJECTS: [&'static str; 3] =
        ["presence.query", "presence.query.*", "presence.explain"];
}

/// The least distance between two epochs of a source. The epochs on subjects of viewers lie between
/// them. On these subjects, the numbers may begin anew while the source runs, for want of memory,
/// but far less than once a millisecond.
pub const EPOCH_STEP: u64 = 1_000;

/// The latest valid epoch: the year 3000, in milliseconds since 1970. A later one was damaged. The
/// current time is no limit, since the clock may have been set back.
pub const EPOCH_MAX: u64 = 32_503_680_000_000;

/// One shard of a node, from the node's start on, as the source of messages. They bear its name.
#[derive(Clone, Debug)]
pub struct Source {
    /// The names of node and shard.
    name: String,
    /// When the source started, in milliseconds since the Unix epoch, and later than
    /// at any earlier start that is known of.
    epoch: u64,
    /// How the header of its messages begins: source and epoch.
    header_prefix: String,
    /// The whole subjects, by the number of the [`Subject`].
    subjects: [String; Subject::ALL.len()],
    beacon: String,
    /// How the subjects of viewers begin.
    inbox: String,
    message_ids: bool,
}

impl Source {
    /// `message_ids`: whether messages also have an id, for JetStream.
    pub fn new(
        node: &str,
        shard: usize,
        epoch: u64,
        subjects: &Subjects,
        message_ids: bool,
    ) -> Self {
        let name = format!("{node}/{shard}");
        Self {
            header_prefix: header_prefix(&name, epoch),
            name,
            epoch,
            subjects: Subject::ALL.map(|subject| subjects.of(subject.as_str())),
            beacon: subjects.of(BEACON),
            inbox: subjects.of("presence.inbox."),
            message_ids,
        }
    }

    /// The source of a shard of a fleet. It is the same source whichever node owns the shard.
    pub fn of_fleet(shard: usize, subjects: &Subjects, message_ids: bool) -> Self {
        Self::new("shard", shard, 0, subjects, message_ids)
    }

    /// The same source in the epoch of its current owner.
    #[must_use]
    pub fn with_epoch(&self, epoch: u64) -> Self {
        Self {
            header_prefix: header_prefix(&self.name, epoch),
            epoch,
            ..self.clone()
        }
    }

    /// The same source, begun anew in this epoch, or in a later one if this one isn't `EPOCH_STEP`
    /// after the epoch before.
    #[must_use]
    pub fn renewed_in(&self, epoch: u64) -> Self {
        let epoch = epoch.max(self.epoch.saturating_add(EPOCH_STEP));
        Self {
            header_prefix: header_prefix(&self.name, epoch),
            epoch,
            ..self.clone()
        }
    }

    /// A publication's subject.
    #[expect(
        clippy::indexing_slicing,
        reason = "there is one for every subject, in the order of their numbers"
    )]
    pub fn subject(&self, subject: Subject) -> &str {
        &self.subjects[subject as usize]
    }

    /// The subject of beacons.
    pub fn beacon(&self) -> &str {
        &self.beacon
    }

    /// A viewer's own subject.
    pub fn inbox(&self, viewer: &str) -> String {
        format!("{}{}", self.inbox, token::encode(viewer))
    }

    /// The headers of the message with this sequence number on a subject. `renewed`: how often the
    /// numbers on this subject have begun anew since the source's start.
    pub fn headers(
        &self,
        subject: &str,
        renewed: u64,
        seq: u64,
    ) -> impl Iterator<Item = (&'static str, String)> {
        let epoch = self.epoch.saturating_add(renewed);
        let numbered = match renewed {
            0 => {
                // One allocation: with `format!`, the text would grow several times.
                let mut header = String::with_capacity(self.header_prefix.len() + SEQ_CHARS_MAX);
                header.push_str(&self.header_prefix);
                let _ = write!(header, "{seq}");
                header
            }
            _ => format!("{} {epoch} {seq}", self.name),
        };
        let id = self.message_ids.then(|| {
            let id = format!("{subject}/{}/{epoch}/{seq}", self.name);
            (MESSAGE_ID, id)
        });
        std::iter::once((SEQ, numbered)).chain(id)
    }

    /// The body of a beacon, from the last sequence number on each subject, or 0 for none.
    pub fn beacon_body(&self, seqs: &[u64; Subject::ALL.len()]) -> Vec<u8> {
        let last = self.subjects.iter().zip(seqs);
        let published = last.filter(|(_, seq)| **seq > 0);
        let seqs: serde_json::Map<_, _> = published
            .map(|(subject, seq)| (subject.to_string(), (*seq).into()))
            .collect();
        serde_json::json!({"source": self.name, "epoch": self.epoch, "seqs": seqs})
            .to_string()
            .into_bytes()
    }
}

/// How the header of a source's messages begins.
fn header_prefix(source: &str, epoch: u64) -> String {
    format!("{source} {epoch} ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn source(message_ids: bool) -> Source {
        Source::new("n", 1, 7, &Subjects::new(Some("acme")), message_ids)
    }

    #[test]
    fn a_message_bears_source_epoch_and_number() {
        let plain: Vec<_> = source(false).headers("s", 0, 3).collect();
        assert_eq!(plain, [(SEQ, "n/1 7 3".to_owned())]);
        let renewed: Vec<_> = source(true).headers("s", 2, 1).collect();
        let id = (MESSAGE_ID, "s/n/1/9/1".to_owned());
        assert_eq!(renewed, [(SEQ, "n/1 9 1".to_owned()), id]);
    }

    #[test]
    fn a_source_that_begins_anew_does_so_in_a_later_epoch() {
        for (epoch, header) in [(5_000, "n/1 5000 1"), (3, "n/1 1007 1")] {
            let source = source(false).renewed_in(epoch);
            let headers: Vec<_> = source.headers("s", 0, 1).collect();
            assert_eq!(headers, [(SEQ, header.to_owned())]);
        }
    }

    #[test]
    fn the_subjects_of_shards_come_back_and_others_are_none() {
        let subjects = Subjects::new(Some("acme"));
        for kind in Kind::ALL {
            let subject = subjects.shard_input(63, Some(kind));
            let expected = (63, ShardMessage::Input(kind));
            assert_eq!(subjects.shard_message(&subject), Some(expected));
            let subject = subjects.shard_stored(63, kind);
            let expected = (63, ShardMessage::Stored(kind));
            assert_eq!(subjects.shard_message(&subject), Some(expected));
        }
        let redrive = subjects.shard_input(0, None);
        assert_eq!(redrive, "acme.presence.shard.0.in.redrive");
        let read = |subject: &str| subjects.shard_message(subject);
        assert_eq!(read(&redrive), Some((0, ShardMessage::Redrive)));
        assert_eq!(
            read(&subjects.shard_standby_messages(7)),
            Some((7, ShardMessage::Standby))
        );
        let together = subjects.shard_heartbeats(7);
        assert_eq!(together, "acme.presence.shard.7.heartbeats");
        assert_eq!(read(&together), Some((7, ShardMessage::Heartbeats)));
        for other in [
            "presence.shard.1.told",
            "acme.presence.shard.x.told",
            "acme.presence.shard.1.in.query",
            "acme.presence.shard.1.in",
            "acme.presence.shard.1.put.connect",
            "acme.presence.connect",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn all_that_a_shard_is_sent_but_heartbeats_is_listened_to_once() {
        let subjects = Subjects::new(Some("acme"));
        let listened = subjects.shard_without_heartbeats(7);
        let times = |subject: &str| {
            let is_of = |to: &&String| match to.strip_suffix('*') {
                Some(begin) => subject.starts_with(begin),
                None => *to == subject,
            };
            listened.iter().filter(is_of).count()
        };
        for kind in Kind::ALL {
            let input = times(&subjects.shard_input(7, Some(kind)));
            assert_eq!(input, usize::from(kind != Kind::Heartbeat), "{kind:?}");
            assert_eq!(times(&subjects.shard_stored(7, kind)), 1, "{kind:?}");
        }
        assert_eq!(times(&subjects.shard_standby_messages(7)), 1);
        assert_eq!(times(&subjects.shard_heartbeats(7)), 0);
    }

    #[test]
    fn a_shard_of_a_fleet_is_one_source_under_each_owner() {
        let source = Source::of_fleet(3, &Subjects::new(None), false);
        for epoch in [7, 9] {
            let headers: Vec<_> = source.with_epoch(epoch).headers("s", 0, 1).collect();
            assert_eq!(headers, [(SEQ, format!("shard/3 {epoch} 1"))]);
        }
    }

    #[test]
    fn a_beacon_says_how_far_each_subject_has_come() {
        let mut seqs = [0; Subject::ALL.len()];
        seqs[Subject::FilteredOnline as usize] = 12;
        let body = source(false).beacon_body(&seqs);
        assert_eq!(
            String::from_utf8(body).unwrap(),
            r#"{"source":"n/1","epoch":7,"seqs":{"acme.presence.filtered.user_online":12}}"#
        );
    }
}
