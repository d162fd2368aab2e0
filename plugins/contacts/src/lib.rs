//! A filter: a user's contacts may see the user.

mod rule;

use presence_plugin::{Audience, Event, Filter, NoConfig, directory};

struct Contacts;

impl Filter for Contacts {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Contacts)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        rule::admit(audience, directory::contacts(event.user()))
    }
}

presence_plugin::export!(filter: Contacts);
