//! Which metadata keys viewers get.

use serde::Deserialize;

/// The plugin's configuration, and all there is to its rule.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    /// The metadata keys that viewers get.
    pub(crate) keys: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            keys: vec!["device".to_owned()],
        }
    }
}

impl Config {
    /// Refuses what can only be a mistake: an empty key, or a key listed twice.
    pub(crate) fn validate(&self) -> Result<(), String> {
        for (i, key) in self.keys.iter().enumerate() {
            if key.is_empty() {
                return Err(format!("keys[{i}] is empty: name a metadata key"));
            }
            if self.keys.iter().take(i).any(|earlier| earlier == key) {
                return Err(format!("keys[{i}] lists \"{key}\" a second time"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::Config;

    fn keys(keys: &[&str]) -> Config {
        Config {
            keys: keys.iter().map(ToString::to_string).collect(),
        }
    }

    #[test]
    fn by_default_viewers_get_the_device_only() {
        assert_eq!(Config::default().keys, ["device"]);
    }

    #[test]
    fn any_list_of_distinct_keys_will_do() {
        assert_eq!(keys(&[]).validate(), Ok(()));
        assert_eq!(keys(&["device", "location"]).validate(), Ok(()));
    }

    #[test]
    fn mistakes_are_refused_and_located() {
        assert_eq!(
            keys(&["device", ""]).validate(),
            Err("keys[1] is empty: name a metadata key".to_owned())
        );
        assert_eq!(
            keys(&["device", "ip", "device"]).validate(),
            Err("keys[2] lists \"device\" a second time".to_owned())
        );
    }
}
