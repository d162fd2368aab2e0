//! Tenants of the plugin store: each is a `[[tenant]]` section of its own, as the file has them.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;

use anyhow::Context as _;
use serde::{Deserialize, Serialize};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::problem::{Lines, Place, Problem, Problems};
use super::tenants::{self, TenantSection};
use super::{Text, syntax};

/// The bucket in which tenants are.
pub const TENANTS_BUCKET: &str = "presence-tenants";

/// The longest section, in bytes. Every server accepts a message of this size, with room for the
/// rest of the value.
const SECTION_BYTES_MAX: usize = 512 * 1024;

/// A tenant, as the store keeps it under its name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct StoredTenant {
    /// Its `[[tenant]]` section, as TOML.
    pub section: String,
    /// Whether the tenant is paused.
    #[serde(default)]
    pub paused: bool,
    /// Who wrote it.
    #[serde(default)]
    pub who: String,
    /// When, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub when: u64,
    /// Why.
    #[serde(default)]
    pub why: String,
}

/// The entry of the store under a name: a tenant, or why it can't be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoredEntry {
    /// The name.
    pub name: String,
    /// What is there.
    pub value: Result<StoredTenant, String>,
}

impl StoredTenant {
    /// Reads a value of the bucket.
    ///
    /// # Errors
    /// If it is no tenant.
    pub fn parse(bytes: &[u8]) -> anyhow::Result<Self> {
        serde_json::from_slice(bytes).context("it is no tenant")
    }

    /// The value of the bucket.
    pub fn to_json(&self) -> String {
        // Plain data always has a JSON form.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// Splits a file that has only `[[tenant]]` sections. Returns the name of each tenant, and its
    /// value for the bucket.
    ///
    /// # Errors
    /// If it has something else, or a section has no name.
    pub fn of_file(file: &Path, text: &Text) -> Result<Vec<(String, Self)>, Problems> {
        let text = text.as_str();
        let problem = |what: String, fix: &str| {
            Problems::from(Problem {
                place: Place::File(file.to_owned()),
                what,
                fix: fix.into(),
            })
        };
        let document = DeTable::parse(text)
            .map_err(|error| Problems::from(syntax::problem(file, text, &error)))?;
        let sections = only_tenant_sections(document.get_ref())
            .map_err(|what| problem(what, "write [[tenant]] sections, and nothing else"))?;
        let mut all: Vec<(String, Self)> = Vec::new();
        let begins: Vec<_> = sections.iter().map(|(item, _)| item.span().start).collect();
        for (nth, (_, section)) in sections.iter().enumerate() {
            let name = section.get("name").and_then(|it| it.get_ref().as_str());
            let Some(name) = name else {
                let what = "has a [[tenant]] section without a name".to_owned();
                return Err(problem(
                    what,
                    "give the tenant one, such as `name = \"acme\"`",
                ));
            };
            if all.iter().any(|(other, _)| other == name) {
                let what = format!("has the tenant `{name}` twice");
                return Err(problem(what, "give one of them another `name`"));
            }
            let from = if nth == 0 {
                0
            } else {
                begins.get(nth).copied().unwrap_or(0)
            };
            let to = begins.get(nth + 1).copied().unwrap_or(text.len());
            let section_text = text.get(from..to).unwrap_or_default();
            if section_text.len() > SECTION_BYTES_MAX {
                let what = format!("has more than {SECTION_BYTES_MAX} bytes for `{name}`");
                return Err(problem(what, "make its section shorter"));
            }
            let paused = section.get("paused").and_then(|it| it.get_ref().as_bool());
            let stored = Self {
                section: section_text.trim().to_owned(),
                paused: paused.unwrap_or(false),
                ..Self::default()
            };
            all.push((name.to_owned(), stored));
        }
        Ok(all)
    }
}

/// The `[[tenant]]` sections of a document that has nothing else.
fn only_tenant_sections<'a, 'd>(
    document: &'d DeTable<'a>,
) -> Result<Vec<(&'d Spanned<DeValue<'a>>, &'d DeTable<'a>)>, String> {
    if let Some((other, _)) = document.iter().find(|(key, _)| key.get_ref() != "tenant") {
        return Err(format!(
            "has `{}` beside [[tenant]] sections",
            other.get_ref()
        ));
    }
    let sections = tenants::sections(document).filter(|it| !it.is_empty());
    sections.ok_or_else(|| "has no [[tenant]] section".to_owned())
}

/// Reads the tenants of the store. `rest` is the document without its own tenants. Paths are
/// relative to the folder of its file.
pub(super) fn read(
    file: &Path,
    env: &BTreeMap<String, OsString>,
    rest: &DeTable<'_>,
    stored: &[StoredEntry],
) -> Vec<TenantSection> {
    stored
        .iter()
        .map(|it| read_entry(file, env, rest, it))
        .collect()
}

fn read_entry(
    file: &Path,
    env: &BTreeMap<String, OsString>,
    rest: &DeTable<'_>,
    stored: &StoredEntry,
) -> TenantSection {
    let file = file.with_file_name(format!("{TENANTS_BUCKET}.{}", stored.name));
    let refused = |place: Place, what: String| TenantSection {
        name: stored.name.clone(),
        is_named: true,
        place: place.clone(),
        paused: false,
        is_shadowed: false,
        own_account: false,
        config: Err(Problem {
            place,
            what,
            fix: "write it again (`presence tenants apply FILE`)".into(),
        }
        .into()),
    };
    let whole = Place::File(file.clone());
    let value = match &stored.value {
        Ok(value) => value,
        Err(why) => return refused(whole, why.clone()),
    };
    let document = match DeTable::parse(&value.section) {
        Ok(document) => document,
        Err(error) => {
            let problem = syntax::problem(&file, &value.section, &error);
            return refused(problem.place, problem.what);
        }
    };
    let sections = match only_tenant_sections(document.get_ref()) {
        Ok(sections) => sections,
        Err(what) => return refused(whole, what),
    };
    let [(item, own)] = &sections[..] else {
        return refused(whole, "has more than one [[tenant]] section".into());
    };
    let text = Lines::of(&value.section);
    let place = text.place(&file, item.span());
    let (mut section, _) = tenants::read_tenant(&file, &text, env, rest, place.clone(), own);
    if section.name != stored.name {
        let what = format!(
            "has the tenant `{}` under the name `{}`",
            section.name, stored.name
        );
        return refused(place, what);
    }
    section.paused = value.paused;
    section
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Config, NodeTenants};

