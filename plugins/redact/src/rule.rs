//! The rule, over any kind of set: the host's audiences, or a test's.

use std::ops::{BitAnd, Sub};

use crate::config::{Class, Tier};

/// A set of viewers.
pub(crate) trait Set: Copy + BitAnd<Output = Self> + Sub<Output = Self> {
    /// Whether nobody is in it.
    fn is_empty(self) -> bool;
}

/// A part of the audience, and what it gets.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part<'a, S> {
    pub(crate) audience: S,
    pub(crate) tier: &'a Tier,
    pub(crate) last_seen: bool,
}

/// Splits an audience into its tiers: each viewer is in the first to which they
/// belong. Says too whether that is everyone. `of` says who is of a class, or
/// none if everyone is, and is asked only while there are viewers left.
pub(crate) fn split<S: Set>(
    tiers: &[Tier],
    audience: S,
    of: impl Fn(Class) -> Option<S>,
) -> (Vec<Part<'_, S>>, bool) {
    let mut parts = Vec::with_capacity(tiers.len());
    let mut rest = audience;
    for tier in tiers {
        let class = of(tier.class);
        let audience = class.map_or(rest, |class| rest & class);
        parts.push(Part {
            audience,
            tier,
            last_seen: tier.last_seen,
        });
        if class.is_none() {
            return (parts, true);
        }
        rest = rest - audience;
        if rest.is_empty() {
            return (parts, true);
        }
    }
    (parts, false)
}

/// Withholds when the user was last seen from all but these.
pub(crate) fn withhold<S: Set>(parts: Vec<Part<'_, S>>, may_know: S) -> Vec<Part<'_, S>> {
    let mut split = Vec::with_capacity(2 * parts.len());
    for part in parts {
        if !part.last_seen {
            split.push(part);
            continue;
        }
        let audience = part.audience & may_know;
        let others = part.audience - may_know;
        split.push(Part { audience, ..part });
        split.push(Part {
            audience: others,
            last_seen: false,
            ..part
        });
    }
    split.retain(|part| !part.audience.is_empty());
    split
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A set of small numbers.
    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Bits(u8);

    impl BitAnd for Bits {
        type Output = Self;

        fn bitand(self, other: Self) -> Self {
            Self(self.0 & other.0)
        }
    }

    impl Sub for Bits {
        type Output = Self;

        fn sub(self, other: Self) -> Self {
            Self(self.0 & !other.0)
        }
    }

    impl Set for Bits {
        fn is_empty(self) -> bool {
            self.0 == 0
        }
    }

    const CONTACTS: u8 = 0b0_0011;
    const GROUPS: u8 = 0b0_0110;

    fn of(class: Class) -> Option<Bits> {
        match class {
            Class::Contacts => Some(Bits(CONTACTS)),
            Class::Groups => Some(Bits(GROUPS)),
            Class::Everyone => None,
        }
    }

    fn tier(class: Class, last_seen: bool) -> Tier {
        Tier {
            class,
            keys: Vec::new(),
            last_seen,
        }
    }

    /// Each part's viewers, and whether they get to know.
    fn seen(parts: &[Part<'_, Bits>]) -> Vec<(u8, bool)> {
        let seen = parts.iter().map(|part| (part.audience.0, part.last_seen));
        seen.collect()
    }

    #[test]
    fn a_viewer_gets_the_first_tier_to_which_they_belong() {
        let tiers = [
            tier(Class::Contacts, true),
            tier(Class::Groups, false),
            tier(Class::Everyone, false),
        ];
        let (parts, complete) = split(&tiers, Bits(0b0_1111), of);
        assert_eq!(
            seen(&parts),
            [(0b11, true), (0b100, false), (0b1000, false)]
        );
        assert!(complete);
    }

    #[test]
    fn whoever_belongs_to_no_tier_is_in_no_part() {
        let tiers = [tier(Class::Groups, false), tier(Class::Contacts, true)];
        let (parts, complete) = split(&tiers, Bits(0b1_1111), of);
        assert_eq!(seen(&parts), [(0b110, false), (0b1, true)]);
        assert!(!complete);
    }

    #[test]
    fn nothing_is_asked_once_nobody_is_left() {
        let tiers = [tier(Class::Contacts, true), tier(Class::Groups, false)];
        let (parts, complete) = split(&tiers, Bits(0b10), |class| match class {
            Class::Contacts => of(class),
            _ => panic!("all of the audience are contacts"),
        });
        assert_eq!(seen(&parts), [(0b10, true)]);
        assert!(complete);
    }

    #[test]
    fn when_the_user_was_last_seen_is_withheld_within_the_same_tier() {
        let tiers = [tier(Class::Contacts, true), tier(Class::Everyone, false)];
        let (parts, _) = split(&tiers, Bits(0b1111), of);
        let parts = withhold(parts, Bits(0b1001));
        assert_eq!(seen(&parts), [(0b1, true), (0b10, false), (0b1100, false)]);
        assert!(parts.iter().take(2).all(|part| part.tier == &tiers[0]));
    }

    #[test]
    fn a_part_of_nobody_is_left_out() {
        let tiers = [tier(Class::Everyone, true)];
        let (parts, _) = split(&tiers, Bits(0b11), of);
        assert_eq!(seen(&withhold(parts.clone(), Bits(0))), [(0b11, false)]);
        assert_eq!(seen(&withhold(parts, Bits(0b11))), [(0b11, true)]);
    }
}
