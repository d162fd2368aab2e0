//! A stay: what viewers are told about a user between the user's coming online and going offline,
//! in one run.

use std::sync::Arc;

use presence_core::names::Id;
use roaring::RoaringBitmap;
use serde_json::Value;

/// A message to a viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Delivery {
    /// When, in milliseconds since the Unix epoch.
    pub(super) at: u64,
    /// The message's `type`.
    pub(super) kind: Box<str>,
    pub(super) last_seen: Option<u64>,
    /// The metadata as JSON text.
    pub(super) metadata: Option<Box<str>>,
}

impl Delivery {
    /// The message as a JSON object, with the fields that it has.
    pub(super) fn object(&self) -> Value {
        let metadata = self.metadata.as_deref();
        let fields = [
            ("at", Some(self.at.into())),
            ("type", Some(Value::from(&*self.kind))),
            ("lastSeen", self.last_seen.map(Value::from)),
            (
                "metadata",
                metadata.and_then(|json| serde_json::from_str(json).ok()),
            ),
        ];
        let there = |(name, value): (&str, Option<Value>)| Some((name.to_owned(), value?));
        fields.into_iter().filter_map(there).collect()
    }
}

/// Viewers who have been told the same, and what they were told.
#[derive(Debug)]
struct Group {
    viewers: RoaringBitmap,
    deliveries: Vec<Arc<Delivery>>,
}

/// What viewers are told during one stay. There are usually few groups, so that the size hardly
/// depends on the number of viewers.
#[derive(Debug, Default)]
pub(super) struct OnlinePeriod {
    groups: Vec<Group>,
}

/// How two runs of the same stay differ.
#[derive(Debug, Default)]
pub(super) struct Difference {
    /// The viewers who are told something only in the new run.
    pub(super) gained: RoaringBitmap,
    /// The viewers who are told something only in the old run.
    pub(super) lost: RoaringBitmap,
    /// The viewers who are told something in both runs, but something else or at another time.
    pub(super) otherwise: RoaringBitmap,
    /// One viewer of `otherwise`, and the first message that differs: in the old run, and in the
    /// new one. `None`: the run has no further message.
    pub(super) sample: Option<(Id, [Option<Arc<Delivery>>; 2])>,
}

impl Difference {
    pub(super) fn is_empty(&self) -> bool {
        self.gained.is_empty() && self.lost.is_empty() && self.otherwise.is_empty()
    }
}

impl OnlinePeriod {
    /// Notes a message to some viewers.
    pub(super) fn add(&mut self, mut viewers: RoaringBitmap, delivery: &Arc<Delivery>) {
        let mut split = Vec::new();
        for group in &mut self.groups {
            let hit = &group.viewers & &viewers;
            if hit.is_empty() {
                continue;
            }
            viewers -= &hit;
            group.viewers -= &hit;
            let mut history = if group.viewers.is_empty() {
                std::mem::take(&mut group.deliveries)
            } else {
                group.deliveries.clone()
            };
            history.push(Arc::clone(delivery));
            split.push(Group {
                viewers: hit,
                deliveries: history,
            });
        }
        self.groups.retain(|group| !group.viewers.is_empty());
        self.groups.extend(split);
        if !viewers.is_empty() {
            let deliveries = vec![Arc::clone(delivery)];
            self.groups.push(Group {
                viewers,
                deliveries,
            });
        }
    }

    fn viewers(&self) -> RoaringBitmap {
        let groups = self.groups.iter().map(|group| &group.viewers);
        groups.fold(RoaringBitmap::new(), |all, viewers| all | viewers)
    }

    /// How the new run of a stay differs from the old one.
    pub(super) fn difference(old: &Self, new: &Self) -> Difference {
        let (before, after) = (old.viewers(), new.viewers());
        let mut difference = Difference {
            gained: &after - &before,
            lost: &before - &after,
            ..Difference::default()
        };
        for old in &old.groups {
            for new in new
                .groups
                .iter()
                .filter(|new| new.deliveries != old.deliveries)
            {
                let both = &old.viewers & &new.viewers;
                let first = difference.otherwise.min();
                if let Some(viewer) = both.min()
                    && first.is_none_or(|first| viewer < first)
                {
                    let same = old.deliveries.iter().zip(&new.deliveries);
                    let same = same.take_while(|(old, new)| old == new).count();
                    let at = |told: &[Arc<Delivery>]| told.get(same).cloned();
                    difference.sample =
                        Some((Id(viewer), [at(&old.deliveries), at(&new.deliveries)]));
                }
                difference.otherwise |= both;
            }
        }
        difference
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(at: u64, metadata: &str) -> Arc<Delivery> {
        Arc::new(Delivery {
            at,
            kind: "user_online".into(),
            last_seen: None,
            metadata: Some(metadata.into()),
        })
    }

    fn period(told: &[(&[u32], &Arc<Delivery>)]) -> OnlinePeriod {
        let mut period = OnlinePeriod::default();
        for (viewers, told) in told {
            period.add(viewers.iter().copied().collect(), told);
        }
        period
    }

    #[test]
    fn however_it_is_shared_out_over_messages_the_same_is_the_same() {
        let (came, went) = (told(1, "{}"), told(9, "{}"));
        let one = period(&[(&[1, 2, 3], &came), (&[1, 2, 3], &went)]);
        let many = period(&[
            (&[3], &came),
            (&[1, 2], &came),
            (&[2, 3], &went),
            (&[1], &went),
        ]);
        assert!(OnlinePeriod::difference(&one, &many).is_empty());
        assert!(
            OnlinePeriod::difference(&OnlinePeriod::default(), &OnlinePeriod::default()).is_empty()
        );
    }

    #[test]
    fn who_gains_who_loses_and_who_is_told_otherwise() {
        let (came, bare, late, went) = (
            told(1, "{\"d\":1}"),
            told(1, "{}"),
            told(5, "{}"),
            told(9, "{}"),
        );
        let old = period(&[(&[1, 2, 3, 4], &came), (&[1, 2, 3, 4], &went)]);
        let new = period(&[
            (&[2, 7], &came),
            (&[3], &bare),
            (&[4], &late),
            (&[2, 3, 4, 7], &went),
        ]);
        let difference = OnlinePeriod::difference(&old, &new);
        let ids = |set: &RoaringBitmap| set.iter().collect::<Vec<_>>();
        assert_eq!(ids(&difference.gained), [7]);
        assert_eq!(ids(&difference.lost), [1]);
        assert_eq!(ids(&difference.otherwise), [3, 4]);
        let (viewer, first) = difference.sample.unwrap();
        assert_eq!((viewer, first), (Id(3), [Some(came), Some(bare)]));
    }

    #[test]
    fn a_viewer_who_gets_only_some_messages_counts_as_different() {
        let (came, went) = (told(1, "{}"), told(9, "{}"));
        let old = period(&[(&[1], &came), (&[1], &went)]);
        let new = period(&[(&[1], &came)]);
        let difference = OnlinePeriod::difference(&old, &new);
        let (_, first) = difference.sample.unwrap();
        assert_eq!(first, [Some(went), None]);
    }
}
