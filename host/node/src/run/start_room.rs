//! Room for tenants that start: a few at a time, so that those that are served already needn't
//! wait for all others.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, oneshot};
use tokio::time::timeout;

use crate::tasks::Tasks;

/// How many tenants start at a time.
const STARTING_MAX: usize = 64;

/// After what time a tenant that starts gives its place to another: it may wait for the broker, or
/// for another node.
const START_PATIENCE: Duration = Duration::from_secs(2);

/// Room for tenants that start.
pub(super) struct StartRoom(Arc<Semaphore>);

/// A tenant's place among those that start, until it is served.
pub(super) struct StartPlace(Mutex<Option<oneshot::Sender<Infallible>>>);

impl StartRoom {
    pub(super) fn new() -> Self {
        Self(Arc::new(Semaphore::new(STARTING_MAX)))
    }

    /// Waits for a place.
    pub(super) async fn place(&self, tasks: &Tasks) -> StartPlace {
        let permit = Arc::clone(&self.0).acquire_owned().await;
        let (given_back, over) = oneshot::channel();
        tasks.spawn_ending("start", async move {
            // It makes no difference which.
            let _ = timeout(START_PATIENCE, over).await;
            drop(permit);
        });
        StartPlace(Mutex::new(Some(given_back)))
    }
}

impl StartPlace {
    /// Of a tenant that is alone.
    pub(super) fn of_one() -> Self {
        Self(Mutex::default())
    }

    /// It is served.
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
        let (room, (tasks, _faults)) = (StartRoom::new(), Tasks::new());
        let mut places = Vec::new();
        for _ in 0..STARTING_MAX {
            places.push(room.place(&tasks).await);
        }
        assert!(
            room.place(&tasks).now_or_never().is_none(),
            "there is no room"
        );
        // One is served.
        places[0].give_back();
        room.place(&tasks).await.give_back();
        // One has ended.
        drop(places.pop());
        let _kept = room.place(&tasks).await;
        // All of them wait for something else.
        for _ in 0..STARTING_MAX {
            places.push(room.place(&tasks).await);
        }
    }
}
