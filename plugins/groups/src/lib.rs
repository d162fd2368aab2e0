//! A filter: those who share a group with a user may see the user.

use presence_plugin::{Audience, Event, Filter, NoConfig, directory};

struct Groups;

impl Filter for Groups {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(Groups)
    }

    fn filter(&self, event: &Event, audience: Audience) -> Audience {
        audience | directory::co_members(event.user())
    }
}

presence_plugin::export!(filter: Groups);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::Host;

    use super::Groups;

    #[test]
    fn co_members_join_those_admitted_before() {
        let host = Host::new()
            .group("team-a", ["ada", "ben"])
            .group("team-b", ["ada", "cleo"])
            .group("team-c", ["eve"]);
        let outcome = host.online("ada").filter(&Groups, ["ben", "dan"]);
        assert_eq!(outcome.answer, ["ben", "cleo", "dan"]);
    }

    #[test]
    fn being_in_no_group_takes_nobody_away() {
        let host = Host::new().group("team-a", ["ben"]);
        let outcome = host.online("ada").filter(&Groups, ["dan"]);
        assert_eq!(outcome.answer, ["dan"]);
    }
}
