//! The state that outlives the process: connections, who is online, and which viewers were told.
//!
//! It is kept in one file (`store`), in a folder of the node's own. Shards hand over changes
//! (`saver`), and a task writes them (`writer`) in one transaction, so that no shard waits for a
//! disk. A shard that has failed reads its stored records (`restorer`). After `kill -9`, the file
//! lacks only what happened since the last write.

pub(crate) mod database;
mod log;
mod of_subjects;
pub(crate) mod position;
mod restorer;
mod saver;
mod store;
mod writer;

use std::path::Path;
use std::sync::Arc;

use anyhow::{Context as _, bail};
use presence_config::subjects::{EPOCH_MAX, EPOCH_STEP, Subjects};
use presence_config::{self as config, Config};
use presence_core::names::Names;
use presence_core::record::Record;
use presence_core::tracker::{self, Connected};
use presence_rules::private;

use crate::clock;
use crate::tasks::Tasks;
use database::{Disk, Fault};
use position::Positions;

pub(crate) use restorer::{RestoreRequested, Restorer};
pub(crate) use saver::Saver;
pub(crate) use writer::{Writer, WriterFigures};

use store::Store;
use writer::Owner;

/// The restored state of the last run.
#[derive(Default)]
pub(crate) struct Restored {
    pub(crate) records: Vec<Record>,
    /// The epoch of this run's messages: later than in any run before.
    pub(crate) epoch: u64,
    /// How far the input stream was read.
    pub(crate) positions: Positions,
    /// When the state was last written, in milliseconds since the Unix epoch; 0 if never.
    pub(crate) saved_at: u64,
}

impl Restored {
    /// How many users are online, and how many connections are live.
    fn counts(&self) -> (usize, usize) {
        let count = |is: fn(&Record) -> bool| self.records.iter().filter(|it| is(it)).count();
        let users = count(|record| matches!(record, Record::Ledger { .. }));
        let connections = count(|record| {
            matches!(
                record,
                Record::Tracker(tracker::TrackerRecord::Connection {
                    state: Some(Connected::Live { .. }),
                    ..
                })
            )
        });
        (users, connections)
    }

    /// Whether there are users who are online.
    pub(crate) fn has_users(&self) -> bool {
        self.counts().0 > 0
    }

    /// A restored state without content.
    pub(crate) fn nothing() -> Self {
        Self {
            saved_at: clock::now_ms(),
            ..Self::default()
        }
    }

    /// For how long no node was there to receive input, in milliseconds.
    pub(crate) fn down_ms(&self) -> u64 {
        clock::now_ms().saturating_sub(self.saved_at)
    }
}

/// The result of opening the state.
pub(crate) enum OpenResult {
    /// The state is open.
    Kept(Writer, Restored),
    /// No state is kept.
    Nothing,
    /// Another node on the same broker still has it open; with the reason to log.
    InUse(String),
    /// There is no room on its disk; with the reason to log.
    Full(String),
}

