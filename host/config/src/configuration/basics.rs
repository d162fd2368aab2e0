//! The sections with few keys: node, tenant, plugins, query, correction, explain, inbox, status,
//! dead letters, http, log.

use std::env;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use presence_core::dead_letter_limit::Rates;

use super::checks::{self, NAME_BYTES_MAX, any, in_token, token, within};
use super::nats::Secret;
use super::pipeline::{self, Grant};
use super::problem::InvalidValue;
use super::section::Section;
use crate::{PublicKey, log_filter};

/// `[node]`: who this node is.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// The name of this node in what it publishes. It is unique among the nodes of a fleet. One
    /// token of `[A-Za-z0-9_-]`; the host's name by default.
    pub name: String,
    /// How long stopping may take in all.
    pub stop_timeout: Duration,
}

impl Node {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let name = section.get("name", token);
        let stop_timeout_ms = section.get("stop_timeout_ms", within(1_000..=3_600_000));
        Self {
            name: name.unwrap_or_else(|| host_name(section.env("HOSTNAME"))),
            stop_timeout: Duration::from_millis(stop_timeout_ms.unwrap_or(25_000)),
        }
    }
}

/// `[tenant]`: the tenant that this node serves.
#[derive(Clone, Debug, PartialEq)]
pub struct Tenant {
    /// Its name, if there are `[[tenant]]` sections.
    pub name: Option<String>,
    /// Whether it has a connection of its own, instead of one that it shares with other tenants.
    pub own_account: bool,
    /// Whether its shards run on the threads for isolated tenants only.
    pub isolated: bool,
    /// The first token of all its subjects: one token of `[A-Za-z0-9_-]`, not `presence`. `None`
    /// for the default tenant.
    pub prefix: Option<String>,
    /// Into how many shards its users are divided, a power of two; 0 for as many as the node
    /// has threads, or the next power of two. See [`Config::shard_count`].
    ///
    /// [`Config::shard_count`]: super::Config::shard_count
    pub shards: usize,
}

/// The largest number of shards.
const SHARDS_MAX: usize = 1_024;

/// Checks a number of shards.
pub(super) fn shards(number: usize) -> Result<usize, InvalidValue> {
    if number == 0 || number.is_power_of_two() && number <= SHARDS_MAX {
        return Ok(number);
    }
    let fix = format!("choose a power of two up to {SHARDS_MAX}, or 0 for as many as threads");
    Err(InvalidValue::new(format!("is {number}"), fix))
}

impl Tenant {
    /// The key of its plugins' log lines in the process. It is the tenant's name, since another
    /// tenant may have the same prefix later, or in another account.
    pub fn lines_key(&self) -> String {
        let name = self.name.as_ref().or(self.prefix.as_ref());
        name.cloned().unwrap_or_default()
    }

    /// The name of its files on disk. A tenant without a name and a prefix has `presence`, which no
    /// prefix can be.
    pub fn file_name(&self) -> &str {
        let name = self.name.as_deref().or(self.prefix.as_deref());
        name.unwrap_or("presence")
    }

    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let prefix = section.get("prefix", |text: String| match text.as_str() {
            "" => Ok(None),
            "presence" => Err(InvalidValue::new(
                "is `presence`, which every subject begins with",
                "choose another name, or leave it out",
            )),
            _ => token(text).map(Some),
        });
        Self {
            name: None,
            own_account: false,
            isolated: false,
            prefix: prefix.flatten(),
            shards: section.get("shards", shards).unwrap_or(0),
        }
    }
}

/// Where a node gets its pipeline from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PluginSource {
    /// The plugin folder, and the `[[pipeline]]` of the configuration.
    Folder,
    /// The plugin store, in NATS.
    Store,
}

/// `[plugins]`: where plugins come from.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugins {
    /// Where the pipeline comes from. It never comes from both.
    pub source: PluginSource,
    /// The watched folder of plugins. A plugin in it wins over the embedded one of the same name.
    pub dir: PathBuf,
    /// The folder for compiled plugins. `None`: they are compiled at each start.
    pub cache: Option<PathBuf>,
    /// How long a plugin's file may be, in bytes.
    pub file_bytes_max: u64,
    /// How long loading all of the pipeline may take.
    pub load_timeout: Duration,
    /// How many plugins may be compiled at a time. 0: as many as the machine is good for.
    pub compilers: usize,
    /// How long compiling one may take.
    pub compile_timeout: Duration,
    /// What any plugin may be granted at most. `None`: everything.
    pub grants: Option<Vec<Grant>>,
    /// The public keys that are trusted: a signature with one of them is enough.
    pub trusted_keys: Vec<PublicKey>,
    /// Whether a plugin must be signed. A plugin that is part of the program needn't be.
    pub require_signature: bool,
}

