//! Audiences: immutable, cheaply shared sets of viewers.
//!
//! A rule mostly returns a set that the directory holds (a contact list, a group), or such a set
//! with a few viewers added (the user's own contacts) or removed (those whom the user has blocked,
//! the user themselves). Both are stored as a shared bitmap and the few ids by which the audience
//! differs from it. So their cost doesn't grow with the audience: everyone in a group of a million
//! has the same bitmap.

use std::cell::RefCell;
use std::collections::HashSet;
use std::sync::{Arc, LazyLock, Weak};

use roaring::RoaringBitmap;

use crate::names::Id;

mod ids;

pub use ids::{CHUNK, Ids};

/// The maximum number of ids by which an audience may differ from a shared bitmap, in each
/// direction. Beyond it, the audience gets a bitmap of its own. It is small enough that a linear
/// search is as fast as a look-up.
const FEW: usize = 32;

/// The minimum size of a bitmap that is worth sharing when a few ids are added to it.
const MANY: u64 = 1_024;

static NOBODY: LazyLock<Arc<RoaringBitmap>> = LazyLock::new(Arc::default);

/// A set of viewers.
#[derive(Clone, Debug)]
pub struct Audience {
    base: Arc<RoaringBitmap>,
    /// The users by which the audience differs from `base`. `None` if it equals `base`.
    diff: Option<Arc<SmallDiff>>,
}

/// The few users by which an audience differs from a bitmap, in ascending order.
#[derive(Debug, PartialEq, Eq)]
struct SmallDiff {
    /// Members of the bitmap that are not in the audience.
    missing: Vec<u32>,
    /// Users in the audience who are not members of the bitmap.
    added: Vec<u32>,
}

impl Default for Audience {
    fn default() -> Self {
        Self::nobody()
    }
}

impl From<Arc<RoaringBitmap>> for Audience {
    fn from(base: Arc<RoaringBitmap>) -> Self {
        Self { base, diff: None }
    }
}

impl From<RoaringBitmap> for Audience {
    fn from(bitmap: RoaringBitmap) -> Self {
        Self::from(Arc::new(bitmap))
    }
}

impl FromIterator<Id> for Audience {
    fn from_iter<I: IntoIterator<Item = Id>>(ids: I) -> Self {
        Self::from(ids.into_iter().map(|id| id.0).collect::<RoaringBitmap>())
    }
}

impl PartialEq for Audience {
    fn eq(&self, other: &Self) -> bool {
        self.same(other) || (self.len() == other.len() && self.is_subset(other))
    }
}

impl Eq for Audience {}

impl Audience {
    /// The empty audience.
    pub fn nobody() -> Self {
        Self::from(Arc::clone(&NOBODY))
    }

    /// The number of viewers.
    pub fn len(&self) -> u64 {
        self.base.len() - self.missing().len() as u64 + self.added().len() as u64
    }

    /// Whether the audience is empty.
    pub fn is_empty(&self) -> bool {
        match self.diff {
            None => self.base.is_empty(),
            Some(_) => self.len() == 0,
        }
    }

    /// Whether a viewer is in the audience.
    pub fn contains(&self, id: Id) -> bool {
        if self.base.contains(id.0) {
            self.missing().binary_search(&id.0).is_err()
        } else {
            self.added().binary_search(&id.0).is_ok()
        }
    }

