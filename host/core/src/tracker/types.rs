//! What the tracker is told and what it answers.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::connection::Order;
use super::damping::Damping;
use crate::quota::Quota;

/// The tracker's figures. They may change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackerSettings {
    /// How long a connection lives without a sign of life. A close is
    /// remembered for twice as long.
    pub timeout_ms: u64,
    /// How long a user whose last connection was closed stays online, waiting
    /// for a reconnect. It is not granted to a connection that timed out.
    pub grace_ms: u64,
    /// How long after a close, by arrival, messages of the connection may come in
    /// another order than they were sent in. For so long what is older than the close
    /// is late.
    pub reorder_ms: u64,
    /// Whether a message as old as a close was sent before it: where messages of a connection come
    /// on different ways, so that which of them arrives first says nothing. Else a tie goes by
    /// arrival.
    pub ties_close: bool,
    /// Whether a user is shown by a further connection as soon as it is opened. Else
    /// they go on being shown by the one before, until that goes.
    pub shows_newest: bool,
    /// How many live connections a user may have; what would be one more is refused. So
    /// many closes of a user are remembered, too.
    pub connections_per_user_max: usize,
    /// How many closes are remembered, of all users.
    pub closes_max: usize,
    /// How users are damped who go offline again and again.
    pub damping: Damping,
    /// The longest step of the receive clock per `received_up_to`, in milliseconds; none if
    /// the host never misses a message and makes no such reports.
    pub receive_step_ms: Option<u64>,
}

impl TrackerSettings {
    /// How messages of a connection are ordered about its close. One without an id, which stands
    /// for others, has no messages: it is opened and closed by what happens here, in its order.
    pub(super) fn order(&self, conn: &str) -> Order {
        Order {
            reorder_ms: self.reorder_ms,
            ties_close: self.ties_close && !conn.is_empty(),
        }
    }
}

impl Default for TrackerSettings {
    fn default() -> Self {
        Self {
            timeout_ms: 30_000,
            grace_ms: 0,
            reorder_ms: 2_000,
            ties_close: false,
            shows_newest: true,
            connections_per_user_max: 256,
            closes_max: 1_000_000,
            damping: Damping::default(),
            receive_step_ms: None,
        }
    }
}

/// Why a connection was closed, and why a user went offline.
// Records hold it by its place: what is added comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The connection was closed.
    Disconnect,
    /// The connection fell silent.
    Timeout,
    /// The user logged out.
    Logout,
}

/// What became of an input.
#[derive(Debug, PartialEq, Eq)]
pub struct InputResult<M> {
    /// What it did to its connection.
    pub effect: Effect,
    /// What it did to its user, if anything.
    pub transition: Option<Transition<M>>,
}

impl<M> From<Effect> for InputResult<M> {
    /// An input that changes no user's presence.
    fn from(effect: Effect) -> Self {
        Self {
            effect,
            transition: None,
        }
    }
}

/// What an input did to its connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// A connect made it live.
    Opened,
    /// A heartbeat made it live.
    Adopted,
    /// It was live, and its lease started again.
    Renewed,
    /// It was live, and is closed.
    Closed,
    /// It was not live. Its close was noted, or replaced an older one.
    Remembered,
    /// Nothing: the input was overtaken by what is known of the connection.
    Stale,
    /// Nothing: a quota would have been exceeded.
    Refused(Quota),
}

/// A change of a user's presence. Those of one user alternate, beginning with
/// an online. All times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition<M> {
    /// The user's first live connection appeared.
    Online {
        /// Whose.
        user: Arc<str>,
        /// When, as it is written into bodies.
        at: u64,
        /// The connection that did it.
        conn: Arc<str>,
        /// That connection's metadata.
        metadata: M,
    },
    /// The user's last connection is gone, and its grace is over.
    Offline {
        /// Whose.
        user: Arc<str>,
        /// When, as it is written into bodies.
        at: u64,
        /// The newest timestamp in any message of the user's connections.
        last_seen: u64,
        /// Why.
        reason: Reason,
        /// Where the tracker itself judged the last connection dead: the newest
        /// timestamp in any message of that connection. Not where a transport
        /// reported the timeout, since its figures aren't known here.
        last_heartbeat: Option<u64>,
    },
}