/// Opens the state, and reads it. `servers`: the broker's addresses.
///
/// # Errors
/// If a process with another broker uses it, or the configured folder can't be used.
pub(crate) fn open(
    config: &Config,
    servers: &str,
    names: &Arc<Names>,
    tasks: &Tasks,
) -> anyhow::Result<OpenResult> {
    let Some(dir) = &config.state.dir else {
        return Ok(OpenResult::Nothing);
    };
    // The file is named after the node's only tenant: nodes with other prefixes may share the
    // folder. No tenant's prefix is `presence`, which is the name if there is none.
    let tenant = config.tenant.file_name();
    let owner = Arc::new(Owner {
        name: tenant.into(),
        names: Arc::clone(names),
    });
    let path = dir.join(format!("{tenant}.redb"));
    // Names the process that has the file open. It means nothing while the file is closed.
    let holder = dir.join(format!("{tenant}.holder"));
    let at = format!(", on {servers}");
    let disk = Arc::new(Disk::of("the state"));
    let belongs = belongs_to(config);
    let opened = open_in(dir, &path, &owner, &disk, &belongs);
    let opened = opened.and_then(|(store, mut restored)| {
        restored.positions = positions(&store, config, &owner).map_err(|it| disk.fault(it))?;
        Ok((store, restored))
    });
    let (store, restored) = match opened {
        Ok(opened) => opened,
        Err(Fault::Full(error)) => {
            let path = path.display();
            return Ok(OpenResult::Full(format!(
                "waiting for room on the disk of {path}: {error:#}"
            )));
        }
        Err(Fault::InUse) => {
            let by = std::fs::read_to_string(&holder).unwrap_or_else(|_| "another presence".into());
            if by.ends_with(&at) {
                let path = path.display();
                return Ok(OpenResult::InUse(format!(
                    "waiting while {path} is in use by {by}"
                )));
            }
            bail!(
                "{} is in use by {by}: stop it, or give this one another [state] dir",
                path.display()
            );
        }
        Err(Fault::Unusable(error)) if config.state.dir_is_default => {
            tracing::warn!(
                "presence data will not survive a restart: {error:#}. Set [state] dir to a folder \
                 that can be written, or to \"\""
            );
            return Ok(OpenResult::Nothing);
        }
        Err(Fault::Unusable(error) | Fault::Damaged(error)) => {
            return Err(error.context("[state] dir can't be used"));
        }
    };
    let me = format!(
        "node `{}`, process {}{at}",
        config.node.name,
        std::process::id()
    );
    // If this fails, a process that finds the file in use only knows less about its holder.
    let _ = private::write_unsynced(&holder, me.as_bytes());
    let (users, connections) = restored.counts();
    tracing::info!(
        path = %path.display(),
        "restored {users} users, {connections} connections"
    );
    let writer = Writer::start(store, path, owner, &config.state, users as u64, disk, tasks);
    Ok(OpenResult::Kept(writer, restored))
}

/// How far the input stream was read. Positions that no longer count are removed; all of them, if
/// the node doesn't read from a stream now.
fn positions(store: &Store, config: &Config, owner: &Owner) -> Result<Positions, Fault> {
    let positions = Positions::new(store.positions(&owner.name)?);
    if config.input.stream.is_none() {
        if !positions.is_empty() {
            store.forget_positions(&owner.name, |_| true)?;
        }
        return Ok(Positions::default());
    }
    let shards = u32::try_from(config.shard_count()).unwrap_or(u32::MAX);
    let outdated = positions.outdated(shards);
    if !outdated.is_empty() {
        store.forget_positions(&owner.name, |shards| outdated.contains(&shards))?;
    }
    Ok(positions)
}

/// What is wrong with a configured folder, as far as that can be seen without touching it.
pub fn problem(state: &config::State) -> Option<anyhow::Error> {
    let dir = state.dir.as_ref().filter(|_| !state.dir_is_default)?;
    (dir.exists() && !dir.is_dir())
        .then(|| anyhow::anyhow!("[state] dir: {} is no folder", dir.display()))
}

/// The subjects and the account that a state belongs to.
fn belongs_to(config: &Config) -> String {
    let subjects = Subjects::new(config.tenant.prefix.as_deref()).of("presence.>");
    match config.tenant.own_account {
        true => format!("{subjects}, in the account of {}", config.nats.auth.who()),
        false => subjects,
    }
}

/// Opens the state in a folder. A state of other subjects, or of another account, is set aside: its
/// viewers were not told on these.
fn open_in(
    dir: &Path,
    path: &Path,
    owner: &Owner,
    disk: &Arc<Disk>,
    belongs: &str,
) -> Result<(Store, Restored), Fault> {
    // The state holds data about users' connections.
    private::folder(dir).map_err(Fault::Unusable)?;
    match open_file(path, owner, disk, belongs) {
        Err(Fault::Damaged(why)) => {
            let aside = database::set_aside(path, "damaged").map_err(Fault::Unusable)?;
            tracing::error!(
                "the state in {} can't be taken: {why:#}. It has been set aside as {}, and the \
                 node starts empty",
                path.display(),
                aside.display()
            );
            open_file(path, owner, disk, belongs)
        }
        opened => opened,
    }
}

