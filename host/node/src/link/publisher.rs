//! Hands a source's messages to the broker's client, and after a lost connection those
//! again that the broker may not have, under the same numbers.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use async_nats::client::PublishError;
use async_nats::connection::State;
use async_nats::{Client, Statistics, Subject};
use futures_util::FutureExt;
use presence_config::subjects::Source;
use presence_core::inbox::Delivery;
use presence_core::publish::{self, Publication};
use tokio::time::timeout;

use crate::clock;
use crate::link::handed::Handed;
use crate::link::journal::{Entry, Journal};
use crate::link::wire;

/// How often a source that waits looks whether the connection has changed.
const LOOK: Duration = Duration::from_millis(50);

/// After how many looks for room in vain the log says so.
const FULL_LOOKS: u32 = 20;

/// Hands a source's messages to the broker's client.
pub(crate) struct Publisher {
    client: Client,
    statistics: Arc<Statistics>,
    source: Source,
    /// The source's subjects as the client takes them, by [`publish::Subject`].
    subjects: [Subject; publish::Subject::ALL.len()],
    beacon: Subject,
    journal: Journal,
    handed: Arc<Handed>,
    /// The connection that messages are handed to, counted as the client counts.
    link: u64,
    /// The place of the message that it is handed next.
    next: u64,
    repeated: u64,
    /// Whether the client was connected when that was last looked at: at the beginning of
    /// a batch, and wherever the client has no room. What it is handed in vain in between
    /// is handed to the next connection again.
    is_connected: bool,
    /// Whether it has been told that there is no room for what the broker doesn't have.
    is_full_told: bool,
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
    /// `journal_bytes`: how much is kept that the broker may not have.
    pub(crate) fn new(
        client: Client,
        source: Source,
        beacon_ms: u64,
        journal_bytes: usize,
        handed: Arc<Handed>,
    ) -> Self {
        Self {
            statistics: client.statistics(),
            client,
            subjects: publish::Subject::ALL.map(|subject| source.subject(subject).into()),
            beacon: source.beacon().into(),
            source,
            journal: Journal::new(journal_bytes),
            handed,
            link: 0,
            next: 0,
            repeated: 0,
            is_connected: false,
            is_full_told: false,
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

    /// Hands over what a new connection hasn't been handed, and publishes a beacon if one
    /// is due. While nobody can hear it there is none, and the next comes with the
    /// connection.
    pub(crate) async fn tend(&mut self) -> Result<(), PublishError> {
        self.forget_acknowledged();
        self.look();
        self.hand_over().await?;
        let now = clock::now_ms();
        if self.beacon_at.is_none_or(|at| now < at) {
            return Ok(());
        }
        if !self.is_connected {
            self.beacon_at = Some(now + u64::try_from(LOOK.as_millis()).unwrap_or_default());
            return Ok(());
        }
        self.beacon_at = Some(now + self.beacon_ms);
        self.beacons += 1;
        self.send(Entry {
            subject: self.beacon.clone(),
            renewed: 0,
            seq: self.beacons,
            body: self.source.beacon_body(&self.seqs).into(),
        })
        .await
    }

    pub(crate) async fn publish(&mut self, publication: Publication) -> Result<(), PublishError> {
        let Publication { subject, seq, body } = publication;
        // There is a place for every subject.
        if let Some(last) = self.seqs.get_mut(subject as usize) {
            *last = seq;
        }
        self.send(Entry {
            subject: self.subject(subject),
            renewed: 0,
            seq,
            body,
        })
        .await
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is one for every subject, in the order of their numbers"
    )]
    fn subject(&self, subject: publish::Subject) -> Subject {
        self.subjects[subject as usize].clone()
    }

    pub(crate) async fn deliver(&mut self, delivery: Delivery) -> Result<(), PublishError> {
        let subject = self.source.inbox(delivery.viewer.as_str()).into();
        let Delivery {
            renewed, seq, body, ..
        } = delivery;
        self.send(Entry {
            subject,
            renewed,
            seq,
            body,
        })
        .await
    }

    pub(crate) async fn reply(&self, to: String, body: Vec<u8>) -> Result<(), PublishError> {
        self.client.publish(to, body.into()).await
    }

    /// The place behind all that has been published so far.
    pub(crate) fn end(&self) -> u64 {
        self.journal.end()
    }

    /// Up to which place the broker has all.
    pub(crate) fn acknowledged(&self) -> u64 {
        self.handed.acknowledged()
    }

    /// Whether there is something that the broker isn't known to have.
    pub(crate) fn waits(&self) -> bool {
        self.journal.begin() < self.journal.end()
    }

    /// Waits until the broker has more. It may return too early.
    pub(crate) async fn moved(&self) {
        self.handed.moved().await;
    }

    /// Waits until the broker has all, for as long as there is a connection to it. Says
    /// whether it has.
    pub(crate) async fn settled(&mut self) -> Result<bool, PublishError> {
        loop {
            self.look();
            self.hand_over().await?;
            self.forget_acknowledged();
            if self.acknowledged() >= self.end() {
                return Ok(true);
            }
            if !self.is_connected {
                return Ok(false);
            }
            self.handed.want();
            let _ = timeout(LOOK, self.handed.moved()).await;
        }
    }

    /// How many bytes wait to be acknowledged.
    pub(crate) fn journal_bytes(&self) -> usize {
        self.journal.bytes()
    }

    /// How many messages have been published again.
    pub(crate) fn repeated(&self) -> u64 {
        self.repeated
    }

    /// Publishes a message: notes it, and hands it to the client if there is a
    /// connection. Waits while there is no room for what the broker doesn't have.
    async fn send(&mut self, entry: Entry) -> Result<(), PublishError> {
        self.forget_acknowledged();
        let mut looks = 0;
        while !self.journal.has_room() {
            let _ = timeout(LOOK, self.handed.moved()).await;
            self.look();
            self.hand_over().await?;
            self.forget_acknowledged();
            looks += 1;
            self.tell_full(looks);
        }
        self.is_full_told &= looks > 0;
        if !self.waits() {
            self.handed.want();
        }
        self.journal.push(entry);
        self.hand_over().await
    }

    /// Hands to the client what it hasn't been handed on this connection, in order.
    async fn hand_over(&mut self) -> Result<(), PublishError> {
        let mut outcome = Ok(());
        loop {
            // Read before anything is handed over: see `pulse`.
            let link = self.statistics.connects.load(Ordering::Acquire);
            if link != self.link {
                self.begin_link(link);
            }
            // What was acknowledged meanwhile needn't be handed over again.
            self.next = self.next.max(self.journal.begin());
            let Some(entry) = self.journal.get(self.next) else {
                break;
            };
            if !self.is_connected {
                break;
            }
            match self.hand_one(entry.clone()).await {
                Some(sent) => outcome = outcome.and(sent),
                None => {
                    self.is_connected = false;
                    break;
                }
            }
            self.next += 1;
            self.handed.advance(self.next);
        }
        outcome
    }

    /// The client is connected anew: all that the broker may not have is handed to it
    /// again, and a beacon says so.
    fn begin_link(&mut self, link: u64) {
        self.forget_acknowledged();
        self.look();
        let begin = self.journal.begin();
        self.repeated += self.next.saturating_sub(begin);
        self.handed.begin(link, begin);
        (self.link, self.next) = (link, begin);
        self.beacon_at = self.beacon_at.map(|at| at.min(clock::now_ms()));
    }

    /// None if the connection went away before there was room.
    async fn hand_one(&self, entry: Entry) -> Option<Result<(), PublishError>> {
        let Entry {
            subject,
            renewed,
            seq,
            body,
        } = entry;
        let headers = wire::map(self.source.headers(&subject, renewed, seq));
        let sent = self.client.publish_with_headers(subject, headers, body);
        let mut sent = pin!(sent);
        // As a rule there is room.
        if let Some(sent) = sent.as_mut().now_or_never() {
            return Some(sent);
        }
        loop {
            match timeout(LOOK, &mut sent).await {
                Ok(sent) => return Some(sent),
                Err(_) if self.client.connection_state() == State::Connected => {}
                Err(_) => return None,
            }
        }
    }

    fn forget_acknowledged(&mut self) {
        self.journal.acknowledged(self.handed.acknowledged());
    }

    /// Looks whether the client is connected, which takes a lock.
    fn look(&mut self) {
        self.is_connected = self.client.connection_state() == State::Connected;
    }

    /// There was no room for so many looks. Has the log know, once until there is a
    /// message that finds room at once.
    fn tell_full(&mut self, looks: u32) {
        if looks >= FULL_LOOKS && !std::mem::replace(&mut self.is_full_told, true) {
            tracing::warn!(
                bytes = self.journal.bytes(),
                "NATS doesn't acknowledge what is published, and there is no room for more of it: \
                 this worker waits, and takes nothing in ([nats] journal_bytes)"
            );
        }
    }
}
