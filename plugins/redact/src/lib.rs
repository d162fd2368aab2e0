//! A redactor: everyone gets the same, namely the metadata keys that the
//! configuration lists, and when the user was last seen.

mod rule;

use presence_plugin::{Audience, Event, Redactor, Rendition};

struct Redact(rule::Config);

impl Redactor for Redact {
    type Config = rule::Config;

    fn configure(config: rule::Config) -> Result<Self, String> {
        config.validate()?;
        Ok(Redact(config))
    }

    fn redact(&self, _: &Event, audience: Audience) -> Vec<Rendition> {
        vec![Rendition {
            audience,
            keys: self.0.keys.clone(),
            last_seen: true,
        }]
    }
}

presence_plugin::export!(redactor: Redact);
