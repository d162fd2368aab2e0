//! A file in the state's folder: a redb database that is checked when it is opened, waits for room
//! on its disk ([`disk`]), and is compacted when it is mostly empty.
//!
//! Without compaction, a redb file never shrinks: one burst of users would take room on the disk
//! for ever.

mod aside;
mod disk;

use std::fs;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use anyhow::anyhow;
use presence_rules::private;
use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadOnlyDatabase, StorageBackend, StorageError};

pub(crate) use aside::set_aside;
pub(crate) use disk::Disk;

use disk::Waiting;

/// The size of redb's cache, in bytes. It holds the upper levels of the trees.
const CACHE_BYTES: usize = 32 << 20;

/// Files up to this size, in bytes, are not compacted.
const LARGE_BYTES: u64 = 4 << 20;

/// A file may be this many times as large as its content. The pages of a tree that changes all the
/// time are half full, and a transaction needs room for new pages beside the old ones.
const SPARE: u64 = 4;

/// A file must grow by this factor after a compaction before it is compacted again.
const GROWTH: u64 = 2;

/// Why a file can't be used.
#[derive(Debug)]
pub(crate) enum Fault {
    /// Another process has it open.
    InUse,
    /// There is no room on its disk.
    Full(anyhow::Error),
    /// The file or its folder can't be read or written.
    Unusable(anyhow::Error),
    /// Its content is invalid.
    Damaged(anyhow::Error),
}

/// An open file.
#[derive(Debug)]
pub(crate) struct File {
    pub(crate) database: Database,
    path: PathBuf,
    /// The size of all keys and values, in bytes.
    used: u64,
    /// The size of the file after the last compaction; 0 before the first.
    compacted: u64,
}

impl File {
    /// Opens a file, or creates it if it doesn't exist. Checks all of it, and compacts it if it is
    /// mostly empty.
    ///
    /// # Errors
    /// If it can't be used.
    pub(crate) fn open(path: &Path, disk: &Arc<Disk>) -> Result<Self, Fault> {
        let opened = guarded(|| {
            let database = open(path, disk).map_err(|error| fault(error, path))?;
            let used = used(&database).map_err(Fault::Damaged)?;
            let mut file = Self {
                database,
                path: path.to_owned(),
                used,
                compacted: 0,
            };
            file.compact_if_empty(0).map_err(Fault::Unusable)?;
            Ok(file)
        });
        opened.map_err(|fault| disk.fault(fault))
    }

    /// Notes that a transaction has added `bytes` bytes of content (negative: removed), and
    /// compacts the file if it is mostly empty now. `reserve`: room for content that comes and
    /// goes.
    ///
    /// # Errors
    /// If it can't be compacted. The file must then be opened anew.
    pub(crate) fn written(&mut self, bytes: i64, reserve: u64) -> anyhow::Result<()> {
        self.used = self.used.saturating_add_signed(bytes);
        self.compact_if_empty(reserve)
    }

    /// Whether the file has been compacted since it was opened.
    #[cfg(test)]
    pub(super) fn is_compacted(&self) -> bool {
        self.compacted > 0
    }

    /// The size of all keys and values, in bytes.
    pub(crate) fn used(&self) -> u64 {
        self.used
    }

    /// The size of the file, in bytes.
    pub(crate) fn len(&self) -> u64 {
        fs::metadata(&self.path).map_or(0, |file| file.len())
    }

    fn compact_if_empty(&mut self, reserve: u64) -> anyhow::Result<()> {
        let before = self.len();
        let needed = self.used.saturating_add(reserve);
        if before < LARGE_BYTES || before / SPARE < needed || before / GROWTH < self.compacted {
            return Ok(());
        }
        self.database.compact()?;
        self.compacted = self.len();
        tracing::info!(
            before,
            after = self.compacted,
            "{} was mostly empty, and has been compacted",
            self.path.display()
        );
        Ok(())
    }
}

/// Reads a file without writing to it, so that nothing waits for the disk. `None` if the file
/// doesn't exist, or wasn't closed properly, so that [`File::open`] must check it. The content
/// isn't checked: `read` has to find out whether it is what was written.
///
/// # Errors
/// If it can't be read.
pub(crate) fn read_only<T>(
    path: &Path,
    read: impl FnOnce(&ReadOnlyDatabase) -> Result<Option<T>, Fault>,
) -> Result<Option<T>, Fault> {
    guarded(|| {
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Fault::Unusable(error.into())),
        };
        let opened = FileBackend::new(file);
        let opened = opened.and_then(|backend| builder().open_read_only_with_backend(backend));
        match opened {
            Ok(database) => read(&database),
            Err(DatabaseError::RepairAborted) => Ok(None),
            Err(error) => Err(fault(error, path)),
        }
    })
}

fn open(path: &Path, disk: &Arc<Disk>) -> Result<Database, DatabaseError> {
    let was_there = path.exists();
    let file = private::file(path)?;
    let is_new = file.metadata()?.len() == 0;
    if is_new && was_there {
        tracing::warn!(
            "{} is empty: what it held is lost, unless it was only just being made, and the node \
             starts with nothing",
            path.display()
        );
    }
    open_in(FileBackend::new(file)?, disk, is_new)
}

