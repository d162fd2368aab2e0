//! The rule, over any kind of set: the host's audiences, or a test's.

use std::ops::BitOr;

/// Adds a user's contacts to the audience so far.
pub(crate) fn admit<Set: BitOr<Output = Out>, Out>(audience: Set, contacts: Set) -> Out {
    audience | contacts
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::admit;

    #[test]
    fn contacts_join_whoever_was_admitted_before() {
        let audience = BTreeSet::from(["ada", "ben"]);
        let contacts = BTreeSet::from(["ben", "cleo"]);
        assert_eq!(
            admit(&audience, &contacts),
            BTreeSet::from(["ada", "ben", "cleo"])
        );
    }

    #[test]
    fn having_no_contacts_takes_nobody_away() {
        let audience = BTreeSet::from(["ada"]);
        assert_eq!(admit(&audience, &BTreeSet::new()), audience);
    }
}
