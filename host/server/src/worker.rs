//! A worker: one thread that owns a shard of the users, and the component
//! instances that decide about them. Nothing it holds is shared while it works.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use async_nats::Client;
use presence_core::{Counters, Input, Output, Shard};
use presence_sandbox::Pipeline;
use tokio::sync::{mpsc, oneshot};

use crate::clock;
use crate::wire::{Source, Subjects};

/// What a worker is sent.
pub(crate) enum Task {
    /// Inputs, in the order of their arrival, and when they arrived.
    Inputs(u64, Vec<Input>),
    /// A new pipeline, ready to be called.
    Pipeline(Box<Pipeline>),
    /// Everything before this has been done and handed to the broker's client.
    Drain(oneshot::Sender<()>),
}

/// A worker's figures, as it last told them.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) counters: Mutex<Counters>,
    pub(crate) online_users: AtomicU64,
    pub(crate) connections: AtomicU64,
    pub(crate) published: AtomicU64,
}

/// A worker, as the rest of the node sees it.
pub(crate) struct Worker {
    /// Bounded: when it is full, whoever reads from the broker waits, and the
    /// broker's client drops what it can't buffer, which is counted.
    pub(crate) tasks: mpsc::Sender<Task>,
    pub(crate) figures: Arc<Figures>,
}

/// Starts a worker.
pub(crate) fn start(number: usize, queue: usize, state: State) -> anyhow::Result<Worker> {
    let (tasks, inbox) = mpsc::channel(queue);
    let figures = Arc::clone(&state.figures);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()?;
    std::thread::Builder::new()
        .name(format!("worker-{number}"))
        .spawn(move || runtime.block_on(state.work(inbox)))
        .context("can't start a worker thread")?;
    Ok(Worker { tasks, figures })
}

/// What a worker owns.
pub(crate) struct State {
    pub(crate) shard: Shard,
    pub(crate) rules: Pipeline,
    pub(crate) client: Client,
    pub(crate) subjects: Subjects,
    pub(crate) source: Source,
    pub(crate) figures: Arc<Figures>,
}

impl State {
    async fn work(mut self, mut inbox: mpsc::Receiver<Task>) {
        let mut out = Vec::new();
        loop {
            let task = match self.shard.next_deadline() {
                Some(at) => {
                    let wait = Duration::from_millis(at.saturating_sub(clock::now_ms()));
                    tokio::time::timeout(wait, inbox.recv()).await.ok()
                }
                None => Some(inbox.recv().await),
            };
            match task {
                Some(Some(task)) => self.task(task, &mut out).await,
                Some(None) => return,
                None => {
                    self.shard
                        .advance(clock::now_ms(), &mut self.rules, &mut out);
                    self.carry_out(&mut out).await;
                }
            }
            // What has fallen due gets its turn, however busy the inbox is; what
            // has already arrived comes first, so that a sign of life that waits
            // in the queue counts.
            if inbox.is_empty() {
                self.shard
                    .advance(clock::now_ms(), &mut self.rules, &mut out);
                self.carry_out(&mut out).await;
            }
            self.tell_figures();
        }
    }

    async fn task(&mut self, task: Task, out: &mut Vec<Output>) {
        match task {
            Task::Inputs(arrived_at, inputs) => {
                for input in inputs {
                    self.shard.handle(arrived_at, input, &mut self.rules, out);
                }
            }
            Task::Pipeline(rules) => {
                self.rules = *rules;
                self.shard
                    .handle(clock::now_ms(), Input::Rules, &mut self.rules, out);
            }
            Task::Drain(done) => {
                self.carry_out(out).await;
                // Whoever asked may have given up.
                let _ = done.send(());
            }
        }
        self.carry_out(out).await;
    }

    async fn carry_out(&mut self, out: &mut Vec<Output>) {
        for output in out.drain(..) {
            let sent = match output {
                Output::Publish(publication) => {
                    let subject = self.subjects.publication(publication.subject);
                    let headers = self.source.header_map(&subject, &publication);
                    self.figures.published.fetch_add(1, Ordering::Relaxed);
                    self.client
                        .publish_with_headers(subject, headers, publication.body.into())
                        .await
                }
                Output::Reply(to, body) => self.client.publish(to, body.into()).await,
                // Both sources that there are hold all of their answers.
                Output::Fetch(_) => Ok(()),
            };
            if let Err(error) = sent {
                tracing::error!(%error, "a message could not be published");
            }
        }
    }

    fn tell_figures(&self) {
        let figures = &self.figures;
        *figures
            .counters
            .lock()
            .unwrap_or_else(PoisonError::into_inner) = self.shard.counters();
        figures
            .online_users
            .store(self.shard.online_users() as u64, Ordering::Relaxed);
        figures
            .connections
            .store(self.shard.connections() as u64, Ordering::Relaxed);
    }
}
