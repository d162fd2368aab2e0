//! What a plugin may do: its manifest asks, and the operator grants. What isn't granted isn't
//! linked.

use std::fmt;

/// One thing that a plugin may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u16)]
pub enum Capability {
    /// A filter may add viewers.
    Widen = 1,
    /// It may import WASI, all of which is denied.
    Wasi = 2,
    /// It may ask the directory for contacts.
    Contacts = 4,
    /// It may ask the directory for groups and who is in them.
    Groups = 8,
    /// It may ask the directory for blocks.
    Blocks = 16,
    /// It may ask the directory for settings.
    Settings = 32,
    /// It may ask the directory for all users that it knows.
    Everyone = 64,
    /// It may write to the log.
    Log = 128,
}

use Capability::{Blocks, Contacts, Everyone, Groups, Log, Settings, Wasi, Widen};

/// All capabilities, each with its name.
const ALL: [(Capability, &str); 8] = [
    (Widen, "widen"),
    (Wasi, "wasi"),
    (Contacts, "contacts"),
    (Groups, "groups"),
    (Blocks, "blocks"),
    (Settings, "settings"),
    (Everyone, "everyone"),
    (Log, "log"),
];

/// The functions that need a capability. All others are given to every plugin.
const FUNCTIONS: [(&str, &str, Capability); 11] = [
    ("directory", "contacts", Contacts),
    ("directory", "with-contact", Contacts),
    ("directory", "members", Groups),
    ("directory", "co-members", Groups),
    ("directory", "groups", Groups),
    ("directory", "blocked-by", Blocks),
    ("directory", "blockers", Blocks),
    ("directory", "setting", Settings),
    ("directory", "with-setting", Settings),
    ("directory", "everyone", Everyone),
    ("host", "log", Log),
];

impl Capability {
    /// The capability as a manifest and a configuration spell it.
    pub fn as_str(self) -> &'static str {
        let named = ALL.iter().find(|(capability, _)| *capability == self);
        named.map_or("", |(_, name)| name)
    }

    /// The capability of a name in a manifest's list. `widen` isn't in that list: a filter asks for
    /// it by its effect.
    pub(crate) fn from_manifest(name: &str) -> Option<Self> {
        let named = ALL.iter().find(|(_, spelled)| *spelled == name);
        named.map(|(it, _)| *it).filter(|it| *it != Widen)
    }

    /// The capability that a host function needs. `interface` is without package and version.
    /// `None`: every plugin may call the function.
    pub(crate) fn needed_for(interface: &str, function: &str) -> Option<Self> {
        let needs = |it: &&(&str, &str, Self)| (it.0, it.1) == (interface, function);
        FUNCTIONS.iter().find(needs).map(|(_, _, needed)| *needed)
    }
}

/// A set of capabilities.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Capabilities(u16);

impl Capabilities {
    /// No capabilities.
    pub const NONE: Self = Self(0);

    /// All capabilities.
    pub const ALL: Self = Self(0xff);

    /// The capabilities that host functions need. A list of grants that names none of these grants
    /// them all.
    pub const HOST_FUNCTIONS: Self = Self(0xff & !(Widen as u16) & !(Wasi as u16));

    /// Whether a capability is in the set.
    pub fn has(self, capability: Capability) -> bool {
        self.0 & capability as u16 != 0
    }

    /// The set with one more capability.
    #[must_use]
    pub fn with(self, capability: Capability) -> Self {
        Self(self.0 | capability as u16)
    }

    /// The union of both sets.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The intersection of both sets.
    #[must_use]
    pub fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The capabilities that the other set lacks.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether the set is empty.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// The capabilities in the set.
    pub fn iter(self) -> impl Iterator<Item = Capability> {
        let all = ALL.iter().map(|(capability, _)| *capability);
        all.filter(move |capability| self.has(*capability))
    }
}

impl FromIterator<Capability> for Capabilities {
    fn from_iter<I: IntoIterator<Item = Capability>>(capabilities: I) -> Self {
        capabilities.into_iter().fold(Self::NONE, Self::with)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set()
            .entries(self.iter().map(Capability::as_str))
            .finish()
    }
}