    const FILE: &str = "[plugins]\nsource = 'store'\n[tracker]\ntimeout_ms = 60000\n\
                        [[tenant]]\nname = 'acme'\n";

    fn stored(name: &str, section: &str) -> StoredEntry {
        let value = StoredTenant {
            section: section.into(),
            ..StoredTenant::default()
        };
        StoredEntry {
            name: name.into(),
            value: Ok(value),
        }
    }

    fn tenants(stored: &[StoredEntry]) -> Vec<TenantSection> {
        let text = Text::of(FILE);
        let path = Some(Path::new("node.toml"));
        let none = std::iter::empty();
        let node = NodeTenants {
            stored,
            ..NodeTenants::default()
        };
        let config = Config::parse_with(path, Some(&text), none, node).unwrap();
        config.tenants.unwrap().to_vec()
    }

    #[test]
    fn a_tenant_of_the_store_is_one_beside_those_of_the_file() {
        let beta = stored(
            "beta",
            "[[tenant]]\nname = 'beta'\n[tenant.query]\nenabled = true\n",
        );
        let error = tenants(&[beta])[1].config.clone().unwrap_err().to_string();
        assert!(error.starts_with("presence-tenants.beta:4:1: "), "{error}");
        let mut beta = stored("beta", "[[tenant]]\nname = 'beta'\nprefix = 'b'\n");
        let all = tenants(std::slice::from_ref(&beta));
        let config = all[1].config.as_ref().unwrap();
        assert_eq!(config.tenant.prefix.as_deref(), Some("b"));
        assert_eq!(
            config.tracker.timeout_ms, 60_000,
            "what it leaves out is the file's"
        );
        assert!(!all[1].paused);
        if let Ok(value) = &mut beta.value {
            value.paused = true;
        }
        assert!(tenants(&[beta])[1].paused);
    }

    #[test]
    fn what_is_wrong_with_one_concerns_no_other() {
        let broken = StoredEntry {
            name: "broken".into(),
            value: Err("it is no tenant".into()),
        };
        let all = tenants(&[
            broken,
            stored("syntax", "[[tenant"),
            stored("other", "[[tenant]]\nname = 'another'\n"),
            stored("more", "[[tenant]]\nname = 'more'\n[http]\nlisten = ''\n"),
            stored("acme", "[[tenant]]\nname = 'acme'\n"),
            stored("twin", "[[tenant]]\nname = 'twin'\nprefix = 'acme'\n"),
            stored("good", "[[tenant]]\nname = 'good'\n"),
        ]);
        let why: Vec<_> = all
            .iter()
            .map(|it| {
                it.config
                    .as_ref()
                    .err()
                    .map(ToString::to_string)
                    .unwrap_or_default()
            })
            .collect();
        for (at, part) in [
            (1, "it is no tenant"),
            (2, "presence-tenants.syntax:1:"),
            (3, "`another` under the name `other`"),
            (4, "has `http` beside"),
            (5, "the tenant `acme` is there already"),
            (6, "would have the subjects of `acme`"),
        ] {
            assert!(why[at].contains(part), "{}", why[at]);
        }
        assert!(why[0].is_empty() && why[7].is_empty(), "{why:?}");
    }

    #[test]
    fn a_file_of_sections_is_taken_apart() {
        let read = |text: &str| StoredTenant::of_file(Path::new("t.toml"), &Text::of(text));
        let text = "# both\n[[tenant]]\nname = 'a'\n[tenant.nats]\nuser = 'a'\n[[tenant]]\nname = 'b'\n\
                    paused = true\n";
        let all = read(text).unwrap();
        assert_eq!(
            all[0].1.section,
            "# both\n[[tenant]]\nname = 'a'\n[tenant.nats]\nuser = 'a'"
        );
        assert_eq!((&*all[1].0, all[1].1.paused), ("b", true));
        assert!(
            all[1].1.section.starts_with("[[tenant]]\nname = 'b'"),
            "{all:?}"
        );
        let again = StoredTenant::parse(all[1].1.to_json().as_bytes()).unwrap();
        assert_eq!(again, all[1].1);
        for (text, part) in [
            ("[http]\n", "has `http` beside"),
            ("[[tenant]]\n", "without a name"),
            ("tenant = []\n", "has no [[tenant]] section"),
            ("[[tenant]]\nname='a'\n[[tenant]]\nname='a'\n", "twice"),
        ] {
            let error = read(text).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }
}
