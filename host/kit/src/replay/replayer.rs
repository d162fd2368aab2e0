//! Plays recorded input to the core in virtual time.

use std::sync::Arc;

use presence_config::capture::Recorded;
use presence_config::subjects::Subjects;
use presence_config::{self as config, BODY_BYTES_MAX, Config, Quotas, directory, shard_settings};
use presence_core::directory::Directory;
use presence_core::message::{Limits, Message, Rejection};
use presence_core::names::Names;
use presence_core::quota::Rate;
use presence_core::{Input, Output, Shard};
use presence_sandbox::{Blueprint, Pipeline};

/// How long time goes on after the last line, at most, in milliseconds: half a day more than an
/// application's statement is valid. Without a limit, a decision that fails at each retry, or a
/// rule that always asks to be asked again, would make it go on for ever.
const SETTLE_MS_MAX: u64 = 12 * 60 * 60 * 1_000;

/// The node's name in a replay, the same on every machine.
pub(super) const NODE: &str = "replay";

/// A run of the core, without a broker.
pub(super) struct Replayer {
    pub(super) now: u64,
    pub(super) shard: Shard,
    rules: Pipeline,
    limits: Limits,
    /// The limit for the rate of messages.
    messages: Rate,
    subjects: Subjects,
    /// How long time goes on after the last line, at most, in milliseconds.
    settle_ms: u64,
}

/// What is known before anything is played. All runs share it.
pub(super) struct ReplayInputs {
    names: Arc<Names>,
    directory: Arc<Directory>,
}

impl ReplayInputs {
    pub(super) fn read(config: &Config) -> anyhow::Result<Self> {
        let names = Arc::new(Names::unbounded());
        let directory = match &config.directory {
            config::Directory::File { path, is_named } => directory::load(path, *is_named, &names)?,
            config::Directory::Kv { .. } | config::Directory::Request(_) => anyhow::bail!(
                "a replay has no broker: give it a file with --directory, or use [directory] source = \"file\""
            ),
        };
        let directory = Arc::new(directory);
        Ok(Self { names, directory })
    }
}

impl Replayer {
    pub(super) fn new(
        config: &Config,
        blueprint: &Blueprint,
        inputs: &ReplayInputs,
    ) -> anyhow::Result<Self> {
        let (names, directory) = (Arc::clone(&inputs.names), Arc::clone(&inputs.directory));
        let quotas = Quotas::new(config);
        let mut settings = shard_settings(config, BODY_BYTES_MAX, &quotas);
        settings.node = NODE.into();
        // A recording is complete, so no time counts as time without reception.
        settings.tracker.receive_step_ms = None;
        let settle_ms = settings.statement_ttl_ms.saturating_add(SETTLE_MS_MAX);
        Ok(Self {
            now: 0,
            shard: Shard::new(settings, names, directory),
            rules: blueprint.instantiate()?,
            limits: Limits {
                body_bytes_max: BODY_BYTES_MAX,
                metadata: config.tracker.metadata,
            },
            messages: quotas.messages,
            subjects: Subjects::new(config.tenant.prefix.as_deref()),
            settle_ms,
        })
    }

    /// Plays a message, after everything that was due before it. `done` is called with the time and
    /// the outputs of each step.
    pub(super) fn play(
        &mut self,
        recorded: &Recorded,
        mut done: impl FnMut(u64, Vec<Output>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.advance_to(recorded.at, &mut done)?;
        // Messages that a node published are no input.
        let kind = self.subjects.kind(&recorded.subject);
        let Some(kind) = kind.filter(|_| !recorded.is_from_node) else {
            return Ok(());
        };
        let payload = &recorded.payload;
        let reply = None;
        let is_admitted = self.messages.take(self.now.saturating_mul(1_000_000));
        let input = match Message::parse(kind, payload, self.limits) {
            Ok(message) if is_admitted => Input::Message { message, reply },
            Ok(message) => Input::Excess { message, reply },
            Err(rejection) => Input::Rejected {
                kind,
                payload: payload.clone(),
                rejection: match is_admitted {
                    true => rejection,
                    false => Rejection::excess(self.messages.per_s()),
                },
                reply,
            },
        };
        let mut outputs = Vec::new();
        self.shard
            .handle(self.now, input, &mut self.rules, &mut outputs);
        done(self.now, outputs)
    }

    /// Lets time go on until nothing is due.
    pub(super) fn settle(
        &mut self,
        mut done: impl FnMut(u64, Vec<Output>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let end = self.now.saturating_add(self.settle_ms);
        while let Some(deadline) = self.shard.next_deadline()
            && deadline <= end
        {
            self.advance(deadline, &mut done)?;
        }
        Ok(())
    }

    /// Runs what is due before `at`. A message that arrives at a deadline is handled before what is
    /// due then.
    fn advance_to(
        &mut self,
        at: u64,
        done: &mut impl FnMut(u64, Vec<Output>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        while let Some(deadline) = self.shard.next_deadline()
            && deadline < at
        {
            self.advance(deadline, done)?;
        }
        self.now = self.now.max(at);
        Ok(())
    }

    fn advance(
        &mut self,
        deadline: u64,
        done: &mut impl FnMut(u64, Vec<Output>) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        self.now = self.now.max(deadline);
        let mut outputs = Vec::new();
        self.shard.advance(self.now, &mut self.rules, &mut outputs);
        done(self.now, outputs)
    }
}
