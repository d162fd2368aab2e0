//! `[[tenant]]`: several tenants on one node, each with a configuration of its own.
//!
//! A tenant's configuration is that of the file, with the tenant's own sections in place of the
//! file's. So each key is read, checked and documented once, and the rest of the node sees a plain
//! [`Config`]. A problem of one tenant doesn't affect the others.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context as _;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::checks::{any, token};
use super::nats::without_login;
use super::overlaps;
use super::problem::{InvalidValue, Lines, Place, Problem, Problems};
use super::section::{ConfigReader, Section, VARIABLE_PREFIX};
use super::settings::Setting;
use super::stored;
use super::{Config, NodeTenants, Tenant, basics, fleet};

/// The key of the list of tenants.
const KEY: &str = "tenant";

/// The sections that a tenant may have of its own. Keys that it leaves out of them have the values
/// of the file's section.
const SECTIONS: [&str; 16] = [
    "nats",
    "tracker",
    "state",
    "input",
    "fleet",
    "directory",
    "plugins",
    "pipeline",
    "engine",
    "limits",
    "correction",
    "query",
    "explain",
    "inbox",
    "status",
    "dead_letters",
];

/// The sections that a tenant replaces as a whole, since half of a directory's source, or half of a
/// chain, makes no sense.
const REPLACED_SECTIONS: [&str; 2] = ["directory", "pipeline"];

/// The keys of a login, besides what a URL may carry. If a tenant sets one of them, or the servers,
/// it inherits nothing of the file's login: a login for one server or account is never shown to
/// another.
const LOGIN: [&str; 5] = ["creds", "nkey", "user", "password", "token"];

/// The keys of `[nats.tls]` that are a login, too.
const TLS: &str = "tls";
const TLS_LOGIN: [&str; 2] = ["cert", "key"];

/// A tenant's key for what its plugins may be granted. It is the same as `grants` in its `plugins`.
const GRANTS: &str = "grants";
const PLUGINS: &str = "plugins";

/// The key for the number of shards of a tenant without a fleet.
const SHARDS: &str = "shards";

/// Prefixes that no tenant may have, since other subjects begin with them.
const RESERVED: [&str; 2] = ["presence", "_INBOX"];

/// A `[[tenant]]` section.
#[derive(Clone, Debug, PartialEq)]
pub struct TenantSection {
    /// The tenant's name. If the section has no usable one, where the section is.
    pub name: String,
    /// Whether it has a usable name.
    pub is_named: bool,
    /// Where the section is.
    pub place: Place,
    /// Whether the tenant is paused: it isn't served, and keeps its state.
    pub paused: bool,
    /// Whether it is a section of the store whose name a section of the file has. That one takes
    /// precedence.
    pub is_shadowed: bool,
    /// Whether it has a connection of its own.
    pub own_account: bool,
    /// The tenant's configuration, or what is wrong with it.
    pub config: Result<Arc<Config>, Problems>,
}

/// The keys of the `[[tenant]]` section itself.
struct TenantKeys {
    name: Option<String>,
    prefix: Option<String>,
    shards: usize,
    paused: bool,
    isolated: bool,
    own_account: bool,
}

/// The `[[tenant]]` sections of a document. `None` if it has none.
pub(super) fn sections<'a, 'd>(
    document: &'d DeTable<'a>,
) -> Option<Vec<(&'d Spanned<DeValue<'a>>, &'d DeTable<'a>)>> {
    let list = document.get(KEY)?.get_ref().as_array()?;
    let tables = list.iter().map(|item| match item.get_ref() {
        DeValue::Table(table) => Some((item, table)),
        _ => None,
    });
    tables.collect()
}

/// The document without its tenants.
pub(super) fn without_tenants<'a>(document: &DeTable<'a>) -> DeTable<'a> {
    let mut rest = document.clone();
    rest.remove(KEY);
    rest
}

