//! A filter: a user's own setting says who of the audience may see that they are
//! online, and while the user is invisible nobody may.
//!
//! The rule itself is [`presence_settings::Who`]: it is the redactor's as well.

use presence_plugin::{Audience, Event, Filter, NoConfig, explain};
use presence_settings::Who;

struct Privacy;

impl Filter for Privacy {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Privacy)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        let user = event.user();
        let Some(who) = presence_settings::online(user) else {
            return audience;
        };
        if let Some(why) = why(&who) {
            explain(why);
        }
        presence_settings::shown_to(&who, audience, user)
    }
}

/// Why viewers are taken out, if any are.
fn why(who: &Who) -> Option<&'static str> {
    match who {
        Who::Everyone => None,
        Who::Contacts => Some("the user shows only contacts that they are online"),
        Who::ContactsExcept(_) => {
            Some("the user shows only contacts, and not all of them, that they are online")
        }
        Who::Nobody => Some("the user shows nobody that they are online"),
    }
}

presence_plugin::export!(filter: Privacy);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::Host;

    use super::Privacy;

    fn host() -> Host {
        Host::new().contacts("ada", ["ben", "dan"])
    }

    /// Whom it leaves of a contact and someone else.
    fn left(host: &Host) -> Vec<String> {
        host.online("ada").filter(&Privacy, ["ben", "cleo"]).answer
    }

    #[test]
    fn the_setting_says_who_is_left() {
        assert_eq!(left(&host()), ["ben", "cleo"]);
        let said = |who| left(&host().setting("ada", "online", who));
        assert_eq!(said("everyone"), ["ben", "cleo"]);
        assert_eq!(said("contacts"), ["ben"]);
        assert!(said("nobody").is_empty());
    }

    #[test]
    fn the_invisible_are_seen_by_nobody_whatever_else_they_say() {
        let host = host().setting("ada", "online", "everyone");
        assert!(left(&host.clone().setting("ada", "invisible", true)).is_empty());
        assert_eq!(left(&host.setting("ada", "invisible", false)).len(), 2);
    }

    #[test]
    fn it_says_why() {
        let host = host().setting("ada", "online", "contacts");
        let outcome = host.online("ada").filter(&Privacy, ["cleo"]);
        assert_eq!(
            outcome.explained,
            ["the user shows only contacts that they are online"]
        );
    }
}
