//! Tasks and threads that must run as long as the node does. If one ends or panics, the node ends:
//! without it the node would look ready, but process nothing.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::Context as _;
use futures_util::FutureExt as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{AbortHandle, JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tracing::{Instrument as _, Span};

/// How many pieces of blocking work are done at a time.
const AT_ONCE: usize = 8;

/// After this time a piece of blocking work gives its place to another.
const PATIENCE: Duration = Duration::from_secs(1);

/// Starts tasks and threads, and watches them. Clones share them.
#[derive(Clone, Debug)]
pub(crate) struct Tasks {
    failed: mpsc::UnboundedSender<String>,
    /// The tasks that [`Self::end`] ends.
    started: Arc<Mutex<Vec<AbortHandle>>>,
}

/// Receives the faults of tasks and threads.
#[derive(Debug)]
pub(crate) struct Faults(mpsc::UnboundedReceiver<String>);

impl Tasks {
    /// No tasks yet, and the receiver of their faults.
    pub(crate) fn new() -> (Self, Faults) {
        let (failed, faults) = mpsc::unbounded_channel();
        let started = Arc::default();
        (Self { failed, started }, Faults(faults))
    }

    /// Starts a task that must not end by itself. If it does, that is a fault. While the node
    /// stops, faults are not read any more.
    pub(crate) fn spawn(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let failed = self.failed.clone();
        #[expect(clippy::disallowed_methods, reason = "this is what watches")]
        let started = tokio::spawn(
            async move {
                let fault = match AssertUnwindSafe(task).catch_unwind().await {
                    Ok(()) => format!("the task `{name}` has ended by itself"),
                    Err(panic) => format!("the task `{name}` has failed: {}", message(&*panic)),
                };
                // The receiver may be gone, if the node has ended.
                let _ = failed.send(fault);
            }
            .in_current_span(),
        );
        let mut all = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        all.push(started.abort_handle());
        started
    }

    /// Starts a task that may end by itself, but not panic. [`Self::end`] doesn't end it.
    pub(crate) fn spawn_ending(
        &self,
        name: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> JoinHandle<()> {
        let failed = self.failed.clone();
        #[expect(clippy::disallowed_methods, reason = "this is what watches")]
        tokio::spawn(
            async move {
                if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                    let _ = failed.send(format!(
                        "the task `{name}` has failed: {}",
                        message(&*panic)
                    ));
                }
            }
            .in_current_span(),
        )
    }

    /// Reports a fault that isn't one of a task.
    pub(crate) fn fail(&self, fault: String) {
        // The receiver may be gone, if the node has ended.
        let _ = self.failed.send(fault);
    }

    /// A separate group of tasks, which [`Self::end`] ends apart from these. The faults of both are
    /// reported in one place.
    pub(crate) fn group(&self) -> Self {
        Self {
            failed: self.failed.clone(),
            started: Arc::default(),
        }
    }

    /// Ends all tasks of this group. Threads end by themselves when they have no more work.
    pub(crate) fn end(&self) {
        let mut all = self.started.lock().unwrap_or_else(PoisonError::into_inner);
        all.drain(..).for_each(|task| task.abort());
    }

    /// Starts a thread that may end, but not panic.
    ///
    /// # Errors
    /// If the system refuses a thread.
    pub(crate) fn thread(
        &self,
        name: impl Into<String>,
        work: impl FnOnce() + Send + 'static,
    ) -> anyhow::Result<()> {
        let (failed, name) = (self.failed.clone(), name.into());
        let thread = thread::Builder::new().name(name.clone());
        let thread_name = name.clone();
        let span = Span::current();
        let watched = move || {
            let _tenant = span.enter();
            if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
                let fault = format!("the thread `{name}` has failed: {}", message(&*panic));
                let _ = failed.send(fault);
            }
        };
        let started = thread.spawn(watched);
        started
            .map(drop)
            .with_context(|| format!("can't start the thread `{thread_name}`"))
    }
}

impl Faults {
    /// Waits for the next fault; forever if none comes.
    pub(crate) async fn next(&mut self) -> anyhow::Error {
        match self.0.recv().await {
            Some(fault) => anyhow::Error::msg(fault),
            None => std::future::pending().await,
        }
    }
}

