//! `[engine]`: how plugins are run, and what limits they run within.

use std::thread::available_parallelism;

use super::checks::{any, within};
use super::problem::InvalidValue;
use super::section::Section;

/// `[engine]`: how plugins are run, and what limits they run within.
#[derive(Clone, Debug, PartialEq)]
pub struct Engine {
    /// Whether a verdict is used again until something that it depends on
    /// changes.
    pub reuse_verdicts: bool,
    /// How many threads share the users; 0 for one per core. See
    /// [`Engine::thread_count`].
    pub workers: usize,
    /// How many batches, bytes and questions may wait or be in progress.
    pub queues: Queues,
    /// How much fuel a call may burn; roughly one per Wasm instruction.
    pub fuel: u64,
    /// How long a call may take on the wall clock, in milliseconds.
    pub deadline_ms: u64,
    /// How large a plugin's memory may grow, in bytes.
    pub memory_bytes_max: usize,
    /// How long after a failed decision the first retry is, in milliseconds.
    pub retry_ms: u64,
    /// The longest wait between retries of a decision that fails again and again, in milliseconds.
    pub retry_ms_max: u64,
    /// For how many users a plugin must begin to fail to be put into quarantine.
    pub quarantine_failures: u64,
    /// The window within which these failures must begin, in milliseconds.
    pub quarantine_window_ms: u64,
    /// How long a plugin in quarantine isn't called before one call is tried, in milliseconds.
    pub quarantine_ms: u64,
}

/// How many batches, bytes and questions may wait or be in progress.
#[derive(Clone, Debug, PartialEq)]
pub struct Queues {
    /// How many batches of messages may wait for a shard.
    pub worker_queue: usize,
    /// How many bytes of messages may wait for all shards together.
    pub worker_queue_bytes: usize,
    /// How many questions are answered at a time, and how many pieces of questions may
    /// wait for a shard.
    pub question_queue: usize,
    /// How many bytes the questions in progress may take in all, with their answers so far.
    pub question_bytes_max: usize,
}

impl Queues {
    fn read(section: &mut Section<'_, '_>) -> Self {
        const GIB: usize = 1 << 30;
        Self {
            worker_queue: section
                .get("worker_queue", within(1..=1_048_576))
                .unwrap_or(1_024),
            worker_queue_bytes: section
                .get("worker_queue_bytes", within(65_536..=64 * GIB))
                .unwrap_or(268_435_456),
            question_queue: section
                .get("question_queue", within(1..=1_048_576))
                .unwrap_or(4_096),
            question_bytes_max: section
                .get("question_bytes_max", within(65_536..=64 * GIB))
                .unwrap_or(67_108_864),
        }
    }
}

impl Engine {
    /// How many threads to run, at least one.
    pub fn thread_count(&self) -> usize {
        match self.workers {
            0 => available_parallelism().map_or(1, usize::from),
            workers => workers,
        }
    }

    pub(super) fn read(section: &mut Section<'_, '_>) -> Self {
        let engine = Self {
            reuse_verdicts: section.get("reuse_verdicts", any).unwrap_or(true),
            workers: section.get("workers", within(0..=1_024)).unwrap_or(0),
            queues: Queues::read(section),
            fuel: section
                .get("fuel", within(1_000..=1_000_000_000_000))
                .unwrap_or(10_000_000),
            deadline_ms: section
                .get("deadline_ms", within(1..=60_000))
                .unwrap_or(100),
            memory_bytes_max: section
                .get("memory_bytes_max", within(65_536..=2_147_483_648))
                .unwrap_or(67_108_864),
            retry_ms: section
                .get("retry_ms", within(1..=3_600_000))
                .unwrap_or(1_000),
            retry_ms_max: section
                .get("retry_ms_max", within(1..=86_400_000))
                .unwrap_or(60_000),
            quarantine_failures: section
                .get("quarantine_failures", within(1..=1_000_000))
                .unwrap_or(5),
            quarantine_window_ms: section
                .get("quarantine_window_ms", within(1..=86_400_000))
                .unwrap_or(60_000),
            quarantine_ms: section
                .get("quarantine_ms", within(1..=86_400_000))
                .unwrap_or(60_000),
        };
        let Self {
            retry_ms,
            retry_ms_max,
            ..
        } = engine;
        if retry_ms > retry_ms_max {
            let key = if section.is_set("retry_ms_max") {
                "retry_ms_max"
            } else {
                "retry_ms"
            };
            let what = format!(
                "makes the first wait ({retry_ms}) longer than the longest ({retry_ms_max})"
            );
            let fix = "set `retry_ms_max` to at least `retry_ms`";
            section.refuse(key, InvalidValue::new(what, fix));
        }
        engine
    }
}
