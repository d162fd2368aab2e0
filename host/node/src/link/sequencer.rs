//! What a shard publishes, as it is counted: every shard of a node is a source of its own.

use std::sync::Arc;

use async_nats::Subject;
use presence_config::subjects::Source;
use presence_core::inbox::Delivery;
use presence_core::publish::{self, Publication};

use crate::link::journal::{Counting, EpochFence, JournalEntry, SequenceNumber};
use crate::link::shared_input::Receipt;

/// Numbers what a shard publishes.
#[derive(Debug)]
pub(crate) struct Sequencer {
    source: Arc<Source>,
    /// Its subjects as the client takes them, by [`publish::Subject`].
    subjects: [Subject; publish::Subject::ALL.len()],
    beacon: Subject,
    /// In a fleet, where the owner tells those who stand by.
    told: Option<Subject>,
    /// The last number on each subject, 0 for none.
    seqs: [u64; publish::Subject::ALL.len()],
    /// How many beacons there have been.
    beacons: u64,
    /// Whether there are beacons: nobody is told of an epoch that may come to nothing.
    pub(crate) has_begun: bool,
    /// In a fleet, for how long it may publish.
    fence: Option<Arc<EpochFence>>,
}

impl Sequencer {
    pub(crate) fn new(source: Source) -> Self {
        Self {
            subjects: publish::Subject::ALL.map(|subject| source.subject(subject).into()),
            beacon: source.beacon().into(),
            source: Arc::new(source),
            told: None,
            seqs: Default::default(),
            beacons: 0,
            has_begun: false,
            fence: None,
        }
    }

    /// Of a shard of a fleet, whose owner tells those who stand by on this subject.
    pub(crate) fn of_fleet(source: Source, told: String) -> Self {
        Self {
            told: Some(told.into()),
            ..Self::new(source)
        }
    }

    /// Counts anew in this epoch, as the shard's owner, for as long as the fence lets it.
    pub(crate) fn own(&mut self, epoch: u64, fence: Arc<EpochFence>) {
        self.source = Arc::new(self.source.owned_in(epoch));
        self.seqs = Default::default();
        self.beacons = 0;
        self.has_begun = true;
        self.fence = Some(fence);
    }

    /// What the owner tells those who stand by; nothing outside of a fleet.
    pub(crate) fn told(&self, body: Vec<u8>) -> Option<JournalEntry> {
        Some(JournalEntry {
            subject: self.told.clone()?,
            body: body.into(),
            counting: Counting::Unnumbered,
            fence: self.fence.clone(),
        })
    }

    /// Says to JetStream that a message has been handled, behind all that came of it.
    pub(crate) fn handled(&self, receipt: &Receipt) -> JournalEntry {
        JournalEntry::handled(receipt, self.fence.clone())
    }

    #[expect(
        clippy::indexing_slicing,
        reason = "there is one for every subject, in the order of their numbers"
    )]
    pub(crate) fn publication(&mut self, publication: Publication) -> JournalEntry {
        let Publication { subject, seq, body } = publication;
        // There is a place for every subject.
        if let Some(last) = self.seqs.get_mut(subject as usize) {
            *last = seq;
        }
        JournalEntry {
            subject: self.subjects[subject as usize].clone(),
            body,
            counting: self.counted(0, seq),
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
            counting: self.counted(renewed, seq),
            fence: self.fence.clone(),
        }
    }

    /// Says how far it has come.
    pub(crate) fn beacon(&mut self) -> JournalEntry {
        self.beacons += 1;
        JournalEntry {
            subject: self.beacon.clone(),
            body: self.source.beacon_body(&self.seqs).into(),
            counting: self.counted(0, self.beacons),
            fence: self.fence.clone(),
        }
    }

    /// Counts anew, in an epoch that is later than the last, and no earlier than this one.
    pub(crate) fn begin_epoch(&mut self, epoch: u64) {
        self.source = Arc::new(self.source.in_epoch(epoch));
        self.seqs = Default::default();
        self.beacons = 0;
    }

    fn counted(&self, renewed: u64, seq: u64) -> Counting {
        Counting::Numbered(SequenceNumber {
            source: Arc::clone(&self.source),
            renewed,
            seq,
        })
    }
}