fn open_file(
    path: &Path,
    owner: &Owner,
    disk: &Arc<Disk>,
    belongs: &str,
) -> Result<(Store, Restored), Fault> {
    // A process may have ended between setting one state aside and taking another back.
    of_subjects::take_back(path, belongs).map_err(Fault::Unusable)?;
    let mut store = Store::open(path, &owner.name, disk)?;
    // A state of a version that noted no subjects is taken as this one's.
    let other = |store: &Store| Ok(store.subjects()?.filter(|it| it != belongs));
    if let Some(before) = other(&store)? {
        drop(store);
        let aside = of_subjects::set_aside(path, &before).map_err(Fault::Unusable)?;
        let is_back = of_subjects::take_back(path, belongs).map_err(Fault::Unusable)?;
        tracing::warn!(
            "the state in {} is of `{before}`, and this tenant has `{belongs}` now: it has been set \
             aside as {}, and the tenant {}",
            path.display(),
            aside.display(),
            match is_back {
                true => "goes on with the state that was set aside for its subjects before",
                false => "starts empty",
            }
        );
        store = Store::open(path, &owner.name, disk)?;
        if let Some(before) = other(&store)? {
            let why =
                anyhow::anyhow!("it was set aside as one of `{belongs}`, and is of `{before}`");
            return Err(Fault::Damaged(why));
        }
    }
    let restored = read(&store, path, owner, &|_| true, Some(belongs));
    let restored = restored.map_err(|fault| disk.fault(fault))?;
    Ok((store, restored))
}

/// Reads the stored records of some of a tenant's users, and begins an epoch.
fn read(
    store: &Store,
    path: &Path,
    owner: &Owner,
    wanted: &dyn Fn(&str) -> bool,
    belongs: Option<&str>,
) -> Result<Restored, Fault> {
    let mut records = Vec::new();
    let saved_at = store.read(&owner.name, |key, value| {
        let record = Record::decode(key, value, &owner.names).context("a record can't be read")?;
        if wanted(record.user()) {
            records.push(record);
        }
        Ok(())
    })?;
    let epoch = begin_epoch(store, path, belongs)?;
    Ok(Restored {
        records,
        epoch,
        positions: Positions::default(),
        saved_at,
    })
}

/// Begins an epoch. It is also noted in a file of its own, to survive damage of the state: clients
/// take messages of an earlier epoch for late. This second file isn't synced to the disk.
fn begin_epoch(store: &Store, path: &Path, belongs: Option<&str>) -> Result<u64, Fault> {
    let file = path.with_extension("epoch");
    let last = last_epoch(&file);
    let next = last.map_or(0, |last| last.saturating_add(EPOCH_STEP));
    let epoch = store.begin_epoch(clock::now_ms().max(next), belongs)?;
    if let Err(error) = private::write_unsynced(&file, epoch.to_string().as_bytes()) {
        tracing::warn!(%error, "can't write {}", file.display());
    }
    Ok(epoch)
}

/// The last epoch, from the file of its own. `None` if it isn't known. A damaged file is set aside.
fn last_epoch(file: &Path) -> Option<u64> {
    let why = match std::fs::read(file) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            match text.trim().parse() {
                Ok(epoch) if epoch <= EPOCH_MAX => return Some(epoch),
                Ok(_) => "it is later than any epoch can be",
                Err(_) => "it is no number",
            }
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return None,
        Err(error) => {
            tracing::warn!(%error, "can't read {}", file.display());
            return None;
        }
    };
    let aside = database::set_aside(file, "damaged");
    let aside = aside.map_or_else(|error| format!("{error:#}"), |it| it.display().to_string());
    tracing::error!(
        "the last epoch in {} can't be taken: {why}. It has been set aside: {aside}",
        file.display()
    );
    None
}