/// Runs work on another thread, where it may block. What it logs is in the caller's span.
///
/// Only a few pieces of work run at a time, since many tenants may have some, and each thread takes
/// memory. Work that takes long, or hangs, gives up its place to other work, and goes on beside it.
pub(crate) fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> JoinHandle<T> {
    static ROOM: Semaphore = Semaphore::const_new(AT_ONCE);
    let span = Span::current();
    #[expect(
        clippy::disallowed_methods,
        reason = "a panic is handed on to the one who waits"
    )]
    tokio::spawn(async move {
        let place = ROOM.acquire().await;
        let mut work = spawn_blocking(move || span.in_scope(work));
        let done = match timeout(PATIENCE, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                drop(place);
                work.await
            }
        };
        match done {
            Ok(done) => done,
            Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
            // The process is ending.
            Err(_) => std::future::pending().await,
        }
    })
}

/// Like [`blocking`], but returns the result of the work directly.
///
/// # Panics
/// If the work panics.
pub(crate) async fn run_blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    match blocking(work).await {
        Ok(done) => done,
        Err(error) if error.is_panic() => resume_unwind(error.into_panic()),
        Err(_) => std::future::pending().await,
    }
}

/// The message of a panic.
pub(crate) fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("it panicked")
}

/// Logs panics like everything else.
pub(crate) fn log_panics() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = thread::current();
        let thread = thread.name().unwrap_or("unnamed");
        let place = panic.location().map(ToString::to_string);
        let place = place.unwrap_or_default();
        tracing::error!(thread, place, "panicked: {}", message(panic.payload()));
    }));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_ends_or_panics_is_told_of_by_name() {
        let (tasks, mut faults) = Tasks::new();
        tasks.spawn("quick", async {});
        let fault = faults.next().await.to_string();
        assert_eq!(fault, "the task `quick` has ended by itself");
        tasks.spawn("frail", async { panic!("a number") });
        let fault = faults.next().await.to_string();
        assert_eq!(fault, "the task `frail` has failed: a number");
    }

    #[tokio::test]
    async fn little_that_may_block_is_done_at_a_time_and_what_hangs_gives_its_place_away() {
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let ended = Mutex::new(ended);
        let ended = Arc::new(ended);
        let most = Arc::new(Mutex::new((0, 0)));
        let many = (0..20 * AT_ONCE).map(|_| {
            let most = Arc::clone(&most);
            blocking(move || {
                {
                    let mut counts = most.lock().unwrap();
                    counts.0 += 1;
                    counts.1 = counts.0.max(counts.1);
                }
                thread::yield_now();
                most.lock().unwrap().0 -= 1;
            })
        });
        for work in many.collect::<Vec<_>>() {
            work.await.unwrap();
        }
        let (_, most) = *most.lock().unwrap();
        assert!((1..=AT_ONCE).contains(&most), "{most}");
        let hanging = (0..AT_ONCE).map(|_| {
            let ended = Arc::clone(&ended);
            blocking(move || ended.lock().unwrap().recv().unwrap())
        });
        let hanging: Vec<_> = hanging.collect();
        assert_eq!(
            run_blocking(|| 7).await,
            7,
            "it isn't kept waiting for ever"
        );
        for _ in &hanging {
            end.send(()).unwrap();
        }
        for work in hanging {
            work.await.unwrap();
        }
    }

    #[tokio::test]
    async fn what_is_ended_is_no_fault() {
        let (tasks, mut faults) = Tasks::new();
        let task = tasks.spawn("lasting", std::future::pending());
        tasks.end();
        assert!(task.await.unwrap_err().is_cancelled());
        tasks.spawn("later", async {});
        let fault = faults.next().await.to_string();
        assert_eq!(fault, "the task `later` has ended by itself");
    }

    #[tokio::test]
    async fn a_thread_may_end_but_not_panic() {
        let (tasks, mut faults) = Tasks::new();
        let (ended, end) = tokio::sync::oneshot::channel();
        let end_it = move || ended.send(()).unwrap();
        tasks.thread("calm", end_it).unwrap();
        end.await.unwrap();
        tasks.thread("frail", || panic!("{}", "broken")).unwrap();
        let fault = faults.next().await.to_string();
        assert_eq!(fault, "the thread `frail` has failed: broken");
    }
}
