//! The content of the copy's file: the entries of the directory, and facts about them.

use std::fmt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{anyhow, ensure};
use presence_config::directory::entry::Key;
use presence_core::directory::Directory;
use presence_core::names::Names;
use redb::{ReadableDatabase, ReadableTable, TableDefinition, WriteTransaction};
use ring::digest::{SHA256, digest};

use super::{DirectoryCopy, Origin, Pending};
use crate::directory::health::DirectoryHealth;
use crate::state::database::{Disk, Fault, File, guarded, read_only};

/// Values by key. An empty value stands for an entry that can't be read and has no known older
/// value.
const ENTRIES: TableDefinition<'_, &str, &str> = TableDefinition::new("entries");
/// Facts about the copy itself.
const FACTS: TableDefinition<'_, &str, &str> = TableDefinition::new("facts");
const SOURCE: &str = "source";
const IDENTITY: &str = "identity";
/// The sum over all entries, in hexadecimal. Missing if an earlier version has written the file.
const SUM: &str = "sum";

/// A file that is open for writing.
pub(super) struct OpenFile {
    pub(super) file: File,
    /// How long the opening took, which checks the whole file.
    pub(super) opening: Duration,
}

impl OpenFile {
    /// Opens a file, and creates it if it doesn't exist.
    ///
    /// # Errors
    /// If it can't be used.
    pub(super) fn open(path: &Path, disk: &Arc<Disk>) -> Result<Self, Fault> {
        let begun = Instant::now();
        let file = File::open(path, disk)?;
        let opening = begun.elapsed();
        Ok(Self { file, opening })
    }
}

/// Reads a file. It is returned open if it had to be repaired, or has no sum to check it by.
///
/// # Errors
/// If it can't be read, or used.
pub(super) fn open(
    path: &Path,
    source: &str,
    names: &Names,
    health: &DirectoryHealth,
) -> Result<(Option<DirectoryCopy>, Option<OpenFile>), Fault> {
    if !path.exists() {
        return Ok((None, None));
    }
    let read_as_it_is = read_only(path, |database| read(database, source, names, true))?;
    if let Some(kept) = read_as_it_is {
        return Ok((kept, None));
    }
    // Opening for writing checks the whole file.
    let open = OpenFile::open(path, &health.copy)?;
    let kept = read(&open.file.database, source, names, false)?;
    Ok((kept.flatten(), Some(open)))
}

/// Reads the copy. The inner `None`: the copy is empty or of another source. The outer `None`:
/// `has_sum` demands a check by the sum, and the file has none.
fn read(
    database: &impl ReadableDatabase,
    source: &str,
    names: &Names,
    has_sum: bool,
) -> Result<Option<Option<DirectoryCopy>>, Fault> {
    let read = || {
        let transaction = database.begin_read()?;
        if transaction.list_tables()?.next().is_none() {
            return Ok(Some(None));
        }
        let facts = transaction.open_table(FACTS)?;
        let fact = |name| -> anyhow::Result<String> {
            Ok(facts
                .get(name)?
                .map(|fact| fact.value().to_owned())
                .unwrap_or_default())
        };
        let noted = fact(SUM)?;
        if has_sum && noted.is_empty() {
            return Ok(None);
        }
        let origin = Origin {
            source: fact(SOURCE)?,
            identity: fact(IDENTITY)?,
        };
        if origin.source != source {
            return Ok(Some(None));
        }
        let mut sum = Sum::default();
        let mut edit = Directory::new().edit();
        for entry in transaction.open_table(ENTRIES)?.iter()? {
            let (key, value) = entry?;
            sum.add(key.value(), value.value());
            let key = Key::parse(key.value()).map_err(|why| anyhow!(why))?;
            match value.value() {
                "" => edit.unreadable(key.question(names)),
                value => key.apply(&mut edit, names, Some(value.as_bytes()))?,
            }
        }
        ensure!(
            noted.is_empty() || noted == sum.to_string(),
            "its entries are not those that were written"
        );
        let (directory, changes) = edit.finish();
        Ok(Some(Some(DirectoryCopy {
            origin,
            directory,
            changes,
        })))
    };
    guarded(|| read().map_err(Fault::Damaged))
}

/// A sum over entries. The order in which they are added and removed makes no difference.
#[derive(Default)]
struct Sum(u64);

impl Sum {
    /// The sum of the entries in a file: as noted there, or else computed from them.
    fn of(transaction: &WriteTransaction) -> anyhow::Result<Self> {
        let facts = transaction.open_table(FACTS)?;
        if let Some(noted) = facts.get(SUM)? {
            return Ok(Self(u64::from_str_radix(noted.value(), 16)?));
        }
        let mut sum = Self::default();
        for entry in transaction.open_table(ENTRIES)?.iter()? {
            let (key, value) = entry?;
            sum.add(key.value(), value.value());
        }
        Ok(sum)
    }

    fn add(&mut self, key: &str, value: &str) {
        self.0 = self.0.wrapping_add(hash(key, value));
    }

    fn take(&mut self, key: &str, value: &str) {
        self.0 = self.0.wrapping_sub(hash(key, value));
    }
}

impl fmt::Display for Sum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// The number that an entry adds to a sum. It must be the same in every version of the program.
fn hash(key: &str, value: &str) -> u64 {
    // No key has a line break.
    let digest = digest(&SHA256, format!("{key}\n{value}").as_bytes());
    let first = digest.as_ref().first_chunk().copied();
    u64::from_be_bytes(first.unwrap_or_default())
}

/// Writes pending changes in one transaction.
///
/// # Errors
/// If they can't be written.
pub(super) fn write(file: &mut File, job: &Pending) -> anyhow::Result<()> {
    let transaction = file.database.begin_write()?;
    let mut grown = 0;
    let bytes = |key: &str, value: &str| (key.len() + value.len()) as i64;
    let mut sum = match job.clear {
        true => Sum::default(),
        false => Sum::of(&transaction)?,
    };
    if job.clear {
        for entry in transaction.open_table(ENTRIES)?.iter()? {
            let (key, value) = entry?;
            grown -= bytes(key.value(), value.value());
        }
        transaction.delete_table(ENTRIES)?;
    }
    {
        let mut entries = transaction.open_table(ENTRIES)?;
        for (key, value) in &job.entries {
            let before = match value {
                Some(value) => {
                    grown += bytes(key, value);
                    sum.add(key, value);
                    entries.insert(&**key, &**value)?
                }
                None => entries.remove(&**key)?,
            };
            if let Some(before) = before {
                grown -= bytes(key, before.value());
                sum.take(key, before.value());
            }
        }
        let mut facts = transaction.open_table(FACTS)?;
        facts.insert(SUM, &*sum.to_string())?;
        if let Some(origin) = &job.origin {
            facts.insert(SOURCE, &*origin.source)?;
            facts.insert(IDENTITY, &*origin.identity)?;
        }
    }
    transaction.commit()?;
    file.written(grown, 0)
}

/// Makes the file look as if an earlier version had written it.
#[cfg(test)]
pub(super) fn forget_sum(file: &File) {
    let transaction = file.database.begin_write().unwrap();
    transaction.open_table(FACTS).unwrap().remove(SUM).unwrap();
    transaction.commit().unwrap();
}
