//! Checks that the fleet's bucket is still the one that the node joined, and that it holds the
//! shared settings of all nodes.

use futures_util::future::FutureExt as _;
use presence_config::causes::Causes;

use super::{Completion, Driver};

impl Driver {
    /// Ends the node's part in the fleet if the bucket was made anew: the node's revisions and
    /// leases mean nothing there.
    pub(super) fn on_checked(&mut self, same: Option<bool>) {
        self.is_checking = false;
        if same == Some(false) {
            // Nobody is left to hand the shards over to, and the node may publish nothing more.
            self.fleet.lose_bucket();
            self.tasks.fail(
                "the fleet's bucket was removed, or made anew: this node stops in order, and joins \
                 anew when it starts again"
                    .into(),
            );
        }
    }

    /// Checks whether the bucket still exists, if the node hasn't reached it for a lease's time.
    pub(super) fn check_bucket(&mut self, now: u64) {
        let lease_ms = self.fleet.settings.lease_ms;
        if self.fleet.is_in_touch() {
            self.check_at = now + lease_ms;
        }
        if now < self.check_at || self.is_checking || self.broker.disconnected().is_some() {
            return;
        }
        self.check_at = now + lease_ms;
        self.is_checking = true;
        let bucket = self.bucket.clone();
        let same = async move { Completion::IsSame(bucket.is_same().await) };
        self.under_way.push(same.boxed());
    }

    /// Writes the shared settings of all nodes into the bucket again if they are missing or differ.
    /// Nodes that join read them.
    pub(super) fn keep_layout(&mut self) {
        let (bucket, layout) = (self.bucket.clone(), self.layout);
        let kept = async move {
            match bucket.keep_layout(&layout).await {
                Ok(true) => tracing::warn!(
                    "the fleet's bucket had lost its key `config`, or it said something else than when \
                     this node joined: it is written again"
                ),
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!("can't write the bucket's `config`: {}", Causes(&error))
                }
            }
            Completion::Sent
        };
        self.under_way.push(kept.boxed());
    }
}
