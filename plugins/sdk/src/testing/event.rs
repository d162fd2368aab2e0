//! Something happens, and a rule is called about it.

use serde::Serialize;

use super::host::json;
use super::{Host, Outcome, Rendition, call};
use crate::bindings::filter::presence::plugin::events;
use crate::{Audience, Change, Enricher, Filter, Kind, Reason, Redactor, Value};

/// A user comes online or goes offline: add to it, and call a rule about it.
#[derive(Clone, Debug)]
#[must_use = "nothing is called about it yet"]
pub struct Event<'host> {
    pub(super) host: &'host Host,
    pub(super) about: About,
}

/// What can be asked about an event.
#[derive(Clone, Debug)]
pub(crate) struct About {
    pub(crate) user: String,
    pub(crate) kind: Kind,
    pub(crate) timestamp: u64,
    /// When the user was last seen, and why they went. None while they are online.
    pub(crate) departure: Option<(u64, Reason)>,
    pub(crate) metadata: Vec<(String, Value)>,
}

impl Event<'_> {
    /// When it happened, in milliseconds since the Unix epoch, if that is not the
    /// host's time.
    ///
    /// ```
    /// use presence_plugin::testing::Host;
    ///
    /// let host = Host::new().now(2_000);
    /// let outcome = host.online("ada").timestamp(1_000).call(|event| event.timestamp());
    /// assert_eq!(outcome.answer, 1_000);
    /// ```
    pub fn timestamp(mut self, ms: u64) -> Self {
        self.about.timestamp = ms;
        self
    }

    /// Puts a value under a metadata key.
    ///
    /// # Panics
    ///
    /// If the value has no JSON form.
    ///
    /// ```
    /// use presence_plugin::{Value, testing::Host};
    ///
    /// let host = Host::new();
    /// let online = host.online("ada").metadata("device", "web").metadata("tabs", 2);
    /// let outcome = online.call(|event| (event.text("device"), event.get("tabs")));
    /// assert_eq!(outcome.answer.0.as_deref(), Some("web"));
    /// assert_eq!(outcome.answer.1, Some(Value::Json("2".to_owned())));
    /// ```
    pub fn metadata(mut self, key: &str, value: impl Serialize) -> Self {
        let json = json(value);
        let value = match serde_json::from_str(&json) {
            Ok(text) => Value::Text(text),
            Err(_) => Value::Json(json),
        };
        let metadata = &mut self.about.metadata;
        match metadata.iter_mut().find(|(other, _)| other == key) {
            Some((_, before)) => *before = value,
            None => metadata.push((key.to_owned(), value)),
        }
        self
    }

    /// Calls a filter with the audience so far. The answer is whom it leaves, in
    /// alphabetical order.
    ///
    /// ```
    /// use presence_plugin::testing::Host;
    /// # use presence_plugin::{Audience, Event, Filter, NoConfig, directory};
    /// # struct Blocklist;
    /// # impl Filter for Blocklist {
    /// #     type Config = NoConfig;
    /// #     fn configure(_: NoConfig) -> Result<Self, String> {
    /// #         Ok(Blocklist)
    /// #     }
    /// #     fn filter(&self, event: &Event, audience: Audience) -> Audience {
    /// #         audience - directory::blocked_by(event.user())
    /// #     }
    /// # }
    /// let host = Host::new().blocks("ada", ["eve"]);
    /// let outcome = host.online("ada").filter(&Blocklist, ["ben", "eve"]);
    /// assert_eq!(outcome.answer, ["ben"]);
    /// ```
    pub fn filter<U: Into<String>>(
        &self,
        filter: &impl Filter,
        audience: impl IntoIterator<Item = U>,
    ) -> Outcome<Vec<String>> {
        self.call(|event| sorted(filter.filter(event, Audience::of(audience))))
    }

    /// Calls a redactor with the final audience. The answer is its renditions, each
    /// with its viewers in alphabetical order; whoever isn't in the audience is in
    /// none.
    ///
    /// ```
    /// use presence_plugin::testing::{self, Host};
    /// # use presence_plugin::{Audience, Event, NoConfig, Redactor, Rendition};
    /// # struct Bare;
    /// # impl Redactor for Bare {
    /// #     type Config = NoConfig;
    /// #     fn configure(_: NoConfig) -> Result<Self, String> {
    /// #         Ok(Bare)
    /// #     }
    /// #     fn redact(&self, _: &Event, audience: Audience) -> Vec<Rendition> {
    /// #         vec![Rendition { audience, keys: Vec::new(), last_seen: false }]
    /// #     }
    /// # }
    /// let host = Host::new();
    /// let outcome = host.online("ada").redact(&Bare, ["cleo", "ben"]);
    /// assert_eq!(outcome.answer.len(), 1);
    /// assert_eq!(outcome.answer[0].viewers, ["ben", "cleo"]);
    /// assert!(outcome.answer[0].keys.is_empty());
    /// ```
    pub fn redact<U: Into<String>>(
        &self,
        redactor: &impl Redactor,
        audience: impl IntoIterator<Item = U>,
    ) -> Outcome<Vec<Rendition>> {
        self.call(|event| {
            let audience = Audience::of(audience);
            let renditions = redactor.redact(event, audience).into_iter();
            let renditions = renditions.map(|rendition| Rendition {
                viewers: sorted(rendition.audience & audience),
                keys: rendition.keys,
                last_seen: rendition.last_seen,
            });
            renditions.collect()
        })
    }

    /// Calls an enricher. The answer is its changes.
    ///
    /// # Panics
    ///
    /// If it sets a key to what is not JSON.
    ///
    /// ```
    /// use presence_plugin::testing::Host;
    /// # use presence_plugin::{Change, Enricher, Event, NoConfig};
    /// # struct Shout;
    /// # impl Enricher for Shout {
    /// #     type Config = NoConfig;
    /// #     fn configure(_: NoConfig) -> Result<Self, String> {
    /// #         Ok(Shout)
    /// #     }
    /// #     fn enrich(&mut self, event: &Event) -> Vec<Change> {
    /// #         let device = event.text("device").unwrap_or_default();
    /// #         vec![Change::text("device", device.to_uppercase())]
    /// #     }
    /// # }
    /// let host = Host::new();
    /// let outcome = host.online("ada").metadata("device", "web").enrich(&mut Shout);
    /// assert_eq!(outcome.answer, [Change::text("device", "WEB")]);
    /// ```
    pub fn enrich(&self, enricher: &mut impl Enricher) -> Outcome<Vec<Change>> {
        self.call(|event| {
            let changes = enricher.enrich(event);
            for Change { key, value } in &changes {
                if let Some(Value::Json(json)) = value
                    && let Err(error) = serde_json::from_str::<serde::de::IgnoredAny>(json)
                {
                    panic!("set `{key}` to what is not JSON: {error}");
                }
            }
            changes
        })
    }

    /// Calls a part of a rule: anything that asks the host.
    ///
    /// ```
    /// use presence_plugin::{directory, testing::Host};
    ///
    /// let host = Host::new().contacts("ada", ["ben"]);
    /// let is_friend = |friend: &str| directory::contacts("ada").contains(friend);
    /// assert!(host.online("ada").call(|_| is_friend("ben")).answer);
    /// ```
    pub fn call<T>(&self, part: impl FnOnce(&crate::Event) -> T) -> Outcome<T> {
        call::make(self.host.clone(), self.about.clone(), || {
            part(&crate::Event::from_call(events::Event {
                kind: self.about.kind,
                user: self.about.user.clone(),
            }))
        })
    }
}

fn sorted(audience: Audience) -> Vec<String> {
    let mut viewers = audience.viewers();
    viewers.sort_unstable();
    viewers
}
