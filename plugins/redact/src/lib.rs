//! A redactor: viewers get the metadata keys, and when the user was last seen,
//! as the tier says to which they belong. Where the configuration has it so, the
//! user's own setting narrows who gets to know when they were last seen.

mod config;
mod parts;

use presence_plugin::{Audience, Event, Kind, Redactor, Rendition, directory, explain};
use presence_settings::Who;

use config::{Config, Tier};
use parts::{Part, split, withhold};

struct Redact {
    tiers: Vec<Tier>,
    /// Users' own settings count.
    user_settings: bool,
    /// Who shows nobody when they were last seen doesn't get to know it of others.
    reciprocal: bool,
}

impl Redactor for Redact {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        Ok(Redact {
            user_settings: config.user_settings,
            reciprocal: config.reciprocal,
            tiers: config.into_tiers()?,
        })
    }

    fn redact(&self, event: &Event, audience: Audience) -> Vec<Rendition> {
        let user = event.user();
        let (mut parts, complete) = split(&self.tiers, user, audience);
        if !complete {
            explain("viewers who belong to no tier are not told");
        }
        // An online event doesn't say when the user was last seen: to ask then
        // would only make verdicts depend on settings.
        if self.user_settings
            && event.kind() == Kind::Offline
            && parts.iter().any(|part| part.last_seen)
            && let Some(may_know) = self.may_know(user, audience)
        {
            parts = withhold(parts, may_know);
        }
        let rendition = |part: Part<'_>| Rendition {
            audience: part.audience,
            keys: part.tier.keys.clone(),
            last_seen: part.last_seen,
        };
        parts.into_iter().map(rendition).collect()
    }
}

impl Redact {
    /// Those of an audience whom settings let know when a user was last seen.
    /// None if that is all of it.
    fn may_know(&self, user: &str, audience: Audience) -> Option<Audience> {
        let mut may_know = None;
        if let Some(who) = presence_settings::last_seen(user)
            && let Some(why) = why(&who)
        {
            explain(why);
            may_know = Some(presence_settings::shown_to(&who, audience, user));
        }
        if self.reciprocal {
            explain("viewers who show nobody when they were last seen don't get to know it");
            let hiding = directory::with_setting(presence_settings::LAST_SEEN, "nobody");
            may_know = Some(may_know.unwrap_or(audience) - hiding);
        }
        may_know
    }
}

/// Why viewers don't get to know when the user was last seen, if any don't.
fn why(who: &Who) -> Option<&'static str> {
    match who {
        Who::Everyone => None,
        Who::Contacts => Some("the user shows only contacts when they were last seen"),
        Who::ContactsExcept(_) => {
            Some("the user shows only contacts, and not all of them, when they were last seen")
        }
        Who::Nobody => Some("the user shows nobody when they were last seen"),
    }
}

presence_plugin::export!(redactor: Redact);

#[cfg(test)]
mod tests;
