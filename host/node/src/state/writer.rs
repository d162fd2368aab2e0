//! The task that writes the state. Changes that shards hand over during a write are written
//! together next. While it has nothing to write, it uses no thread.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use presence_config::State;
use presence_core::names::Names;
use presence_core::record::Record;
use tokio::sync::{mpsc, oneshot};

use super::position::ShardPosition;
use super::restorer::{Request, Restorer};
use super::saver::Saver;
use super::store::{Batch, Store, TenantPosition};
use crate::clock;
use crate::state::database::{Disk, Fault};
use crate::tasks::{Tasks, run_blocking};

/// How many batches of all shards may wait to be written.
const QUEUE: usize = 16;

/// The wait after a write: this many times the processor time of the write, up to `REST_MAX`. So
/// when many users come or go, most of the time goes into serving them, and little into writing.
const REST: u32 = 12;
const REST_MAX: Duration = Duration::from_secs(3);

/// The wait before a failed write is tried again, at first and at most. The file is opened anew
/// then, and all of it is checked.
const RETRY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));

/// A job for the writer.
#[derive(Debug)]
pub(super) enum Job {
    /// Write a tenant's records, with the time at which they were taken, and how far their shard
    /// had read the input stream.
    Write(u64, Arc<Owner>, Arc<Vec<Record>>, Option<ShardPosition>),
    /// Read the stored records of some of a tenant's users, after all earlier jobs.
    Read(Arc<Owner>, Request),
    /// Close the file, and signal when that is done.
    Finish(oneshot::Sender<()>),
}

/// The tenant that records belong to.
#[derive(Debug)]
pub(super) struct Owner {
    /// The tenant's name in the store.
    pub(super) name: Arc<str>,
    pub(super) names: Arc<Names>,
}

/// The writer's figures.
#[derive(Debug, Default)]
pub(crate) struct WriterFigures {
    /// How many users were online when the node last ran.
    pub(crate) restored_users: AtomicU64,
    /// How many records have been written.
    pub(crate) records: AtomicU64,
    /// The size of the file, in bytes.
    pub(crate) bytes: AtomicU64,
    /// The state of the disk.
    pub(crate) disk: Arc<Disk>,
    /// When the changes that are being written were taken, in milliseconds since the Unix epoch; 0
    /// if none are.
    taken_at: AtomicU64,
    /// Until when nothing may be handed over, by the host's clock.
    rests_until: AtomicU64,
}

impl WriterFigures {
    /// Whether nothing may be handed over yet.
    pub(super) fn rests(&self, now: u64) -> bool {
        now < self.rests_until.load(Ordering::Relaxed)
    }

    /// How long ago the changes that are being written were taken, in milliseconds.
    pub(crate) fn lag_ms(&self) -> u64 {
        match self.taken_at.load(Ordering::Relaxed) {
            0 => 0,
            since => clock::now_ms().saturating_sub(since),
        }
    }
}

/// A tenant's handle to the writer.
#[derive(Debug)]
pub(crate) struct Writer {
    jobs: mpsc::Sender<Job>,
    owner: Arc<Owner>,
    flush_ms: u64,
    pub(crate) figures: Arc<WriterFigures>,
}

impl Writer {
    pub(super) fn start(
        store: Store,
        path: PathBuf,
        owner: Arc<Owner>,
        config: &State,
        restored_users: u64,
        disk: Arc<Disk>,
        tasks: &Tasks,
    ) -> Self {
        let (jobs, inbox) = mpsc::channel(QUEUE);
        disk.wait_for_room();
        let figures = Arc::new(WriterFigures {
            restored_users: restored_users.into(),
            disk,
            ..WriterFigures::default()
        });
        let task = Task {
            store: Some(store),
            path,
            tenant: Arc::clone(&owner.name),
            figures: Arc::clone(&figures),
        };
        tasks.spawn_ending("state", task.run(inbox));
        Self {
            jobs,
            owner,
            flush_ms: config.flush_ms,
            figures,
        }
    }

    /// A restorer, which reads the stored records of a shard.
    pub(crate) fn restorer(&self) -> Restorer {
        Restorer::new(self.jobs.clone(), Arc::clone(&self.owner))
    }

    /// A saver, with which a shard hands over its changes.
    pub(crate) fn saver(&self) -> Saver {
        let (owner, figures) = (Arc::clone(&self.owner), Arc::clone(&self.figures));
        Saver::new(self.jobs.clone(), owner, figures, self.flush_ms)
    }

    /// Ends all waits for a disk that can't be written: the node is about to stop.
    pub(crate) fn give_up_waiting(&self) {
        self.figures.disk.give_up();
    }

    /// Closes the file, after everything that was handed over has been written.
    pub(crate) async fn finish(&self) {
        let (done, finished) = oneshot::channel();
        // If the task is gone, it has failed and logged that.
        if self.jobs.send(Job::Finish(done)).await.is_ok() {
            let _ = finished.await;
        }
    }
}

