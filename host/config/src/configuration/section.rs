//! Reads a section key by key from the file and the environment, and collects all problems on the
//! way.
//!
//! A key is known once it has been asked for. So what is left in the file or in the environment
//! after a section has been read is unknown.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::checks;
use super::environment::is_service_link;
use super::problem::{InvalidValue, Lines, Place, Problem, Problems};
use super::settings::Setting;
use super::similar::{did_you_mean, similar};
use super::value::{Leaf, kind};

/// How the names of the variables that override keys begin.
pub(super) const VARIABLE_PREFIX: &str = "PRESENCE_";

/// The variable that names a file with a number of milliseconds to add to the wall time: for tests,
/// which can't set the machine's clock.
pub const CLOCK_OFFSET_FILE: &str = "PRESENCE_CLOCK_OFFSET_FILE";

/// Variables that begin like this, and are no keys: the command line reads them.
const OTHER_VARIABLES: [&str; 4] = [
    "PRESENCE_CONFIG",
    "PRESENCE_LOG",
    "PRESENCE_BIN",
    CLOCK_OFFSET_FILE,
];

/// One configuration being read.
pub(super) struct ConfigReader<'a> {
    file: &'a Path,
    text: Lines<'a>,
    env: BTreeMap<String, OsString>,
    /// The names of the variables of the keys that were asked for.
    variables: BTreeSet<String>,
    problems: Vec<Problem>,
    settings: Vec<Setting>,
}

/// The result of reading a document.
pub(super) struct Outcome<T> {
    /// What the document says, with the default in place of a value that is wrong.
    pub(super) value: T,
    pub(super) problems: Option<Problems>,
    /// Variables that look like a key's, and are ignored.
    pub(super) ignored_variables: Vec<Problem>,
    /// Every key, and what sets it.
    pub(super) settings: Vec<Setting>,
}

impl<'a> ConfigReader<'a> {
    pub(super) fn new(file: &'a Path, text: Lines<'a>, env: BTreeMap<String, OsString>) -> Self {
        Self {
            file,
            text,
            env,
            variables: BTreeSet::new(),
            problems: Vec::new(),
            settings: Vec::new(),
        }
    }

    /// Reads the whole document.
    pub(super) fn read<T>(
        mut self,
        document: &'a DeTable<'a>,
        read: impl FnOnce(&mut Section<'_, 'a>) -> T,
    ) -> Outcome<T> {
        let value = self.read_root(Some(document), read);
        let ignored_variables = self.check_unknown_variables();
        Outcome {
            value,
            problems: Problems::found(self.problems),
            ignored_variables,
            settings: self.settings,
        }
    }

    /// Reads the defaults, which apply without a file and without variables.
    pub(super) fn read_defaults<T>(mut self, read: impl FnOnce(&mut Section<'_, 'a>) -> T) -> T {
        self.read_root(None, read)
    }

    /// The names of all variables that override a key.
    #[cfg(test)]
    pub(super) fn variables_of<T>(
        mut self,
        read: impl FnOnce(&mut Section<'_, 'a>) -> T,
    ) -> Vec<String> {
        self.read_root(None, read);
        self.variables.into_iter().collect()
    }

    /// Adds problems that were found elsewhere.
    pub(super) fn refuse_all(&mut self, problems: Vec<Problem>) {
        self.problems.extend(problems);
    }

    /// Reads a tenant's section, and then the document as merged for this tenant.
    pub(super) fn read_tenant<H, T>(
        &mut self,
        place: Place,
        own: &'a DeTable<'a>,
        merged: &'a DeTable<'a>,
        head: impl FnOnce(&mut Section<'_, 'a>) -> H,
        read: impl FnOnce(&mut Section<'_, 'a>) -> T,
    ) -> (H, T) {
        let section = Section {
            reader: self,
            title: "[[tenant]]".into(),
            variable: None,
            place,
            table: Some(own),
            known: Vec::new(),
        };
        let head = section.read(head);
        (head, self.read_root(Some(merged), read))
    }

    /// All problems, and every key with what sets it.
    pub(super) fn into_parts(self) -> (Option<Problems>, Vec<Setting>) {
        (Problems::found(self.problems), self.settings)
    }

    fn read_root<T>(
        &mut self,
        document: Option<&'a DeTable<'a>>,
        read: impl FnOnce(&mut Section<'_, 'a>) -> T,
    ) -> T {
        let place = Place::File(self.file.to_owned());
        let root = Section {
            reader: self,
            title: String::new(),
            variable: Some(VARIABLE_PREFIX.into()),
            place,
            table: document,
            known: Vec::new(),
        };
        root.read(read)
    }

