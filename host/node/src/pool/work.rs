//! The messages to shards: inputs, questions and tasks.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use bytestring::ByteString;
use presence_core::Input;
use presence_core::body::explain::ExplainReport;
use presence_core::directory::Question;
use presence_core::fleet::replica::Role;
use presence_core::names::Name;
use presence_core::query::Explain;
use presence_core::record::Record;
use presence_sandbox::Blueprint;
use roaring::RoaringBitmap;
use tokio::sync::oneshot;

use super::hosted_shard::HostedShard;
use crate::candidate::Pipelines;
use crate::link::shared_input::Receipt;
use crate::state::Restored;
use crate::state::position::StreamPlaces;
use crate::telemetry::OpenTrace;
use crate::tenant::ask::PendingQuery;

/// How many inputs a batch has at most.
pub(crate) const BATCH_MAX: usize = 256;

/// The size of an input in a lane, without the bytes of its message.
pub(super) const INPUT_BYTES: usize = size_of::<Input>();

/// The size of something in a lane, or the limit of a lane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// The number of messages.
    pub(crate) messages: usize,
    /// Their approximate size in bytes.
    pub(crate) bytes: usize,
}

impl Size {
    pub(super) fn plus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_add(other.messages),
            bytes: self.bytes.saturating_add(other.bytes),
        }
    }

    pub(super) fn minus(self, other: Self) -> Self {
        Self {
            messages: self.messages.saturating_sub(other.messages),
            bytes: self.bytes.saturating_sub(other.bytes),
        }
    }

    pub(super) fn fits(self, max: Self) -> bool {
        self.messages <= max.messages && self.bytes <= max.bytes
    }
}

/// Inputs, in the order of their arrival.
#[derive(Debug)]
pub(crate) struct Batch {
    /// When they arrived, in milliseconds of the host's clock.
    pub(crate) arrived_at: u64,
    /// The same time as an [`Instant`].
    pub(crate) arrived: Instant,
    pub(crate) inputs: Vec<Input>,
    /// The size of their messages, in bytes.
    pub(crate) bytes: usize,
    /// The traced inputs, by their indexes.
    pub(crate) traced: Vec<(usize, OpenTrace)>,
    /// The inputs' numbers in the input stream, if they come from it.
    pub(crate) places: Option<Box<StreamPlaces>>,
    /// In a fleet: the receipts of inputs that the owner must acknowledge, by the inputs' indexes.
    pub(crate) receipts: Vec<(usize, Receipt)>,
}

impl Batch {
    pub(crate) fn new(arrived_at: u64, inputs: Vec<Input>, bytes: usize) -> Self {
        Self {
            arrived_at,
            arrived: Instant::now(),
            inputs,
            bytes,
            traced: Vec::new(),
            places: None,
            receipts: Vec::new(),
        }
    }

    pub(super) fn size(&self) -> Size {
        Size {
            messages: self.inputs.len(),
            bytes: self.bytes + self.inputs.len() * INPUT_BYTES,
        }
    }
}

/// A question to a shard. Answering it doesn't change the shard's state.
pub(crate) enum ShardQuestion {
    /// Answer the piece with this number of a query.
    Query(Arc<PendingQuery>, usize),
    /// Explain why a viewer can or can't see a user. The answer has the number of the pipeline that
    /// decided.
    Explain(Explain, oneshot::Sender<(u64, ExplainReport)>),
    /// List a viewer's own contacts. If the directory's answer is missing, the error is the
    /// question.
    Contacts(ByteString, oneshot::Sender<Result<Vec<Name>, Question>>),
}

/// A pipeline and its generation number.
#[derive(Clone)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    pub(crate) blueprint: Arc<Blueprint>,
}

/// A task from the node itself. Tasks are done before waiting inputs.
pub(crate) enum Task {
    /// Place the shard on this thread. It is the first task of each shard.
    Place(Box<HostedShard>),
    /// An input that every shard gets.
    Input(Input),
    /// Use other pipelines.
    Pipelines(Pipelines),
    /// Restore these records, and report when it is done. The number is how long ago the node wrote
    /// them, in milliseconds.
    Restore(u64, Vec<Record>, oneshot::Sender<()>),
    /// The stored state of a shard that has failed.
    Restored(Restored),
    /// Report for each of these questions to the directory whether the shard still uses its answer.
    Uses(Arc<[Question]>, oneshot::Sender<Vec<bool>>),
    /// Report which ids are in use in this shard.
    Ids(oneshot::Sender<RoaringBitmap>),
    /// Begin to send beacons: the node serves its subjects from now on.
    Begin,
    /// A task of the fleet.
    Fleet(FleetTask),
    /// Finish everything before this task, hand it to the broker's client and to the state, and
    /// report when it is done. Do nothing after it.
    Stop(oneshot::Sender<()>),
    /// Remove the shard: nobody uses it.
    Discard,
    /// Panic at this step.
    #[cfg(test)]
    Panic(PanicPoint),
}

/// A task of the fleet for a shard.
pub(crate) enum FleetTask {
    /// Take this role.
    Role(Role),
    /// The node's lease was renewed, or has run out.
    Lease,
    /// The node's session is over.
    SessionLost,
    /// An update from the owner.
    Update(Bytes),
    /// A piece of a snapshot.
    Chunk(Bytes),
    /// A node asks for a snapshot. The number identifies its question.
    SnapshotRequest(Arc<str>, u64),
}

/// Where a shard can be made to panic.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanicPoint {
    /// At once.
    Turn,
    /// At its next question.
    Question,
    /// When it updates its figures.
    Figures,
    /// When its changes are handed to the state.
    Save,
    /// At its next beacon.
    Beacon,
    /// When its last changes are handed to the state.
    End,
}