    /// The viewers, in ascending order.
    pub fn ids(&self) -> Ids<'_> {
        Ids::new(&self.base, self.missing(), self.added())
    }

    /// The viewers, as a bitmap.
    pub fn bitmap(&self) -> RoaringBitmap {
        let mut bitmap = RoaringBitmap::clone(&self.base);
        for id in self.missing() {
            bitmap.remove(*id);
        }
        bitmap.extend(self.added());
        bitmap
    }

    /// The viewers in either audience.
    #[must_use]
    pub fn union(&self, other: &Self) -> Self {
        if other.is_empty() || self.same(other) {
            return self.clone();
        }
        if self.is_empty() {
            return other.clone();
        }
        if Arc::ptr_eq(&self.base, &other.base) {
            let missing = self.missing().iter().copied();
            let missing = missing.filter(|id| other.missing().binary_search(id).is_ok());
            let added = self.added().iter().chain(other.added()).copied();
            return self.differing_by(missing.collect(), added.collect());
        }
        for (many, few) in [(self, other), (other, self)] {
            if many.base.len() >= MANY && few.len() <= FEW as u64 {
                return many.with(few);
            }
        }
        let mut both = &*self.base | &*other.base;
        for (one, other) in [(self, other), (other, self)] {
            for id in one.missing().iter().filter(|id| !other.contains(Id(**id))) {
                both.remove(*id);
            }
            both.extend(one.added());
        }
        both.into()
    }

    /// The viewers in both audiences.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return Self::nobody();
        }
        if self.same(other) {
            return self.clone();
        }
        if Arc::ptr_eq(&self.base, &other.base) {
            let missing = self.missing().iter().chain(other.missing()).copied();
            let added = self.added().iter().copied();
            let added = added.filter(|id| other.added().binary_search(id).is_ok());
            return self.differing_by(missing.collect(), added.collect());
        }
        for (one, other) in [(self, other), (other, self)] {
            if one.len() <= other.len() && one.is_subset(other) {
                return one.clone();
            }
        }
        for (few, other) in [(self, other), (other, self)] {
            if few.len() <= FEW as u64 {
                return few.ids().filter(|id| other.contains(*id)).collect();
            }
        }
        let mut both = &*self.base & &*other.base;
        for (one, other) in [(self, other), (other, self)] {
            for id in one.missing() {
                both.remove(*id);
            }
            both.extend(one.added().iter().filter(|id| other.contains(Id(**id))));
        }
        both.into()
    }

    /// The viewers in this audience who are not in the other.
    #[must_use]
    pub fn difference(&self, other: &Self) -> Self {
        if self.is_empty() || other.is_empty() {
            return self.clone();
        }
        if self.same(other) {
            return Self::nobody();
        }
        let stays = |id: &u32| self.contains(Id(*id)) && !other.contains(Id(*id));
        if Arc::ptr_eq(&self.base, &other.base) {
            let differing = self.added().iter().chain(other.missing()).copied();
            return differing.filter(stays).map(Id).collect();
        }
        if other.len() <= FEW as u64 {
            return self.less(other);
        }
        let is_added = |id: &u32| other.contains(Id(*id));
        if other.diff.is_none()
            && self.base.is_disjoint(&other.base)
            && !self.added().iter().any(is_added)
        {
            return self.clone();
        }
        let mut rest = difference(&self.base, &other.base);
        for id in self.missing().iter().chain(other.added()) {
            rest.remove(*id);
        }
        let differing = self.added().iter().chain(other.missing()).copied();
        rest.extend(differing.filter(stays));
        match rest.is_empty() {
            true => Self::nobody(),
            false => rest.into(),
        }
    }

    /// The audience without one viewer.
    #[must_use]
    pub fn without(&self, id: Id) -> Self {
        if self.contains(id) {
            self.less(&Self::from_iter([id]))
        } else {
            self.clone()
        }
    }

    /// Whether the two are the same shared set, found without comparing members.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.base, &other.base) && self.diff == other.diff
    }

    /// Whether the two share their bitmap, so that this one takes no memory of its own for it.
    pub fn shares(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.base, &other.base)
    }

    /// The approximate size in bytes.
    pub fn bytes(&self) -> u64 {
        (self.base.serialized_size() + 4 * self.diff_len()) as u64
    }

    /// Whether every viewer in this audience is in the other.
    pub fn is_subset(&self, other: &Self) -> bool {
        if self.is_empty() || self.same(other) {
            return true;
        }
        let others = |id: &u32| other.contains(Id(*id));
        let mine = |id: &u32| self.contains(Id(*id));
        if !self.added().iter().all(others) || other.missing().iter().any(mine) {
            return false;
        }
        // All remaining viewers of this audience are in its bitmap, and the other lacks none of
        // them.
        if Arc::ptr_eq(&self.base, &other.base) {
            return true;
        }
        if self.diff.is_none() && other.diff.is_none() {
            return self.base.is_subset(&other.base);
        }
        // Of the ids outside the other's bitmap, a few may be missing here, or added there.
        let few = (self.missing().len() + other.added().len()) as u64;
        let outside = self.base.difference_len(&other.base);
        outside == 0
            || (outside <= few
                && (&*self.base - &*other.base)
                    .iter()
                    .all(|id| !mine(&id) || others(&id)))
    }

    /// The estimated cost of working through this set, in units of about one instruction: one step
    /// for each chunk of a dense set, or for every few members of a sparse one.
    pub fn work(&self) -> u64 {
        64 + self.base.len() / 16 + self.diff_len() as u64
    }

    /// Adds all viewers to a set of ids. It may add all members of the bitmap, also those missing
    /// from the audience, since that is cheaper. `seen`: the bitmaps that were added before.
    pub fn add_to(&self, ids: &mut RoaringBitmap, seen: &mut VisitedSets) {
        if seen.visit(&self.base) {
            *ids |= &*self.base;
        }
        ids.extend(self.added());
    }

    fn missing(&self) -> &[u32] {
        self.diff.as_deref().map_or(&[], |diff| &diff.missing)
    }

    fn added(&self) -> &[u32] {
        self.diff.as_deref().map_or(&[], |diff| &diff.added)
    }

    fn diff_len(&self) -> usize {
        self.missing().len() + self.added().len()
    }

    /// The audience with a few more viewers.
    fn with(&self, more: &Self) -> Self {
        let mut missing = self.missing().to_vec();
        let mut added = self.added().to_vec();
        for id in more.ids().filter(|id| !self.contains(*id)) {
            match missing.binary_search(&id.0) {
                Ok(place) => drop(missing.remove(place)),
                Err(_) => added.push(id.0),
            }
        }
        if added.len() == self.added().len() && missing.len() == self.missing().len() {
            return self.clone();
        }
        self.differing_by(missing, added)
    }

    /// The audience without a few viewers.
    fn less(&self, few: &Self) -> Self {
        let mut missing = self.missing().to_vec();
        let mut added = self.added().to_vec();
        let before = self.diff_len();
        for id in few.ids().filter(|id| self.contains(*id)) {
            match added.binary_search(&id.0) {
                Ok(place) => drop(added.remove(place)),
                Err(_) => missing.push(id.0),
            }
        }
        if missing.len() == self.missing().len() && missing.len() + added.len() == before {
            return self.clone();
        }
        self.differing_by(missing, added)
    }

    /// An audience with the same base, without the `missing` members, and with the `added` ids.
    fn differing_by(&self, mut missing: Vec<u32>, mut added: Vec<u32>) -> Self {
        for few in [&mut missing, &mut added] {
            few.sort_unstable();
            few.dedup();
        }
        let base = Arc::clone(&self.base);
        if missing.is_empty() && added.is_empty() {
            return base.into();
        }
        let few = Self {
            base,
            diff: Some(Arc::new(SmallDiff { missing, added })),
        };
        let is_shared = few.missing().len() <= FEW && few.added().len() <= FEW;
        if is_shared { few } else { few.bitmap().into() }
    }
}

