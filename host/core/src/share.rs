//! The share of a tenant's users that a canary's candidate decides on.
//!
//! Whether a user is in a share depends on the id alone. The first eight bytes of the SHA-256 of
//! the id, read as a big-endian number, modulo 10,000, are the user's *place*. A share of n
//! ten-thousandths has the users whose place is below n. So every node, at every start, has the
//! same users in a share, and a larger share has all users of a smaller one.

use std::fmt;

use sha2::{Digest as _, Sha256};

/// The number of places.
const PLACES: u16 = 10_000;

/// The number of places in one per cent.
const PER_CENT: u16 = PLACES / 100;

/// A share of the users, in steps of a hundredth of a per cent. It is serialized as a number of per
/// cent.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
)]
#[serde(try_from = "serde_json::Number", into = "serde_json::Number")]
pub struct Share(u16);

/// A text or number that is not a valid share.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidShare(String);

impl fmt::Display for InvalidShare {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "`{}` is no share of the users: write a number of per cent from 0.01 to 100, with at \
             most two digits after the point",
            self.0
        )
    }
}

impl std::error::Error for InvalidShare {}

impl Share {
    /// Nobody.
    pub const NOBODY: Self = Self(0);
    /// Everyone.
    pub const EVERYONE: Self = Self(PLACES);

    /// A share of `places` ten-thousandths of the users, at most everyone.
    pub fn of_places(places: u16) -> Self {
        Self(places.min(PLACES))
    }

    /// Parses a number of per cent.
    ///
    /// # Errors
    /// If it isn't a number with at most two digits after the point, from 0.01 to 100.
    pub fn parse_percent(text: &str) -> Result<Self, InvalidShare> {
        let wrong = || InvalidShare(text.into());
        let (whole, rest) = text.split_once('.').unwrap_or((text, "0"));
        let are_digits =
            |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
        if !are_digits(whole) || !are_digits(rest) || rest.len() > 2 {
            return Err(wrong());
        }
        let hundredths = match rest.len() {
            1 => rest.parse::<u16>().map(|tenths| tenths * 10),
            _ => rest.parse(),
        };
        let (Ok(whole), Ok(hundredths)) = (whole.parse::<u16>(), hundredths) else {
            return Err(wrong());
        };
        let places = whole.saturating_mul(PER_CENT).saturating_add(hundredths);
        match places {
            1..=PLACES => Ok(Self(places)),
            _ => Err(wrong()),
        }
    }

    /// Whether a user is in the share.
    pub fn has(self, user: &str) -> bool {
        match self.0 {
            0 => false,
            PLACES => true,
            places => place(user) < places,
        }
    }

    /// The share in ten-thousandths.
    pub fn places(self) -> u16 {
        self.0
    }
}

impl TryFrom<serde_json::Number> for Share {
    type Error = InvalidShare;

    fn try_from(number: serde_json::Number) -> Result<Self, InvalidShare> {
        Self::parse_percent(&number.to_string())
    }
}

impl From<Share> for serde_json::Number {
    fn from(share: Share) -> Self {
        match (share.0 / PER_CENT, share.0 % PER_CENT) {
            (whole, 0) => whole.into(),
            _ => Self::from_f64(f64::from(share.0) / f64::from(PER_CENT)).unwrap_or(0.into()),
        }
    }
}

/// In per cent, such as `5` or `0.25`.
impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.0 / PER_CENT, self.0 % PER_CENT) {
            (whole, 0) => write!(f, "{whole}"),
            (whole, rest) if rest % 10 == 0 => write!(f, "{whole}.{}", rest / 10),
            (whole, rest) => write!(f, "{whole}.{rest:02}"),
        }
    }
}

/// Which rules decide on each user: the same for all, or others for a share of them. The caller
/// identifies rules by numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Assignment {
    /// The rules for users outside the share.
    pub active: u64,
    /// The rules for a share of the users, if there is one.
    pub candidate: Option<(u64, Share)>,
}

impl Assignment {
    /// The same rules for everyone.
    pub fn to_all(active: u64) -> Self {
        Self {
            active,
            candidate: None,
        }
    }

    /// The rules that decide on a user.
    pub fn rules_of(&self, user: &str) -> u64 {
        match self.candidate {
            Some((candidate, share)) if share.has(user) => candidate,
            _ => self.active,
        }
    }

    /// Whether the two assignments have different rules decide on a user.
    pub fn moves(&self, to: &Self, user: &str) -> bool {
        // Only the user's place matters. It is computed once, since that takes long.
        let place = place(user);
        let rules = |of: &Self| match of.candidate {
            Some((candidate, Share(places))) if place < places => candidate,
            _ => of.active,
        };
        rules(self) != rules(to)
    }