    /// Refuses unknown variables that are probably meant for a key. Returns a warning for each
    /// other one that begins like a key's: perhaps the operator didn't set it.
    fn check_unknown_variables(&mut self) -> Vec<Problem> {
        let keys = || {
            self.variables
                .iter()
                .filter_map(|name| name.strip_prefix(VARIABLE_PREFIX))
        };
        let is_section = |name: &str| keys().any(|key| key.split('_').next() == Some(name));
        let (mut refused, mut ignored_variables) = (Vec::new(), Vec::new());
        for (name, value) in &self.env {
            let Some(rest) = name.strip_prefix(VARIABLE_PREFIX) else {
                continue;
            };
            if self.variables.contains(name)
                || OTHER_VARIABLES.contains(&name.as_str())
                || is_service_link(name, value)
            {
                continue;
            }
            let close: Vec<_> = similar(rest, keys())
                .into_iter()
                .map(|rest| format!("{VARIABLE_PREFIX}{rest}"))
                .collect();
            let section = rest.split('_').next().unwrap_or_default();
            let is_typo = !close.is_empty() || section == "PIPELINE" || is_section(section);
            let problem = Problem {
                place: Place::Variable(name.clone()),
                what: "unknown variable".into(),
                fix: did_you_mean(&close).unwrap_or_else(|| {
                    "unset it, or name it PRESENCE_<SECTION>_<KEY> after a key of presence.toml \
                     ([[pipeline]] stands in the file only)"
                        .into()
                }),
            };
            if is_typo {
                refused.push(problem);
            } else {
                ignored_variables.push(problem);
            }
        }
        self.problems.append(&mut refused);
        ignored_variables
    }
}

/// One section being read.
pub(super) struct Section<'r, 'a> {
    reader: &'r mut ConfigReader<'a>,
    /// As written in the file, such as `[nats.tls]`; empty at the top level.
    title: String,
    /// How the names of its keys' variables begin. `None` if the environment can't override them.
    variable: Option<String>,
    place: Place,
    table: Option<&'a DeTable<'a>>,
    /// The keys that were asked for.
    known: Vec<&'static str>,
}

