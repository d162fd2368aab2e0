//! The rule, over any kind of set: the host's audiences, or a test's.

use std::ops::Sub;

/// Takes those who do not want to be disturbed out of the audience so far.
pub(crate) fn spare<Set: Sub<Output = Out>, Out>(audience: Set, undisturbed: Set) -> Out {
    audience - undisturbed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::spare;

    #[test]
    fn whoever_is_not_to_be_disturbed_is_taken_out_and_nobody_is_added() {
        let audience = BTreeSet::from(["ada", "ben"]);
        let undisturbed = BTreeSet::from(["ben", "cleo"]);
        assert_eq!(spare(&audience, &undisturbed), BTreeSet::from(["ada"]));
    }
}
