//! A filter: everyone whom the directory knows may see a user who has set
//! `online` to `everyone`.
//!
//! It stands before the filters that hide, and has to be granted `widen`.
//! Without it, `everyone` means all viewers that the other filters admit.

use presence_plugin::{Audience, Event, Filter, NoConfig, directory, explain};
use presence_settings::Who;

struct Public;

impl Filter for Public {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Public)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        if presence_settings::online(event.user()) != Some(Who::Everyone) {
            return audience;
        }
        explain("the user shows everyone that they are online");
        audience | directory::everyone()
    }
}

presence_plugin::export!(filter: Public);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::{Host, Read};

    use super::Public;

    /// A directory that knows two users.
    fn host() -> Host {
        Host::new().contacts("cleo", ["dan"])
    }

    #[test]
    fn who_says_so_is_shown_to_everyone() {
        let host = host().setting("ada", "online", "everyone");
        let outcome = host.online("ada").filter(&Public, ["ben"]);
        assert_eq!(outcome.answer, ["ada", "ben", "cleo", "dan"]);
        assert_eq!(
            outcome.explained,
            ["the user shows everyone that they are online"]
        );
    }

    #[test]
    fn nobody_else_is_and_everyone_is_not_even_asked_for() {
        let said = |who| host().setting("ada", "online", who);
        for host in [host(), said("contacts"), said("nobody"), said("sometimes")] {
            let outcome = host.online("ada").filter(&Public, ["ben"]);
            assert_eq!(outcome.answer, ["ben"], "{host:?}");
            assert!(!outcome.reads.contains(&Read::Everyone), "{host:?}");
        }
    }
}
