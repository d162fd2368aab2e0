//! What shards are given to do.

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
use crate::beside::Pipelines;
use crate::link::shared_input::Receipt;
use crate::state::Restored;
use crate::state::position::StreamPlaces;
use crate::telemetry::Begun;
use crate::tenant::ask::PendingQuery;

/// How many inputs a batch has at most.
pub(crate) const BATCH_MAX: usize = 256;

/// What an input takes of a lane beside the bytes of its message.
pub(super) const INPUT_BYTES: usize = size_of::<Input>();

/// How much something takes of a lane, or how much a lane holds at most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Size {
    /// Messages.
    pub(crate) messages: usize,
    /// What they hold, more or less.
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
    /// When they arrived.
    pub(crate) arrived_at: u64,
    /// The same to the nanosecond.
    pub(crate) arrived: Instant,
    pub(crate) inputs: Vec<Input>,
    /// What they hold, in bytes.
    pub(crate) bytes: usize,
    /// Those of them that are traced, by their places.
    pub(crate) traced: Vec<(usize, Begun)>,
    /// Where they stand in the input stream, if they are of it.
    pub(crate) places: Option<Box<StreamPlaces>>,
    /// In a fleet, those of them that the owner is to acknowledge, by their places.
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

/// What a shard is asked. It changes nothing that the shard knows.
pub(crate) enum ShardQuestion {
    /// Answer a piece of a query.
    Query(Arc<PendingQuery>, usize),
    /// Explain why a viewer can or can't see a user. Answered with the generation
    /// of the pipeline that decided.
    Explain(Explain, oneshot::Sender<(u64, ExplainReport)>),
    /// Say who a viewer's own contacts are.
    Contacts(ByteString, oneshot::Sender<Result<Vec<Name>, Question>>),
}

/// A pipeline and its number.
#[derive(Clone)]
pub(crate) struct Generation {
    pub(crate) number: u64,
    pub(crate) blueprint: Arc<Blueprint>,
}

/// What a shard is told by the node itself. It comes before inputs that wait.
#[expect(clippy::large_enum_variant, reason = "it waits in a box itself")]
pub(crate) enum Task {
    /// Be on this thread from now on: it is the first that a shard is told.
    Place(Box<HostedShard>),
    /// Something that all shards are told.
    Input(Input),
    /// Other pipelines.
    Pipelines(Pipelines),
    /// Restore these records, which the node wrote so many milliseconds ago, and report
    /// when that is done.
    Restore(u64, Vec<Record>, oneshot::Sender<()>),
    /// This was stored when the shard failed.
    Restored(Restored),
    /// Say for each of these answers of the directory whether this shard still uses it.
    Uses(Arc<[Question]>, oneshot::Sender<Vec<bool>>),
    /// Say which ids are in use here.
    Ids(oneshot::Sender<RoaringBitmap>),
    /// The node serves its subjects from now on: say so.
    Begin,
    /// Take part in the fleet.
    Fleet(FleetTask),
    /// Say when all before this has been done, and handed to the broker's client
    /// and to the state; do nothing after it.
    Stop(oneshot::Sender<()>),
    /// Be gone: nobody has any use for the shard.
    Discard,
    /// Panic, at this step of what comes next.
    #[cfg(test)]
    Panic(PanicPoint),
}

/// What a shard is told of the fleet.
pub(crate) enum FleetTask {
    /// The node's part in it.
    Role(Role),
    /// The node may rely on its lease again, or not any more.
    Lease,
    /// The node's session is over.
    SessionLost,
    /// What the owner told.
    Told(Bytes),
    /// A piece of a snapshot.
    Chunk(Bytes),
    /// A node asks for a snapshot, by a question of this number.
    Asked(Arc<str>, u64),
}

/// Where a shard can be made to panic.
#[cfg(test)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PanicPoint {
    /// At once.
    Turn,
    /// At its next question.
    Question,
    /// Where it tells its figures.
    Figures,
    /// Where its changes are handed to the state.
    Save,
    /// At its next beacon.
    Beacon,
    /// Where its last changes are handed to the state.
    End,
}
