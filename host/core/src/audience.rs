//! Audiences: immutable, cheaply shared sets of viewers.
//!
//! A rule mostly hands on a set that the directory holds (a contact list), or
//! such a set less a few (whom the user has blocked, the user themselves). Both
//! are kept as that: a shared bitmap, and the few that are missing from it. So
//! their cost doesn't grow with the audience.

use std::sync::{Arc, LazyLock};

use roaring::RoaringBitmap;

use crate::names::Id;

/// How many may be missing from a shared bitmap before a bitmap of its own is
/// made. Small enough that looking through them is as fast as a look-up.
const WITHOUT_MAX: usize = 32;

static NOBODY: LazyLock<Arc<RoaringBitmap>> = LazyLock::new(Arc::default);

/// A set of viewers.
#[derive(Clone, Debug)]
pub struct Audience {
    base: Arc<RoaringBitmap>,
    /// Members of `base` that are not in the audience: sorted, never empty.
    without: Option<Arc<Vec<u32>>>,
}

impl Default for Audience {
    fn default() -> Self {
        Self::nobody()
    }
}

impl From<Arc<RoaringBitmap>> for Audience {
    fn from(base: Arc<RoaringBitmap>) -> Self {
        Self {
            base,
            without: None,
        }
    }
}

impl FromIterator<Id> for Audience {
    fn from_iter<I: IntoIterator<Item = Id>>(ids: I) -> Self {
        Self::from(Arc::new(
            ids.into_iter().map(|id| id.0).collect::<RoaringBitmap>(),
        ))
    }
}

impl PartialEq for Audience {
    fn eq(&self, other: &Self) -> bool {
        self.same(other) || (self.len() == other.len() && self.ids().eq(other.ids()))
    }
}

impl Eq for Audience {}

impl Audience {
    /// The empty audience.
    pub fn nobody() -> Self {
        Self::from(Arc::clone(&NOBODY))
    }

    /// How many are in it.
    pub fn len(&self) -> u64 {
        self.base.len() - self.missing().len() as u64
    }

    /// Whether nobody is in it.
    pub fn is_empty(&self) -> bool {
        self.base.is_empty() || (self.without.is_some() && self.len() == 0)
    }

    /// Whether a viewer is in it.
    pub fn contains(&self, id: Id) -> bool {
        self.base.contains(id.0) && self.missing().binary_search(&id.0).is_err()
    }