/// The result of work: the task itself, and the sender to signal once the file is closed, if it is
/// to be closed.
type Worked = (Task, Option<oneshot::Sender<()>>);

/// Jobs that are done together.
#[derive(Default)]
struct Work {
    /// The records to be written, until they are encoded.
    records: Vec<(Arc<Owner>, Arc<Vec<Record>>)>,
    batches: Vec<Batch>,
    positions: Vec<TenantPosition>,
    /// When the first and the last of the records were taken.
    taken: Option<(u64, u64)>,
    requests: Vec<(Arc<Owner>, Request)>,
    finish: Option<oneshot::Sender<()>>,
}

impl Work {
    fn of(jobs: impl Iterator<Item = Job>) -> Self {
        let mut work = Self::default();
        for job in jobs {
            match job {
                Job::Write(at, owner, records, position) => {
                    let position = position.map(|it| (Arc::clone(&owner.name), it));
                    work.positions.extend(position);
                    let (first, _) = *work.taken.get_or_insert((at, at));
                    work.taken = Some((first, at));
                    work.records.push((owner, records));
                }
                Job::Read(owner, request) => work.requests.push((owner, request)),
                Job::Finish(done) => work.finish = Some(done),
            }
        }
        work
    }

    /// Encodes the records, if that hasn't been done yet. Returns their number.
    fn encode(&mut self) -> u64 {
        for (owner, records) in self.records.drain(..) {
            let encode = |record: &Record| record.encode(&owner.names);
            let records = records.iter().map(encode).collect();
            self.batches.push((Arc::clone(&owner.name), records));
        }
        let records = self.batches.iter().map(|(_, records)| records.len());
        records.sum::<usize>() as u64
    }
}

/// The task that writes one file.
struct Task {
    /// `None` after a failure: the file is opened anew then.
    store: Option<Store>,
    path: PathBuf,
    /// The tenant to which a file of the old format belongs, which names none.
    tenant: Arc<str>,
    figures: Arc<WriterFigures>,
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Job>) {
        if let Some(store) = &self.store {
            self.figures.bytes.store(store.len(), Ordering::Relaxed);
        }
        while let Some(first) = inbox.recv().await {
            self.rest().await;
            let waiting = std::iter::from_fn(|| inbox.try_recv().ok());
            let work = Work::of(std::iter::once(first).chain(waiting.take(QUEUE)));
            if let Some((first, _)) = work.taken {
                self.figures.taken_at.store(first, Ordering::Relaxed);
            }
            let finish = match self.work(work).await {
                Ok((task, finish)) => {
                    self = task;
                    finish
                }
                Err((figures, error)) => {
                    let why = format!("it isn't written any more: {error:#}");
                    tracing::error!("{why}");
                    // Nothing is tried again, so the log must not say so.
                    figures.disk.give_up();
                    figures.disk.note_failure(why);
                    // Lets the savers go on, which then notice that the writer is gone.
                    figures.rests_until.store(0, Ordering::Relaxed);
                    return;
                }
            };
            if let Some(done) = finish {
                run_blocking(move || drop(self.store)).await;
                // The receiver may have given up waiting.
                let _ = done.send(());
                return;
            }
        }
    }

    /// Does work, with as many attempts as it takes. Meanwhile no other work is begun, and changes
    /// gather in the shards.
    async fn work(self, mut work: Work) -> Result<Worked, (Arc<WriterFigures>, anyhow::Error)> {
        let figures = Arc::clone(&self.figures);
        let disk = Arc::clone(&figures.disk);
        let (mut task, mut wait) = (self, RETRY.0);
        loop {
            let (back, left, tried) = run_blocking(move || {
                let tried = task.try_to(&mut work);
                (task, work, tried)
            })
            .await;
            (task, work) = (back, left);
            let why = match tried {
                Ok(()) => return Ok((task, work.finish)),
                Err(Fault::Damaged(error)) => return Err((figures, error)),
                Err(Fault::Full(error) | Fault::Unusable(error)) => format!("{error:#}"),
                Err(Fault::InUse) => "another process uses the file".to_owned(),
            };
            disk.note_failure(why.clone());
            if !disk.resting(wait).await {
                return Err((figures, anyhow::Error::msg(why)));
            }
            wait = (wait * 2).min(RETRY.1);
        }
    }

    /// Makes one attempt. If it succeeds, it sets until when nothing may be handed over.
    fn try_to(&mut self, work: &mut Work) -> Result<(), Fault> {
        let begun = clock::thread_cpu();
        if let Some((_, last)) = work.taken {
            let records = work.encode();
            self.write(last, &work.batches, &work.positions)?;
            self.figures.disk.note_success();
            self.figures.records.fetch_add(records, Ordering::Relaxed);
            self.figures.taken_at.store(0, Ordering::Relaxed);
        }
        for (owner, request) in work.requests.drain(..) {
            self.answer(&owner, request);
        }
        if work.finish.is_none() {
            self.merge_if_long();
        }
        let rest = match work.taken {
            Some(_) => rest_after(clock::thread_cpu().saturating_sub(begun)),
            None => Duration::ZERO,
        };
        let until = clock::now_ms() + u64::try_from(rest.as_millis()).unwrap_or(0);
        self.figures.rests_until.store(until, Ordering::Relaxed);
        Ok(())
    }

    /// Has the store merge its log, if that is long. If this fails, nothing is lost.
    fn merge_if_long(&mut self) {
        let Some(mut store) = self.store.take() else {
            return;
        };
        match store.merge_if_long() {
            Ok(()) => {
                self.figures.bytes.store(store.len(), Ordering::Relaxed);
                self.store = Some(store);
            }
            // The file is opened anew at the next write.
            Err(fault) => tracing::error!("changes of the state can't be merged: {fault:?}"),
        }
    }

    /// Answers a request for the stored records of some users.
    fn answer(&mut self, owner: &Owner, request: Request) {
        let restored = self.store().and_then(|store| {
            let wanted = |user: &str| request.wants(user);
            let restored = super::read(&store, &self.path, owner, &wanted, None)?;
            self.store = Some(store);
            Ok(restored)
        });
        match restored {
            Ok(restored) => request.answer(restored),
            // The file is opened anew at the next write.
            Err(fault) => {
                tracing::error!("what is stored of a shard can't be read: {fault:?}");
            }
        }
    }

    /// Waits until it is time to write again, and prevents that more is handed over until the write
    /// is done.
    async fn rest(&self) {
        let until = self.figures.rests_until.swap(u64::MAX, Ordering::Relaxed);
        let rest = until.saturating_sub(clock::now_ms());
        if rest > 0 {
            // The wait ends early if the node stops.
            self.figures.disk.resting(Duration::from_millis(rest)).await;
        }
    }

    fn write(
        &mut self,
        taken_at: u64,
        batches: &[Batch],
        positions: &[TenantPosition],
    ) -> Result<(), Fault> {
        let mut store = self.store()?;
        store.write(taken_at, batches, positions)?;
        self.figures.bytes.store(store.len(), Ordering::Relaxed);
        self.store = Some(store);
        Ok(())
    }

    /// Takes the open file, or opens it. The caller puts it back if all went well.
    fn store(&mut self) -> Result<Store, Fault> {
        match self.store.take() {
            Some(store) => Ok(store),
            None => Store::open(&self.path, &self.tenant, &self.figures.disk),
        }
    }
}