/// The problems of variables that override keys of `[tenant]`, which doesn't exist beside
/// `[[tenant]]` sections.
pub(super) fn refused_variables(env: &BTreeMap<String, OsString>) -> Vec<Problem> {
    let of_one = ["PREFIX", "SHARDS"].map(|key| format!("{VARIABLE_PREFIX}TENANT_{key}"));
    let set = of_one.into_iter().filter(|name| env.contains_key(name));
    set.map(|name| Problem {
        place: Place::Variable(name),
        what: "stands beside [[tenant]] sections, and says nothing of any of them".into(),
        fix: "unset it, and write the key into the tenant's section".into(),
    })
    .collect()
}

/// Reads the tenants of a document, and those of the store. Also returns what sets the keys of each
/// tenant in the document. `rest` is the document without its tenants.
pub(super) fn read<'a>(
    file: &'a Path,
    text: &Lines<'a>,
    env: &BTreeMap<String, OsString>,
    rest: &DeTable<'a>,
    items: &[(&Spanned<DeValue<'a>>, &DeTable<'a>)],
    node: NodeTenants<'_>,
) -> (Arc<[TenantSection]>, Vec<Vec<Setting>>) {
    let tenants = items.iter().map(|(item, own)| {
        let place = text.place(file, item.span());
        read_tenant(file, text, env, rest, place, own)
    });
    let (mut tenants, settings): (Vec<_>, Vec<_>) = tenants.unzip();
    let of_file = tenants.len();
    tenants.extend(stored::read(file, env, rest, node.stored));
    overlaps::refuse(&mut tenants, of_file, node.serving);
    (tenants.into(), settings)
}

pub(super) fn read_tenant(
    file: &Path,
    text: &Lines<'_>,
    env: &BTreeMap<String, OsString>,
    rest: &DeTable<'_>,
    place: Place,
    own: &DeTable<'_>,
) -> (TenantSection, Vec<Setting>) {
    let merged = merged(rest, own);
    let mut reader = ConfigReader::new(file, text.clone(), remaining(env, own));
    let read = |root: &mut Section<'_, '_>| Config::read_for(root, fleet::SHARDS_OF_TENANT);
    let (head, config) = reader.read_tenant(place.clone(), own, &merged, TenantKeys::read, read);
    if let Some((name, _)) = own.get_key_value(SHARDS)
        && config.fleet.enabled
    {
        let what = "`shards` in [[tenant]] is set, and a fleet serves the tenant";
        let fix = "leave it out: `shards` in [fleet] or [tenant.fleet] says how many there are";
        reader.refuse_all(vec![Problem {
            place: text.place(file, name.span()),
            what: what.into(),
            fix: fix.into(),
        }]);
    }
    let (problems, settings) = reader.into_parts();
    let is_named = head.name.is_some();
    let name = head.name.unwrap_or_else(|| place.to_string());
    let config = match problems {
        Some(problems) => Err(problems),
        None => Ok(Arc::new(Config {
            tenant: Tenant {
                name: Some(name.clone()),
                own_account: head.own_account,
                isolated: head.isolated,
                prefix: head.prefix,
                shards: head.shards,
            },
            ..config
        })),
    };
    let section = TenantSection {
        name,
        is_named,
        place,
        paused: head.paused,
        is_shadowed: false,
        own_account: head.own_account,
        config,
    };
    (section, settings)
}

impl TenantKeys {
    fn read(section: &mut Section<'_, '_>) -> Self {
        let name = section.get("name", token);
        if !section.is_set("name") {
            let fix = "give the tenant one, such as `name = \"acme\"`";
            section.refuse("name", InvalidValue::new("is missing", fix));
        }
        let own_account = section.is_set("nats");
        let prefix = section.get("prefix", |text: String| match text.as_str() {
            "" if own_account => Ok(None),
            "" => Err(InvalidValue::new(
                "is empty, and other tenants use the same NATS account",
                "give the tenant a prefix, or an account of its own ([tenant.nats])",
            )),
            text if RESERVED.contains(&text) => Err(InvalidValue::new(
                format!("is `{text}`, which other subjects begin with"),
                "choose another one",
            )),
            _ => token(text).map(Some),
        });
        if prefix.is_none() && name.as_deref().is_some_and(|it| RESERVED.contains(&it)) {
            let what = "can't be the prefix as well, since other subjects begin so";
            section.refuse(
                "name",
                InvalidValue::new(what, "give the tenant a `prefix`"),
            );
        }
        let shards = section.get(SHARDS, basics::shards);
        // It is read from the merged document.
        section.find(GRANTS);
        refuse_what_is_shared(section);
        let paused = section.get("paused", any);
        let isolated = section.get("isolated", any);
        for name in SECTIONS {
            // They are read from the merged document.
            section.find(name);
        }
        Self {
            prefix: prefix.unwrap_or_else(|| name.clone()),
            name,
            // Many small tenants share the threads. A large one can be given more.
            shards: shards.unwrap_or(1),
            paused: paused.unwrap_or(false),
            isolated: isolated.unwrap_or(false),
            own_account,
        }
    }
}

