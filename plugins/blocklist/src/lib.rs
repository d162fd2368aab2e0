//! A filter: those whom a user has blocked may not see the user.

use presence_plugin::{Audience, Event, Filter, NoConfig, directory};

struct Blocklist;

impl Filter for Blocklist {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Blocklist)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        audience - directory::blocked_by(event.user())
    }
}

presence_plugin::export!(filter: Blocklist);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::Host;

    use super::Blocklist;

    #[test]
    fn the_blocked_are_taken_out_whoever_admitted_them() {
        let host = Host::new().blocks("ada", ["ben", "dan"]);
        let outcome = host
            .online("ada")
            .filter(&Blocklist, ["ben", "cleo", "eve"]);
        assert_eq!(outcome.answer, ["cleo", "eve"]);
    }

    #[test]
    fn nobody_is_added() {
        let host = Host::new().blocks("ada", ["ben"]);
        let outcome = host.online("ada").filter(&Blocklist, [""; 0]);
        assert!(outcome.answer.is_empty());
    }
}
