//! Who went offline, so that a viewer who may know can be told since when.
//!
//! The last so many departures are remembered, each in a few dozen bytes: the
//! oldest is forgotten for the newest. A user who has come back is still in here;
//! the ledger says that they are online.

use std::sync::Arc;

use hashbrown::HashMap;
use roaring::RoaringBitmap;

use crate::directory::Changes;
use crate::event::{Change, Event};
use crate::metadata::Metadata;
use crate::names::{Id, Names};
use crate::rules::{Reads, Rendition};
use crate::tracker::Reason;
use crate::verdicts::{Verdict, Verdicts};

/// A departure, as it was announced.
#[derive(Debug)]
struct Departure {
    user: Id,
    reason: Reason,
    timestamp: u64,
    last_seen: u64,
    metadata: Metadata,
}

/// The last departures of one worker's users.
#[derive(Debug)]
pub struct Departed {
    departures_max: usize,
    /// A ring, once it is full.
    departures: Vec<Departure>,
    /// Where the next one goes in the ring.
    next: usize,
    /// Where each user's last departure is.
    places: HashMap<Id, u32, foldhash::fast::FixedState>,
    /// What was decided on them, for as long as they are the users' last.
    verdicts: Verdicts,
}

impl Departed {
    /// A memory of so many departures.
    pub fn new(departures_max: usize) -> Self {
        Self {
            departures_max: departures_max.min(u32::MAX as usize),
            departures: Vec::new(),
            next: 0,
            places: HashMap::default(),
            verdicts: Verdicts::default(),
        }
    }

    /// Remembers more or fewer departures from here on: of too many, the newest.
    pub fn resize(&mut self, departures_max: usize) {
        if departures_max == self.departures_max {
            return;
        }
        let before = std::mem::replace(self, Self::new(departures_max));
        let (mut newer, mut older) = (before.departures, Vec::new());
        // Once the ring is full, the oldest is where the next one would go.
        if newer.len() == before.departures_max {
            older = newer.split_off(before.next.min(newer.len()));
        }
        for departure in older.into_iter().chain(newer) {
            self.insert(departure);
        }
    }

    /// Remembers an offline event.
    pub fn note(&mut self, event: &Event) {
        let Change::Offline { last_seen, reason } = event.change else {
            return;
        };
        self.insert(Departure {
            user: event.user,
            reason,
            timestamp: event.timestamp,
            last_seen,
            metadata: event.metadata.clone(),
        });
    }

    /// A user's last departure.
    pub fn event(&self, user: Id, names: &Names) -> Option<Event> {
        let place = *self.places.get(&user)? as usize;
        let departure = self.departures.get(place)?;
        Some(Event {
            user,
            name: names.name(user)?,
            timestamp: departure.timestamp,
            change: Change::Offline {
                last_seen: departure.last_seen,
                reason: departure.reason,
            },
            metadata: departure.metadata.clone(),
        })
    }

    /// What was decided on a user's last departure, if it still holds.
    pub fn verdict(&self, wall: u64, event: &Event) -> Option<Arc<Verdict>> {
        self.verdicts.find(wall, event).map(|(verdict, _)| verdict)
    }

    /// Keeps what was decided on a user's last departure.
    pub fn keep(
        &mut self,
        now: u64,
        event: &Event,
        renditions: Vec<Rendition>,
        mut reads: Reads,
    ) -> Arc<Verdict> {
        let verdict = Arc::new(Verdict::new(event.user, renditions));
        // They are the same for as long as the verdict is kept.
        reads.timestamp = false;
        reads.all_metadata = false;
        self.verdicts.keep(now, event, Arc::clone(&verdict), reads);
        verdict
    }

    /// The directory has changed: what read it is decided again when it is asked for.
    pub fn directory_changed(&mut self, changes: &Changes) {
        if self.verdicts.is_empty() {
            return;
        }
        for user in self.verdicts.affected(changes) {
            self.verdicts.forget(user);
        }
    }

    /// The wall clock has moved: what read it is decided again when it is asked for.
    pub fn clock_moved(&mut self) {
        for user in self.verdicts.time_readers() {
            self.verdicts.forget(user);
        }
    }

    /// The rules have changed: everything is decided again when it is asked for.
    pub fn rules_changed(&mut self) {
        self.verdicts.rules_changed();
    }

