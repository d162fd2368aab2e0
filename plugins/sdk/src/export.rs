//! `export!`: makes a type's implementation of a role the component's own.

use std::cell::RefCell;

use serde::de::{DeserializeOwned, Deserializer, Error as _, Visitor};

use crate::host::install_log;

/// Exports a type as the component, once a crate: `export!(filter: T)`,
/// `export!(redactor: T)`, `export!(enricher: T)`, or, with its state over a
/// reload, `export!(stateful enricher: T)`.
///
/// ```
/// use presence_plugin::{Audience, Event, Filter, NoConfig};
///
/// struct Everyone;
///
/// impl Filter for Everyone {
///     type Config = NoConfig;
///
///     fn configure(_: NoConfig) -> Result<Self, String> {
///         Ok(Everyone)
///     }
///
///     fn filter(&self, _: &Event, _: Audience) -> Audience {
///         presence_plugin::directory::everyone()
///     }
/// }
///
/// presence_plugin::export!(filter: Everyone);
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! export {
    (filter: $plugin:ty) => {
        $crate::__export!(filter, Filter, $plugin, {
            fn filter(
                event: $crate::bindings::filter::Event,
                audience: $crate::bindings::filter::Audience,
            ) -> $crate::bindings::filter::Audience {
                let event = $crate::Event::from_call(event);
                let audience = $crate::Audience::from_token(audience);
                let filter = |plugin: &mut $plugin| {
                    <$plugin as $crate::Filter>::filter(plugin, &event, audience)
                };
                PLUGIN.with(|slot| slot.call(filter)).token()
            }
        });
    };
    (redactor: $plugin:ty) => {
        $crate::__export!(redactor, Redactor, $plugin, {
            fn redact(
                event: $crate::bindings::redactor::Event,
                audience: $crate::bindings::redactor::Audience,
            ) -> ::std::vec::Vec<$crate::bindings::redactor::Rendition> {
                let event = $crate::Event::from_call(event);
                let audience = $crate::Audience::from_token(audience);
                let redact = |plugin: &mut $plugin| {
                    <$plugin as $crate::Redactor>::redact(plugin, &event, audience)
                };
                let renditions = PLUGIN.with(|slot| slot.call(redact));
                renditions
                    .into_iter()
                    .map(::std::convert::Into::into)
                    .collect()
            }
        });
    };
    (enricher: $plugin:ty) => {
        $crate::__export!(enricher, Enricher, $plugin, {
            $crate::__enrich!($plugin);
        });
    };
    (stateful enricher: $plugin:ty) => {
        $crate::__export!(stateful_enricher, Enricher, $plugin, {
            $crate::__enrich!($plugin);

            fn save() -> $crate::bindings::stateful_enricher::State {
                PLUGIN.with(|slot| slot.call(|plugin: &mut $plugin| $crate::stateful::save(plugin)))
            }

            fn restore(
                state: $crate::bindings::stateful_enricher::State,
            ) -> ::std::result::Result<(), ::std::string::String> {
                let restore = |plugin: &mut $plugin| $crate::stateful::restore(plugin, state);
                PLUGIN.with(|slot| slot.call(restore))
            }
        });
    };
}

/// What is the same for an enricher with and without a state to hand over.
#[doc(hidden)]
#[macro_export]
macro_rules! __enrich {
    ($plugin:ty) => {
        fn enrich(event: $crate::bindings::enricher::Event) -> ::std::vec::Vec<$crate::Change> {
            let event = $crate::Event::from_call(event);
            let enrich =
                |plugin: &mut $plugin| <$plugin as $crate::Enricher>::enrich(plugin, &event);
            PLUGIN.with(|slot| slot.call(enrich))
        }
    };
}

/// What is the same for every role: the slot, and `configure`.
#[doc(hidden)]
#[macro_export]
macro_rules! __export {
    ($world:ident, $role:ident, $plugin:ty, { $($call:tt)* }) => {
        const _: () = {
            ::std::thread_local! {
                static PLUGIN: $crate::Slot<$plugin> = const { $crate::Slot::empty() };
            }

            struct Component;

            impl $crate::bindings::$world::Guest for Component {
                fn configure(
                    json: ::std::string::String,
                ) -> ::std::result::Result<(), ::std::string::String> {
                    PLUGIN.with(|slot| slot.configure(&json, <$plugin as $crate::$role>::configure))
                }

                $($call)*
            }

            $crate::bindings::$world::export!(Component with_types_in $crate::bindings::$world);
        };
    };
}

