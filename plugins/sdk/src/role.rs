//! The three roles that a component can have.

use serde::Deserialize;
use serde::de::DeserializeOwned;

use crate::{Audience, Event, Value};

/// ```
/// use presence_plugin::{Change, Value};
///
/// let change = Change {
///     key: "device".to_owned(),
///     value: Some(Value::Text("web".to_owned())),
/// };
/// assert_eq!(change, Change::text("device", "web"));
/// ```
pub use crate::bindings::filter::presence::plugin::events::Change;

/// Turns an audience into an audience: who may see this event.
///
/// A filter is pure: a function of the event, its configuration and the
/// directory. The host may repeat, reuse, reorder or skip its calls.
///
/// ```
/// use presence_plugin::testing::{Host, config};
/// use presence_plugin::{Audience, Event, Filter, directory};
///
/// /// The members of some groups see everyone.
/// #[derive(serde::Deserialize)]
/// struct Admins {
///     groups: Vec<String>,
/// }
///
/// impl Filter for Admins {
///     type Config = Self;
///
///     fn configure(config: Self) -> Result<Self, String> {
///         if config.groups.is_empty() {
///             return Err("groups is empty: name a group".to_owned());
///         }
///         Ok(config)
///     }
///
///     fn filter(&self, _: &Event, audience: Audience) -> Audience {
///         let admins = self.groups.iter().map(|group| directory::members(group));
///         admins.fold(audience, |audience, admins| audience | admins)
///     }
/// }
///
/// let admins = config(r#"{"groups": ["admins"]}"#).and_then(Admins::configure)?;
/// let host = Host::new().group("admins", ["ben"]);
/// assert_eq!(host.online("ada").filter(&admins, ["cleo"]).answer, ["ben", "cleo"]);
/// # Ok::<(), String>(())
/// ```
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
///
/// ```
/// use presence_plugin::testing::Host;
/// use presence_plugin::{Audience, Event, NoConfig, Redactor, Rendition, directory};
///
/// /// Contacts get to know the device, and the others just that the user is there.
/// struct Device;
///
/// impl Redactor for Device {
///     type Config = NoConfig;
///
///     fn configure(_: NoConfig) -> Result<Self, String> {
///         Ok(Device)
///     }
///
///     fn redact(&self, event: &Event, audience: Audience) -> Vec<Rendition> {
///         let contacts = Rendition {
///             audience: audience & directory::contacts(event.user()),
///             keys: vec!["device".to_owned()],
///             last_seen: true,
///         };
///         // Of two renditions a viewer gets the first.
///         let others = Rendition { audience, keys: Vec::new(), last_seen: false };
///         vec![contacts, others]
///     }
/// }
///
/// let host = Host::new().contacts("ada", ["ben"]);
/// let renditions = host.online("ada").redact(&Device, ["ben", "cleo"]).answer;
/// assert_eq!(renditions[0].viewers, ["ben"]);
/// assert_eq!(renditions[0].keys, ["device"]);
/// ```
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
///
/// ```
/// use presence_plugin::testing::Host;
/// use presence_plugin::{Change, Enricher, Event, NoConfig};
///
/// /// Tells less of where a user is.
/// struct Coarse;
///
/// impl Enricher for Coarse {
///     type Config = NoConfig;
///
///     fn configure(_: NoConfig) -> Result<Self, String> {
///         Ok(Coarse)
///     }
///
///     fn enrich(&mut self, event: &Event) -> Vec<Change> {
///         let location = event.text("location");
///         let country = location.as_deref().and_then(|text| text.rsplit(", ").next());
///         country.map(|country| Change::text("location", country)).into_iter().collect()
///     }
/// }
///
/// let host = Host::new();
/// let outcome = host.online("ada").metadata("location", "Paris, France").enrich(&mut Coarse);
/// assert_eq!(outcome.answer, [Change::text("location", "France")]);
/// ```
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
///
/// ```
/// use presence_plugin::testing::config;
/// use presence_plugin::NoConfig;
///
/// assert!(config::<NoConfig>("{}").is_ok());
/// assert!(config::<NoConfig>(r#"{"keys": []}"#).is_err());
/// ```
#[derive(Clone, Copy, Debug, Default, Deserialize)]
pub struct NoConfig {}

/// What a part of the audience gets to see.
///
/// ```
/// use presence_plugin::testing::Host;
/// use presence_plugin::{Audience, Rendition};
///
/// Host::new().online("ada").call(|_| {
///     let rendition = Rendition {
///         audience: Audience::of(["ben"]),
///         keys: vec!["device".to_owned()],
///         last_seen: false,
///     };
///     assert!(rendition.audience.contains("ben"));
/// });
/// ```
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
    ///
    /// ```
    /// use presence_plugin::{Change, Value};
    ///
    /// let change = Change::set("tabs", Value::Json("2".to_owned()));
    /// assert_eq!((change.key.as_str(), change.value), ("tabs", Some(Value::Json("2".to_owned()))));
    /// ```
    pub fn set(key: impl Into<String>, value: Value) -> Self {
        Self {
            key: key.into(),
            value: Some(value),
        }
    }

    /// Puts a string under a key.
    ///
    /// ```
    /// use presence_plugin::{Change, Value};
    ///
    /// let change = Change::text("device", "web");
    /// assert_eq!(change.value, Some(Value::Text("web".to_owned())));
    /// ```
    pub fn text(key: impl Into<String>, text: impl Into<String>) -> Self {
        Self::set(key, Value::Text(text.into()))
    }

    /// Removes a key.
    ///
    /// ```
    /// use presence_plugin::Change;
    ///
    /// assert_eq!(Change::remove("location").value, None);
    /// ```
    pub fn remove(key: impl Into<String>) -> Self {
        Self {
            key: key.into(),
            value: None,
        }
    }
}