    /// All the numbers of ids in here.
    pub fn ids(&self) -> RoaringBitmap {
        let users = self.places.keys().map(|user| user.0);
        users.collect::<RoaringBitmap>() | self.verdicts.ids()
    }

    fn insert(&mut self, departure: Departure) {
        if self.departures_max == 0 {
            return;
        }
        let (user, place) = (departure.user, self.next);
        match self.departures.get_mut(place) {
            None => self.departures.push(departure),
            Some(slot) => {
                let oldest = std::mem::replace(slot, departure).user;
                if self
                    .places
                    .get(&oldest)
                    .is_some_and(|at| *at as usize == place)
                {
                    self.places.remove(&oldest);
                    self.verdicts.forget(oldest);
                }
            }
        }
        self.next = (place + 1) % self.departures_max;
        // There are no more places than a u32 has numbers.
        self.places.insert(user, place as u32);
        self.verdicts.forget(user);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offline(names: &Names, user: &str, at: u64) -> Event {
        let (user, name) = names.intern_name(user);
        Event {
            user,
            name,
            timestamp: at,
            change: Change::Offline {
                last_seen: at - 1,
                reason: Reason::Timeout,
            },
            metadata: Metadata::parse(r#"{"timeoutDuration":5}"#, |_| true),
        }
    }

    fn remembered(departed: &Departed, names: &Names) -> Vec<(String, u64)> {
        let mut ids: Vec<_> = departed.ids().into_iter().map(Id).collect();
        ids.sort_unstable();
        let events = ids.into_iter().filter_map(|id| departed.event(id, names));
        events
            .map(|event| (event.name.as_str().to_owned(), event.timestamp))
            .collect()
    }

    fn pairs(pairs: &[(&str, u64)]) -> Vec<(String, u64)> {
        pairs
            .iter()
            .map(|(user, at)| ((*user).into(), *at))
            .collect()
    }

    #[test]
    fn the_last_departure_of_a_user_is_remembered_as_announced() {
        let names = Names::new();
        let mut departed = Departed::new(10);
        let event = offline(&names, "a", 7);
        departed.note(&event);
        let found = departed.event(event.user, &names).unwrap();
        assert_eq!(
            (found.timestamp, found.change, found.metadata),
            (7, event.change, event.metadata)
        );
        departed.note(&offline(&names, "a", 9));
        assert_eq!(remembered(&departed, &names), pairs(&[("a", 9)]));
    }

    #[test]
    fn what_was_decided_holds_for_that_departure_alone() {
        let names = Names::new();
        let mut departed = Departed::new(2);
        let first = offline(&names, "a", 7);
        departed.note(&first);
        let reads = Reads {
            timestamp: true,
            ..Reads::default()
        };
        departed.keep(8, &first, Vec::new(), reads);
        assert!(departed.verdict(8, &first).is_some());
        let second = offline(&names, "a", 9);
        departed.note(&second);
        assert!(departed.verdict(9, &second).is_none());
        departed.keep(9, &second, Vec::new(), Reads::default());
        for user in ["b", "c"] {
            departed.note(&offline(&names, user, 10));
        }
        assert!(departed.verdict(10, &second).is_none(), "it is forgotten");
    }

    #[test]
    fn the_oldest_departures_are_forgotten_for_the_newest() {
        let names = Names::new();
        let mut departed = Departed::new(3);
        for (user, at) in [("a", 1), ("b", 2), ("c", 3), ("a", 4), ("d", 5)] {
            departed.note(&offline(&names, user, at));
        }
        assert_eq!(
            remembered(&departed, &names),
            pairs(&[("a", 4), ("c", 3), ("d", 5)])
        );
        departed.resize(2);
        assert_eq!(remembered(&departed, &names), pairs(&[("a", 4), ("d", 5)]));
        departed.resize(3);
        departed.note(&offline(&names, "b", 6));
        departed.note(&offline(&names, "c", 7));
        assert_eq!(
            remembered(&departed, &names),
            pairs(&[("b", 6), ("c", 7), ("d", 5)])
        );
        departed.resize(0);
        departed.note(&offline(&names, "b", 8));
        assert_eq!(remembered(&departed, &names), []);
    }
}
