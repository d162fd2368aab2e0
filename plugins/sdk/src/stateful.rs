//! Enrichers whose state outlives a reload.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::Enricher;
use crate::bindings::stateful_enricher::State as Saved;

/// An [`Enricher`] whose state outlives a reload.
///
/// A reload puts new instances in the place of the old ones, because the plugin,
/// its configuration or another part of the pipeline has changed. An instance
/// that is [exported](crate::export) as `stateful enricher` then takes over what
/// the old one knew, before its first event. If it can't, the log says why, and
/// it begins without. The state is lost when a call fails, and when the host
/// restarts; and each of the host's workers has an instance that knows its own
/// users only.
///
/// ```
/// use std::collections::BTreeMap;
///
/// use presence_plugin::{Change, Enricher, Event, NoConfig, Stateful, Value};
///
/// /// Counts how often each user came and went.
/// struct Counter {
///     events: BTreeMap<String, u64>,
/// }
///
/// impl Enricher for Counter {
///     type Config = NoConfig;
///
///     fn configure(_: NoConfig) -> Result<Self, String> {
///         let events = BTreeMap::new();
///         Ok(Counter { events })
///     }
///
///     fn enrich(&mut self, event: &Event) -> Vec<Change> {
///         let events = self.events.entry(event.user().to_owned()).or_default();
///         *events += 1;
///         vec![Change::set("events", Value::Json(events.to_string()))]
///     }
/// }
///
/// impl Stateful for Counter {
///     type State = BTreeMap<String, u64>;
///
///     const VERSION: u32 = 1;
///
///     fn save(&self) -> Self::State {
///         self.events.clone()
///     }
///
///     fn restore(&mut self, state: Self::State) -> Result<(), String> {
///         self.events = state;
///         Ok(())
///     }
/// }
///
/// presence_plugin::export!(stateful enricher: Counter);
/// # fn main() {}
/// ```
pub trait Stateful: Enricher {
    /// What is handed over, as JSON: of an instance at most 1 MiB.
    type State: Serialize + DeserializeOwned;

    /// The version of the state's form. Raise it when an older state can't be read
    /// any more, or would be misread.
    const VERSION: u32;

    /// Hands over the state, within the time of any call and ten times its fuel.
    /// There is no event then: the host answers nothing.
    fn save(&self) -> Self::State;

    /// Takes over a state, within the same limits. There is no event then: the host
    /// answers nothing.
    ///
    /// # Errors
    ///
    /// Says why the state is refused.
    fn restore(&mut self, state: Self::State) -> Result<(), String>;

    /// Reads a state of another version, given as JSON text. It is refused unless
    /// the plugin knows better.
    ///
    /// # Errors
    ///
    /// Says why the state is refused.
    fn upgrade(version: u32, json: &str) -> Result<Self::State, String> {
        let _ = json;
        let own = Self::VERSION;
        Err(format!(
            "the state is of version {version}, and this plugin reads version {own}"
        ))
    }
}

/// # Panics
///
/// If the state has no JSON form.
#[doc(hidden)]
pub fn save<T: Stateful>(plugin: &T) -> Saved {
    match serde_json::to_vec(&plugin.save()) {
        Ok(data) => Saved {
            version: T::VERSION,
            data,
        },
        Err(error) => panic!("the state has no JSON form: {error}"),
    }
}

#[doc(hidden)]
pub fn restore<T: Stateful>(plugin: &mut T, saved: Saved) -> Result<(), String> {
    let json = std::str::from_utf8(&saved.data).map_err(|error| format!("the state: {error}"))?;
    let state = if saved.version == T::VERSION {
        serde_json::from_str(json).map_err(|error| format!("the state: {error}"))?
    } else {
        T::upgrade(saved.version, json)?
    };
    plugin.restore(state)
}
