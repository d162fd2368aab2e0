//! Limits how many tenants start at a time, so that the first ones can be served before all others
//! have started.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::tasks::Tasks;

/// How many tenants start at a time.
const STARTING_MAX: usize = 64;

/// After this time a starting tenant gives up its place: it may be waiting for the broker or for
/// another node.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// The places for tenants that start.
pub(super) struct StartSlots(Arc<Semaphore>);

/// A tenant's place among the starting ones. It is free again once the tenant is served.
pub(super) struct StartSlot(Mutex<Option<oneshot::Sender<Infallible>>>);

impl StartSlots {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(STARTING_MAX)))
    }

    /// Waits for a place.
    pub(super) async fn acquire(&self, tasks: &Tasks) -> StartSlot {
        let permit = Arc::clone(&self.0).acquire_owned().await;
        let (given_back, over) = oneshot::channel();
        tasks.spawn_ending("start", async move {
            // Whether the time is over or the place was given back makes no difference.
            let _ = timeout(START_PATIENCE, over).await;
            drop(permit);
        });
        StartSlot(Mutex::new(Some(given_back)))
    }
}

impl StartSlot {
    /// The place of a single tenant, which needs none.
    pub(super) fn of_one() -> Self {
        Self(Mutex::default())
    }

    /// Gives back the place: the tenant is served.
    pub(super) fn give_back(&self) {
        let mut place = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(place.take());
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn few_tenants_start_at_a_time_and_one_that_waits_gives_its_place_away() {
        let (slots, (tasks, _faults)) = (StartSlots::new(), Tasks::new());
        let mut places = Vec::new();
        for _ in 0..STARTING_MAX {
            places.push(slots.acquire(&tasks).await);
        }
        assert!(
            slots.acquire(&tasks).now_or_never().is_none(),
            "there is no room"
        );
        // One tenant is served.
        places[0].give_back();
        slots.acquire(&tasks).await.give_back();
        // One tenant has ended.
        drop(places.pop());
        let _kept = slots.acquire(&tasks).await;
        // All of them wait for something else, until their time is over.
        for _ in 0..STARTING_MAX {
            places.push(slots.acquire(&tasks).await);
        }
    }
}
