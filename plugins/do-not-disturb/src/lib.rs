//! A filter: viewers who have set `doNotDisturb` to `true` are told nothing.
//!
//! As it is switched on, whom they saw goes out of their sight, and as it is
//! switched off, whoever is online then comes into it. Anything but `true` is
//! off: this setting hides nothing of anybody.

mod rule;

use presence_plugin::{Audience, Event, Filter, NoConfig, directory, explain};

struct DoNotDisturb;

impl Filter for DoNotDisturb {
    type Config = NoConfig;

    fn configure(_: NoConfig) -> Result<Self, String> {
        Ok(DoNotDisturb)
    }

    fn filter(&self, _: &Event, audience: Audience) -> Audience {
        explain("viewers who do not want to be disturbed are told nothing");
        rule::spare(audience, directory::with_setting("doNotDisturb", true))
    }
}

presence_plugin::export!(filter: DoNotDisturb);
