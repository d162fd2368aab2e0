//! Whom a setting lets through, over any kind of set: the host's audiences, or a
//! test's.

use std::ops::{BitAnd, Sub};

use serde::Deserialize;

/// To whom a user shows something.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub enum Who {
    /// `"everyone"`: to whomever the pipeline admits.
    Everyone,
    /// `"contacts"`: to those of them who are the user's contacts.
    Contacts,
    /// `{"contactsExcept": ["67890"]}`: to the contacts, but not to these users.
    ContactsExcept(Vec<String>),
    /// `"nobody"`.
    Nobody,
}

impl Who {
    /// Those of an audience whom it lets through. What it takes to know that is
    /// asked for only where it is needed.
    pub fn keep<Set: BitAnd<Output = Set> + Sub<Output = Set>>(
        &self,
        audience: Set,
        nobody: impl FnOnce() -> Set,
        contacts: impl FnOnce() -> Set,
        of: impl FnOnce(&[String]) -> Set,
    ) -> Set {
        match self {
            Self::Everyone => audience,
            Self::Contacts => audience & contacts(),
            Self::ContactsExcept(users) => (audience & contacts()) - of(users),
            Self::Nobody => nobody(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ops::{BitAnd, Sub};

    use super::Who;

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

    /// Of five in the audience, the last three are contacts, and so is one who
    /// isn't in it. The exceptions are the last, and one who is no contact.
    fn kept(who: &Who) -> u8 {
        let audience = Bits(0b01_1111);
        let contacts = || Bits(0b10_0111);
        let kept = who.keep(audience, || Bits(0), contacts, |_| Bits(0b00_1001));
        kept.0
    }

    #[test]
    fn each_case_lets_through_whom_it_names_and_nobody_who_was_not_admitted() {
        assert_eq!(kept(&Who::Everyone), 0b01_1111);
        assert_eq!(kept(&Who::Contacts), 0b00_0111);
        assert_eq!(kept(&Who::ContactsExcept(Vec::new())), 0b00_0110);
        assert_eq!(kept(&Who::Nobody), 0);
    }

    #[test]
    fn contacts_are_asked_for_only_where_they_decide() {
        for who in [Who::Everyone, Who::Nobody] {
            let asked = || panic!("{who:?} doesn't depend on contacts");
            who.keep(Bits(1), || Bits(0), asked, |_| Bits(0));
        }
    }
}
