//! A redactor: contacts get more than others do.

use presence_plugin::{Audience, Event, Redactor, Rendition, directory};
use serde::Deserialize;

/// What can be configured: the metadata keys that viewers get.
#[derive(Deserialize)]
#[serde(default)]
struct Config {
    contacts: Vec<String>,
    others: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            contacts: vec!["device".to_owned(), "location".to_owned()],
            others: vec!["device".to_owned()],
        }
    }
}

struct ByContact(Config);

impl Redactor for ByContact {
    type Config = Config;

    fn configure(config: Config) -> Result<Self, String> {
        Ok(ByContact(config))
    }

    fn redact(&self, event: &Event, audience: Audience) -> Vec<Rendition> {
        let contacts = audience & directory::contacts(event.user());
        vec![
            Rendition {
                audience: contacts,
                keys: self.0.contacts.clone(),
                last_seen: true,
            },
            Rendition {
                audience: audience - contacts,
                keys: self.0.others.clone(),
                last_seen: false,
            },
        ]
    }
}

presence_plugin::export!(redactor: ByContact);

#[cfg(test)]
mod tests {
    use presence_plugin::testing::Host;

    use super::*;

    #[test]
    fn contacts_get_more_than_others() {
        let redactor = ByContact::configure(Config::default()).unwrap();
        let host = Host::new().contacts("ada", ["ben"]);
        let outcome = host.online("ada").redact(&redactor, ["ben", "cleo"]);
        let [contacts, others] = outcome.answer.as_slice() else {
            panic!("not two renditions: {:?}", outcome.answer);
        };
        assert_eq!(contacts.viewers, ["ben"]);
        assert_eq!(contacts.keys, ["device", "location"]);
        assert!(contacts.last_seen);
        assert_eq!(others.viewers, ["cleo"]);
        assert_eq!(others.keys, ["device"]);
        assert!(!others.last_seen);
    }
}
