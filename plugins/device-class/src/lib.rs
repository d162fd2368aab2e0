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

#[cfg(test)]
mod tests {
    use presence_plugin::testing::{Host, config};
    use presence_plugin::{Change, Enricher};

    use super::DeviceClass;

    const CURL: &str = "curl/8.4.0 (Linux)";

    #[test]
    fn what_is_known_is_added_and_what_is_there_stays() {
        let mut device_class = config("{}").and_then(DeviceClass::configure).unwrap();
        let host = Host::new();
        let curl = host.online("ada").metadata("userAgent", CURL);
        let added = curl.enrich(&mut device_class).answer;
        let os = Change::text("os", "Linux");
        assert_eq!(added, [Change::text("deviceClass", "desktop"), os.clone()]);
        let given = curl.metadata("deviceClass", "terminal");
        assert_eq!(given.enrich(&mut device_class).answer, [os]);
    }

    #[test]
    fn without_a_user_agent_nothing_is_added() {
        let mut device_class = config("{}").and_then(DeviceClass::configure).unwrap();
        let host = Host::new();
        for event in [
            host.online("ada"),
            host.online("ada").metadata("userAgent", 7),
        ] {
            assert!(event.enrich(&mut device_class).answer.is_empty());
        }
    }
}