    /// Whether the two assignments have no rules in common.
    pub fn is_disjoint(&self, other: &Self) -> bool {
        let others = other.numbers();
        self.numbers()
            .all(|number| others.clone().all(|it| it != number))
    }

    fn numbers(&self) -> impl Iterator<Item = u64> + Clone {
        let candidate = self.candidate.map(|(candidate, _)| candidate);
        std::iter::once(self.active).chain(candidate)
    }
}

/// A user's place, from 0 to 9,999.
pub fn place(user: &str) -> u16 {
    let digest = Sha256::digest(user.as_bytes());
    let mut first = [0; 8];
    first
        .iter_mut()
        .zip(digest)
        .for_each(|(to, from)| *to = from);
    // The result is below the number of places.
    (u64::from_be_bytes(first) % u64::from(PLACES)) as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn places_are_those_of_the_documented_vectors() {
        for (user, expected) in VECTORS {
            assert_eq!(place(user), expected, "{user:?}");
        }
    }

    /// The examples in docs/operate/canary.md.
    const VECTORS: [(&str, u16); 6] = [
        ("", 1652),
        ("ada", 398),
        ("12345", 4506),
        ("67890", 5210),
        ("user@example.com", 5632),
        ("Zoë", 6048),
    ];

    #[test]
    fn shares_are_read_and_written_as_per_cent() {
        for (text, places) in [
            ("0.01", 1),
            ("0.25", 25),
            ("0.5", 50),
            ("5", 500),
            ("5.0", 500),
            ("33.33", 3_333),
            ("99.99", 9_999),
            ("100", 10_000),
            ("100.00", 10_000),
        ] {
            let share = Share::parse_percent(text).unwrap();
            assert_eq!(share.places(), places, "{text}");
            assert_eq!(Share::parse_percent(&share.to_string()), Ok(share));
            let json = serde_json::to_string(&share).unwrap();
            assert_eq!(json, share.to_string());
            assert_eq!(serde_json::from_str::<Share>(&json).unwrap(), share);
        }
        for text in [
            "", "0", "0.00", "100.01", "101", "-1", "+5", "5%", " 5", "5.", ".5", "5.001", "1e1",
            "five", "999999", "0x5", "٥",
        ] {
            let error = Share::parse_percent(text).unwrap_err().to_string();
            assert!(error.contains(&format!("`{text}`")), "{error}");
        }
    }

    #[test]
    fn a_share_has_about_as_many_users_as_it_says() {
        for percent in [1_u16, 5, 20, 50] {
            let share = Share::of_places(percent * PER_CENT);
            let has = (0..20_000).filter(|user| share.has(&format!("user-{user}")));
            let expected = usize::from(percent) * 200;
            let count = has.count();
            assert!(count.abs_diff(expected) < 200, "{percent}: {count}");
        }
    }

    #[test]
    fn who_is_decided_on_by_other_rules_is_who_moves_into_or_out_of_the_share() {
        let all = Assignment::to_all(1);
        let some = |active, percent: u16| Assignment {
            active,
            candidate: Some((2, Share::of_places(percent * PER_CENT))),
        };
        let moved = |before: Assignment, after: Assignment| {
            let users = (0..1_000).map(|user| format!("user-{user}"));
            let moved = users.filter(|user| before.moves(&after, user));
            let moved: Vec<_> = moved.collect();
            let differs = |user: &String| before.rules_of(user) != after.rules_of(user);
            assert!(moved.iter().all(differs));
            moved
        };
        let in_share = moved(all, some(1, 20));
        assert!((100..300).contains(&in_share.len()));
        assert!(in_share.iter().all(|user| place(user) < 2_000));
        let growth = moved(some(1, 20), some(1, 60));
        assert!(
            growth
                .iter()
                .all(|user| (2_000..6_000).contains(&place(user)))
        );
        let promoted = moved(some(1, 20), Assignment::to_all(2));
        assert_eq!(promoted.len() + in_share.len(), 1_000);
        assert_eq!(moved(some(1, 20), all), in_share, "aborted");
        assert!(all.is_disjoint(&Assignment::to_all(2)));
        assert!(!some(1, 20).is_disjoint(&Assignment::to_all(2)));
        assert!(all.is_disjoint(&some(3, 20)));
    }

    proptest! {
        #[test]
        fn a_larger_share_only_adds_users(user in ".*", one in 0..=10_000_u16, other in 0..=10_000_u16) {
            let (small, large) = (one.min(other), one.max(other));
            let [small, large] = [small, large].map(Share::of_places);
            prop_assert!(!small.has(&user) || large.has(&user));
            prop_assert!(Share::EVERYONE.has(&user) && !Share::NOBODY.has(&user));
        }
    }
}
