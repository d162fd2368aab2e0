//! The rule, over any kind of set: the host's audiences, or a test's.

use std::ops::BitOr;

use presence_settings::Who;

/// Adds everyone to the audience so far, if that is what the user has said.
pub(crate) fn admit<Set: BitOr<Output = Set>>(
    audience: Set,
    who: Option<&Who>,
    everyone: impl FnOnce() -> Set,
) -> Set {
    match who {
        Some(Who::Everyone) => audience | everyone(),
        _ => audience,
    }
}

#[cfg(test)]
mod tests {
    use presence_settings::Who;

    use super::admit;

    #[test]
    fn only_who_says_so_is_shown_to_everyone() {
        assert_eq!(admit(0b001, Some(&Who::Everyone), || 0b110), 0b111);
        for who in [None, Some(&Who::Contacts), Some(&Who::Nobody)] {
            let asked = || panic!("{who:?} doesn't depend on everyone");
            assert_eq!(admit(0b001, who, asked), 0b001);
        }
    }
}
