//! A filter: those whom a user has blocked may not see the user. If it is configured
//! so, those who have blocked the user may not either.

use presence_plugin::{Audience, Event, Filter, directory};
use serde::Deserialize;

/// `{"mutual": true}`: whether blocks work both ways.
#[derive(Deserialize)]
struct Blocklist {
    #[serde(default)]
    mutual: bool,
}

impl Filter for Blocklist {
    type Config = Self;

    fn configure(config: Self) -> Result<Self, String> {
        Ok(config)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        let user = event.user();
        let visible = audience - directory::blocked_by(user);
        if self.mutual {
            visible - directory::blockers(user)
        } else {
            visible
        }
    }
}

presence_plugin::export!(filter: Blocklist);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::{Host, Read};

    use super::Blocklist;

    const ONE_WAY: Blocklist = Blocklist { mutual: false };
    const MUTUAL: Blocklist = Blocklist { mutual: true };

    #[test]
    fn the_blocked_are_taken_out_after_any_filter_admitted_them() {
        let host = Host::new().blocks("ada", ["ben", "dan"]);
        for rule in [ONE_WAY, MUTUAL] {
            let outcome = host.online("ada").filter(&rule, ["ben", "cleo", "eve"]);
            assert_eq!(outcome.answer, ["cleo", "eve"]);
        }
    }

    #[test]
    fn blockers_are_taken_out_only_where_blocks_are_mutual() {
        let host = Host::new().blocks("ben", ["ada"]).blocks("cleo", ["dan"]);
        let ada = host.online("ada");
        let outcome = ada.filter(&MUTUAL, ["ben", "cleo"]);
        assert_eq!(outcome.answer, ["cleo"]);
        let outcome = ada.filter(&ONE_WAY, ["ben", "cleo"]);
        assert_eq!(outcome.answer, ["ben", "cleo"]);
        // What isn't asked makes no verdict be decided again.
        assert_eq!(outcome.reads, [Read::BlockedBy("ada".to_owned())].into());
    }

    #[test]
    fn nobody_is_added() {
        let host = Host::new().blocks("ada", ["ben"]).blocks("cleo", ["ada"]);
        for rule in [ONE_WAY, MUTUAL] {
            let outcome = host.online("ada").filter(&rule, [""; 0]);
            assert!(outcome.answer.is_empty());
        }
    }
}
