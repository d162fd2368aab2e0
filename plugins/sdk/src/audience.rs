//! Sets of viewers, held by the host.

use std::ops::{BitAnd, BitAndAssign, BitOr, BitOrAssign, Sub, SubAssign};

use crate::bindings::audiences;

/// A set of viewers, with the operators of sets: `a | b` is everyone in either,
/// `a & b` everyone in both, `a - b` everyone in `a` who is not in `b`.
///
/// It is a token for a set that the host holds, so it costs the same for ten
/// viewers and for ten thousand. It is good only for the call in which it was
/// made; using it in another one ends that call with an error.
///
/// ```
/// use presence_plugin::{Audience, testing::Host};
///
/// Host::new().online("ada").call(|_| {
///     let (a, b) = (Audience::of(["ben", "cleo"]), Audience::of(["cleo", "dan"]));
///     assert_eq!((a | b).viewers(), ["ben", "cleo", "dan"]);
///     assert_eq!((a & b).viewers(), ["cleo"]);
///     assert_eq!((a - b).viewers(), ["ben"]);
///
///     let mut c = a;
///     c -= b;
///     c |= Audience::of(["eve"]);
///     c &= Audience::of(["ben", "eve"]);
///     assert_eq!(c.viewers(), ["ben", "eve"]);
/// });
/// ```
#[derive(Clone, Copy, Debug)]
#[must_use = "an audience decides nothing until it is returned"]
pub struct Audience(audiences::Audience);

impl Audience {
    /// The empty audience.
    ///
    /// ```
    /// use presence_plugin::{Audience, testing::Host};
    ///
    /// Host::new().online("ada").call(|_| {
    ///     assert_eq!(Audience::nobody().len(), 0);
    /// });
    /// ```
    pub fn nobody() -> Self {
        Self(audiences::nobody())
    }

    /// The audience of exactly these users.
    ///
    /// ```
    /// use presence_plugin::{Audience, testing::Host};
    ///
    /// Host::new().online("ada").call(|_| {
    ///     assert_eq!(Audience::of(["ben", "ben"]).viewers(), ["ben"]);
    /// });
    /// ```
    pub fn of(users: impl IntoIterator<Item = impl Into<String>>) -> Self {
        let users: Vec<String> = users.into_iter().map(Into::into).collect();
        Self(audiences::of(&users))
    }

    /// Whether a user is in it.
    ///
    /// ```
    /// use presence_plugin::{Audience, testing::Host};
    ///
    /// Host::new().online("ada").call(|_| {
    ///     assert!(Audience::of(["ben"]).contains("ben"));
    ///     assert!(!Audience::of(["ben"]).contains("cleo"));
    /// });
    /// ```
    #[must_use]
    pub fn contains(self, user: &str) -> bool {
        audiences::contains(self.0, user)
    }

    /// How many users are in it.
    ///
    /// ```
    /// use presence_plugin::{Audience, testing::Host};
    ///
    /// Host::new().online("ada").call(|_| {
    ///     assert_eq!(Audience::of(["ben", "cleo"]).len(), 2);
    /// });
    /// ```
    #[must_use]
    pub fn len(self) -> u32 {
        audiences::len(self.0)
    }

    /// Whether nobody is in it.
    ///
    /// ```
    /// use presence_plugin::{Audience, testing::Host};
    ///
    /// Host::new().online("ada").call(|_| {
    ///     assert!(Audience::nobody().is_empty());
    ///     assert!(!Audience::of(["ben"]).is_empty());
    /// });
    /// ```
    #[must_use]
    pub fn is_empty(self) -> bool {
        self.len() == 0
    }

    /// The ids of everyone in it, in the host's order. This is the costly way
    /// out: it copies every id.
    ///
    /// ```
    /// use presence_plugin::{Audience, testing::Host};
    ///
    /// Host::new().online("ada").call(|_| {
    ///     assert_eq!(Audience::of(["ben"]).viewers(), ["ben"]);
    /// });
    /// ```
    #[must_use]
    pub fn viewers(self) -> Vec<String> {
        audiences::viewers(self.0)
    }

    #[doc(hidden)]
    pub fn from_token(token: u32) -> Self {
        Self(token)
    }

    #[doc(hidden)]
    #[must_use]
    pub fn token(self) -> u32 {
        self.0
    }
}

impl BitOr for Audience {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(audiences::union(self.0, other.0))
    }
}

impl BitAnd for Audience {
    type Output = Self;

    fn bitand(self, other: Self) -> Self {
        Self(audiences::intersection(self.0, other.0))
    }
}

impl Sub for Audience {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        Self(audiences::difference(self.0, other.0))
    }
}

impl BitOrAssign for Audience {
    fn bitor_assign(&mut self, other: Self) {
        *self = *self | other;
    }
}

impl BitAndAssign for Audience {
    fn bitand_assign(&mut self, other: Self) {
        *self = *self & other;
    }
}

impl SubAssign for Audience {
    fn sub_assign(&mut self, other: Self) {
        *self = *self - other;
    }
}
