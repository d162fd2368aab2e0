//! Sequence numbers of what a shard publishes. Each shard of a node is a source with numbers of its
//! own.

use std::sync::Arc;

use async_nats::Subject;
use presence_config::subjects::Source;
use presence_core::inbox::Delivery;
use presence_core::publish::{self, Publication};

use crate::link::journal::{DeliveryMode, EpochFence, JournalEntry, SequenceNumber};
use crate::link::shared_input::Receipt;

/// Numbers what a shard publishes.
#[derive(Debug)]
pub(crate) struct Sequencer {
    source: Arc<Source>,
    /// The source's subjects in the client's type, indexed by [`publish::Subject`].
    subjects: [Subject; publish::Subject::ALL.len()],
    beacon: Subject,
    /// In a fleet: the subject on which the owner sends updates to the standbys. `None` outside of
    /// a fleet.
    updates_subject: Option<Subject>,
    /// The last sequence number on each subject; 0 if nothing was published on it.
    seqs: [u64; publish::Subject::ALL.len()],
    /// How many beacons were made in this epoch.
    beacons: u64,
    /// Whether beacons are sent. A shard of a fleet sends none before it owns the shard: its epoch
    /// may never be used.
    pub(crate) has_begun: bool,
    /// In a fleet: the fence that says until when this node may publish for the shard.
    fence: Option<Arc<EpochFence>>,
}

impl Sequencer {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            subjects: publish::Subject::ALL.map(|subject| source.subject(subject).into()),
            beacon: source.beacon().into(),
            source: Arc::new(source),
            updates_subject: None,
            seqs: Default::default(),
            beacons: 0,
            has_begun: false,
            fence: None,
        }
    }

    /// For a shard of a fleet. `updates_subject`: the subject on which the owner sends updates to
    /// its standbys.
    pub(crate) fn of_fleet(source: Source, updates_subject: String) -> Self {
        Self {
            updates_subject: Some(updates_subject.into()),
            ..Self::new(source)
        }
    }

    /// Begins this epoch as the shard's owner. Numbers start again, and the fence limits how long
    /// it may publish.
    pub(crate) fn begin_owned_epoch(&mut self, epoch: u64, fence: Arc<EpochFence>) {
        self.source = Arc::new(self.source.with_epoch(epoch));
        self.seqs = Default::default();
        self.beacons = 0;
        self.has_begun = true;
        self.fence = Some(fence);
    }

    /// An update from the owner to the standbys. `None` outside of a fleet.
    pub(crate) fn update(&self, body: Vec<u8>) -> Option<JournalEntry> {
        Some(JournalEntry {
            subject: self.updates_subject.clone()?,
            body: body.into(),
            delivery: DeliveryMode::Unnumbered,
            fence: self.fence.clone(),
        })
    }

    /// The acknowledgement to JetStream that a message has been handled. It goes out after
    /// everything that was published because of the message.
    pub(crate) fn ack(&self, receipt: &Receipt) -> JournalEntry {
        JournalEntry::ack(receipt, self.fence.clone())
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is one for every subject, in the order of their numbers"
    )]
    pub(crate) fn publication(&mut self, publication: Publication) -> JournalEntry {
        let Publication { subject, seq, body } = publication;
        // `seqs` has one element for each subject.
        if let Some(last) = self.seqs.get_mut(subject as usize) {
            *last = seq;
        }
        JournalEntry {
            subject: self.subjects[subject as usize].clone(),
            body,
            delivery: self.numbered(0, seq),
            fence: self.fence.clone(),
        }
    }

    pub(crate) fn delivery(&self, delivery: Delivery) -> JournalEntry {
        let Delivery {
            viewer,
            renewed,
            seq,
            body,
        } = delivery;
        JournalEntry {
            subject: self.source.inbox(viewer.as_str()).into(),
            body,
            delivery: self.numbered(renewed, seq),
            fence: self.fence.clone(),
        }
    }

    /// The next beacon: a message with the last sequence number on each subject.
    pub(crate) fn beacon(&mut self) -> JournalEntry {
        self.beacons += 1;
        JournalEntry {
            subject: self.beacon.clone(),
            body: self.source.beacon_body(&self.seqs).into(),
            delivery: self.numbered(0, self.beacons),
            fence: self.fence.clone(),
        }
    }

    /// Begins a new epoch, and starts the numbers again. The epoch is at least `epoch`, and later
    /// than the last one.
    pub(crate) fn begin_epoch(&mut self, epoch: u64) {
        self.source = Arc::new(self.source.renewed_in(epoch));
        self.seqs = Default::default();
        self.beacons = 0;
    }

    fn numbered(&self, renewed: u64, seq: u64) -> DeliveryMode {
        DeliveryMode::Numbered(SequenceNumber {
            source: Arc::clone(&self.source),
            renewed,
            seq,
        })
    }
}