    /// Who is in it, in ascending order.
    pub fn ids(&self) -> impl Iterator<Item = Id> + '_ {
        let mut missing = self.missing().iter().peekable();
        self.base
            .iter()
            .filter(move |id| missing.next_if_eq(&id).is_none())
            .map(Id)
    }

    /// Who is in it, as a bitmap.
    pub fn bitmap(&self) -> RoaringBitmap {
        let mut bitmap = RoaringBitmap::clone(&self.base);
        for id in self.missing() {
            bitmap.remove(*id);
        }
        bitmap
    }

    /// Everyone in either.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if other.is_empty() || self.same(other) {
            return self.clone();
        }
        if self.is_empty() {
            return other.clone();
        }
        if Arc::ptr_eq(&self.base, &other.base) {
            let missing_in_both = |id: &&u32| other.missing().binary_search(id).is_ok();
            return self.with_missing(self.missing().iter().filter(missing_in_both).copied());
        }
        match (&self.without, &other.without) {
            (None, None) => Self::from(Arc::new(&*self.base | &*other.base)),
            _ => Self::from(Arc::new(self.bitmap() | other.bitmap())),
        }
    }

    /// Everyone in both.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return Self::nobody();
        }
        if Arc::ptr_eq(&self.base, &other.base) {
            let missing = self.missing().iter().chain(other.missing()).copied();
            return self.with_missing(missing);
        }
        if self.is_subset_of_whole(other) {
            return self.clone();
        }
        if other.is_subset_of_whole(self) {
            return other.clone();
        }
        match (&self.without, &other.without) {
            (None, None) => Self::from(Arc::new(&*self.base & &*other.base)),
            _ => Self::from(Arc::new(self.bitmap() & other.bitmap())),
        }
    }

    /// Everyone in this one who is not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return self.clone();
        }
        if Arc::ptr_eq(&self.base, &other.base) {
            if other.without.is_none() {
                return Self::nobody();
            }
            return other
                .missing()
                .iter()
                .map(|id| Id(*id))
                .filter(|id| self.contains(*id))
                .collect();
        }
        if other.base.len() <= WITHOUT_MAX as u64 {
            let removed: Vec<_> = other.ids().filter(|id| self.contains(*id)).collect();
            if removed.is_empty() {
                return self.clone();
            }
            let missing = self.missing().iter().copied();
            return self.with_missing(missing.chain(removed.into_iter().map(|id| id.0)));
        }
        if self.base.is_disjoint(&other.base) {
            return self.clone();
        }
        match (&self.without, &other.without) {
            (None, None) => Self::from(Arc::new(&*self.base - &*other.base)),
            _ => Self::from(Arc::new(self.bitmap() - other.bitmap())),
        }
    }

    /// Everyone but this one.
    #[must_use]
    pub fn without(&self, id: Id) -> Self {
        if self.contains(id) {
            self.with_missing(self.missing().iter().copied().chain([id.0]))
        } else {
            self.clone()
        }
    }

    /// Whether the two are one shared set, so that comparing costs nothing.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.base, &other.base) && self.missing() == other.missing()
    }

    /// Whether the two share their bitmap, so that this one takes no room of its own.
    pub fn shares(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.base, &other.base)
    }

    /// How many bytes it takes, about.
    pub fn bytes(&self) -> u64 {
        (self.base.serialized_size() + 4 * self.missing().len()) as u64
    }

    /// Whether everyone in this one is in the other.
    pub fn is_subset(&self, other: &Self) -> bool {
        if self.is_empty() || self.same(other) {
            return true;
        }
        if Arc::ptr_eq(&self.base, &other.base) {
            return other.missing().iter().all(|id| !self.contains(Id(*id)));
        }
        self.base.is_subset(&other.base) && other.missing().iter().all(|id| !self.contains(Id(*id)))
            || (self.without.is_some() && self.ids().all(|id| other.contains(id)))
    }

    /// What working through this set costs, in units of about one instruction:
    /// a step for each chunk of a dense set, or for each few members of a sparse one.
    pub fn work(&self) -> u64 {
        64 + self.base.len() / 16 + self.missing().len() as u64
    }

    fn missing(&self) -> &[u32] {
        self.without.as_deref().map_or(&[], Vec::as_slice)
    }

    /// A cheap sufficient test, for sets that are whole bitmaps.
    fn is_subset_of_whole(&self, other: &Self) -> bool {
        other.without.is_none() && self.base.is_subset(&other.base)
    }

    /// The base less these members of it.
    fn with_missing(&self, missing: impl Iterator<Item = u32>) -> Self {
        let mut missing: Vec<u32> = missing.collect();
        missing.sort_unstable();
        missing.dedup();
        if missing.len() <= WITHOUT_MAX {
            let without = (!missing.is_empty()).then(|| Arc::new(missing));
            return Self {
                base: Arc::clone(&self.base),
                without,
            };
        }
        let mut bitmap = RoaringBitmap::clone(&self.base);
        for id in missing {
            bitmap.remove(id);
        }
        Self::from(Arc::new(bitmap))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A set as the tests see it, and the same set reached by some history.
    #[derive(Clone, Debug)]
    struct Pair(BTreeSet<u32>, Audience);

    fn shared_base() -> Audience {
        static BASE: LazyLock<Audience> = LazyLock::new(|| (0..60).map(Id).collect());
        BASE.clone()
    }

    fn pair() -> impl Strategy<Value = Pair> {
        let own = prop::collection::btree_set(0_u32..80, 0..70)
            .prop_map(|set| Pair(set.clone(), set.into_iter().map(Id).collect()));
        let less_some = prop::collection::btree_set(0_u32..80, 0..50).prop_map(|removed| {
            let set = (0..60).filter(|id| !removed.contains(id)).collect();
            let audience = removed
                .iter()
                .fold(shared_base(), |base, id| base.without(Id(*id)));
            Pair(set, audience)
        });
        prop_oneof![own, less_some]
    }

    fn members(audience: &Audience) -> BTreeSet<u32> {
        audience.ids().map(|id| id.0).collect()
    }

    proptest! {
        #[test]
        fn sets_behave_as_sets(a in pair(), b in pair(), probe in 0_u32..80) {
            prop_assert_eq!(members(&a.1), a.0.clone());
            prop_assert_eq!(a.1.len(), a.0.len() as u64);
            prop_assert_eq!(a.1.is_empty(), a.0.is_empty());
            prop_assert_eq!(a.1.contains(Id(probe)), a.0.contains(&probe));
            prop_assert_eq!(members(&a.1.union(&b.1)), &a.0 | &b.0);
            prop_assert_eq!(members(&a.1.intersection(&b.1)), &a.0 & &b.0);
            prop_assert_eq!(members(&a.1.difference(&b.1)), &a.0 - &b.0);
            prop_assert_eq!(a.1.is_subset(&b.1), a.0.is_subset(&b.0));
            prop_assert_eq!(a.1 == b.1, a.0 == b.0);
            prop_assert_eq!(a.1.bitmap().iter().collect::<BTreeSet<_>>(), a.0);
        }
    }

    #[test]
    fn an_unchanged_operand_is_handed_on_rather_than_copied() {
        let contacts = shared_base();
        let strangers: Audience = (100..110).map(Id).collect();
        assert!(contacts.union(&Audience::nobody()).same(&contacts));
        assert!(Audience::nobody().union(&contacts).same(&contacts));
        assert!(contacts.difference(&strangers).same(&contacts));
        assert!(contacts.without(Id(1)).union(&contacts).same(&contacts));
        assert!(Arc::ptr_eq(&contacts.without(Id(1)).base, &contacts.base));
    }
}
