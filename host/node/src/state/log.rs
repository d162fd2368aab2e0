//! The store's log: batches of changed records, as they were written, in chunks that are
//! each one value of a table. What it has of a key counts for more than a tenant's table.

use redb::{AccessGuard, ReadableTable, Table, TableDefinition};

use super::store::Batch;

/// A changed record: its tenant, its key, and its value unless it is removed.
pub(super) type Row<'a> = (&'a str, &'a [u8], Option<&'a [u8]>);

/// Chunks, in the order in which they were written.
pub(super) const LOG: TableDefinition<'_, u64, Vec<Row<'static>>> = TableDefinition::new("log");

/// How many bytes a chunk has, more or less: with what redb adds it fits into a page of
/// 64 KiB.
const CHUNK_BYTES: usize = 56 << 10;

/// How far the log goes.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Extent {
    /// The number of the next chunk.
    next: u64,
    /// How many bytes its chunks have, more or less.
    pub(super) bytes: u64,
}

/// The rows of a chunk.
type Chunk<'a> = AccessGuard<'a, Vec<Row<'static>>>;

/// How far a log goes.
pub(super) fn extent(log: &impl ReadableTable<u64, Vec<Row<'static>>>) -> anyhow::Result<Extent> {
    let mut extent = Extent::default();
    for chunk in log.iter()? {
        let (number, rows) = chunk?;
        extent.next = number.value().saturating_add(1);
        extent.bytes += rows.value().iter().map(bytes).sum::<usize>() as u64;
    }
    Ok(extent)
}

/// Appends records.
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

/// All chunks of a log.
pub(super) fn chunks<'a>(
    log: &'a impl ReadableTable<u64, Vec<Row<'static>>>,
) -> anyhow::Result<Vec<Chunk<'a>>> {
    let chunks = log.iter()?.map(|chunk| Ok(chunk?.1));
    chunks.collect()
}

/// The last row of each key, by tenant and key: of one tenant, or of all.
pub(super) fn latest<'a>(chunks: &'a [Chunk<'_>], tenant: Option<&str>) -> Vec<Row<'a>> {
    let rows = chunks.iter().flat_map(AccessGuard::value);
    let is_wanted = |row: &Row<'_>| tenant.is_none_or(|tenant| row.0 == tenant);
    let mut rows: Vec<_> = rows.filter(is_wanted).collect();
    // Of one key, the last one comes first now.
    rows.reverse();
    rows.sort_by_key(|(tenant, key, _)| (*tenant, *key));
    rows.dedup_by_key(|(tenant, key, _)| (*tenant, *key));
    rows
}

/// Reads the records of a tenant, in the order of their keys, from the log and its table.
pub(super) fn read(
    log: &impl ReadableTable<u64, Vec<Row<'static>>>,
    tenant: &str,
    table: Option<&impl ReadableTable<&'static [u8], &'static [u8]>>,
    mut take: impl FnMut(&[u8], &[u8]) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let chunks = chunks(log)?;
    let mut changed = latest(&chunks, Some(tenant)).into_iter().peekable();
    let records = table.map(ReadableTable::iter).transpose()?;
    for record in records.into_iter().flatten() {
        let (key, value) = record?;
        let mut is_changed = false;
        while let Some((_, changed_key, changed)) =
            changed.next_if(|(_, changed, _)| *changed <= key.value())
        {
            is_changed = changed_key == key.value();
            if let Some(value) = changed {
                take(changed_key, value)?;
            }
        }
        if !is_changed {
            take(key.value(), value.value())?;
        }
    }
    for (_, key, value) in changed {
        if let Some(value) = value {
            take(key, value)?;
        }
    }
    Ok(())
}

/// How many bytes a row takes, more or less.
fn bytes((tenant, key, value): &Row<'_>) -> usize {
    const AROUND: usize = 8;
    tenant.len() + key.len() + value.map_or(0, <[u8]>::len) + AROUND
}