thread_local! {
    /// The last two differences that were small.
    static DIFFERENCES: RefCell<[Difference; 2]> = RefCell::default();
}

/// The ids that are in the bitmap `of`, but not in the bitmap `from`. The two bitmaps are
/// identified by their addresses. A weak reference keeps the address of a dropped bitmap from being
/// reused.
#[derive(Default)]
struct Difference {
    of: Weak<RoaringBitmap>,
    from: Weak<RoaringBitmap>,
    is: RoaringBitmap,
}

/// The ids that are in `of`, but not in `from`. When somebody joins a group, the same two states of
/// the group are compared for everyone in it, so the result is cached.
fn difference(of: &Arc<RoaringBitmap>, from: &Arc<RoaringBitmap>) -> RoaringBitmap {
    if of.len() < MANY || from.len() < MANY {
        return &**of - &**from;
    }
    DIFFERENCES.with_borrow_mut(|known| {
        let is = |noted: &Weak<_>, bitmap| noted.as_ptr() == Arc::as_ptr(bitmap);
        let same = known.iter().find(|it| is(&it.of, of) && is(&it.from, from));
        if let Some(same) = same {
            return same.is.clone();
        }
        let difference = match of.difference_len(from) {
            0 => RoaringBitmap::new(),
            _ => &**of - &**from,
        };
        if difference.len() <= FEW as u64 {
            known.rotate_right(1);
            let [oldest, _] = known;
            *oldest = Difference {
                of: Arc::downgrade(of),
                from: Arc::downgrade(from),
                is: difference.clone(),
            };
        }
        difference
    })
}

/// The bitmaps that were already added to a set of ids.
#[derive(Debug, Default)]
pub struct VisitedSets(HashSet<usize>);

