//! The parts of an audience, by the tiers to which viewers belong.

use presence_plugin::{Audience, directory};

use crate::config::{Class, Tier};

/// A part of the audience, and what it gets.
#[derive(Clone)]
pub(crate) struct Part<'a> {
    pub(crate) audience: Audience,
    pub(crate) tier: &'a Tier,
    pub(crate) last_seen: bool,
}

/// Splits an audience into its tiers: each viewer is in the first to which they
/// belong. Says too whether that is everyone. Who is of a class is asked only
/// while there are viewers left.
pub(crate) fn split<'a>(
    tiers: &'a [Tier],
    user: &str,
    audience: Audience,
) -> (Vec<Part<'a>>, bool) {
    let mut parts = Vec::with_capacity(tiers.len());
    let mut rest = audience;
    for tier in tiers {
        let class = of(tier.class, user);
        let audience = class.map_or(rest, |class| rest & class);
        parts.push(Part {
            audience,
            tier,
            last_seen: tier.last_seen,
        });
        if class.is_none() {
            return (parts, true);
        }
        rest -= audience;
        if rest.is_empty() {
            return (parts, true);
        }
    }
    (parts, false)
}

/// Who is of a class. None if everyone is.
fn of(class: Class, user: &str) -> Option<Audience> {
    match class {
        Class::Contacts => Some(directory::contacts(user)),
        Class::Groups => Some(directory::co_members(user)),
        Class::Everyone => None,
    }
}

/// Withholds when the user was last seen from all but these.
pub(crate) fn withhold(parts: Vec<Part<'_>>, may_know: Audience) -> Vec<Part<'_>> {
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
