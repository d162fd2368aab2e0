//! A filter: while a user is quiet, only their contacts may see them.

use presence_plugin::{Audience, Event, Filter, directory, explain};
use serde::Deserialize;

/// What can be configured.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    /// The `status` in a user's metadata that means quiet.
    status: String,
}

impl Default for Config {
    fn default() -> Self {
        let status = "quiet".to_owned();
        Config { status }
    }
}

struct Quiet {
    status: String,
}

impl Filter for Quiet {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        let status = config.status;
        Ok(Quiet { status })
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        if event.text("status").as_deref() != Some(&self.status) {
            return audience;
        }
        explain("the user is quiet: only contacts may see them");
        audience & directory::contacts(event.user())
    }
}

presence_plugin::export!(filter: Quiet);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::Host;

    use super::*;

    fn quiet() -> Quiet {
        Quiet::configure(Config::default()).unwrap()
    }

    #[test]
    fn only_contacts_see_a_quiet_user() {
        let host = Host::new().contacts("ada", ["ben", "dan"]);
        let event = host.online("ada").metadata("status", "quiet");
        let outcome = event.filter(&quiet(), ["ben", "cleo"]);
        assert_eq!(outcome.answer, ["ben"]);
        assert_eq!(outcome.explained.len(), 1);
    }

    #[test]
    fn the_audience_stays_while_the_user_is_not_quiet() {
        let host = Host::new();
        let outcome = host.online("ada").filter(&quiet(), ["ben", "cleo"]);
        assert_eq!(outcome.answer, ["ben", "cleo"]);
    }
}