#[cfg(test)]
impl Writer {
    /// The state of one tenant in a folder, which must be new.
    pub(crate) fn in_folder(folder: &Path, names: &Arc<Names>) -> Self {
        let (path, disk) = (folder.join("presence.redb"), Arc::default());
        let owner = Arc::new(Owner {
            name: "presence".into(),
            names: Arc::clone(names),
        });
        let config = config::State {
            flush_ms: 1,
            ..Config::default().state
        };
        let (store, _) = open_in(folder, &path, &owner, &disk, "presence.>").unwrap();
        let (tasks, _) = Tasks::new();
        Self::start(store, path, owner, &config, 0, disk, &tasks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn damaged(folder: &Path) -> usize {
        let files = std::fs::read_dir(folder).unwrap();
        let names = files.map(|file| file.unwrap().file_name().into_string().unwrap());
        names.filter(|name| name.contains(".redb.damaged-")).count()
    }

    fn owner() -> Owner {
        Owner {
            name: "presence".into(),
            names: Arc::default(),
        }
    }

    fn open(folder: &Path) -> Result<(Store, Restored), Fault> {
        open_of(folder, "presence.>")
    }

    fn open_of(folder: &Path, belongs: &str) -> Result<(Store, Restored), Fault> {
        let path = folder.join("presence.redb");
        open_in(folder, &path, &owner(), &Arc::default(), belongs)
    }

    #[test]
    fn a_state_of_other_subjects_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let known = |belongs: &str| open_of(folder.path(), belongs).unwrap().1.records.len();
        let before = known("presence.>");
        assert!(before > 0);
        assert_eq!(known("presence.>"), before);
        assert_eq!(known("beta.presence.>"), 0);
        let names = std::fs::read_dir(folder.path()).unwrap();
        let names = names.map(|it| it.unwrap().file_name().into_string().unwrap());
        let aside = names.filter(|name| name.contains(".redb.of-other-subjects-"));
        assert_eq!(aside.count(), 1);
        // A state that was set aside is used again with its subjects, however often they change.
        assert_eq!(known("presence.>"), before);
        for other in ["a", "b", "c", "d", "e"] {
            assert_eq!(known(&format!("{other}.presence.>")), 0);
        }
        assert_eq!(known("presence.>"), before);
        // A file whose name says these subjects, but whose content says others, isn't used.
        let beta = std::fs::read_dir(folder.path()).unwrap();
        let beta = beta
            .map(|it| it.unwrap().path())
            .find(|it| it.to_string_lossy().contains(".of-other-subjects-"));
        let path = folder.path().join("presence.redb");
        std::fs::copy(&path, beta.unwrap()).unwrap();
        for other in ["beta", "a", "b", "c", "d", "e"] {
            assert_eq!(known(&format!("{other}.presence.>")), 0);
        }
        assert_eq!(damaged(folder.path()), 1);
    }

    #[test]
    fn a_state_that_says_of_no_subjects_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.redb");
        let mut store = Store::open(&path, &owner().name, &Arc::default()).unwrap();
        write(&mut store, 7, b"\x01\x03ann\x02c1", Some(&[5]));
        drop(store);
        let (_, restored) = open_of(folder.path(), "acme.presence.>").unwrap();
        assert_eq!(restored.records.len(), 1);
    }

    /// Writes a record of the tenant. `None`: removes it.
    fn write(store: &mut Store, saved_at: u64, key: &[u8], value: Option<&[u8]>) {
        let record = (key.to_vec(), value.map(<[u8]>::to_vec));
        let batch = (owner().name, vec![record]);
        store.write(saved_at, &[batch], &[]).unwrap();
    }

    /// Makes a store with one record.
    fn written(folder: &Path) {
        let (mut store, _) = open(folder).unwrap();
        write(&mut store, 7, b"\x01\x03ann\x02c1", Some(&[5]));
    }

