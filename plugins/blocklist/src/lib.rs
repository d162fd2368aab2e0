//! A filter: those whom a user has blocked may not see the user.

mod rule;

use presence_plugin::{Audience, Event, Filter, NoConfig, directory};

struct Blocklist;

impl Filter for Blocklist {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Blocklist)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        rule::hide(audience, directory::blocked_by(event.user()))
    }
}

presence_plugin::export!(filter: Blocklist);
