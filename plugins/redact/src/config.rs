//! What the redactor is configured with: `keys` for everyone alike, or tiers.

use serde::Deserialize;

/// The plugin's configuration.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    /// The metadata keys that viewers get; `device` where nothing else is said.
    keys: Option<Vec<String>>,
    /// In place of `keys`: tiers, of which viewers get the first to which they
    /// belong.
    tiers: Option<Vec<Tier>>,
    /// Users' own setting `lastSeen` narrows who gets to know that.
    pub(crate) user_settings: bool,
    /// Who shows nobody when they were last seen doesn't get to know it of others.
    pub(crate) reciprocal: bool,
}

/// A tier: viewers of a class, and what they get.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub(crate) struct Tier {
    /// Which viewers belong to it.
    #[serde(rename = "for")]
    pub(crate) class: Class,
    /// The metadata keys that they get.
    pub(crate) keys: Vec<String>,
    /// Whether they get to know when the user was last seen.
    #[serde(default)]
    pub(crate) last_seen: bool,
}

/// A class of viewers.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Class {
    /// The user's contacts.
    Contacts,
    /// Those who share a group with the user.
    Groups,
    /// Everyone in the audience.
    Everyone,
}

impl Config {
    /// The tiers; for `keys` alone, one that everyone belongs to.
    ///
    /// # Errors
    /// What can only be a mistake, and where it is.
    pub(crate) fn into_tiers(self) -> Result<Vec<Tier>, String> {
        if self.reciprocal && !self.user_settings {
            return Err("reciprocal needs `user_settings = true` beside it".to_owned());
        }
        let tiers = match (self.keys, self.tiers) {
            (Some(_), Some(_)) => {
                return Err("keys and tiers: say one of them, since tiers have keys".to_owned());
            }
            (None, Some(tiers)) => tiers,
            (keys, None) => {
                let keys = keys.unwrap_or_else(|| vec!["device".to_owned()]);
                check_keys(&keys, "")?;
                return Ok(vec![Tier {
                    class: Class::Everyone,
                    keys,
                    last_seen: true,
                }]);
            }
        };
        if tiers.is_empty() {
            return Err("tiers is empty, and so nobody would be told".to_owned());
        }
        for (i, tier) in tiers.iter().enumerate() {
            check_keys(&tier.keys, &format!("tiers[{i}]."))?;
            let mut earlier = tiers.iter().take(i);
            if earlier.any(|earlier| [tier.class, Class::Everyone].contains(&earlier.class)) {
                return Err(format!(
                    "tiers[{i}] is for nobody: an earlier tier has all its viewers"
                ));
            }
        }
        Ok(tiers)
    }
}

/// Refuses an empty key, or a key listed twice.
fn check_keys(keys: &[String], within: &str) -> Result<(), String> {
    for (i, key) in keys.iter().enumerate() {
        if key.is_empty() {
            return Err(format!("{within}keys[{i}] is empty: name a metadata key"));
        }
        if keys.iter().take(i).any(|earlier| earlier == key) {
            return Err(format!("{within}keys[{i}] lists \"{key}\" a second time"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(keys: &[&str]) -> Vec<String> {
        keys.iter().map(ToString::to_string).collect()
    }

    fn tier(class: Class, listed: &[&str]) -> Tier {
        Tier {
            class,
            keys: keys(listed),
            last_seen: false,
        }
    }

    fn tiers(tiers: &[Tier]) -> Result<Vec<Tier>, String> {
        let config = Config {
            tiers: Some(tiers.to_vec()),
            ..Config::default()
        };
        config.into_tiers()
    }

    fn one_for_all(keys: Option<Vec<String>>) -> Result<Vec<Tier>, String> {
        let config = Config {
            keys,
            ..Config::default()
        };
        config.into_tiers()
    }

    #[test]
    fn keys_alone_are_for_everyone_and_so_is_when_the_user_was_last_seen() {
        let one = |listed| Tier {
            last_seen: true,
            ..tier(Class::Everyone, listed)
        };
        assert_eq!(one_for_all(None), Ok(vec![one(&["device"])]));
        assert_eq!(one_for_all(Some(keys(&[]))), Ok(vec![one(&[])]));
        let both = ["device", "location"];
        assert_eq!(one_for_all(Some(keys(&both))), Ok(vec![one(&both)]));
    }

    #[test]
    fn tiers_are_taken_in_their_order() {
        let all = [
            tier(Class::Groups, &["device"]),
            tier(Class::Contacts, &[]),
            tier(Class::Everyone, &[]),
        ];
        assert_eq!(tiers(&all), Ok(all.to_vec()));
    }

    #[test]
    fn mistakes_are_refused_and_located() {
        let refused = |outcome: Result<Vec<Tier>, String>, words: &str| {
            let error = outcome.unwrap_err();
            assert!(error.contains(words), "{error}");
        };
        refused(one_for_all(Some(keys(&["device", ""]))), "keys[1] is empty");
        let twice = keys(&["device", "ip", "device"]);
        refused(one_for_all(Some(twice)), "keys[2] lists \"device\"");
        refused(tiers(&[]), "tiers is empty");
        let (contacts, everyone) = (tier(Class::Contacts, &[]), tier(Class::Everyone, &[]));
        refused(
            tiers(&[everyone, contacts.clone()]),
            "tiers[1] is for nobody",
        );
        refused(tiers(&[contacts.clone(), contacts.clone()]), "tiers[1] is");
        let empty = tier(Class::Groups, &[""]);
        refused(tiers(&[contacts.clone(), empty]), "tiers[1].keys[0] is");
        let both = Config {
            keys: Some(Vec::new()),
            tiers: Some(vec![contacts]),
            ..Config::default()
        };
        refused(both.into_tiers(), "keys and tiers");
        let alone = Config {
            reciprocal: true,
            ..Config::default()
        };
        refused(alone.into_tiers(), "user_settings = true");
    }
}
