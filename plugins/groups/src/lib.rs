//! A filter: those who share a group with a user may see the user.

mod rule;

use presence_plugin::{Audience, Event, Filter, NoConfig, directory};

struct Groups;

impl Filter for Groups {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Groups)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        rule::admit(audience, directory::co_members(event.user()))
    }
}

presence_plugin::export!(filter: Groups);
