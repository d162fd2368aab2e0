//! The file of a node's state: a redb database of keys and values, whose meaning only the core
//! knows. Each tenant has a table of its own.
//!
//! Changes are appended to a log, batch after batch. That takes a tenth of the time of finding each
//! record's place in its table. When the log has grown long, it is merged into the tenants' tables.
//! A record that has changed several times is merged once.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use presence_config::subjects::{EPOCH_MAX, EPOCH_STEP};
use presence_core::record::{FORMAT, Stored};
use redb::{ReadableDatabase, ReadableTable as _, TableDefinition, TableError, WriteTransaction};

use super::log;
use super::position::{Position, ShardOf, ShardPosition, StoredPosition};
use crate::state::database::{Disk, Fault, File, guarded};

/// The format of a file that held a single tenant, and had no log.
const ONE_TENANT: u64 = 3;
const RECORDS_OF_ONE: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");

const FIGURES: TableDefinition<'_, &str, u64> = TableDefinition::new("figures");
const FORMAT_KEY: &str = "format";
const SAVED_AT: &str = "saved-at";
const EPOCH: &str = "epoch";

/// How far each shard of a tenant has read the input stream: the stream, the number of the message,
/// [`StoredPosition::hash`], and [`ShardPosition::begin`].
const POSITIONS: TableDefinition<'_, &str, (u64, u64, u64, u64)> =
    TableDefinition::new("positions");

/// Facts about the file itself.
const FACTS: TableDefinition<'_, &str, &str> = TableDefinition::new("facts");
const SUBJECTS: &str = "subjects";

/// The log is merged when it is longer than the tables, but at the earliest at the first and at the
/// latest at the second of these sizes, in bytes.
const LOG_BYTES: (u64, u64) = (4 << 20, 32 << 20);

/// An open file.
#[derive(Debug)]
pub(crate) struct Store {
    file: File,
    log: log::Extent,
}

/// Records of the tenant of this name.
pub(crate) type Batch = (Arc<str>, Vec<Stored>);

/// How far a shard of the tenant of this name has read the input stream.
pub(crate) type TenantPosition = (Arc<str>, ShardPosition);

impl Store {
    /// Opens a file, or creates it if it doesn't exist, and checks all of it. A file of a version
    /// that knew a single tenant is taken as this tenant's.
    ///
    /// # Errors
    /// If it can't be used.
    pub(crate) fn open(path: &Path, tenant: &str, disk: &Arc<Disk>) -> Result<Self, Fault> {
        let file = File::open(path, disk)?;
        let opened = guarded(|| {
            let mut store = Self {
                file,
                log: log::Extent::default(),
            };
            store.check_format(tenant)?;
            let transaction = store.file.database.begin_read();
            let extent = transaction.map_err(anyhow::Error::from).and_then(|it| {
                let log = if_exists(it.open_table(log::LOG))?;
                log.as_ref().map(log::extent).transpose()
            });
            store.log = extent.map_err(Fault::Damaged)?.unwrap_or_default();
            Ok(store)
        });
        opened.map_err(|fault| disk.fault(fault))
    }