/// The wait after a write that used this much processor time.
fn rest_after(used: Duration) -> Duration {
    (used * REST).min(REST_MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writing_takes_a_small_share_of_a_processor_unless_a_write_is_long() {
        let ms = Duration::from_millis;
        assert_eq!(rest_after(Duration::ZERO), Duration::ZERO);
        assert_eq!(rest_after(ms(10)), ms(120));
        assert_eq!(rest_after(ms(500)), REST_MAX);
    }

    #[tokio::test]
    async fn nothing_is_handed_over_while_it_writes_and_then_for_as_long_as_it_rests() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.redb");
        let task = Task {
            store: Some(Store::open(&path, "presence", &Arc::default()).unwrap()),
            path,
            tenant: "presence".into(),
            figures: Arc::default(),
        };
        let figures = Arc::clone(&task.figures);
        assert!(!figures.rests(0), "nothing has been written yet");
        task.rest().await;
        assert!(figures.rests(u64::MAX - 1), "it writes");
        let (jobs, inbox) = mpsc::channel(QUEUE);
        let owner = Owner {
            name: "presence".into(),
            names: Arc::default(),
        };
        jobs.try_send(Job::Write(1, owner.into(), Arc::default(), None))
            .unwrap();
        let (done, _) = oneshot::channel();
        figures.rests_until.store(0, Ordering::Relaxed);
        jobs.try_send(Job::Finish(done)).unwrap();
        task.run(inbox).await;
        let until = figures.rests_until.load(Ordering::Relaxed);
        assert!(until > 0 && until < u64::MAX, "it rests: {until}");
    }

    #[tokio::test]
    async fn after_a_failure_the_file_is_opened_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("presence.redb");
        let mut task = Task {
            store: None,
            path: path.clone(),
            tenant: "presence".into(),
            figures: Arc::default(),
        };
        task.figures.disk.wait_for_room();
        for at in 1..=2 {
            let work = Work {
                batches: vec![("presence".into(), vec![(vec![1], Some(vec![1]))])],
                taken: Some((at, at)),
                ..Work::default()
            };
            (task, _) = task.work(work).await.ok().unwrap();
        }
        assert_eq!(task.figures.records.load(Ordering::Relaxed), 2);
        drop(task);
        let store = Store::open(&path, "presence", &Arc::default()).unwrap();
        assert_eq!(store.read("presence", |_, _| Ok(())).unwrap(), 2);
    }
}
