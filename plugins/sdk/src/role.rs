//! The three roles that a component can have.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Audience, Event, Value};

pub use crate::bindings::enricher::Change;

/// Turns an audience into an audience: who may see this event.
///
/// A filter is pure: a function of the event, its configuration and the
/// directory. The host may repeat, reuse, reorder or skip its calls.
pub trait Filter: Sized {
    /// The plugin's configuration; [`NoConfig`] if it has none. A key that it
    /// doesn't name is an error that names the key.
    type Config: DeserializeOwned;

    /// Makes the filter. It is called once, before any event.
    ///
    /// # Errors
    ///
    /// Says why the configuration is refused: what is wrong, and where.
    fn configure(config: Self::Config) -> Result<Self, String>;

    /// Decides who may see the event, given the audience so far.
    fn filter(&self, event: &Event, audience: Audience) -> Audience;
}

/// Splits the final audience into renditions: what each part of it gets.
///
/// A redactor is pure, as a [`Filter`] is.
pub trait Redactor: Sized {
    /// The plugin's configuration; [`NoConfig`] if it has none. A key that it
    /// doesn't name is an error that names the key.
    type Config: DeserializeOwned;

    /// Makes the redactor. It is called once, before any event.
    ///
    /// # Errors
    ///
    /// Says why the configuration is refused: what is wrong, and where.
    fn configure(config: Self::Config) -> Result<Self, String>;

    /// Splits the audience. A viewer named by several renditions gets the first
    /// of them; one named by none is not told.
    fn redact(&self, event: &Event, audience: Audience) -> Vec<Rendition>;
}

/// Changes an event's metadata before it is broadcast.
///
/// An enricher may keep state from call to call.
pub trait Enricher: Sized {
    /// The plugin's configuration; [`NoConfig`] if it has none. A key that it
    /// doesn't name is an error that names the key.
    type Config: DeserializeOwned;

    /// Makes the enricher. It is called once, before any event.
    ///
    /// # Errors
    ///
    /// Says why the configuration is refused: what is wrong, and where.
    fn configure(config: Self::Config) -> Result<Self, String>;

    /// Returns the changes to the event's metadata.
    fn enrich(&mut self, event: &Event) -> Vec<Change>;
}

/// The configuration of a plugin that has none.
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct NoConfig {}

/// What a part of the audience gets to see.
#[derive(Clone, Debug)]
pub struct Rendition {
    /// Who gets it.
    pub audience: Audience,
    /// The metadata keys these viewers get; the event's others are left out.
    pub keys: Vec<String>,
    /// Whether these viewers get to know when the user was last seen.
    pub last_seen: bool,
}

impl Change {
    /// Puts a value under a key.
    pub fn set(key: impl Into<String>, value: Value) -> Self {
        Self {
            key: key.into(),
            value: Some(value),
        }
    }

    /// Puts a string under a key.
    pub fn text(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self::set(key, Value::Text(text.into()))
    }

    /// Removes a key.
    pub fn remove(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: None,
        }
    }
}
