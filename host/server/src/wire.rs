//! A tenant's subjects and the headers of what a node publishes.

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap, HeaderName};
use presence_core::inbox::Delivery;
use presence_core::message::Kind;
use presence_core::publish::{Publication, Subject};
use presence_core::token;

/// Where a message comes from. What bears it came from a node, and is not input.
pub(crate) const SOURCE: &str = "Presence-Source";
const EPOCH: &str = "Presence-Epoch";
const SEQ: &str = "Presence-Seq";
const MESSAGE_ID: &str = "Nats-Msg-Id";

/// A tenant's subjects.
#[derive(Clone, Debug)]
pub(crate) struct Subjects {
    prefix: String,
}

impl Subjects {
    pub(crate) fn new(prefix: Option<&str>) -> Self {
        Self {
            prefix: prefix.map_or_else(String::new, |prefix| format!("{prefix}.")),
        }
    }

    /// A tenant's subject for one of the default tenant's.
    pub(crate) fn of(&self, subject: &str) -> String {
        format!("{}{subject}", self.prefix)
    }

    /// What kind of input a subject carries.
    pub(crate) fn kind(&self, subject: &str) -> Option<Kind> {
        Kind::of_subject(subject.strip_prefix(&self.prefix)?)
    }

    /// What a subject asks.
    pub(crate) fn asked<'a>(&self, subject: &'a str) -> Option<Asked<'a>> {
        match subject.strip_prefix(&self.prefix)? {
            "presence.query" => Some(Asked::Query(None)),
            "presence.explain" => Some(Asked::Explain),
            other => Some(Asked::Query(Some(other.strip_prefix("presence.query.")?))),
        }
    }
}

/// What a subject asks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Asked<'a> {
    /// A viewer asks who is online; the token of the viewer, where the subject has one.
    Query(Option<&'a str>),
    /// An operator asks why a viewer can or can't see a user.
    Explain,
}

impl Asked<'_> {
    /// What is subscribed to, without a tenant's prefix.
    pub(crate) const SUBJECTS: [&'static str; 3] =
        ["presence.query", "presence.query.*", "presence.explain"];
}

/// One worker of a node, since its start: what it publishes bears its name.
#[derive(Clone, Debug)]
pub(crate) struct Source {
    /// Node and worker.
    name: String,
    /// When the source started, in milliseconds since the Unix epoch.
    epoch: String,
    /// By [`Subject`]: the whole subject, and what message ids on it begin with.
    channels: [Channel; Subject::ALL.len()],
    /// What the subjects of viewers begin with.
    inbox: String,
}

#[derive(Clone, Debug)]
struct Channel {
    subject: async_nats::Subject,
    id_prefix: String,
}

impl Source {
    pub(crate) fn new(node: &str, worker: usize, epoch_ms: u64, subjects: &Subjects) -> Self {
        let (name, epoch) = (format!("{node}/{worker}"), epoch_ms.to_string());
        let channels = Subject::ALL.map(|subject| {
            let subject = subjects.of(subject.as_str());
            Channel {
                id_prefix: format!("{epoch}-{name}-{subject}-"),
                subject: subject.into(),
            }
        });
        Self {
            name,
            epoch,
            channels,
            inbox: subjects.of("presence.inbox."),
        }
    }

    /// The subject of a viewer's own, and the headers of a message there.
    pub(crate) fn delivery(&self, delivery: &Delivery) -> (String, [(&'static str, String); 4]) {
        let viewer = token::encode(delivery.viewer.as_str());
        let subject = format!("{}{viewer}", self.inbox);
        let epoch = delivery.epoch_ms.map(|epoch| epoch.to_string());
        let epoch = epoch.unwrap_or_else(|| self.epoch.clone());
        let (name, seq) = (&self.name, delivery.seq.to_string());
        let id = format!("{epoch}-{name}-{subject}-{seq}");
        let headers = [
            (SOURCE, name.clone()),
            (EPOCH, epoch),
            (SEQ, seq),
            (MESSAGE_ID, id),
        ];
        (subject, headers)
    }

    /// A publication's subject.
    pub(crate) fn subject(&self, publication: &Publication) -> &async_nats::Subject {
        &self.channel(publication).subject
    }

    /// The headers that all it publishes bear.
    pub(crate) fn standing_headers(&self) -> [(&'static str, &str); 2] {
        [(SOURCE, &self.name), (EPOCH, &self.epoch)]
    }

    /// The headers that are a publication's own.
    pub(crate) fn own_headers(&self, publication: &Publication) -> [(&'static str, String); 2] {
        let seq = publication.seq.to_string();
        let id = [&*self.channel(publication).id_prefix, &seq].concat();
        [(SEQ, seq), (MESSAGE_ID, id)]
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is a channel for every subject, in the order of their numbers"
    )]
    fn channel(&self, publication: &Publication) -> &Channel {
        &self.channels[publication.subject as usize]
    }
}

/// Hands a source's messages to the broker's client.
pub(crate) struct Publisher {
    client: Client,
    source: Source,
    /// What every message's headers begin as: all of them, its own still empty.
    /// A copy is a good deal cheaper than a map that grows header by header.
    template: HeaderMap,
}

impl Publisher {
    pub(crate) fn new(client: Client, source: Source) -> Self {
        let own = [(SEQ, ""), (MESSAGE_ID, "")];
        let all = source.standing_headers().into_iter().chain(own);
        let all = all.map(|(name, value)| (HeaderName::from_static(name), value.into()));
        Self {
            template: all.collect(),
            client,
            source,
        }
    }

    pub(crate) async fn publish(&self, publication: Publication) -> Result<(), PublishError> {
        let subject = self.source.subject(&publication).clone();
        let mut headers = self.template.clone();
        for (name, value) in self.source.own_headers(&publication) {
            headers.insert(HeaderName::from_static(name), value);
        }
        self.client
            .publish_with_headers(subject, headers, publication.body)
            .await
    }

    pub(crate) async fn deliver(&self, delivery: Delivery) -> Result<(), PublishError> {
        let (subject, headers) = self.source.delivery(&delivery);
        let headers = headers.into_iter();
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value.into()));
        self.client
            .publish_with_headers(subject, headers.collect(), delivery.body)
            .await
    }

    pub(crate) async fn reply(&self, to: String, body: Vec<u8>) -> Result<(), PublishError> {
        self.client.publish(to, body.into()).await
    }
}
