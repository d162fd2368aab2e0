//! Disk errors of the state's files. If the disk is full, a write waits for room: redb treats every
//! error as permanent, and would need the file to be opened again and checked as a whole.

use std::io::{self, ErrorKind};
use std::ops::Bound;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use redb::{BackendError, StorageBackend};
use tokio::sync::Notify;
use tokio::time::timeout;

use super::Fault;

/// The wait before a write that found no room is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// The state of the disk, as seen by one file.
#[derive(Debug, Default)]
pub(crate) struct Disk {
    /// The name of the file's content, for the log.
    what: &'static str,
    found: Mutex<Found>,
    given_up: Condvar,
    /// As `given_up`, for async tasks.
    gave_up: Notify,
}

#[derive(Debug, Default)]
struct Found {
    /// Since when nothing can be written, and why. `None`: writing works.
    outage: Option<(Instant, String)>,
    /// Whether the disk lacks room.
    is_full: bool,
    /// Whether writes wait for room, and outages are logged.
    waits: bool,
}

impl Disk {
    /// For a file whose content the log calls `what`. At first, writes don't wait for room.
    pub(crate) fn of(what: &'static str) -> Self {
        Self {
            what,
            ..Self::default()
        }
    }

    /// Has writes wait for room from now on.
    pub(crate) fn wait_for_room(&self) {
        self.lock().waits = true;
    }

    /// Ends all waits: what can't be written at once fails.
    pub(crate) fn give_up(&self) {
        self.lock().waits = false;
        self.given_up.notify_all();
        self.gave_up.notify_waiters();
    }

    /// Notes that nothing can be written, and why. Each new reason is logged.
    pub(crate) fn note_failure(&self, why: String) {
        let mut found = self.lock();
        let since = match &found.outage {
            Some((_, known)) if *known == why => return,
            Some((since, _)) => *since,
            None => Instant::now(),
        };
        if found.waits {
            let what = self.what;
            tracing::error!("{what} can't be written, and is tried again: {why}");
        }
        found.outage = Some((since, why));
    }

    /// Notes that everything has been written.
    pub(crate) fn note_success(&self) {
        let mut found = self.lock();
        found.is_full = false;
        if let Some((since, _)) = found.outage.take()
            && found.waits
        {
            let seconds = since.elapsed().as_secs();
            tracing::info!("{} is written again, after {seconds} s", self.what);
        }
    }

    /// For how long nothing could be written, and why. `None` if writing works.
    pub(crate) fn outage(&self) -> Option<(Duration, String)> {
        let found = self.lock();
        let outage = found.outage.as_ref();
        outage.map(|(since, why)| (since.elapsed(), why.clone()))
    }

    /// Waits before a retry. Returns whether to retry: `false` once waiting has been given up.
    pub(crate) fn rest(&self, wait: Duration) -> bool {
        let waits = |found: &mut Found| found.waits;
        let rested = self.given_up.wait_timeout_while(self.lock(), wait, waits);
        let (found, _) = rested.unwrap_or_else(PoisonError::into_inner);
        found.waits
    }

    /// Like [`Self::rest`], for async tasks.
    pub(crate) async fn resting(&self, wait: Duration) -> bool {
        let mut woken = pin!(self.gave_up.notified());
        woken.as_mut().enable();
        if self.lock().waits {
            // Whether the wait was over or given up is checked below.
            let _ = timeout(wait, woken).await;
        }
        self.lock().waits
    }

    /// Turns a fault into [`Fault::Full`] if the disk lacks room, which may be the cause.
    pub(crate) fn fault(&self, fault: Fault) -> Fault {
        match fault {
            Fault::Unusable(error) | Fault::Damaged(error) if self.lock().is_full => {
                Fault::Full(error)
            }
            fault => fault,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of a file. Writes that find no room on the disk wait for it.
#[derive(Debug)]
pub(super) struct Waiting<B> {
    inner: B,
    disk: Arc<Disk>,
    /// Whether the file has been created completely. Before that, it holds nothing that could be
    /// lost.
    is_made: Arc<AtomicBool>,
}

impl<B> Waiting<B> {
    pub(super) fn new(inner: B, disk: &Arc<Disk>, is_made: &Arc<AtomicBool>) -> Self {
        Self {
            inner,
            disk: Arc::clone(disk),
            is_made: Arc::clone(is_made),
        }
    }

    /// Does a write, and repeats it until there is room.
    fn with_room(&self, act: impl Fn() -> io::Result<()>) -> io::Result<()> {
        loop {
            let error = match act() {
                Err(error) if lacks_room(&error) => error,
                done => return done,
            };
            self.disk
                .note_failure(format!("there is no room on the disk: {error}"));
            self.disk.lock().is_full = true;
            if !self.disk.rest(RETRY) {
                return Err(error);
            }
        }
    }
}

fn lacks_room(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge
    )
}

impl<B: StorageBackend> StorageBackend for Waiting<B> {
    fn len(&self) -> io::Result<u64> {
        self.inner.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.inner.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.with_room(|| self.inner.set_len(len))
    }

    fn sync_data(&self) -> io::Result<()> {
        if !self.is_made.load(Ordering::Relaxed) {
            // The sync of the first transaction writes the whole file to the disk.
            return Ok(());
        }
        // A failed sync must not be tried again: the system may have dropped what it couldn't
        // write.
        self.inner.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.with_room(|| self.inner.write(offset, data))
    }

    fn close(&self) -> io::Result<()> {
        self.inner.close()
    }

    fn try_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.try_lock_range(start, end)
    }

    fn try_lock_shared_range(
        &self,
        start: Bound<u64>,
        end: Bound<u64>,
    ) -> Result<bool, BackendError> {
        self.inner.try_lock_shared_range(start, end)
    }

    fn lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_range(start, end)
    }

