//! A filter: everyone whom the directory knows may see a user who has set
//! `online` to `everyone`.
//!
//! It stands before the filters that hide, and has to be granted `widen`.
//! Without it, `everyone` means whomever the other filters admit.

mod rule;

use presence_plugin::{Audience, Event, Filter, NoConfig, directory, explain};

struct Public;

impl Filter for Public {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Public)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        let who = presence_settings::online(event.user());
        rule::admit(audience, who.as_ref(), || {
            explain("the user shows everyone that they are online");
            directory::everyone()
        })
    }
}

presence_plugin::export!(filter: Public);