impl<'a> Section<'_, 'a> {
    /// The value of a key, if it is set and valid. A variable wins over the file, but the value in
    /// the file is checked as well.
    pub(super) fn get<L: Leaf, T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(L) -> Result<T, InvalidValue>,
    ) -> Option<T> {
        let mut value = None;
        let mut setting = Setting::default_of(self.name(key));
        if let Some((place, raw)) = self.find(key) {
            let leaf = L::from_toml(raw).inspect(|leaf| setting.set(&place, leaf));
            value = self.accept(place, key, leaf.and_then(&parse));
        }
        if let Some(name) = self.variable(key) {
            if let Some(text) = self.reader.env.get(&name) {
                let not_text =
                    || InvalidValue::new("is not UTF-8", "write it in UTF-8, or unset it");
                let text = text.to_str().ok_or_else(not_text);
                let place = Place::Variable(name.clone());
                let leaf = text.and_then(L::from_text);
                let leaf = leaf.inspect(|leaf| setting.set(&place, leaf));
                value = self.accept(place, key, leaf.and_then(&parse));
            }
            self.reader.variables.insert(name);
            self.reader.settings.push(setting);
        }
        value
    }

    /// A path, resolved against the folder of the configuration file.
    pub(super) fn path(&mut self, key: &'static str) -> Option<PathBuf> {
        let path = self.get(key, checks::file_name)?;
        Some(self.resolve(&path))
    }

    /// A path relative to the folder of the configuration file.
    pub(super) fn resolve(&self, path: &str) -> PathBuf {
        let folder = self.reader.file.parent().unwrap_or(Path::new(""));
        folder.join(path)
    }

    /// What the file has under a key, and where. The key is known from then on.
    pub(super) fn find(&mut self, key: &'static str) -> Option<(Place, &'a DeValue<'a>)> {
        self.known.push(key);
        let (name, value) = self.table?.iter().find(|(name, _)| name.get_ref() == key)?;
        Some((self.place_of(name), value.get_ref()))
    }

    /// A section within this one.
    pub(super) fn section<T>(
        &mut self,
        key: &'static str,
        read: impl FnOnce(&mut Section<'_, 'a>) -> T,
    ) -> T {
        let name = self.name(key);
        let title = format!("[{name}]");
        let (place, table) = match self.find(key) {
            Some((place, DeValue::Table(table))) => (place, Some(table)),
            Some((place, other)) => {
                let what = format!("{title} is {}", kind(other));
                self.report(place.clone(), what, format!("write a section {title}"));
                (place, None)
            }
            None => (self.place.clone(), None),
        };
        let variable = self.variable(key).map(|name| name + "_");
        self.child(title, variable, place, table).read(read)
    }

    /// The sections of a list, such as `[[pipeline]]`. `None` if the file has no such list, or if
    /// it is wrong, or longer than `max`. The environment can't override them.
    pub(super) fn sections<T>(
        &mut self,
        key: &'static str,
        max: usize,
        mut read: impl FnMut(&mut Section<'_, 'a>) -> Option<T>,
    ) -> Option<Vec<T>> {
        let title = format!("[[{}]]", self.name(key));
        let (place, value) = self.find(key)?;
        let items = value.as_array().into_iter().flatten();
        let tables: Option<Vec<_>> = items
            .map(|item| Some((item, item.get_ref().as_table()?)))
            .collect();
        match tables {
            Some(tables) if tables.len() > max => {
                let what = format!("{title} is there {} times", tables.len());
                self.report(place, what, format!("write at most {max}"));
                None
            }
            Some(tables) if !tables.is_empty() => Some(
                tables
                    .into_iter()
                    .enumerate()
                    .filter_map(|(number, (item, table))| {
                        let place = self.place_of(item);
                        let mut setting = Setting::default_of(format!("{key}[{number}]"));
                        setting.place = Some(place.clone());
                        self.reader.settings.push(setting);
                        self.child(title.clone(), None, place, Some(table))
                            .read(&mut read)
                    })
                    .collect(),
            ),
            _ => {
                let what = format!("`{key}` is no list of sections");
                let fix = format!("write one {title} for each, or leave it out for the default");
                self.report(place, what, fix);
                None
            }
        }
    }

    /// Reports a problem of a key that depends on other keys.
    pub(super) fn refuse(&mut self, key: &'static str, wrong: InvalidValue) {
        let place = self.place_of_key(key);
        self.accept::<()>(place, key, Err(wrong));
    }

    /// Where the section is.
    pub(super) fn place(&self) -> &Place {
        &self.place
    }

    /// A variable that doesn't override a key, such as `HOSTNAME`.
    pub(super) fn env(&self, name: &str) -> Option<&str> {
        self.reader.env.get(name)?.to_str()
    }

    /// Whether the file or the environment sets a key, even to a value that is wrong.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.table.is_some_and(|table| table.contains_key(key))
            || self
                .variable(key)
                .is_some_and(|name| self.reader.env.contains_key(&name))
    }

    fn child(
        &mut self,
        title: String,
        variable: Option<String>,
        place: Place,
        table: Option<&'a DeTable<'a>>,
    ) -> Section<'_, 'a> {
        Section {
            reader: self.reader,
            title,
            variable,
            place,
            table,
            known: Vec::new(),
        }
    }

    fn read<T>(mut self, read: impl FnOnce(&mut Self) -> T) -> T {
        let value = read(&mut self);
        self.refuse_unknown_keys();
        value
    }

    fn refuse_unknown_keys(&mut self) {
        let Some(table) = self.table else { return };
        for (name, _) in table {
            let key = name.get_ref().as_ref();
            if self.known.contains(&key) {
                continue;
            }
            let what = if self.title.is_empty() {
                format!("unknown section or key `{key}`")
            } else {
                format!("unknown key `{key}` in {}", self.title)
            };
            let fix = did_you_mean(&similar(key, self.known.iter().copied()))
                .unwrap_or_else(|| format!("known here: {}", self.known.join(", ")));
            self.report(self.place_of(name), what, fix);
        }
    }

    fn accept<T>(&mut self, place: Place, key: &str, value: Result<T, InvalidValue>) -> Option<T> {
        match value {
            Ok(value) => Some(value),
            Err(InvalidValue { what, fix }) => {
                self.report(place, format!("`{key}` in {} {what}", self.title), fix);
                None
            }
        }
    }

    fn report(&mut self, place: Place, what: String, fix: String) {
        self.reader.problems.push(Problem { place, what, fix });
    }

    fn place_of<T>(&self, spanned: &Spanned<T>) -> Place {
        self.reader.text.place(self.reader.file, spanned.span())
    }

    /// Where the value of a key is. If it has none, where the section is.
    fn place_of_key(&self, key: &str) -> Place {
        let variable = self
            .variable(key)
            .filter(|name| self.reader.env.contains_key(name));
        if let Some(name) = variable {
            return Place::Variable(name);
        }
        let name = self
            .table
            .and_then(|table| table.keys().find(|name| name.get_ref() == key));
        name.map_or_else(|| self.place.clone(), |name| self.place_of(name))
    }

    /// A key's full name, such as `nats.tls`.
    fn name(&self, key: &str) -> String {
        match self.title.trim_matches(['[', ']']) {
            "" => key.to_owned(),
            section => format!("{section}.{key}"),
        }
    }

    /// The variable that overrides a key.
    fn variable(&self, key: &str) -> Option<String> {
        let prefix = self.variable.as_deref()?;
        Some(format!("{prefix}{}", key.to_ascii_uppercase()))
    }
}