    #[test]
    fn what_was_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        written(folder.path());
        let (mut store, restored) = open(folder.path()).unwrap();
        assert_eq!((restored.records.len(), restored.saved_at), (1, 7));
        write(&mut store, 8, b"\x01\x03ann\x02c1", None);
        drop(store);
        let (_, restored) = open(folder.path()).unwrap();
        assert_eq!((restored.records.len(), restored.saved_at), (0, 8));
    }

    #[test]
    fn each_epoch_is_later_than_the_last_though_the_clock_is_set_back() {
        let folder = tempfile::tempdir().unwrap();
        let (store, restored) = open(folder.path()).unwrap();
        let ahead = clock::now_ms() + 3_600_000;
        assert!(restored.epoch < ahead);
        assert_eq!(store.begin_epoch(ahead, None).unwrap(), ahead);
        drop(store);
        let (_, restored) = open(folder.path()).unwrap();
        assert!(restored.epoch > ahead, "{} {ahead}", restored.epoch);
    }

    #[test]
    fn an_epoch_is_later_than_one_of_a_file_that_was_damaged() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.redb");
        let mut last = 0;
        for _ in 0..5 {
            let (store, restored) = open(folder.path()).unwrap();
            assert!(restored.epoch > last);
            // It isn't ahead of the clock by more than these steps.
            assert!(restored.epoch < clock::now_ms() + 10_000);
            last = restored.epoch;
            drop(store);
            std::fs::write(&path, b"no database").unwrap();
        }
        assert!(damaged(folder.path()) > 0);
    }

    #[test]
    fn an_epoch_that_can_t_be_is_damage_and_one_after_which_the_clock_was_set_back_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("presence.epoch");
        for (number, damage) in ["18446744073709551615", "x", ""].into_iter().enumerate() {
            std::fs::write(&file, damage).unwrap();
            let (store, restored) = open(folder.path()).unwrap();
            assert!(restored.epoch < clock::now_ms() + 10_000, "{damage}");
            let names = std::fs::read_dir(folder.path()).unwrap();
            let names = names.map(|it| it.unwrap().file_name().into_string().unwrap());
            let aside = names.filter(|name| name.contains(".epoch.damaged-"));
            assert_eq!(aside.count(), number + 1);
            drop(store);
        }
        // The same for the epoch in the state itself.
        let (store, _) = open(folder.path()).unwrap();
        store.begin_epoch(u64::MAX, None).unwrap();
        drop(store);
        let (store, restored) = open(folder.path()).unwrap();
        assert!(restored.epoch < clock::now_ms() + 10_000);
        drop(store);
        let ahead = clock::now_ms() + 20 * 365 * 24 * 3_600_000;
        std::fs::write(&file, ahead.to_string()).unwrap();
        assert!(open(folder.path()).unwrap().1.epoch > ahead);
    }

    #[test]
    fn nobody_else_can_read_it_whatever_folder_it_is_in_and_whatever_it_was() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.redb");
        let set = |path: &Path, mode| {
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
        };
        set(folder.path(), 0o777);
        written(folder.path());
        let mode = || std::fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600);
        set(&path, 0o644);
        assert_eq!(open(folder.path()).unwrap().1.records.len(), 1);
        assert_eq!(mode(), 0o600);
    }

    #[test]
    fn a_store_in_use_is_said_to_be() {
        let folder = tempfile::tempdir().unwrap();
        let held = open(folder.path()).unwrap();
        assert!(matches!(open(folder.path()), Err(Fault::InUse)));
        drop(held);
        assert!(open(folder.path()).is_ok());
    }

    #[test]
    fn whatever_is_wrong_with_the_file_it_is_set_aside() {
        // Each block of the file in turn, and a file that is no database at all.
        let sound = tempfile::tempdir().unwrap();
        written(sound.path());
        let sound = std::fs::read(sound.path().join("presence.redb")).unwrap();
        let overwritten = (0..sound.len() / 4096).map(|block| {
            let mut bytes = sound.clone();
            bytes[block * 4096..(block + 1) * 4096].fill(0xa5);
            bytes
        });
        let others = [
            b"no database".to_vec(),
            sound[..sound.len() / 2].to_vec(),
            sound[..100].to_vec(),
        ];
        let mut set_aside = 0;
        for bytes in overwritten.chain(others) {
            let folder = tempfile::tempdir().unwrap();
            std::fs::write(folder.path().join("presence.redb"), bytes).unwrap();
            let (_, restored) = open(folder.path()).unwrap();
            // The record is lost only if a file was set aside: a damaged block may hold nothing.
            assert_eq!(restored.records.len(), 1 - damaged(folder.path()));
            set_aside += damaged(folder.path());
        }
        assert!(set_aside > 5, "{set_aside}");
    }

    #[test]
    fn another_format_is_set_aside() {
        let folder = tempfile::tempdir().unwrap();
        let (store, _) = open(folder.path()).unwrap();
        store.set_format(presence_core::record::FORMAT + 1).unwrap();
        drop(store);
        let path = folder.path().join("presence.redb");
        let opened = open_file(&path, &owner(), &Arc::default(), "presence.>");
        let Err(Fault::Damaged(why)) = opened else {
            panic!("a later format can't be read");
        };
        assert!(why.to_string().contains("newer version"), "{why}");
        assert!(open(folder.path()).unwrap().1.records.is_empty());
        assert_eq!(damaged(folder.path()), 1);
    }

    #[test]
    fn a_record_that_is_none_is_damage() {
        let folder = tempfile::tempdir().unwrap();
        let (mut store, _) = open(folder.path()).unwrap();
        write(&mut store, 7, &[9], Some(&[9]));
        drop(store);
        assert!(open(folder.path()).unwrap().1.records.is_empty());
        assert_eq!(damaged(folder.path()), 1);
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_no_damage() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        assert!(matches!(open(&file), Err(Fault::Unusable(_))));
    }
}