    /// How large the file is, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.file.len()
    }

    /// Reads all records of a tenant, in the order of their keys. Returns when the file was last
    /// written.
    ///
    /// # Errors
    /// If the file can't be read, or `take` refuses a record.
    pub(crate) fn read(
        &self,
        tenant: &str,
        mut take: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>,
    ) -> Result<u64, Fault> {
        let mut read = || -> anyhow::Result<u64> {
            let transaction = self.file.database.begin_read()?;
            let Some(log) = if_exists(transaction.open_table(log::LOG))? else {
                // Nothing has been written to the file yet.
                return Ok(0);
            };
            let name = table_of(tenant);
            let table = if_exists(transaction.open_table(TableDefinition::new(&name)))?;
            log::read(&log, tenant, table.as_ref(), &mut take)?;
            let saved_at = transaction.open_table(FIGURES)?.get(SAVED_AT)?;
            Ok(saved_at.map_or(0, |at| at.value()))
        };
        guarded(|| read().map_err(Fault::Damaged))
    }

    /// Writes records and positions, all or nothing, and returns when they are on the disk. Of
    /// several records with one key, the last counts.
    ///
    /// # Errors
    /// If they can't be written. The file must then be opened anew.
    pub(crate) fn write(
        &mut self,
        saved_at: u64,
        batches: &[Batch],
        positions: &[TenantPosition],
    ) -> Result<(), Fault> {
        self.guarded(|store| {
            let transaction = store.file.database.begin_write()?;
            let before = store.log;
            let mut extent = before;
            log::append(&mut transaction.open_table(log::LOG)?, &mut extent, batches)?;
            note_format(&transaction, FORMAT)?;
            transaction
                .open_table(FIGURES)?
                .insert(SAVED_AT, saved_at)?;
            if !positions.is_empty() {
                let mut table = transaction.open_table(POSITIONS)?;
                for (tenant, at) in positions {
                    let StoredPosition { at, hash } = StoredPosition::new(*at);
                    let Position { stream, sequence } = at.position;
                    let value = (stream, sequence, hash, at.begin);
                    table.insert(&*position_key(tenant, at.of), value)?;
                }
            }
            transaction.commit()?;
            store.log = extent;
            store.written(extent.bytes as i64 - before.bytes as i64)
        })
    }

    /// How far the shards of a tenant have read the input stream.
    ///
    /// # Errors
    /// If it can't be read.
    pub(crate) fn positions(&self, tenant: &str) -> Result<Vec<StoredPosition>, Fault> {
        let read = || -> anyhow::Result<_> {
            let transaction = self.file.database.begin_read()?;
            let Some(table) = if_exists(transaction.open_table(POSITIONS))? else {
                return Ok(Vec::new());
            };
            let mut positions = Vec::new();
            for row in table.iter()? {
                let (key, value) = row?;
                let Some(of) = shard_of_key(key.value(), tenant) else {
                    continue;
                };
                let (stream, sequence, hash, begin) = value.value();
                let position = Position { stream, sequence };
                let at = ShardPosition {
                    of,
                    position,
                    begin,
                };
                positions.push(StoredPosition { at, hash });
            }
            Ok(positions)
        };
        guarded(|| read().map_err(Fault::Damaged))
    }

    /// Removes a tenant's positions that were noted under certain numbers of shards.
    ///
    /// # Errors
    /// If the removal can't be written.
    pub(crate) fn forget_positions(
        &self,
        tenant: &str,
        is_outdated: impl Fn(u32) -> bool,
    ) -> Result<(), Fault> {
        let forget = || -> anyhow::Result<()> {
            let transaction = self.file.database.begin_write()?;
            transaction.open_table(POSITIONS)?.retain(|key, _| {
                !shard_of_key(key, tenant).is_some_and(|it| is_outdated(it.shards))
            })?;
            Ok(transaction.commit()?)
        };
        guarded(|| forget().map_err(Fault::Unusable))
    }

    /// Merges the log into the tenants' tables, if it has grown long. Its content is safely on the
    /// disk even before that.
    ///
    /// # Errors
    /// If it can't be merged. The file must then be opened anew.
    pub(crate) fn merge_if_long(&mut self) -> Result<(), Fault> {
        if self.log.bytes <= self.log_bytes_max() {
            return Ok(());
        }
        self.guarded(|store| {
            let transaction = store.file.database.begin_write()?;
            let grown = merge(&transaction)?;
            transaction.commit()?;
            let merged = std::mem::take(&mut store.log);
            store.written(grown - merged.bytes as i64)
        })
    }

    fn log_bytes_max(&self) -> u64 {
        let in_tables = self.file.used().saturating_sub(self.log.bytes);
        in_tables.clamp(LOG_BYTES.0, LOG_BYTES.1)
    }

    fn written(&mut self, grown: i64) -> anyhow::Result<()> {
        let log_bytes_max = self.log_bytes_max();
        self.file.written(grown, log_bytes_max)
    }

    /// Runs code that writes. Damage is reported as [`Fault::Unusable`]: the file must then be
    /// opened anew, which checks all of it.
    fn guarded(&mut self, act: impl FnOnce(&mut Self) -> anyhow::Result<()>) -> Result<(), Fault> {
        guarded(|| act(self).map_err(Fault::Unusable)).map_err(|fault| match fault {
            Fault::Damaged(why) => Fault::Unusable(why),
            fault => fault,
        })
    }

    /// The subjects that the state belongs to. `None` if that was never noted.
    ///
    /// # Errors
    /// If it can't be read.
    pub(crate) fn subjects(&self) -> Result<Option<String>, Fault> {
        let read = || -> anyhow::Result<_> {
            let transaction = self.file.database.begin_read()?;
            let Some(facts) = if_exists(transaction.open_table(FACTS))? else {
                return Ok(None);
            };
            let subjects = facts.get(SUBJECTS)?;
            Ok(subjects.map(|it| it.value().to_owned()))
        };
        guarded(|| read().map_err(Fault::Damaged))
    }

    /// Begins an epoch that is later than any before, even if the clock has been set back, and
    /// returns it when it is on the disk. `subjects`, if given, is noted as what the state belongs
    /// to.
    ///
    /// # Errors
    /// If it can't be written.
    pub(crate) fn begin_epoch(&self, now: u64, subjects: Option<&str>) -> Result<u64, Fault> {
        let begin = || -> anyhow::Result<u64> {
            let transaction = self.file.database.begin_write()?;
            note_format(&transaction, FORMAT)?;
            if let Some(subjects) = subjects {
                transaction.open_table(FACTS)?.insert(SUBJECTS, subjects)?;
            }
            let epoch = {
                let mut figures = transaction.open_table(FIGURES)?;
                let last = figures.get(EPOCH)?.map(|epoch| epoch.value());
                let last = last.filter(|last| {
                    let can_be = *last <= EPOCH_MAX;
                    if !can_be {
                        tracing::error!(
                            "the last epoch in the state, {last}, can't be one: it is left out"
                        );
                    }
                    can_be
                });
                let epoch = last.map_or(now, |last| now.max(last.saturating_add(EPOCH_STEP)));
                figures.insert(EPOCH, epoch)?;
                epoch
            };
            transaction.commit()?;
            Ok(epoch)
        };
        guarded(|| begin().map_err(Fault::Unusable))
    }

    /// Checks that the file is new, or has a known format.
    fn check_format(&self, tenant: &str) -> Result<(), Fault> {
        let check = || -> anyhow::Result<()> {
            let transaction = self.file.database.begin_read()?;
            if transaction.list_tables()?.next().is_none() {
                // The first transaction notes the format.
                return Ok(());
            }
            let figures = transaction.open_table(FIGURES)?;
            match figures.get(FORMAT_KEY)?.map_or(0, |format| format.value()) {
                format if format == u64::from(FORMAT) => Ok(()),
                ONE_TENANT => self.name_tenant(tenant),
                format if format > u64::from(FORMAT) => {
                    bail!("a newer version wrote it (format {format}, and {FORMAT} is known here)")
                }
                format => bail!("its format, {format}, isn't known"),
            }
        };
        check().map_err(Fault::Damaged)
    }

    /// Notes a format.
    #[cfg(test)]
    pub(super) fn set_format(&self, format: u32) -> anyhow::Result<()> {
        let transaction = self.file.database.begin_write()?;
        note_format(&transaction, format)?;
        Ok(transaction.commit()?)
    }

    /// Converts a file of a single tenant into one in which the tenant has a name.
    fn name_tenant(&self, tenant: &str) -> anyhow::Result<()> {
        let transaction = self.file.database.begin_write()?;
        let name = table_of(tenant);
        let named = TableDefinition::<&[u8], &[u8]>::new(&name);
        transaction.rename_table(RECORDS_OF_ONE, named)?;
        note_format(&transaction, FORMAT)?;
        Ok(transaction.commit()?)
    }
}