impl Plugins {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let dir = section.path("dir");
        let cache = section.get("cache", |text: String| {
            Ok((!text.is_empty()).then_some(text))
        });
        let source = section.get("source", |text: String| match text.as_str() {
            "folder" => Ok(PluginSource::Folder),
            "store" => Ok(PluginSource::Store),
            _ => Err(InvalidValue::new(
                format!("is `{text}`"),
                "write `folder` or `store`",
            )),
        });
        let trusted_keys = section.get("trusted_keys", public_keys).unwrap_or_default();
        let require_signature = section.get("require_signature", any);
        let is_required = require_signature.unwrap_or(!trusted_keys.is_empty());
        if is_required && trusted_keys.is_empty() {
            let fix =
                "list the public keys in `trusted_keys`, as `presence plugin keygen` prints them";
            let what = "is true, and no key is trusted";
            section.refuse("require_signature", InvalidValue::new(what, fix));
        }
        Self {
            trusted_keys,
            require_signature: is_required,
            grants: section.get("grants", pipeline::grants),
            compilers: section.get("compilers", within(0..=64)).unwrap_or(0),
            compile_timeout: Duration::from_millis(
                section
                    .get("compile_timeout_ms", within(1_000..=3_600_000))
                    .unwrap_or(60_000),
            ),
            source: source.unwrap_or(PluginSource::Folder),
            file_bytes_max: section
                .get("file_bytes_max", within(1_024..=1 << 32))
                .unwrap_or(64 << 20),
            load_timeout: Duration::from_millis(
                section
                    .get("load_timeout_ms", within(1_000..=86_400_000))
                    .unwrap_or(300_000),
            ),
            dir: dir.unwrap_or_else(|| section.resolve("plugins.d")),
            cache: match cache {
                Some(cache) => cache.map(|cache| section.resolve(&cache)),
                None => own_cache(),
            },
        }
    }
}

/// Public keys, each once.
fn public_keys(texts: Vec<String>) -> Result<Vec<PublicKey>, InvalidValue> {
    let mut keys = Vec::new();
    for (place, text) in texts.iter().enumerate() {
        let fix = "write `ed25519:` and 44 characters, as `presence plugin keygen` prints them";
        // The text may be a private key, so it isn't repeated.
        let wrong = |_| InvalidValue::new(format!("has no public key at place {}", place + 1), fix);
        let key = PublicKey::parse(text).map_err(wrong)?;
        if keys.contains(&key) {
            let what = format!("has a key twice, at place {}", place + 1);
            return Err(InvalidValue::new(what, "keep one"));
        }
        keys.push(key);
    }
    Ok(keys)
}

/// The user's own folder for data that can be made again. `None` if there is none.
fn own_cache() -> Option<PathBuf> {
    own("XDG_CACHE_HOME", ".cache")
}

/// The user's own folder for data that is to be kept. `None` if there is none.
pub fn own_state() -> Option<PathBuf> {
    own("XDG_STATE_HOME", ".local/state")
}

fn own(variable: &str, below_home: &str) -> Option<PathBuf> {
    let named = env::var_os(variable).map(PathBuf::from);
    let home = || env::home_dir().map(|home| home.join(below_home));
    let folder = named.filter(|path| path.is_absolute()).or_else(home)?;
    folder.is_absolute().then(|| folder.join("presence"))
}

/// `[query]`: what is kept for answering queries.
#[derive(Clone, Debug, PartialEq)]
pub struct Query {
    /// How many departures are remembered, of all users together.
    pub departed_max: usize,
}

impl Query {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let departed_max = section.get("departed_max", within(0..=100_000_000));
        Self {
            departed_max: departed_max.unwrap_or(100_000),
        }
    }
}

/// `[correction]`: how fast viewers are told of corrections.
#[derive(Clone, Debug, PartialEq)]
pub struct Correction {
    /// How many messages a second corrections may take, over all shards. 0: no limit.
    pub messages_per_s: u64,
}

impl Correction {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let messages_per_s = section.get("messages_per_s", within(0..=100_000_000));
        Self {
            messages_per_s: messages_per_s.unwrap_or(20_000),
        }
    }
}

/// `[explain]`: explanations of decisions.
#[derive(Clone, Debug, PartialEq)]
pub struct Explain {
    /// Whether explanations are given.
    pub enabled: bool,
}

impl Explain {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        Self {
            enabled: section.get("enabled", any).unwrap_or(false),
        }
    }
}

/// `[inbox]`: delivery per viewer.
#[derive(Clone, Debug, PartialEq)]
pub struct Inbox {
    /// Whether each viewer also gets messages on a subject of their own.
    pub enabled: bool,
}

impl Inbox {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        Self {
            enabled: section.get("enabled", any).unwrap_or(false),
        }
    }
}

/// `[status]`: users' statuses.
#[derive(Clone, Debug, PartialEq)]
pub struct Status {
    /// Whether statuses are published.
    pub enabled: bool,
    /// The shortest time between two updates about a user, in milliseconds.
    pub min_interval_ms: u64,
    /// How long typing lasts if it isn't repeated, in milliseconds.
    pub typing_ms: u64,
    /// How many users' statuses are kept.
    pub users_max: usize,
}

