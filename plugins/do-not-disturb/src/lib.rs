//! A filter: viewers who have set `doNotDisturb` to `true` are told nothing.
//!
//! When it is switched on, the users that they saw look offline to them, and when it is
//! switched off, those who are online then look online again. Anything but `true` is
//! off: this setting hides nothing about anybody.

use presence_plugin::{Audience, Event, Filter, NoConfig, directory, explain};

struct DoNotDisturb;

impl Filter for DoNotDisturb {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(DoNotDisturb)
    }

    fn filter(&self, _: &Event, audience: Audience) -> Audience {
        explain("viewers who do not want to be disturbed are told nothing");
        audience - directory::with_setting("doNotDisturb", true)
    }
}

presence_plugin::export!(filter: DoNotDisturb);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::Host;

    use super::DoNotDisturb;

    #[test]
    fn viewers_not_to_be_disturbed_are_taken_out_and_nobody_is_added() {
        let host = Host::new()
            .setting("ben", "doNotDisturb", true)
            .setting("cleo", "doNotDisturb", false)
            .setting("dan", "doNotDisturb", "true")
            .setting("eve", "doNotDisturb", true);
        let outcome = host
            .online("ada")
            .filter(&DoNotDisturb, ["ben", "cleo", "dan"]);
        assert_eq!(outcome.answer, ["cleo", "dan"]);
    }
}