impl VisitedSets {
    fn visit(&mut self, bitmap: &Arc<RoaringBitmap>) -> bool {
        self.0.insert(Arc::as_ptr(bitmap).addr())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    /// A set, and an audience with the same members, made by a series of operations.
    #[derive(Clone, Debug)]
    struct Pair(BTreeSet<u32>, Audience);

    fn shared_base() -> Audience {
        static BASE: LazyLock<Audience> = LazyLock::new(|| (0..60).map(Id).collect());
        BASE.clone()
    }

    /// One of two similar audiences that are large enough to be shared.
    fn group(number: u32) -> Audience {
        static GROUPS: LazyLock<[Audience; 2]> = LazyLock::new(|| {
            [0, 1].map(|number| (40 + number..1_200 + 5 * number).map(Id).collect())
        });
        GROUPS[number as usize].clone()
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
        let some = || prop::collection::btree_set(0_u32..80, 0..40);
        let differing = (0_u32..2, some(), some()).prop_map(|(number, removed, added)| {
            let all = members(&group(number));
            let set = &(&all - &removed) | &added;
            let less = removed
                .iter()
                .fold(group(number), |all, id| all.without(Id(*id)));
            let one = |id: &u32| Audience::from_iter([Id(*id)]);
            let audience = added.iter().fold(less, |all, id| all.union(&one(id)));
            Pair(set, audience)
        });
        prop_oneof![own, less_some, differing]
    }

    fn by_chunks(audience: &Audience) -> Vec<u32> {
        let (mut ids, mut room) = (audience.ids(), [Id(0); CHUNK]);
        let chunks = std::iter::from_fn(|| {
            let chunk = ids.fill(&mut room);
            (!chunk.is_empty()).then(|| chunk.iter().map(|id| id.0).collect::<Vec<_>>())
        });
        chunks.flatten().collect()
    }

    fn members(audience: &Audience) -> BTreeSet<u32> {
        audience.ids().map(|id| id.0).collect()
    }

    proptest! {
        #[test]
        fn sets_behave_as_sets(a in pair(), b in pair(), probe in 0_u32..80) {
            prop_assert_eq!(members(&a.1), a.0.clone());
            prop_assert_eq!(by_chunks(&a.1), a.0.iter().copied().collect::<Vec<_>>());
            prop_assert_eq!(a.1.len(), a.0.len() as u64);
            prop_assert_eq!(a.1.is_empty(), a.0.is_empty());
            prop_assert_eq!(a.1.contains(Id(probe)), a.0.contains(&probe));
            prop_assert_eq!(members(&a.1.union(&b.1)), &a.0 | &b.0);
            prop_assert_eq!(members(&a.1.intersection(&b.1)), &a.0 & &b.0);
            prop_assert_eq!(members(&a.1.difference(&b.1)), &a.0 - &b.0);
            prop_assert_eq!(a.1.is_subset(&b.1), a.0.is_subset(&b.0));
            prop_assert_eq!(a.1 == b.1, a.0 == b.0);
            let (mut kept, mut seen) = (RoaringBitmap::new(), VisitedSets::default());
            a.1.add_to(&mut kept, &mut seen);
            prop_assert!(a.1.bitmap().is_subset(&kept));
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

    #[test]
    fn a_large_set_with_a_few_more_and_less_shares_its_bitmap() {
        let (group, contacts) = (group(0), (0..10).map(Id).collect::<Audience>());
        for audience in [
            contacts.union(&group.without(Id(50))),
            group.without(Id(50)).union(&contacts),
        ] {
            assert!(audience.shares(&group) && audience.len() == group.len() + 9);
            let blocked = [3, 50, 60].map(Id).into_iter().collect();
            let audience = audience.difference(&blocked);
            assert!(audience.shares(&group) && audience.len() == group.len() + 7);
        }
    }

    #[test]
    fn two_states_of_a_set_are_compared_by_what_differs() {
        let before = group(0);
        let joined = Audience::from(before.bitmap() | RoaringBitmap::from([7]));
        let (of, is) = (before.without(Id(50)), joined.without(Id(50)));
        assert!(of.difference(&is).is_empty());
        assert_eq!(is.difference(&of), [Id(7)].into_iter().collect());
        assert!(of != is && of == before.without(Id(50)));
        // The result doesn't depend on what was compared before.
        let left = Audience::from(joined.bitmap() - RoaringBitmap::from([1_000]));
        assert_eq!(is.difference(&left), [Id(1_000)].into_iter().collect());
        assert_eq!(is.difference(&of), [Id(7)].into_iter().collect());
        assert_eq!(left.difference(&is), [Id(50)].into_iter().collect());
    }
}
