//! A tenant's subjects and the headers of what a node publishes.

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap, HeaderName};
use presence_core::message::Kind;
use presence_core::publish::{Publication, Subject};

/// Where a message comes from. What bears it came from a node, and is not input.
pub(crate) const SOURCE: &str = "Presence-Source";

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
        }
    }

    /// A publication's subject.
    pub(crate) fn subject(&self, publication: &Publication) -> &async_nats::Subject {
        &self.channel(publication).subject
    }

    /// A publication's headers.
    pub(crate) fn headers(&self, publication: &Publication) -> [(&'static str, String); 4] {
        let seq = publication.seq.to_string();
        let id = [&*self.channel(publication).id_prefix, &seq].concat();
        [
            (SOURCE, self.name.clone()),
            ("Presence-Epoch", self.epoch.clone()),
            ("Presence-Seq", seq),
            ("Nats-Msg-Id", id),
        ]
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
    pub(crate) client: Client,
    pub(crate) source: Source,
}

impl Publisher {
    pub(crate) async fn publish(&self, publication: Publication) -> Result<(), PublishError> {
        let subject = self.source.subject(&publication).clone();
        // Names that are known beforehand are neither checked nor copied.
        let headers = self.source.headers(&publication);
        let headers = headers.map(|(name, value)| (HeaderName::from_static(name), value.into()));
        let headers: HeaderMap = headers.into_iter().collect();
        let body = publication.body.into();
        self.client
            .publish_with_headers(subject, headers, body)
            .await
    }

    pub(crate) async fn reply(&self, to: String, body: Vec<u8>) -> Result<(), PublishError> {
        self.client.publish(to, body.into()).await
    }
}
