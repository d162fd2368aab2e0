//! The processor time of a process, to the nanosecond.

use std::fs;

use anyhow::{Context, Result};

/// The processor time that a process's threads have used so far, in
/// nanoseconds. A thread that has ended is no longer counted.
pub(crate) fn cpu_ns(pid: u32) -> Result<u64> {
    let tasks = format!("/proc/{pid}/task");
    let mut sum = 0;
    for task in fs::read_dir(&tasks).with_context(|| format!("reading {tasks}"))? {
        // The thread may have ended since it was listed.
        let Ok(stat) = fs::read_to_string(task?.path().join("schedstat")) else {
            continue;
        };
        sum += stat
            .split(' ')
            .next()
            .and_then(|ns| ns.parse::<u64>().ok())
            .unwrap_or(0);
    }
    Ok(sum)
}

/// Processor time in a span of time: of the contender, of the broker, and of this process, which
/// generates the load.
#[derive(Clone, Copy, Default)]
pub(crate) struct Cpu {
    pub(crate) contender_ns: u64,
    pub(crate) broker_ns: u64,
    pub(crate) load_ns: u64,
}

impl Cpu {
    /// The processor time of each so far.
    pub(crate) fn now(contender: u32, broker: u32) -> Result<Self> {
        Ok(Self {
            contender_ns: cpu_ns(contender)?,
            broker_ns: cpu_ns(broker)?,
            load_ns: cpu_ns(std::process::id())?,
        })
    }

    /// The processor time since then.
    pub(crate) fn since(self, then: Self) -> Self {
        Self {
            contender_ns: self.contender_ns.saturating_sub(then.contender_ns),
            broker_ns: self.broker_ns.saturating_sub(then.broker_ns),
            load_ns: self.load_ns.saturating_sub(then.load_ns),
        }
    }

    /// Adds another span.
    pub(crate) fn add(&mut self, other: Self) {
        self.contender_ns += other.contender_ns;
        self.broker_ns += other.broker_ns;
        self.load_ns += other.load_ns;
    }
}
