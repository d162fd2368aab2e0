//! The rule, over any kind of set: the host's audiences, or a test's.

use std::ops::Sub;

/// Takes those whom the user has blocked out of the audience so far.
pub(crate) fn hide<Set: Sub<Output = Out>, Out>(audience: Set, blocked: Set) -> Out {
    audience - blocked
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::hide;

    #[test]
    fn the_blocked_are_taken_out_whoever_admitted_them() {
        let audience = BTreeSet::from(["ada", "ben", "cleo"]);
        let blocked = BTreeSet::from(["ben", "dan"]);
        assert_eq!(hide(&audience, &blocked), BTreeSet::from(["ada", "cleo"]));
    }

    #[test]
    fn nobody_is_added() {
        let blocked = BTreeSet::from(["ben"]);
        assert_eq!(hide(&BTreeSet::new(), &blocked), BTreeSet::new());
    }
}
