//! An enricher: what kind of client a user has, as the user agent tells.

use presence_plugin::{Change, Enricher, Event};
use serde::Deserialize;

/// What can be configured.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    /// The metadata key that the kind goes to.
    into: String,
}

impl Default for Config {
    fn default() -> Self {
        let into = "client".to_owned();
        Config { into }
    }
}

struct Client {
    into: String,
}

impl Enricher for Client {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        let into = config.into;
        Ok(Client { into })
    }

    fn enrich(&mut self, event: &Event) -> Vec<Change> {
        match event.text("userAgent") {
            Some(user_agent) => vec![Change::text(&self.into, kind(&user_agent))],
            None => Vec::new(),
        }
    }
}

/// Browsers of phones and tablets have "Mobi" in their user agent.
fn kind(user_agent: &str) -> &'static str {
    if user_agent.contains("Mobi") {
        "mobile"
    } else {
        "desktop"
    }
}

presence_plugin::export!(enricher: Client);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::Host;

    use super::*;

    fn client() -> Client {
        Client::configure(Config::default()).unwrap()
    }

    #[test]
    fn the_user_agent_tells_what_kind_of_client_it_is() {
        for (user_agent, kind) in [
            ("Mozilla/5.0 (iPhone) Mobile/15E148", "mobile"),
            ("Mozilla/5.0 (X11; Linux x86_64)", "desktop"),
        ] {
            let host = Host::new();
            let event = host.online("ada").metadata("userAgent", user_agent);
            let outcome = event.enrich(&mut client());
            assert_eq!(outcome.answer, [Change::text("client", kind)]);
        }
    }

    #[test]
    fn without_a_user_agent_nothing_is_added() {
        let host = Host::new();
        assert!(host.online("ada").enrich(&mut client()).answer.is_empty());
    }
}
