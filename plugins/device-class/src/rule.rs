//! What is told of a user agent: the class of the device, and the families of
//! browser and operating system. No versions and no models, which would set a
//! person apart.
//!
//! It looks for the words that the families are known by, most specific first,
//! since user agents name what they are compatible with, too. The parsers that
//! know more (woothee, uap) bring a regular-expression engine, many times the
//! size of this component.

use serde::Deserialize;

/// The plugin's configuration.
#[derive(Debug, Deserialize)]
#[serde(default)]
pub(crate) struct Config {
    /// The metadata key that holds the user agent.
    pub(crate) user_agent: String,
    /// What to add, and under which keys.
    pub(crate) add: Add,
}

/// The metadata key for each class; a class without one is not added.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub(crate) struct Add {
    device_class: Option<String>,
    browser: Option<String>,
    os: Option<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            user_agent: "userAgent".to_owned(),
            add: Add {
                device_class: Some("deviceClass".to_owned()),
                browser: Some("browser".to_owned()),
                os: Some("os".to_owned()),
            },
        }
    }
}

impl Config {
    /// Refuses keys that can only be a mistake.
    pub(crate) fn validate(&self) -> Result<(), String> {
        if self.user_agent.is_empty() {
            return Err("user_agent is empty: name the key that holds it".to_owned());
        }
        let Add {
            device_class,
            browser,
            os,
        } = &self.add;
        let keys = [
            ("deviceClass", device_class),
            ("browser", browser),
            ("os", os),
        ];
        for (i, (class, key)) in keys.iter().enumerate() {
            let Some(key) = key else { continue };
            if key.is_empty() || key == "device" || *key == self.user_agent {
                return Err(format!(
                    "add.{class} can't be \"{key}\": name a key of its own"
                ));
            }
            if keys
                .iter()
                .take(i)
                .any(|(_, earlier)| *earlier == &Some(key.clone()))
            {
                return Err(format!("add.{class} is \"{key}\", as another class is"));
            }
        }
        Ok(())
    }
}

impl Add {
    /// The classes that are known and wanted, with their keys.
    pub(crate) fn keyed(&self, classes: &Classes) -> impl Iterator<Item = (&str, &'static str)> {
        [
            (&self.device_class, Some(classes.device_class)),
            (&self.browser, classes.browser),
            (&self.os, classes.os),
        ]
        .into_iter()
        .filter_map(|(key, class)| Some((key.as_deref()?, class?)))
    }
}

/// What a user agent tells.
#[derive(Debug, PartialEq)]
pub(crate) struct Classes {
    /// `desktop`, `mobile`, `tablet`, `tv`, `bot` or `other`.
    pub(crate) device_class: &'static str,
    /// The browser's family, if it is a known one.
    pub(crate) browser: Option<&'static str>,
    /// The operating system's family, if it is a known one.
    pub(crate) os: Option<&'static str>,
}

/// Classifies a user agent.
pub(crate) fn classify(user_agent: &str) -> Classes {
    let user_agent = user_agent.to_ascii_lowercase();
    let family = |table: &[(&str, &'static str)]| {
        table
            .iter()
            .find(|(word, _)| user_agent.contains(word))
            .map(|(_, family)| *family)
    };
    let os = family(OSES);
    Classes {
        device_class: device_class(&user_agent, os),
        browser: family(BROWSERS),
        os,
    }
}

fn device_class(user_agent: &str, os: Option<&str>) -> &'static str {
    let says = |words: &[&str]| words.iter().any(|word| user_agent.contains(word));
    // Cubot makes telephones.
    if says(BOTS) || user_agent.replace("cubot", "").contains("bot") {
        return "bot";
    }
    if says(TVS) {
        return "tv";
    }
    if says(CONSOLES) {
        return "other";
    }
    // Windows on a tablet says "Tablet PC", as do many desktops.
    if says(&["ipad", "kindle", "silk/", "playbook"])
        || (says(&["tablet"]) && os != Some("Windows"))
        || (os == Some("Android") && !says(&["mobi"]))
    {
        return "tablet";
    }
    if says(&[
        "mobi",
        "iphone",
        "ipod",
        "windows phone",
        "opera mini",
        "blackberry",
    ]) {
        return "mobile";
    }
    match os {
        Some("Windows" | "macOS" | "Linux" | "ChromeOS") => "desktop",
        _ => "other",
    }
}

const BOTS: &[&str] = &[
    "crawler",
    "spider",
    "slurp",
    "facebookexternalhit",
    "headlesschrome",
    "lighthouse",
];

const TVS: &[&str] = &[
    "smart-tv",
    "smarttv",
    "appletv",
    "apple tv",
    "googletv",
    "google tv",
    "android tv",
    "hbbtv",
    "netcast",
    "web0s",
    "roku",
    "crkey",
    "bravia",
    "; aft",
];

const CONSOLES: &[&str] = &["xbox", "playstation", "nintendo"];

/// In the order in which they are to be looked for: Windows Phone says
/// "Android" and "iPhone", iOS says "like Mac OS X", and Android says "Linux".
const OSES: &[(&str, &str)] = &[
    ("windows phone", "Windows Phone"),
    ("windows", "Windows"),
    ("appletv", "tvOS"),
    ("apple tv", "tvOS"),
    ("iphone", "iOS"),
    ("ipad", "iOS"),
    ("ipod", "iOS"),
    ("harmonyos", "HarmonyOS"),
    ("tizen", "Tizen"),
    ("web0s", "webOS"),
    ("android", "Android"),
    ("kaios", "KaiOS"),
    ("cros ", "ChromeOS"),
    ("macintosh", "macOS"),
    ("mac os x", "macOS"),
    ("linux", "Linux"),
    ("x11", "Linux"),
];

/// In the order in which they are to be looked for: nearly all say "Safari",
/// and those made of Chromium say "Chrome".
const BROWSERS: &[(&str, &str)] = &[
    ("edg/", "Edge"),
    ("edge/", "Edge"),
    ("edga/", "Edge"),
    ("edgios/", "Edge"),
    ("opr/", "Opera"),
    ("opt/", "Opera"),
    ("opera", "Opera"),
    ("samsungbrowser/", "Samsung Internet"),
    ("yabrowser/", "Yandex Browser"),
    ("ucbrowser/", "UC Browser"),
    ("vivaldi/", "Vivaldi"),
    ("duckduckgo/", "DuckDuckGo"),
    ("ddg/", "DuckDuckGo"),
    ("silk/", "Silk"),
    ("electron/", "Electron"),
    ("firefox/", "Firefox"),
    ("fxios/", "Firefox"),
    ("crios/", "Chrome"),
    ("chrome/", "Chrome"),
    ("chromium/", "Chrome"),
    ("msie ", "Internet Explorer"),
    ("trident/", "Internet Explorer"),
    ("safari/", "Safari"),
];

#[cfg(test)]
mod tests;