fn open_in(
    backend: impl StorageBackend,
    disk: &Arc<Disk>,
    is_new: bool,
) -> Result<Database, DatabaseError> {
    let is_made = Arc::new(AtomicBool::new(!is_new));
    let opened = builder().create_with_backend(Waiting::new(backend, disk, &is_made))?;
    is_made.store(true, Ordering::Relaxed);
    Ok(opened)
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    builder.set_cache_size(CACHE_BYTES);
    // Otherwise damage would be found only when a damaged page is read.
    builder.set_check_integrity_on_open(true);
    builder
}

fn used(database: &Database) -> anyhow::Result<u64> {
    let transaction = database.begin_write()?;
    let used = transaction.stats()?.stored_bytes();
    transaction.abort()?;
    Ok(used)
}

/// Runs code that may read a damaged page, on which redb may panic. A panic counts as damage.
pub(crate) fn guarded<T>(act: impl FnOnce() -> Result<T, Fault>) -> Result<T, Fault> {
    // Nothing that `act` used is used after a panic.
    catch_unwind(AssertUnwindSafe(act))
        .unwrap_or_else(|_| Err(Fault::Damaged(anyhow!("its pages contradict each other"))))
}

fn fault(error: DatabaseError, path: &Path) -> Fault {
    let at_path = |error: DatabaseError| {
        anyhow::Error::new(error).context(format!("can't open {}", path.display()))
    };
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => Fault::InUse,
        DatabaseError::Storage(StorageError::Io(io))
            if !matches!(
                io.kind(),
                ErrorKind::InvalidData | ErrorKind::UnexpectedEof | ErrorKind::IsADirectory
            ) =>
        {
            Fault::Unusable(at_path(io.into()))
        }
        error => Fault::Damaged(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use redb::{ReadableTableMetadata as _, TableDefinition};

    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("table");
    const USERS: u64 = 40_000;
    const BYTES: usize = 200;

    fn write(file: &mut File, act: impl FnOnce(&mut redb::Table<'_, u64, &[u8]>) -> i64) {
        let transaction = file.database.begin_write().unwrap();
        let grown = act(&mut transaction.open_table(TABLE).unwrap());
        transaction.commit().unwrap();
        file.written(grown, 0).unwrap();
    }

    fn fill(file: &mut File, users: u64) {
        write(file, |table| {
            for user in 0..users {
                table.insert(user, &[7; BYTES][..]).unwrap();
            }
            (users * (8 + BYTES as u64)) as i64
        });
    }

    fn empty(file: &mut File) {
        write(file, |table| {
            let held = table.len().unwrap();
            table.retain(|user, _| user < 10).unwrap();
            -(((held - 10) * (8 + BYTES as u64)) as i64)
        });
    }

    #[test]
    fn a_file_that_has_become_mostly_empty_gives_back_its_room_while_it_is_in_use() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.redb");
        let mut file = File::open(&path, &Arc::default()).unwrap();
        for crowd in 0..2 {
            fill(&mut file, USERS);
            let full = file.len();
            assert!(full > USERS * BYTES as u64, "{crowd}: {full}");
            empty(&mut file);
            assert!(file.len() < 1 << 20, "{crowd}: {} of {full}", file.len());
        }
        drop(file);
        let file = File::open(&path, &Arc::default()).unwrap();
        let transaction = file.database.begin_write().unwrap();
        assert_eq!(transaction.open_table(TABLE).unwrap().len().unwrap(), 10);
        assert_eq!(file.used, 10 * (8 + BYTES as u64));
    }

    #[test]
    fn a_file_that_is_mostly_empty_gives_back_its_room_at_the_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.redb");
        {
            // Like a version that doesn't compact.
            let database = Database::create(&path).unwrap();
            let used = 0;
            let path = path.clone();
            let mut file = File {
                database,
                path,
                used,
                compacted: u64::MAX,
            };
            fill(&mut file, USERS);
            empty(&mut file);
            assert!(file.len() > 2 * LARGE_BYTES, "{}", file.len());
            // As if the process were killed: a close would trim the file.
            std::mem::forget(file);
        }
        let copy = folder.path().join("copy.redb");
        fs::copy(&path, &copy).unwrap();
        let file = File::open(&copy, &Arc::default()).unwrap();
        assert!(file.len() < 1 << 20, "{}", file.len());
    }

    #[test]
    fn a_file_in_use_is_not_compacted_again_and_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file.redb");
        let mut file = File::open(&path, &Arc::default()).unwrap();
        fill(&mut file, USERS);
        let full = file.len();
        // The file is taken for mostly empty, but isn't.
        file.written(i64::MIN, 0).unwrap();
        let compacted = file.compacted;
        assert!(
            compacted > LARGE_BYTES && compacted <= full,
            "{compacted} {full}"
        );
        file.compacted = file.len() - 1;
        file.written(0, 0).unwrap();
        assert_eq!(file.compacted, file.len() - 1);
    }
}
