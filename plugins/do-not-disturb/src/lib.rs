//! A filter: viewers who have set `doNotDisturb` to `true` are told nothing.
//!
//! As it is switched on, whom they saw goes out of their sight, and as it is
//! switched off, whoever is online then comes into it. Anything but `true` is
//! off: this setting hides nothing of anybody.

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
    fn whoever_is_not_to_be_disturbed_is_taken_out_and_nobody_is_added() {
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
