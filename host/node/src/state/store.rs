//! The file that the state is kept in: a redb database of keys and values, whose
//! meaning is the core's affair.

use std::path::Path;
use std::sync::Arc;

use anyhow::bail;
use presence_config::subjects::EPOCH_STEP;
use presence_core::record::{FORMAT, Stored};
use redb::{ReadableDatabase, ReadableTable, TableDefinition};

use crate::state::database::{Disk, Fault, File, guarded};

const RECORDS: TableDefinition<'_, &[u8], &[u8]> = TableDefinition::new("records");
const FIGURES: TableDefinition<'_, &str, u64> = TableDefinition::new("figures");
const FORMAT_KEY: &str = "format";
const SAVED_AT: &str = "saved-at";
const EPOCH: &str = "epoch";

/// An open file.
#[derive(Debug)]
pub(crate) struct Store {
    file: File,
}

impl Store {
    /// Opens a file, which is made where there is none, and checks all of it.
    ///
    /// # Errors
    /// If it can't be used.
    pub(crate) fn open(path: &Path, disk: &Arc<Disk>) -> Result<Self, Fault> {
        let file = File::open(path, disk)?;
        let store = Self { file };
        guarded(|| store.check_format()).map_err(|fault| disk.fault(fault))?;
        Ok(store)
    }

    /// How large the file is, in bytes.
    pub(crate) fn len(&self) -> u64 {
        self.file.len()
    }

    /// Reads all records, in the order of their keys, and says when the file was
    /// last written.
    ///
    /// # Errors
    /// If it can't be read, or `take` can't take a record.
    pub(crate) fn read(
        &self,
        mut take: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>,
    ) -> Result<u64, Fault> {
        let mut read = || -> anyhow::Result<u64> {
            let transaction = self.file.database.begin_read()?;
            for record in transaction.open_table(RECORDS)?.iter()? {
                let (key, value) = record?;
                take(key.value(), value.value())?;
            }
            let saved_at = transaction.open_table(FIGURES)?.get(SAVED_AT)?;
            Ok(saved_at.map_or(0, |at| at.value()))
        };
        guarded(|| read().map_err(Fault::Damaged))
    }

    /// Writes records, all of them or none, and returns when the disk has them.
    ///
    /// # Errors
    /// If that can't be done. The file must then be opened anew.
    pub(crate) fn write(&mut self, saved_at: u64, records: &[Stored]) -> anyhow::Result<()> {
        let transaction = self.file.database.begin_write()?;
        let mut grown = 0;
        {
            let mut table = transaction.open_table(RECORDS)?;
            let bytes = |key: &[u8], value: &[u8]| (key.len() + value.len()) as i64;
            for (key, value) in records {
                let before = match value {
                    Some(value) => {
                        grown += bytes(key, value);
                        table.insert(&**key, &**value)?
                    }
                    None => table.remove(&**key)?,
                };
                grown -= before.map_or(0, |before| bytes(key, before.value()));
            }
            let mut figures = transaction.open_table(FIGURES)?;
            figures.insert(SAVED_AT, saved_at)?;
        }
        transaction.commit()?;
        self.file.written(grown)
    }

    /// Begins an epoch that is later than any before, though the clock may have been
    /// set back since, and returns it when the disk has it.
    ///
    /// # Errors
    /// If it can't be written.
    pub(crate) fn begin_epoch(&self, now: u64) -> Result<u64, Fault> {
        let begin = || -> anyhow::Result<u64> {
            let transaction = self.file.database.begin_write()?;
            let epoch = {
                let mut figures = transaction.open_table(FIGURES)?;
                let last = figures.get(EPOCH)?.map(|epoch| epoch.value());
                let epoch = last.map_or(now, |last| now.max(last.saturating_add(EPOCH_STEP)));
                figures.insert(EPOCH, epoch)?;
                epoch
            };
            transaction.commit()?;
            Ok(epoch)
        };
        guarded(|| begin().map_err(Fault::Unusable))
    }

    /// That the file is new, or has the format that is known here.
    fn check_format(&self) -> Result<(), Fault> {
        let check = || -> anyhow::Result<()> {
            let transaction = self.file.database.begin_read()?;
            if transaction.list_tables()?.next().is_none() {
                return self.set_format(FORMAT);
            }
            let figures = transaction.open_table(FIGURES)?;
            match figures.get(FORMAT_KEY)?.map_or(0, |format| format.value()) {
                format if format == u64::from(FORMAT) => Ok(()),
                format if format > u64::from(FORMAT) => {
                    bail!("a newer version wrote it (format {format}, and {FORMAT} is known here)")
                }
                format => bail!("its format, {format}, isn't known"),
            }
        };
        check().map_err(Fault::Damaged)
    }

    /// Notes the format, and makes the tables.
    pub(super) fn set_format(&self, format: u32) -> anyhow::Result<()> {
        let transaction = self.file.database.begin_write()?;
        transaction.open_table(RECORDS)?;
        transaction
            .open_table(FIGURES)?
            .insert(FORMAT_KEY, u64::from(format))?;
        Ok(transaction.commit()?)
    }
}
