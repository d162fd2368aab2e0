//! The store's log: changed records in the order of writing, in chunks, each of which is one value
//! of a table. A record in the log is newer than the one in the tenant's table.

use std::collections::BTreeMap;

use redb::{ReadableTable, Table, TableDefinition};

use super::store::Batch;

/// A changed record: its tenant, its key, and its value. `None`: the record was removed.
pub(super) type Row<'a> = (&'a str, &'a [u8], Option<&'a [u8]>);

/// The chunks by number, in the order of writing.
pub(super) const LOG: TableDefinition<'_, u64, Vec<Row<'static>>> = TableDefinition::new("log");

/// The approximate size of a chunk, in bytes. With redb's overhead it fits into a page of 64 KiB.
const CHUNK_BYTES: usize = 56 << 10;

/// The end and the size of the log.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    /// The number of the next chunk.
    next: u64,
    /// The approximate size of all chunks, in bytes.
    pub(super) bytes: u64,
}

/// The last change of each record, by tenant and key.
pub(super) type Latest = BTreeMap<(String, Vec<u8>), Option<Vec<u8>>>;

/// Finds the end and the size of a log.
pub(super) fn extent(log: &impl ReadableTable<u64, Vec<Row<'static>>>) -> anyhow::Result<Extent> {
    let mut extent = Extent::default();
    for chunk in log.iter()? {
        let (number, rows) = chunk?;
        extent.next = number.value().saturating_add(1);
        extent.bytes += rows.value().iter().map(bytes).sum::<usize>() as u64;
    }
    Ok(extent)
}

/// Appends records to the log.
pub(super) fn append(
    log: &mut Table<'_, u64, Vec<Row<'static>>>,
    extent: &mut Extent,
    batches: &[Batch],
) -> anyhow::Result<()> {
    let mut rows: Vec<Row<'_>> = Vec::new();
    let mut size = 0;
    let mut end = |rows: &mut Vec<Row<'_>>, size: &mut usize| -> anyhow::Result<()> {
        log.insert(extent.next, &*rows)?;
        extent.next += 1;
        extent.bytes += *size as u64;
        rows.clear();
        *size = 0;
        Ok(())
    };
    for (tenant, records) in batches {
        for (key, value) in records {
            let row: Row<'_> = (tenant, key, value.as_deref());
            if size + bytes(&row) > CHUNK_BYTES && !rows.is_empty() {
                end(&mut rows, &mut size)?;
            }
            size += bytes(&row);
            rows.push(row);
        }
    }
    if !rows.is_empty() {
        end(&mut rows, &mut size)?;
    }
    Ok(())
}

/// The last change of each record, of one tenant or of all. Beside the result, only one chunk is in
/// memory at a time.
pub(super) fn latest(
    log: &impl ReadableTable<u64, Vec<Row<'static>>>,
    tenant: Option<&str>,
) -> anyhow::Result<Latest> {
    let mut latest = Latest::new();
    for chunk in log.iter()?.rev() {
        let (_, rows) = chunk?;
        for (of, key, value) in rows.value().into_iter().rev() {
            if tenant.is_none_or(|tenant| of == tenant) {
                latest
                    .entry((of.to_owned(), key.to_vec()))
                    .or_insert_with(|| value.map(<[u8]>::to_vec));
            }
        }
    }
    Ok(latest)
}

/// Reads a tenant's records in the order of their keys, from the log and the tenant's table.
pub(super) fn read(
    log: &impl ReadableTable<u64, Vec<Row<'static>>>,
    tenant: &str,
    table: Option<&impl ReadableTable<&'static [u8], &'static [u8]>>,
    mut take: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let changed = latest(log, Some(tenant))?.into_iter();
    let mut changed = changed.map(|((_, key), value)| (key, value)).peekable();
    let records = table.map(ReadableTable::iter).transpose()?;
    for record in records.into_iter().flatten() {
        let (key, value) = record?;
        let mut is_changed = false;
        while let Some((changed_key, changed)) =
            changed.next_if(|(changed, _)| **changed <= *key.value())
        {
            is_changed = changed_key == key.value();
            if let Some(value) = changed {
                take(&changed_key, &value)?;
            }
        }
        if !is_changed {
            take(key.value(), value.value())?;
        }
    }
    for (key, value) in changed {
        if let Some(value) = value {
            take(&key, &value)?;
        }
    }
    Ok(())
}

/// The approximate size of a row, in bytes.
fn bytes((tenant, key, value): &Row<'_>) -> usize {
    const AROUND: usize = 8;
    tenant.len() + key.len() + value.map_or(0, <[u8]>::len) + AROUND
}
