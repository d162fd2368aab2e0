//! Where workers wait for each other: of a correction, nobody gains sight of anyone
//! before all who lose it have been told, by whichever worker.

use std::iter;

use tokio::sync::watch;

/// A worker's place at the barrier. Corrections are counted by the shards.
///
/// A worker that hasn't been handed a correction yet hasn't told its losses, so that
/// the others wait for it as well. One that is gone is waited for, too: it goes only
/// with the node.
#[derive(Debug)]
pub(crate) struct Barrier {
    place: usize,
    /// What this one said last.
    last: u64,
    /// Up to which correction each of them has told all losses.
    told: watch::Sender<Vec<u64>>,
    seen: watch::Receiver<Vec<u64>>,
}

/// A place for each of so many workers.
pub(crate) fn places(workers: usize) -> impl Iterator<Item = Barrier> {
    let told = watch::Sender::new(vec![0; workers]);
    let places = iter::repeat_n(told, workers).enumerate();
    places.map(|(place, told)| Barrier {
        place,
        last: 0,
        seen: told.subscribe(),
        told,
    })
}

impl Barrier {
    /// Says up to which correction this worker has told all losses.
    pub(crate) fn tell(&mut self, correction: u64) {
        if std::mem::replace(&mut self.last, correction) == correction {
            return;
        }
        self.told.send_if_modified(|told| {
            let before = slowest(told);
            if let Some(own) = told.get_mut(self.place) {
                *own = correction;
            }
            slowest(told) != before
        });
    }

    /// Up to which correction all workers have told all losses.
    pub(crate) fn told(&mut self) -> u64 {
        slowest(&self.seen.borrow_and_update())
    }

    /// Waits until they have got further than when [`Self::told`] was last asked.
    pub(crate) async fn moved(&mut self) {
        // It can't fail: this worker could tell of it.
        let _ = self.seen.changed().await;
    }
}

fn slowest(told: &[u64]) -> u64 {
    told.iter().copied().min().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn it_moves_with_the_slowest_and_nobody_sleeps_through_it() {
        let mut places: Vec<_> = places(3).collect();
        for place in [0, 1] {
            places[place].tell(2);
            places[place].tell(2);
        }
        assert_eq!(places[0].told(), 0);
        let seen = &places[0].seen;
        assert!(!seen.has_changed().unwrap(), "nobody is woken for nothing");
        places[2].tell(1);
        for place in &mut places {
            place.moved().await;
            assert_eq!(place.told(), 1);
        }
        let mut others = places.split_off(1);
        let waiting = tokio::spawn(async move {
            places[0].moved().await;
            places[0].told()
        });
        tokio::task::yield_now().await;
        others[1].tell(3);
        assert_eq!(waiting.await.unwrap(), 2);
    }
}
