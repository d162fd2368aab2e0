//! Hands a source's messages to the broker's client.

use async_nats::client::PublishError;
use async_nats::{Client, HeaderMap, HeaderName, Subject};
use bytes::Bytes;
use presence_core::inbox::Delivery;
use presence_core::publish::{self, Publication};

use crate::clock;
use crate::wire::Source;

/// Hands a source's messages to the broker's client.
pub(crate) struct Publisher {
    client: Client,
    source: Source,
    /// The last number on each subject, 0 for none.
    seqs: [u64; publish::Subject::ALL.len()],
    /// How many beacons there have been.
    beacons: u64,
    beacon_ms: u64,
    /// When the next beacon is due, in milliseconds since the Unix epoch. None until
    /// the source has begun: nobody is told of an epoch that may come to nothing.
    beacon_at: Option<u64>,
}

impl Publisher {
    pub(crate) fn new(client: Client, source: Source, beacon_ms: u64) -> Self {
        Self {
            client,
            source,
            seqs: Default::default(),
            beacons: 0,
            beacon_ms,
            beacon_at: None,
        }
    }

    /// From now on there are beacons, the first at once.
    pub(crate) fn begin(&mut self) {
        self.beacon_at = Some(clock::now_ms());
    }

    /// When [`Self::tend`] is to be called.
    pub(crate) fn due(&self) -> Option<u64> {
        self.beacon_at
    }

    /// Publishes a beacon, if one is due.
    pub(crate) async fn tend(&mut self) -> Result<(), PublishError> {
        let now = clock::now_ms();
        if self.beacon_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        self.beacon_at = Some(now + self.beacon_ms);
        self.beacons += 1;
        let subject = self.source.beacon().clone();
        let body = self.source.beacon_body(&self.seqs);
        self.send(subject, 0, self.beacons, body.into()).await
    }

    pub(crate) async fn publish(&mut self, publication: Publication) -> Result<(), PublishError> {
        let Publication { subject, seq, body } = publication;
        // There is a place for every subject.
        if let Some(last) = self.seqs.get_mut(subject as usize) {
            *last = seq;
        }
        let subject = self.source.subject(subject).clone();
        self.send(subject, 0, seq, body).await
    }

    pub(crate) async fn deliver(&mut self, delivery: Delivery) -> Result<(), PublishError> {
        let subject = self.source.inbox(delivery.viewer.as_str());
        let Delivery {
            renewed, seq, body, ..
        } = delivery;
        self.send(subject, renewed, seq, body).await
    }

    pub(crate) async fn reply(&self, to: String, body: Vec<u8>) -> Result<(), PublishError> {
        self.client.publish(to, body.into()).await
    }

    async fn send(
        &self,
        subject: Subject,
        renewed: u64,
        seq: u64,
        body: Bytes,
    ) -> Result<(), PublishError> {
        let mut headers = HeaderMap::new();
        for (name, value) in self.source.headers(&subject, renewed, seq) {
            headers.insert(HeaderName::from_static(name), value);
        }
        self.client
            .publish_with_headers(subject, headers, body)
            .await
    }
}