/// Refuses keys that all tenants of a process share, and keys that say the same thing twice.
fn refuse_what_is_shared(section: &mut Section<'_, '_>) {
    let has = |section: &mut Section<'_, '_>, under: &'static str, key: &str| {
        let table = section.find(under).and_then(|(_, value)| value.as_table());
        table.is_some_and(|table| table.contains_key(key))
    };
    if has(section, "engine", "workers") {
        let what = "has `workers`, which are shared by all tenants";
        section.refuse(
            "engine",
            InvalidValue::new(what, "write it into the file's own [engine]"),
        );
    }
    if section.is_set(GRANTS) && has(section, "plugins", GRANTS) {
        let what = "is there, and [tenant.plugins] `grants`, which says the same";
        section.refuse(GRANTS, InvalidValue::new(what, "keep one of them"));
    }
}

/// The document as merged for a tenant.
fn merged<'a>(rest: &DeTable<'a>, own: &DeTable<'a>) -> DeTable<'a> {
    let mut merged = merged_sections(rest, own);
    if let Some((name, grants)) = own.get_key_value(GRANTS) {
        let plugins = merged.entry(Spanned::new(name.span(), PLUGINS.into()));
        let empty = || Spanned::new(name.span(), DeValue::Table(DeTable::new()));
        if let DeValue::Table(plugins) = plugins.or_insert_with(empty).get_mut() {
            plugins.insert(name.clone(), grants.clone());
        }
    }
    merged
}

fn merged_sections<'a>(rest: &DeTable<'a>, own: &DeTable<'a>) -> DeTable<'a> {
    let mut merged = rest.clone();
    for (name, value) in own {
        let key = name.get_ref().as_ref();
        if !SECTIONS.contains(&key) {
            continue;
        }
        let under = match merged.remove(key).map(Spanned::into_inner) {
            Some(DeValue::Table(under)) if !REPLACED_SECTIONS.contains(&key) => Some(under),
            _ => None,
        };
        let mut value = value.clone();
        if let (Some(mut under), DeValue::Table(over)) = (under, value.get_mut()) {
            if key == "nats" && sets_login(over) {
                remove_login(&mut under);
            }
            for (name, value) in under {
                if !over.contains_key(name.get_ref().as_ref()) {
                    over.insert(name, value);
                }
            }
        }
        merged.insert(name.clone(), value);
    }
    merged
}

fn sets_login(nats: &DeTable<'_>) -> bool {
    let tls = nats.get(TLS).and_then(|tls| tls.get_ref().as_table());
    let has_certificate = tls.is_some_and(|tls| TLS_LOGIN.iter().any(|key| tls.contains_key(*key)));
    has_certificate || nats.contains_key("url") || LOGIN.iter().any(|key| nats.contains_key(*key))
}

/// Removes everything that is a login from `[nats]`.
fn remove_login(nats: &mut DeTable<'_>) {
    for key in LOGIN {
        nats.remove(key);
    }
    if let Some(DeValue::Table(tls)) = nats.get_mut(TLS).map(Spanned::get_mut) {
        TLS_LOGIN.iter().for_each(|key| drop(tls.remove(*key)));
    }
    match nats.get_mut("url").map(Spanned::get_mut) {
        Some(DeValue::Array(urls)) => urls.iter_mut().map(Spanned::get_mut).for_each(strip_logins),
        Some(url) => strip_logins(url),
        None => {}
    }
}

