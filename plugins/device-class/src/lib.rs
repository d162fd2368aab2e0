//! An enricher: adds coarse classes of the device, from its user agent, so that
//! viewers need not be shown the user agent itself.
//!
//! It only adds: a key that the event has stays as it is.

mod rule;

use presence_plugin::{Change, Enricher, Event};

struct DeviceClass(rule::Config);

impl Enricher for DeviceClass {
    type Config = rule::Config;

    fn configure(config: rule::Config) -> Result<Self, String> {
        config.validate()?;
        Ok(DeviceClass(config))
    }

    fn enrich(&mut self, event: &Event) -> Vec<Change> {
        let Some(user_agent) = event.text(&self.0.user_agent) else {
            return Vec::new();
        };
        let classes = rule::classify(&user_agent);
        self.0
            .add
            .keyed(&classes)
            .filter(|(key, _)| event.get(key).is_none())
            .map(|(key, class)| Change::text(key, class))
            .collect()
    }
}

presence_plugin::export!(enricher: DeviceClass);
