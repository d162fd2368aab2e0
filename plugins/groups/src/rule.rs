//! The rule, over any kind of set: the host's audiences, or a test's.

use std::ops::BitOr;

/// Adds those who share a group with a user to the audience so far.
pub(crate) fn admit<Set: BitOr<Output = Out>, Out>(audience: Set, co_members: Set) -> Out {
    audience | co_members
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::admit;

    #[test]
    fn co_members_join_whoever_was_admitted_before() {
        let audience = BTreeSet::from(["ada", "ben"]);
        let co_members = BTreeSet::from(["ben", "cleo"]);
        assert_eq!(
            admit(&audience, &co_members),
            BTreeSet::from(["ada", "ben", "cleo"])
        );
    }

    #[test]
    fn being_in_no_group_takes_nobody_away() {
        let audience = BTreeSet::from(["ada"]);
        assert_eq!(admit(&audience, &BTreeSet::new()), audience);
    }
}