impl Status {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let min_interval_ms = section.get("min_interval_ms", within(0..=3_600_000));
        Self {
            enabled: section.get("enabled", any).unwrap_or(false),
            min_interval_ms: min_interval_ms.unwrap_or(1_000),
            typing_ms: section
                .get("typing_ms", within(1..=3_600_000))
                .unwrap_or(10_000),
            users_max: section
                .get("users_max", within(1..=1_000_000_000))
                .unwrap_or(1_000_000),
        }
    }
}

/// `[dead_letters]`: how many dead letters may be published.
#[derive(Clone, Debug, PartialEq)]
pub struct DeadLetters {
    /// How many dead letters, and how many bytes of them, may be published a second, over all
    /// shards.
    pub rates: Rates,
}

impl DeadLetters {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let rates = Rates::default();
        Self {
            rates: Rates {
                letters_per_s: section
                    .get("per_s", within(1..=10_000_000))
                    .unwrap_or(rates.letters_per_s),
                bytes_per_s: section
                    .get("bytes_per_s", within(4_096..=17_179_869_184))
                    .unwrap_or(rates.bytes_per_s),
            },
        }
    }
}

/// How many characters `[http] admin_token` has at least.
const TOKEN_CHARS_MIN: usize = 16;

/// `[http]`: the endpoint for health, metrics and the page.
#[derive(Clone, Debug, PartialEq)]
pub struct Http {
    /// The address to listen on. `None`: the endpoint is off.
    pub listen: Option<SocketAddr>,
    /// Whether the address is the default one. If it is taken, the node can then do without it.
    pub listen_is_default: bool,
    /// The token that lets an operator do more on the page than anyone may.
    pub admin_token: Option<Secret>,
}

impl Http {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let listen = section.get("listen", |text: String| match text.as_str() {
            "" => Ok(None),
            _ => text.parse().map(Some).map_err(|_| {
                let fix = "write an IP address and a port, such as `127.0.0.1:18520`, \
                           or an empty string to turn it off";
                InvalidValue::new(format!("is `{text}`"), fix)
            }),
        });
        Self {
            listen: listen.unwrap_or(Some((Ipv4Addr::LOCALHOST, 18520).into())),
            listen_is_default: listen.is_none(),
            admin_token: section.get("admin_token", long_enough).map(Secret),
        }
    }
}

/// Checks that a token can't be guessed.
fn long_enough(text: String) -> Result<String, InvalidValue> {
    if text.chars().count() >= TOKEN_CHARS_MIN && text.chars().all(|it| it.is_ascii_graphic()) {
        return Ok(text);
    }
    let what = format!("is not a token of at least {TOKEN_CHARS_MIN} letters, digits and signs");
    Err(InvalidValue::new(
        what,
        "take one from `openssl rand -hex 32`",
    ))
}

/// `[log]`: the node's own log, on standard error.
#[derive(Clone, Debug, PartialEq)]
pub struct Log {
    /// What is logged: a filter that `log_filter::parse` takes.
    pub level: String,
    /// How a line looks.
    pub format: LogFormat,
    /// Whether lines name users.
    pub user_ids: bool,
}

/// How a line of the log looks.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl Log {
    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let level = section.get("level", |text: String| {
            let text = checks::filled(text)?;
            match log_filter::parse(&text) {
                Ok(_) => Ok(text),
                Err(what) => Err(InvalidValue::new(what, log_filter::FIX)),
            }
        });
        let format = section.get("format", |text: String| match text.as_str() {
            "text" => Ok(LogFormat::Text),
            "json" => Ok(LogFormat::Json),
            _ => Err(InvalidValue::new(
                format!("is `{text}`"),
                "write `text` or `json`",
            )),
        });
        Self {
            // The node itself logs the state of its NATS connection.
            level: level.unwrap_or_else(|| "info,async_nats=warn".into()),
            format: format.unwrap_or(LogFormat::Text),
            user_ids: section.get("user_ids", any).unwrap_or(true),
        }
    }
}

/// The host's name, with every character that no token may have replaced.
fn host_name(variable: Option<&str>) -> String {
    let kernel = std::fs::read_to_string("/proc/sys/kernel/hostname");
    let name = kernel.ok().or_else(|| variable.map(str::to_owned));
    token_of(name.as_deref().unwrap_or_default().trim())
}

fn token_of(name: &str) -> String {
    if name.is_empty() {
        return "node".into();
    }
    let allowed = |character| if in_token(character) { character } else { '-' };
    name.chars().map(allowed).take(NAME_BYTES_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_host_name_becomes_a_token() {
        assert_eq!(token_of("db-1.example.com"), "db-1-example-com");
        assert_eq!(token_of(""), "node");
        for name in ["ünï", "a b", &"x".repeat(300)] {
            assert!(token(token_of(name)).is_ok(), "{name}");
        }
    }
}
