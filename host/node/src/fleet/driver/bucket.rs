//! Whether the fleet's bucket is still the one that the node joined by, and says what all nodes have in
//! common.

use futures_util::future::FutureExt as _;
use presence_config::causes::Causes;

use super::{Done, Driver};

impl Driver {
    /// In a bucket that was made anew, nothing is as this node knows it.
    pub(super) fn is_same(&mut self, same: Option<bool>) {
        self.is_checking = false;
        if same == Some(false) {
            // There is nobody to hand its shards over to, and nothing that it may publish.
            self.fleet.is_lost();
            self.tasks.fail(
                "the fleet's bucket was removed, or made anew: this node stops in order, and joins \
                 anew when it starts again"
                    .into(),
            );
        }
    }

    /// Looks whether the bucket is still there, if it isn't reached.
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
        let same = async move { Done::IsSame(bucket.is_same().await) };
        self.under_way.push(same.boxed());
    }

    /// Has it say what all nodes have in common, by which others can join.
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
            Done::Sent
        };
        self.under_way.push(kept.boxed());
    }
}