    fn lock_shared_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.lock_shared_range(start, end)
    }

    fn unlock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<(), BackendError> {
        self.inner.unlock_range(start, end)
    }

    fn query_lock_range(&self, start: Bound<u64>, end: Bound<u64>) -> Result<bool, BackendError> {
        self.inner.query_lock_range(start, end)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use redb::backends::InMemoryBackend;
    use redb::{Database, TableDefinition};

    use super::super::open_in;
    use super::*;

    const TABLE: TableDefinition<'_, u64, &[u8]> = TableDefinition::new("table");

    /// A disk with limited room.
    #[derive(Debug)]
    struct Small {
        memory: InMemoryBackend,
        room: Arc<AtomicU64>,
        refused: Arc<AtomicU64>,
        /// How often the file was synced.
        syncs: Arc<AtomicU64>,
    }

    impl Small {
        fn check(&self, end: u64) -> io::Result<()> {
            if end <= self.room.load(Ordering::SeqCst) {
                return Ok(());
            }
            self.refused.fetch_add(1, Ordering::SeqCst);
            Err(ErrorKind::StorageFull.into())
        }
    }

    impl StorageBackend for Small {
        fn len(&self) -> io::Result<u64> {
            self.memory.len()
        }
        fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
            self.memory.read(offset, out)
        }
        fn set_len(&self, len: u64) -> io::Result<()> {
            self.memory.set_len(len)
        }
        fn sync_data(&self) -> io::Result<()> {
            self.syncs.fetch_add(1, Ordering::SeqCst);
            self.memory.sync_data()
        }
        fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
            self.check(offset + data.len() as u64)?;
            self.memory.write(offset, data)
        }
    }

    struct World {
        database: Database,
        disk: Arc<Disk>,
        room: Arc<AtomicU64>,
        refused: Arc<AtomicU64>,
    }

    /// A database on a disk that has just become full.
    fn full() -> World {
        let (room, refused) = (
            Arc::new(AtomicU64::new(u64::MAX)),
            Arc::<AtomicU64>::default(),
        );
        let backend = Small {
            memory: InMemoryBackend::new(),
            room: Arc::clone(&room),
            refused: Arc::clone(&refused),
            syncs: Arc::default(),
        };
        let disk = Arc::new(Disk::of("the state"));
        let database = open_in(backend, &disk, false).unwrap();
        disk.wait_for_room();
        room.store(0, Ordering::SeqCst);
        World {
            database,
            disk,
            room,
            refused,
        }
    }

    fn write(database: &Database) -> anyhow::Result<()> {
        let transaction = database.begin_write()?;
        transaction
            .open_table(TABLE)?
            .insert(1, &[7; 100_000][..])?;
        Ok(transaction.commit()?)
    }

    fn until_refused(refused: &AtomicU64) {
        while refused.load(Ordering::SeqCst) == 0 {
            std::thread::yield_now();
        }
    }

    #[test]
    fn the_disk_is_not_waited_for_while_a_file_is_made_that_holds_nothing() {
        for is_new in [true, false] {
            let syncs = Arc::<AtomicU64>::default();
            let backend = Small {
                memory: InMemoryBackend::new(),
                room: Arc::new(AtomicU64::new(u64::MAX)),
                refused: Arc::default(),
                syncs: Arc::clone(&syncs),
            };
            let database = open_in(backend, &Arc::default(), is_new).unwrap();
            assert_eq!(syncs.load(Ordering::SeqCst) == 0, is_new);
            let before = syncs.load(Ordering::SeqCst);
            write(&database).unwrap();
            assert!(syncs.load(Ordering::SeqCst) > before, "a transaction waits");
        }
    }

    #[test]
    fn a_write_waits_for_room_and_goes_on() {
        let world = full();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| write(&world.database));
            until_refused(&world.refused);
            let why = loop {
                if let Some((_, why)) = world.disk.outage() {
                    break why;
                }
            };
            assert!(why.contains("no room on the disk"), "{why}");
            assert!(!writing.is_finished());
            world.room.store(u64::MAX, Ordering::SeqCst);
            writing.join().unwrap().unwrap();
        });
        world.disk.note_success();
        assert!(world.disk.outage().is_none());
        // The database that waited can be used further.
        write(&world.database).unwrap();
    }

    #[test]
    fn a_write_that_waits_is_given_up_at_once() {
        let world = full();
        std::thread::scope(|scope| {
            let writing = scope.spawn(|| write(&world.database));
            until_refused(&world.refused);
            world.disk.give_up();
            assert!(writing.join().unwrap().is_err());
        });
        assert!(matches!(
            world.disk.fault(Fault::Unusable(anyhow::anyhow!("it"))),
            Fault::Full(_)
        ));
    }

    #[test]
    fn an_outage_lasts_from_its_first_reason() {
        let disk = Disk::of("the state");
        disk.note_failure("no room".into());
        let (first, _) = disk.outage().unwrap();
        disk.note_failure("gone".into());
        let (second, why) = disk.outage().unwrap();
        assert!(why == "gone" && second >= first);
        disk.note_success();
        assert!(disk.outage().is_none());
    }
}
