//! The tracker's settings, and what comes of its inputs.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::connection::CloseOrder;
use super::damping::Damping;
use crate::quota::Quota;

/// The tracker's settings. They may change while it runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrackerSettings {
    /// How long a connection lives without a sign of life. A close is
    /// remembered for twice as long.
    pub timeout_ms: u64,
    /// How long a user whose last connection was closed stays online, waiting
    /// for a reconnect. It is not granted to a connection that timed out.
    pub grace_ms: u64,
    /// For how long after a close has arrived messages of the connection may still arrive out of
    /// order. During this time, a message that is older than the close is stale.
    pub reorder_ms: u64,
    /// Whether a message with the timestamp of the close counts as sent before it. Set where the
    /// messages of a connection take several ways, so that their order of arrival says nothing.
    /// Otherwise the order of arrival breaks the tie.
    pub ties_close: bool,
    /// Whether a further connection is shown as soon as it is opened. Otherwise the user's shown
    /// connection stays until it ends.
    pub shows_newest: bool,
    /// How many live connections a user may have; a further one is refused. Also how many closes
    /// are remembered per user.
    pub connections_per_user_max: usize,
    /// How many closes are remembered, over all users.
    pub closes_max: usize,
    /// How users who go offline again and again are damped.
    pub damping: Damping,
    /// The longest step of the receive clock per `received_up_to`, in milliseconds. `None`: the
    /// host never misses a message, and makes no such reports.
    pub receive_step_ms: Option<u64>,
}

impl TrackerSettings {
    /// How a connection's messages are ordered around its close. A connection without an id is a
    /// placeholder that receives no messages: this host opens and closes it, and the order of these
    /// calls counts.
    pub(super) fn order(&self, conn: &str) -> CloseOrder {
        CloseOrder {
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
// Records store the index of a variant: a new variant comes last.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reason {
    /// The connection was closed.
    Disconnect,
    /// The connection fell silent.
    Timeout,
    /// The user logged out.
    Logout,
}

/// The result of an input.
#[derive(Debug, PartialEq, Eq)]
pub struct InputResult<M> {
    /// What the input did to its connection.
    pub effect: Effect,
    /// The change of its user's presence, if there is one.
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
    /// It was live, and is closed now.
    Closed,
    /// It was not live. Its close was noted, or replaced an older one.
    Remembered,
    /// Nothing: what is known of the connection is newer than the input.
    Stale,
    /// Nothing: a quota would have been exceeded.
    Refused(Quota),
}

/// A change of a user's presence. The transitions of one user alternate, beginning with an online.
/// All times are in milliseconds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Transition<M> {
    /// The user's first live connection appeared.
    Online {
        /// The user.
        user: Arc<str>,
        /// When, by the stamp that is written into bodies.
        at: u64,
        /// The connection that brought the user online.
        conn: Arc<str>,
        /// That connection's metadata.
        metadata: M,
    },
    /// The user's last connection is gone, and its grace is over.
    Offline {
        /// The user.
        user: Arc<str>,
        /// When, by the stamp that is written into bodies.
        at: u64,
        /// The newest timestamp in any message of the user's connections.
        last_seen: u64,
        /// The reason.
        reason: Reason,
        /// If the tracker itself timed the last connection out: the newest timestamp in any message
        /// of that connection. `None` if a transport reported the end, even as a timeout: the
        /// transport's figures aren't known here.
        last_heartbeat: Option<u64>,
    },
}
