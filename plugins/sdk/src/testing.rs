//! A host in memory, for tests of rules by a plain `cargo test`: no Wasm, no
//! broker, nothing to install.
//!
//! A [`Host`] holds what a rule can ask about: the directory and the time. It
//! has a user come [online](Host::online) or go [offline](Host::offline), and a
//! rule called about it. The [`Outcome`] has the rule's answer as plain data,
//! and what the rule has asked, explained and logged on its way.
//!
//! ```
//! use presence_plugin::testing::Host;
//! # use presence_plugin::{Audience, Event, Filter, NoConfig, directory};
//! # struct Contacts;
//! # impl Filter for Contacts {
//! #     type Config = NoConfig;
//! #     fn configure(_: NoConfig) -> Result<Self, String> {
//! #         Ok(Contacts)
//! #     }
//! #     fn filter(&self, event: &Event, audience: Audience) -> Audience {
//! #         audience | directory::contacts(event.user())
//! #     }
//! # }
//! let host = Host::new().contacts("ada", ["ben", "cleo"]);
//! let outcome = host.online("ada").filter(&Contacts, ["ben", "dan"]);
//! assert_eq!(outcome.answer, ["ben", "cleo", "dan"]);
//! ```
//!
//! It answers as a real host does, but that viewers come in alphabetical order.
//! What would end a call there with an error is a panic here, such as using an
//! audience of another call. What a real host does with an answer is left to it:
//! that it takes those out whom a filter had no right to add, say.

mod call;
mod event;
mod host;
pub(crate) mod imports;
mod outcome;

pub use event::Event;
pub use host::Host;
pub use outcome::{Outcome, Read, Rendition};

use serde::de::DeserializeOwned;

use crate::Stateful;

/// Reads a configuration from JSON text as a real host has it read: a key that
/// it doesn't name is an error.
///
/// # Errors
///
/// Says what is wrong, and where.
///
/// ```
/// use presence_plugin::testing::config;
///
/// #[derive(Debug, PartialEq, serde::Deserialize)]
/// struct Config {
///     keys: Vec<String>,
/// }
///
/// let keys = vec!["device".to_owned()];
/// assert_eq!(config(r#"{"keys": ["device"]}"#), Ok(Config { keys }));
/// assert_eq!(
///     config::<Config>(r#"{"keys": [], "key": "device"}"#),
///     Err("configuration: unknown key `key`; known here: keys".to_owned())
/// );
/// ```
pub fn config<C: DeserializeOwned>(json: &str) -> Result<C, String> {
    crate::export::parse(json)
}

/// Has an enricher take over another's state, as at a reload: the same plugin,
/// or an older or newer version of it.
///
/// # Errors
///
/// Says why the state is refused. The real host then begins with yet another
/// instance.
///
/// ```
/// use presence_plugin::testing::{Host, reload};
/// # use presence_plugin::{Change, Enricher, Event, NoConfig, Stateful};
/// # struct Counter(u64);
/// # impl Enricher for Counter {
/// #     type Config = NoConfig;
/// #     fn configure(_: NoConfig) -> Result<Self, String> {
/// #         Ok(Counter(0))
/// #     }
/// #     fn enrich(&mut self, _: &Event) -> Vec<Change> {
/// #         self.0 += 1;
/// #         vec![Change::text("n", self.0.to_string())]
/// #     }
/// # }
/// # impl Stateful for Counter {
/// #     type State = u64;
/// #     const VERSION: u32 = 1;
/// #     fn save(&self) -> u64 {
/// #         self.0
/// #     }
/// #     fn restore(&mut self, state: u64) -> Result<(), String> {
/// #         self.0 = state;
/// #         Ok(())
/// #     }
/// # }
/// let (mut old, mut new) = (Counter(0), Counter(0));
/// let host = Host::new();
/// host.online("ada").enrich(&mut old);
/// assert_eq!(reload(&old, &mut new), Ok(()));
/// let outcome = host.online("ada").enrich(&mut new);
/// assert_eq!(outcome.answer, [Change::text("n", "2")]);
/// ```
pub fn reload<Old: Stateful, New: Stateful>(old: &Old, new: &mut New) -> Result<(), String> {
    crate::stateful::restore(new, crate::stateful::save(old))
}

#[cfg(test)]
mod tests;