/// Removes the logins from addresses.
fn strip_logins(url: &mut DeValue<'_>) {
    if let DeValue::String(url) = url {
        *url = without_logins(url).into();
    }
}

/// Addresses, separated by commas, without their logins.
fn without_logins(urls: &str) -> String {
    let bare = urls.split(',').map(|url| without_login(url).0);
    bare.collect::<Vec<_>>().join(",")
}

/// The variables for a tenant: those that override keys which the tenant sets itself are left out.
fn remaining(env: &BTreeMap<String, OsString>, own: &DeTable<'_>) -> BTreeMap<String, OsString> {
    let mut remaining = env.clone();
    if own.contains_key(GRANTS) {
        remaining.remove(&format!("{VARIABLE_PREFIX}PLUGINS_GRANTS"));
    }
    for (name, value) in own {
        let section = name.get_ref().as_ref();
        let DeValue::Table(table) = value.get_ref() else {
            continue;
        };
        let prefix = format!("{VARIABLE_PREFIX}{}_", section.to_ascii_uppercase());
        if REPLACED_SECTIONS.contains(&section) {
            remaining.retain(|name, _| !name.starts_with(&prefix));
        }
        for key in table.keys() {
            let variable = format!("{prefix}{}", key.get_ref().to_ascii_uppercase());
            // Also the variables of keys in a section below this one.
            let below = format!("{variable}_");
            remaining.retain(|name, _| *name != variable && !name.starts_with(&below));
        }
        if section == "nats" && sets_login(table) {
            remove_login_variables(&prefix, &mut remaining);
        }
    }
    remaining
}

/// As [`remove_login`], for variables.
fn remove_login_variables(prefix: &str, env: &mut BTreeMap<String, OsString>) {
    let variable = |key: &str| format!("{prefix}{}", key.to_ascii_uppercase());
    for key in LOGIN {
        env.remove(&variable(key));
    }
    for key in TLS_LOGIN {
        env.remove(&variable(&format!("{TLS}_{key}")));
    }
    if let Some(urls) = env.get_mut(&variable("url"))
        && let Some(text) = urls.to_str()
    {
        *urls = without_logins(text).into();
    }
}

impl Config {
    /// The configuration of a tenant: the only tenant, or the `[[tenant]]` section with this name.
    ///
    /// # Errors
    /// If there is no such tenant, the tenant has to be named and isn't, or something is wrong
    /// with its section.
    pub fn for_tenant(self, name: Option<&str>) -> anyhow::Result<Self> {
        let Some(tenants) = &self.tenants else {
            anyhow::ensure!(
                name.is_none(),
                "--tenant: the configuration has no [[tenant]] sections"
            );
            return Ok(self);
        };
        let Some(name) = name else {
            anyhow::bail!(
                "the configuration is of several tenants: name one with --tenant ({})",
                names(tenants)
            );
        };
        let section = self.tenant_section(name)?;
        Ok(Self::clone(section.config.as_ref().map_err(Clone::clone)?))
    }

    /// The `[[tenant]]` section with a name.
    ///
    /// # Errors
    /// If there is none, with the names that there are.
    pub fn tenant_section(&self, name: &str) -> anyhow::Result<&TenantSection> {
        Ok(self.find_tenant(name)?.1)
    }

    /// As [`Self::tenant_section`], with its index among the sections.
    pub(super) fn find_tenant(&self, name: &str) -> anyhow::Result<(usize, &TenantSection)> {
        let tenants = self.tenants.as_deref();
        let tenants = tenants.context("--tenant: the configuration has no [[tenant]] sections")?;
        let found = tenants.iter().enumerate().find(|(_, it)| it.name == name);
        found.with_context(|| {
            let names = names(tenants);
            format!("there is no tenant `{name}` in the configuration: {names}")
        })
    }
}

/// The names of the tenants, to choose from.
fn names(tenants: &[TenantSection]) -> String {
    match tenants {
        [] => "it has none itself, and `presence tenants list` shows those of the store".into(),
        tenants => {
            let names: Vec<_> = tenants.iter().map(|it| &*it.name).collect();
            names.join(", ")
        }
    }
}
