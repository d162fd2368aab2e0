//! A tenant's subjects and the headers of what a node publishes.

use std::iter;

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap, HeaderName};
use bytes::Bytes;
use presence_core::inbox::Delivery;
use presence_core::message::Kind;
use presence_core::publish::{Numbering, Publication, Subject};
use presence_core::{json, token};

/// Where a message comes from, and which of that source's messages it is: `<source>
/// <epoch> <seq>`. What bears it came from a node, and is not input.
pub(crate) const ORIGIN: &str = "Presence-Seq";

/// What JetStream tells repetitions by.
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
    /// When the source started, in milliseconds since the Unix epoch. It is later than
    /// that of every earlier start.
    epoch_ms: u64,
    /// Whether messages bear an id of their own.
    message_ids: bool,
    /// By [`Subject`]: the whole subject.
    subjects: [async_nats::Subject; Subject::ALL.len()],
    /// What the subjects of viewers begin with.
    inbox: String,
}

/// The headers of a message.
pub(crate) struct Headers {
    origin: String,
    message_id: Option<String>,
}

impl Source {
    pub(crate) fn new(
        node: &str,
        worker: usize,
        epoch_ms: u64,
        subjects: &Subjects,
        message_ids: bool,
    ) -> Self {
        Self {
            name: format!("{node}/{worker}"),
            epoch_ms,
            message_ids,
            subjects: Subject::ALL.map(|subject| subjects.of(subject.as_str()).into()),
            inbox: subjects.of("presence.inbox."),
        }
    }

    /// A publication's subject and headers.
    pub(crate) fn publication(&self, it: &Publication) -> (async_nats::Subject, Headers) {
        let subject = self.subject(it.subject).clone();
        let headers = self.headers(&subject, self.epoch_ms, it.seq);
        (subject, headers)
    }

    /// The subject of a viewer's own, and the headers of a message there.
    pub(crate) fn delivery(&self, it: &Delivery) -> (async_nats::Subject, Headers) {
        let viewer = token::encode(it.viewer.as_str());
        let subject = async_nats::Subject::from([&*self.inbox, &*viewer].concat());
        let headers = self.headers(&subject, it.epoch_ms.unwrap_or(self.epoch_ms), it.seq);
        (subject, headers)
    }

    /// The body of a beacon: what this source has published so far.
    pub(crate) fn beacon(&self, numbering: &Numbering) -> Bytes {
        let mut json = b"{\"source\":".to_vec();
        json::push_quoted(&mut json, &self.name);
        json.extend_from_slice(b",\"epoch\":");
        json::push_number(&mut json, self.epoch_ms);
        json.extend_from_slice(b",\"seqs\":{");
        for (place, (subject, seq)) in numbering.last().enumerate() {
            if place > 0 {
                json.push(b',');
            }
            json::push_quoted(&mut json, self.subject(subject));
            json.push(b':');
            json::push_number(&mut json, seq);
        }
        json.extend_from_slice(b"}}");
        json.into()
    }

    fn headers(&self, subject: &str, epoch_ms: u64, seq: u64) -> Headers {
        let name = &self.name;
        let mut origin = Vec::with_capacity(name.len() + 42);
        origin.extend_from_slice(name.as_bytes());
        for number in [epoch_ms, seq] {
            origin.push(b' ');
            json::push_number(&mut origin, number);
        }
        Headers {
            // It is of text and digits.
            origin: String::from_utf8(origin).unwrap_or_default(),
            message_id: self
                .message_ids
                .then(|| format!("{epoch_ms}-{name}-{subject}-{seq}")),
        }
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is one for every subject, in the order of their numbers"
    )]
    fn subject(&self, subject: Subject) -> &async_nats::Subject {
        &self.subjects[subject as usize]
    }
}

impl Headers {
    /// Names and values.
    pub(crate) fn into_pairs(self) -> impl Iterator<Item = (&'static str, String)> {
        let id = self.message_id.map(|id| (MESSAGE_ID, id));
        iter::once((ORIGIN, self.origin)).chain(id)
    }

    fn into_map(self) -> HeaderMap {
        let pairs = self.into_pairs();
        pairs
            .map(|(name, value)| (HeaderName::from_static(name), value.into()))
            .collect()
    }
}

/// Hands a source's messages to the broker's client.
pub(crate) struct Publisher {
    client: Client,
    source: Source,
}

impl Publisher {
    pub(crate) fn new(client: Client, source: Source) -> Self {
        Self { client, source }
    }

    /// Whose messages these are.
    pub(crate) fn source(&self) -> &Source {
        &self.source
    }

    pub(crate) async fn publish(&self, publication: Publication) -> Result<(), PublishError> {
        let (subject, headers) = self.source.publication(&publication);
        self.hand_over(subject, headers, publication.body).await
    }

    pub(crate) async fn deliver(&self, delivery: Delivery) -> Result<(), PublishError> {
        let (subject, headers) = self.source.delivery(&delivery);
        self.hand_over(subject, headers, delivery.body).await
    }

    pub(crate) async fn reply(&self, to: String, body: Vec<u8>) -> Result<(), PublishError> {
        self.client.publish(to, body.into()).await
    }

    async fn hand_over(
        &self,
        subject: async_nats::Subject,
        headers: Headers,
        body: Bytes,
    ) -> Result<(), PublishError> {
        let headers = headers.into_map();
        self.client
            .publish_with_headers(subject, headers, body)
            .await
    }
}