/// A table; `None` if it doesn't exist.
fn if_exists<T>(opened: Result<T, TableError>) -> Result<Option<T>, TableError> {
    match opened {
        Ok(table) => Ok(Some(table)),
        Err(TableError::TableDoesNotExist(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Notes the format, and creates the table that must exist.
fn note_format(transaction: &WriteTransaction, format: u32) -> anyhow::Result<()> {
    transaction.open_table(log::LOG)?;
    let mut figures = transaction.open_table(FIGURES)?;
    figures.insert(FORMAT_KEY, u64::from(format))?;
    Ok(())
}

/// The key of a shard's position. A tenant's name has no `/`.
fn position_key(tenant: &str, of: ShardOf) -> String {
    format!("{tenant}/{}/{}", of.shards, of.shard)
}

fn shard_of_key(key: &str, tenant: &str) -> Option<ShardOf> {
    let (shards, shard) = key
        .strip_prefix(tenant)?
        .strip_prefix('/')?
        .split_once('/')?;
    let (shards, shard) = (shards.parse().ok()?, shard.parse().ok()?);
    Some(ShardOf { shards, shard })
}

/// The name of a tenant's table.
fn table_of(tenant: &str) -> String {
    format!("records/{tenant}")
}

/// Merges the log into the tenants' tables. Returns by how many bytes the tables have grown.
fn merge(transaction: &WriteTransaction) -> anyhow::Result<i64> {
    let latest = log::latest(&transaction.open_table(log::LOG)?, None)?;
    let mut rows = latest.into_iter().peekable();
    let mut grown = 0;
    while let Some(((tenant, _), _)) = rows.peek() {
        let tenant = tenant.clone();
        let name = table_of(&tenant);
        let mut table = transaction.open_table(TableDefinition::<&[u8], &[u8]>::new(&name))?;
        while let Some(((_, key), value)) = rows.next_if(|((of, _), _)| *of == tenant) {
            let bytes = |value: &[u8]| (key.len() + value.len()) as i64;
            let before = match &value {
                Some(value) => {
                    grown += bytes(value);
                    table.insert(&*key, &**value)?
                }
                None => table.remove(&*key)?,
            };
            grown -= before.map_or(0, |before| bytes(before.value()));
        }
    }
    transaction.delete_table(log::LOG)?;
    transaction.open_table(log::LOG)?;
    Ok(grown)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    type Model = BTreeMap<Vec<u8>, Vec<u8>>;

    fn open(path: &Path) -> Store {
        Store::open(path, "one", &Arc::default()).unwrap()
    }

    fn read(store: &Store, tenant: &str) -> Vec<(Vec<u8>, Vec<u8>)> {
        let mut records = Vec::new();
        let take = |key: &[u8], value: &[u8]| {
            records.push((key.to_vec(), value.to_vec()));
            Ok(())
        };
        store.read(tenant, take).unwrap();
        records
    }

    /// Pseudo-random numbers, the same in each run.
    fn numbers() -> impl FnMut(usize) -> usize {
        let mut state = 7_u64;
        move |below| {
            state = state
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1);
            (state >> 33) as usize % below
        }
    }

    #[test]
    fn each_tenant_reads_what_was_last_written_in_the_log_and_behind_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.redb");
        let mut next = numbers();
        let mut models = [("one", Model::new()), ("two", Model::new())];
        let mut store = open(&path);
        let mut merges = 0;
        for at in 0..60 {
            let mut batches = Vec::new();
            for _ in 0..next(4) {
                let (tenant, model) = &mut models[next(2)];
                let mut records = Vec::new();
                for _ in 0..next(40) {
                    let key = vec![next(9) as u8; 1 + next(3)];
                    let value = (next(3) > 0).then(|| vec![at; next(40_000)]);
                    match &value {
                        Some(value) => model.insert(key.clone(), value.clone()),
                        None => model.remove(&key),
                    };
                    records.push((key, value));
                }
                batches.push(((*tenant).into(), records));
            }
            let before = store.log.bytes;
            store.write(u64::from(at), &batches, &[]).unwrap();
            store.merge_if_long().unwrap();
            merges += usize::from(store.log.bytes < before);
            if next(5) == 0 {
                let known = store.log;
                drop(store);
                store = open(&path);
                assert_eq!(store.log.bytes, known.bytes);
            }
            for (tenant, model) in &models {
                assert!(read(&store, tenant).into_iter().eq(model.clone()), "{at}");
            }
        }
        assert!(merges > 2, "{merges}");
    }

    #[test]
    fn positions_are_each_tenants_and_outlive_the_file_being_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.redb");
        let mut store = open(&path);
        assert_eq!(store.positions("one").unwrap(), []);
        let at = |shards, shard, sequence| ShardPosition {
            of: ShardOf { shards, shard },
            position: Position {
                stream: 7,
                sequence,
            },
            begin: 3,
        };
        let first = [
            ("one".into(), at(2, 0, 10)),
            ("one".into(), at(2, 1, 11)),
            ("one-more".into(), at(2, 0, 12)),
        ];
        store.write(1, &[], &first).unwrap();
        store
            .write(
                2,
                &[],
                &[("one".into(), at(2, 0, 9)), ("one".into(), at(4, 3, 20))],
            )
            .unwrap();
        drop(store);
        let store = open(&path);
        let known = |tenant: &str| {
            let known = store.positions(tenant).unwrap();
            known.into_iter().map(|it| it.at).collect::<Vec<_>>()
        };
        assert_eq!(known("one"), [at(2, 0, 9), at(2, 1, 11), at(4, 3, 20)]);
        assert_eq!(known("one-more"), [at(2, 0, 12)]);
        store.forget_positions("one", |shards| shards == 2).unwrap();
        assert_eq!(known("one"), [at(4, 3, 20)]);
        assert_eq!(known("one-more"), [at(2, 0, 12)]);
    }

    #[test]
    fn what_changes_again_and_again_takes_little_room() {
        let folder = tempfile::tempdir().unwrap();
        let mut store = open(&folder.path().join("file.redb"));
        let records = |round: u8| {
            let records = (0..1_000_u32).map(|user| {
                let key = user.to_be_bytes().to_vec();
                (key, Some(vec![round; 200]))
            });
            records.collect()
        };
        for round in 0..200 {
            store
                .write(1, &[("one".into(), records(round))], &[])
                .unwrap();
            store.merge_if_long().unwrap();
            assert!(store.len() < 20 << 20, "{round}: {}", store.len());
        }
        assert!(!store.file.is_compacted(), "it needs that room again");
        assert!(
            read(&store, "one").into_iter().eq(records(199)
                .into_iter()
                .map(|(key, value): Stored| (key, value.unwrap())))
        );
    }

    #[test]
    fn a_file_of_a_version_that_knew_one_tenant_alone_is_continued() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.redb");
        let file = File::open(&path, &Arc::default()).unwrap();
        let transaction = file.database.begin_write().unwrap();
        {
            let mut records = transaction.open_table(RECORDS_OF_ONE).unwrap();
            records.insert(&[1][..], &[2][..]).unwrap();
            let mut figures = transaction.open_table(FIGURES).unwrap();
            figures.insert(FORMAT_KEY, ONE_TENANT).unwrap();
        }
        transaction.commit().unwrap();
        drop(file);
        let mut store = open(&path);
        assert_eq!(read(&store, "one"), [(vec![1], vec![2])]);
        assert_eq!(read(&store, "two"), []);
        let removed = vec![(vec![1], None)];
        store.write(1, &[("one".into(), removed)], &[]).unwrap();
        drop(store);
        assert_eq!(read(&open(&path), "one"), []);
    }
}