impl From<crate::Rendition> for crate::bindings::redactor::Rendition {
    fn from(rendition: crate::Rendition) -> Self {
        Self {
            audience: rendition.audience.token(),
            keys: rendition.keys,
            last_seen: rendition.last_seen,
        }
    }
}

/// Where a component keeps its plugin between calls. A component runs on one
/// thread and is never called while it is in a call.
#[doc(hidden)]
pub struct Slot<T>(RefCell<Option<T>>);

impl<T> Slot<T> {
    #[must_use]
    pub const fn empty() -> Self {
        Self(RefCell::new(None))
    }

    pub fn configure<C: DeserializeOwned>(
        &self,
        json: &str,
        configure: fn(C) -> Result<T, String>,
    ) -> Result<(), String> {
        install_log();
        *self.0.borrow_mut() = Some(configure(parse(json)?)?);
        Ok(())
    }

    pub fn call<R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        match self.0.borrow_mut().as_mut() {
            Some(plugin) => f(plugin),
            None => panic!("called before configure"),
        }
    }
}

/// Reads a configuration. No configuration is one without keys.
pub(crate) fn parse<C: DeserializeOwned>(json: &str) -> Result<C, String> {
    let json = match json.trim() {
        "" | "null" => "{}",
        json => json,
    };
    let mut unknown = None;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let config = serde_ignored::deserialize(&mut deserializer, |path| {
        // A `?` stands for an option on the way, which nobody has written.
        unknown.get_or_insert_with(|| path.to_string().replace("?.", ""));
    })
    .map_err(|e| format!("configuration: {e}"))?;
    deserializer
        .end()
        .map_err(|e| format!("configuration: {e}"))?;
    match unknown {
        Some(key) if key.contains('.') => Err(format!("configuration: unknown key `{key}`")),
        Some(key) => Err(format!(
            "configuration: unknown key `{key}`; {}",
            known_keys::<C>()
        )),
        None => Ok(config),
    }
}

/// The keys that a configuration may have, in words.
fn known_keys<C: DeserializeOwned>() -> String {
    let mut fields: &[&str] = &[];
    // It is only asked for its keys, and fails.
    let _ = C::deserialize(Fields(&mut fields));
    match fields {
        [] => "it has none".to_owned(),
        fields => format!("known here: {}", fields.join(", ")),
    }
}

/// Notes the fields of the type that is read from it, and has nothing to read.
struct Fields<'a>(&'a mut &'static [&'static str]);

impl<'de> Deserializer<'de> for Fields<'_> {
    type Error = serde::de::value::Error;

    fn deserialize_any<V: Visitor<'de>>(self, _: V) -> Result<V::Value, Self::Error> {
        Err(Self::Error::custom("there is nothing to read"))
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        *self.0 = fields;
        self.deserialize_any(visitor)
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 u8 u16 u32 u64 f32 f64 char str string bytes byte_buf option unit
        unit_struct newtype_struct seq tuple tuple_struct map enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::parse;
    use crate::NoConfig;

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Config {
        keys: Vec<String>,
        nested: Nested,
        list: Option<Vec<Nested>>,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    #[serde(default)]
    struct Nested {
        on: bool,
    }

    #[test]
    fn no_configuration_is_one_without_keys() {
        for json in ["", " ", "null", "{}"] {
            assert_eq!(parse(json), Ok(Config::default()), "{json:?}");
            assert!(parse::<NoConfig>(json).is_ok(), "{json:?}");
        }
    }

    #[test]
    fn an_unknown_key_is_named_with_its_path() {
        assert_eq!(
            parse::<Config>(r#"{"kyes": []}"#),
            Err("configuration: unknown key `kyes`; known here: keys, nested, list".to_owned())
        );
        assert_eq!(
            parse::<Config>(r#"{"nested": {"no": 1}}"#),
            Err("configuration: unknown key `nested.no`".to_owned())
        );
        assert_eq!(
            parse::<Config>(r#"{"list": [{}, {"no": 1}]}"#),
            Err("configuration: unknown key `list.1.no`".to_owned())
        );
        assert_eq!(
            parse::<NoConfig>(r#"{"keys": []}"#).err(),
            Some("configuration: unknown key `keys`; it has none".to_owned())
        );
    }

    #[test]
    fn what_is_not_a_configuration_is_refused() {
        for json in ["[1]", r#"{"keys": "device"}"#, "{} {}", "{"] {
            assert!(parse::<Config>(json).is_err(), "{json}");
        }
    }
}
