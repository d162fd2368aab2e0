//! A filter: a user's contacts may see the user.

use presence_plugin::{Audience, Event, Filter, NoConfig, directory};

struct Contacts;

impl Filter for Contacts {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Contacts)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        audience | directory::contacts(event.user())
    }
}

presence_plugin::export!(filter: Contacts);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::Host;

    use super::Contacts;

    #[test]
    fn contacts_join_those_admitted_before() {
        let host = Host::new().contacts("ada", ["ben", "cleo"]);
        let outcome = host.online("ada").filter(&Contacts, ["ben", "dan"]);
        assert_eq!(outcome.answer, ["ben", "cleo", "dan"]);
    }

    #[test]
    fn having_no_contacts_takes_nobody_away() {
        let host = Host::new().contacts("ben", ["ada"]);
        let outcome = host.online("ada").filter(&Contacts, ["dan"]);
        assert_eq!(outcome.answer, ["dan"]);
    }
}
